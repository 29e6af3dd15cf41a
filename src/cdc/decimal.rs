//! Exact decimals out of every form that a connector writes them in (contract section 2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use serde::Deserialize;

use super::text::Text;

/// In which form a column's numbers can come. A JSON number can come in any column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `numeric(p,s)` whose scale the configuration tells.
    Configured,
    /// `numeric(p,s)` of this scale: decimal text or base64, told apart by their look.
    Scale(u32),
    /// `numeric(p,s)` of this scale whose schema says bytes: a string is base64, whatever its look.
    Base64(u32),
    /// `numeric`: decimal text or `{scale, value}`, never bare base64.
    Unconstrained,
    /// The schema says string, or the column is none of numbers: decimal text.
    Text,
}

/// PostgreSQL's own limits are 131,072 digits before and 16,383 after the point. More is no number of
/// a database, and printing `1e999999999` would take the process down.
const MAX_TEXT: usize = 150_000;
const MAX_BYTES: usize = 65_536;
const MAX_SCALE: i64 = 131_072;

#[derive(Deserialize)]
struct Scaled<'a> {
    scale: i64,
    #[serde(borrow)]
    value: Text<'a>,
}

/// Reads a column's JSON; `None` when it is no number in that form. The scale is never negative: a
/// zero of scale -3 would print as `0000`, which is no JSON.
pub(super) fn decode(json: &str, form: Form) -> Option<BigDecimal> {
    let number = read(json, form)?;
    Some(if number.fractional_digit_count() < 0 { number.with_scale(0) } else { number })
}

fn read(json: &str, form: Form) -> Option<BigDecimal> {
    match json.as_bytes().first()? {
        b'"' => {
            let Text(text) = serde_json::from_str(json).ok()?;
            match form {
                Form::Unconstrained | Form::Text => from_text(&text),
                Form::Base64(scale) => from_base64(&text, scale.into()),
                // `1500` is base64 as well. With digits after the point, text always shows them;
                // without, base64 that looks like a number would need to be all digits.
                Form::Scale(scale) if scale > 0 && !text.contains('.') => {
                    from_base64(&text, scale.into())
                }
                Form::Scale(scale) => from_text(&text).or_else(|| from_base64(&text, scale.into())),
                Form::Configured => None,
            }
        }
        b'{' => {
            let Scaled { scale, value } = serde_json::from_str(json).ok()?;
            from_base64(&value.0, scale)
        }
        _ => from_text(json),
    }
}

fn from_base64(text: &str, scale: i64) -> Option<BigDecimal> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    if bytes.is_empty() || bytes.len() > MAX_BYTES || scale.abs() > MAX_SCALE {
        return None;
    }
    Some(BigDecimal::new(BigInt::from_signed_bytes_be(&bytes), scale))
}

/// `-?\d+(\.\d+)?` with an optional exponent.
pub(super) fn from_text(text: &str) -> Option<BigDecimal> {
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
    if !sound
        || text.len() > MAX_TEXT
        || !digits(exponent.strip_prefix('-').unwrap_or(exponent))
        || exponent.parse::<i64>().ok()?.abs() > MAX_SCALE
    {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn plain(json: &str, form: Form) -> Option<String> {
        decode(json, form).map(|number| number.to_plain_string())
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
    fn digits_alone_are_base64_where_the_scale_is_above_zero_and_text_where_it_is_not() {
        // 1500 as base64 is the bytes d7 9d 34.
        assert_eq!(plain("\"1500\"", Form::Scale(2)).as_deref(), Some("-26467.32"));
        assert_eq!(plain("\"1500\"", Form::Scale(0)).as_deref(), Some("1500"));
        assert_eq!(plain("\"1500\"", Form::Base64(0)).as_deref(), Some("-2646732"));
        assert_eq!(plain("\"1500\"", Form::Unconstrained).as_deref(), Some("1500"));
        assert_eq!(plain("\"1500.00\"", Form::Scale(2)).as_deref(), Some("1500.00"));
        assert_eq!(plain("1500", Form::Scale(2)).as_deref(), Some("1500"));
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
                prop_assert_eq!(decode(&json, form), Some(number.clone()), "{} {:?}", json, form);
            }
            if scale > 0 {
                let json = json!(base64).to_string();
                prop_assert_eq!(decode(&json, Form::Scale(scale)), Some(number));
            }
        }
    }
}
