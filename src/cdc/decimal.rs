//! Reads exact decimals from every form in which a connector writes them (behaviour section 2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use serde::Deserialize;

use super::text::Text;

/// The form in which a column's numbers come. A JSON number can come in any column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `numeric(p,s)` whose scale is configured.
    Configured,
    /// `numeric(p,s)` of this scale: decimal text or base64.
    Scale(u32),
    /// `numeric(p,s)` of this scale whose schema says bytes: a string is always base64.
    Base64(u32),
    /// `numeric`: decimal text or `{scale, value}`, never bare base64.
    Unconstrained,
    /// Decimal text: the schema says string, or the column is not numeric.
    Text,
}

/// How to read text that is both a decimal and base64: `1500` is a number, and base64 of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Decimal,
    Base64,
}

/// Why a column's JSON is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// `NaN`, `Infinity` or `-Infinity`: values of a `numeric` that no rule can use.
    NotFinite(&'static str),
    /// Not in a form that its type allows.
    Unknown,
}

/// PostgreSQL allows 131,072 digits before the point and 16,383 after it. More cannot come from a
/// database, and printing `1e999999999` would take the process down.
const MAX_TEXT: usize = 150_000;
const MAX_BYTES: usize = 65_536;
const MAX_SCALE: i64 = 131_072;

#[derive(Deserialize)]
struct Scaled<'a> {
    scale: i64,
    #[serde(borrow)]
    value: Text<'a>,
}

/// Reads a column's JSON. `either` decides about text that could be a decimal or base64, which is
/// rare. The scale is never negative: a zero of scale -3 would print as `0000`, which is not JSON.
pub(super) fn decode(
    json: &str,
    form: Form,
    either: impl Fn() -> Reading,
) -> Result<BigDecimal, Fault> {
    let number = read(json, form, either)?;
    Ok(if number.fractional_digit_count() < 0 { number.with_scale(0) } else { number })
}

fn read(json: &str, form: Form, either: impl Fn() -> Reading) -> Result<BigDecimal, Fault> {
    let read = match json.as_bytes().first() {
        Some(b'"') => {
            let Text(text) = serde_json::from_str(json).map_err(|_| Fault::Unknown)?;
            match form {
                Form::Base64(scale) => from_base64(&text, scale.into()),
                Form::Scale(scale) => match (look(&text), not_finite(&text)) {
                    (Look::Decimal, _) => from_text(&text),
                    // `Infinity` is base64 as well, and no `numeric(p,s)` holds an infinity.
                    (Look::Base64, Some(_)) if either() == Reading::Base64 => {
                        from_base64(&text, scale.into())
                    }
                    (_, Some(value)) => return Err(Fault::NotFinite(value)),
                    (Look::Base64, None) => from_base64(&text, scale.into()),
                    (Look::Either, None) => match either() {
                        Reading::Decimal => from_text(&text),
                        Reading::Base64 => from_base64(&text, scale.into()),
                    },
                },
                Form::Unconstrained | Form::Text | Form::Configured => match not_finite(&text) {
                    Some(value) => return Err(Fault::NotFinite(value)),
                    None => from_text(&text),
                },
            }
        }
        Some(b'{') => {
            let Scaled { scale, value } = serde_json::from_str(json).map_err(|_| Fault::Unknown)?;
            from_base64(&value.0, scale)
        }
        _ => from_text(json),
    };
    read.ok_or(Fault::Unknown)
}

/// What text of a `numeric(p,s)` looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// A decimal that cannot be base64: it has a point, a minus, or a length that base64 never has.
    Decimal,
    /// A decimal whose digits (and exponent) are base64 as well.
    Either,
    /// Not a decimal: base64, or not a number at all.
    Base64,
}

fn look(text: &str) -> Look {
    match (is_decimal(text), text.len().is_multiple_of(4) && !text.contains(['.', '-'])) {
        (true, false) => Look::Decimal,
        (true, true) => Look::Either,
        (false, _) => Look::Base64,
    }
}

/// The value's name in SQL. Debezium's string mode has names of its own.
fn not_finite(text: &str) -> Option<&'static str> {
    match text {
        "NaN" | "NAN" => Some("NaN"),
        "Infinity" | "POSITIVE_INFINITY" => Some("Infinity"),
        "-Infinity" | "NEGATIVE_INFINITY" => Some("-Infinity"),
        _ => None,
    }
}

/// How a row's numerics are written, judged by one of them. `None` for text that could be either,
/// and for JSON numbers, which come in every mode.
pub(super) fn form_of(json: &str) -> Option<Reading> {
    match json.as_bytes().first()? {
        b'{' => Some(Reading::Base64),
        b'"' => {
            let Text(text) = serde_json::from_str(json).ok()?;
            match look(&text) {
                Look::Decimal => Some(Reading::Decimal),
                Look::Base64 if not_finite(&text).is_none() && BASE64.decode(&*text).is_ok() => {
                    Some(Reading::Base64)
                }
                Look::Base64 | Look::Either => None,
            }
        }
        _ => None,
    }
}

fn from_base64(text: &str, scale: i64) -> Option<BigDecimal> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    if bytes.is_empty() || bytes.len() > MAX_BYTES || scale.abs() > MAX_SCALE {
        return None;
    }
    Some(BigDecimal::new(BigInt::from_signed_bytes_be(&bytes), scale))
}

/// Reads `-?\d+(\.\d+)?` with an optional exponent.
pub(super) fn from_text(text: &str) -> Option<BigDecimal> {
    if is_decimal(text) { text.parse().ok() } else { None }
}

fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.strip_prefix('+').unwrap_or(exponent)),
        None => (unsigned, "0"),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let sound = match mantissa.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(mantissa),
    };
    sound
        && text.len() <= MAX_TEXT
        && digits(exponent.strip_prefix('-').unwrap_or(exponent))
        && exponent.parse::<i64>().is_ok_and(|exponent| exponent.abs() <= MAX_SCALE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read_as(reading: Reading, json: &str, form: Form) -> Option<String> {
        decode(json, form, || reading).ok().map(|number| number.to_plain_string())
    }

    fn plain(json: &str, form: Form) -> Option<String> {
        read_as(Reading::Decimal, json, form)
    }

    #[test]
    fn base64_is_twos_complement_with_the_scale_of_the_column() {
        for (text, scale, number) in [
            ("JxA=", 2, "100.00"),
            ("AA==", 2, "0.00"),
            ("/w==", 2, "-0.01"),
            ("gA==", 2, "-1.28"),
            ("AIA=", 2, "1.28"),
            ("ZA==", 0, "100"),
            ("AKtUqYyo5NUV", 10, "1234567890.0123456789"),
        ] {
            let json = json!(text).to_string();
            assert_eq!(plain(&json, Form::Scale(scale)).as_deref(), Some(number), "{text}");
            assert_eq!(plain(&json, Form::Base64(scale)).as_deref(), Some(number), "{text}");
        }
    }

    #[test]
    fn digits_alone_are_read_as_the_row_tells() {
        // 1500 as base64 is the bytes d7 9d 34.
        let base64 = |json, form| read_as(Reading::Base64, json, form);
        for scale in [0, 2, 4] {
            assert_eq!(plain("\"1500\"", Form::Scale(scale)).as_deref(), Some("1500"));
            assert_eq!(plain("\"15E1\"", Form::Scale(scale)).as_deref(), Some("150"));
        }
        assert_eq!(base64("\"1500\"", Form::Scale(2)).as_deref(), Some("-26467.32"));
        assert_eq!(base64("\"1500\"", Form::Scale(0)).as_deref(), Some("-2646732"));
        assert_eq!(plain("\"1500\"", Form::Base64(0)).as_deref(), Some("-2646732"));
        for form in [Form::Unconstrained, Form::Text] {
            assert_eq!(base64("\"1500\"", form).as_deref(), Some("1500"));
        }
    }

    #[test]
    fn what_can_be_read_in_one_way_is_whatever_the_row_tells() {
        for reading in [Reading::Decimal, Reading::Base64] {
            let read = |json: &str, form| read_as(reading, json, form);
            for number in ["1500.00", "-1500", "150", "15000", "1.5e3", "0"] {
                let plain = from_text(number).map(|number| number.to_plain_string());
                assert_eq!(read(&json!(number).to_string(), Form::Scale(2)), plain, "{number}");
            }
            assert_eq!(read("1500", Form::Scale(2)).as_deref(), Some("1500"));
            assert_eq!(read("\"JxA=\"", Form::Scale(2)).as_deref(), Some("100.00"));
        }
    }

    #[test]
    fn a_numeric_tells_how_its_row_is_written_where_it_can() {
        for json in ["\"AA==\"", "\"JxA=\"", r#"{"scale":0,"value":"AA=="}"#, "\"BfXg\""] {
            assert_eq!(form_of(json), Some(Reading::Base64), "{json}");
        }
        for json in ["\"0.00\"", "\"-1\"", "\"150\"", "\"1.5E3\""] {
            assert_eq!(form_of(json), Some(Reading::Decimal), "{json}");
        }
        for json in ["\"1500\"", "\"12E5\"", "1500", "null", "\"NaN\"", "\"Infinity\"", "\"no!\""] {
            assert_eq!(form_of(json), None, "{json}");
        }
    }

    #[test]
    fn no_positive_number_s_base64_begins_with_a_digit() {
        for first in 0..=u8::MAX {
            let text = BASE64.encode([first, 0, 0]);
            assert!(!text.starts_with(|c: char| c.is_ascii_digit()) || first >= 0x80, "{text}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_told_from_what_is_no_number() {
        for (text, value) in [
            ("NaN", "NaN"),
            ("Infinity", "Infinity"),
            ("-Infinity", "-Infinity"),
            ("NAN", "NaN"),
            ("POSITIVE_INFINITY", "Infinity"),
            ("NEGATIVE_INFINITY", "-Infinity"),
        ] {
            let json = json!(text).to_string();
            for form in [Form::Scale(2), Form::Scale(0), Form::Unconstrained, Form::Text] {
                let read = decode(&json, form, || Reading::Decimal);
                assert_eq!(read, Err(Fault::NotFinite(value)), "{form:?}");
            }
        }
        assert_eq!(
            read_as(Reading::Base64, "\"Infinity\"", Form::Scale(2)).as_deref(),
            Some("378982984692.34")
        );
        assert_eq!(
            decode("\"nan\"", Form::Unconstrained, || Reading::Decimal),
            Err(Fault::Unknown)
        );
    }

    #[test]
    fn an_unconstrained_numeric_brings_its_own_scale_and_is_never_bare_base64() {
        let form = Form::Unconstrained;
        assert_eq!(plain(r#"{"scale":1,"value":"Dw=="}"#, form).as_deref(), Some("1.5"));
        assert_eq!(plain(r#"{"value":"GQ==","scale":-2}"#, form).as_deref(), Some("2500"));
        assert_eq!(plain("\"2500.00\"", form).as_deref(), Some("2500.00"));
        assert_eq!(plain("\"JxA=\"", form), None);
    }

    #[test]
    fn a_number_prints_as_json_whatever_its_scale() {
        for json in [r#"{"scale":-9,"value":"AA=="}"#, "0e5", "\"0E+5\"", "-0", "-0.00e2"] {
            let text = plain(json, Form::Unconstrained).expect("zero");
            let number: Result<f64, _> = serde_json::from_str(&text);
            assert_eq!(number.ok(), Some(0.0), "{json} became {text}");
        }
        assert_eq!(plain("12e3", Form::Unconstrained).as_deref(), Some("12000"));
    }

    #[test]
    fn digits_beyond_a_double_survive() {
        let text = "123456789012345678901234567890.123456789";
        assert_eq!(plain(text, Form::Scale(2)).as_deref(), Some(text));
        assert_eq!(
            plain("9007199254740993", Form::Unconstrained).as_deref(),
            Some("9007199254740993")
        );
        assert_eq!(plain("9.99999999999E9", Form::Scale(2)).as_deref(), Some("9999999999.99"));
        assert_eq!(
            plain("\"1E-18\"", Form::Unconstrained).as_deref(),
            Some("0.000000000000000001")
        );
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for json in [
            "\"\"",
            "\"NaN\"",
            "\"1.\"",
            "\".5\"",
            "\"1_0.0\"",
            "\"+1.0\"",
            "true",
            "[1]",
            "{}",
            "1e999999999",
            "\"1.0e-999999999999999999999\"",
            r#"{"scale":9999999,"value":"AA=="}"#,
        ] {
            assert_eq!(plain(json, Form::Scale(2)), None, "{json}");
            assert_eq!(plain(json, Form::Unconstrained), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn a_decimal_survives_every_encoding(unscaled in any::<i128>(), scale in 0_u32..20) {
            let number = BigDecimal::new(unscaled.into(), scale.into());
            let base64 = BASE64.encode(BigInt::from(unscaled).to_signed_bytes_be());
            let text = number.to_plain_string();
            let forms = [
                (text.clone(), Form::Scale(scale)),
                (text.clone(), Form::Unconstrained),
                (json!(text).to_string(), Form::Scale(scale)),
                (json!(text).to_string(), Form::Unconstrained),
                (json!(text).to_string(), Form::Text),
                (json!(base64).to_string(), Form::Base64(scale)),
                (json!({"scale": scale, "value": base64}).to_string(), Form::Unconstrained),
            ];
            for (json, form) in forms {
                let read = decode(&json, form, || Reading::Decimal);
                prop_assert_eq!(read, Ok(number.clone()), "{} {:?}", json, form);
            }
            let json = json!(base64).to_string();
            prop_assert_eq!(decode(&json, Form::Scale(scale), || Reading::Base64), Ok(number));
        }
    }
}
