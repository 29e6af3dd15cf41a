//! The placeholder for a value that the database did not write again: an unchanged one, stored out
//! of line (behaviour section 2). Debezium writes it in the form of the column's type.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::catalogue::Kind;
use super::text::Text;

const PLACEHOLDER: &str = "__debezium_unavailable_value";
const QUOTED: &str = "\"__debezium_unavailable_value\"";
const TEXT_ARRAY: &str = "[\"__debezium_unavailable_value\"]";
/// The UUID that Java derives from the placeholder's bytes.
const UUID_ARRAY: &str = "[\"b68a35a7-17ad-35b3-af2a-ae46edb4545a\"]";
const BYTES_ARRAY: &str = "[\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"]";
const MAP: &str = "{\"__debezium_unavailable_value\":\"__debezium_unavailable_value\"}";
/// `bytea` as base64 (also of the alphabet for URLs, perhaps without padding) and as hex.
const BASE64_TEXT: &str = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ";
const HEX_TEXT: &str = "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565";
/// Points that stand for geometries and geographies, as the members `wkb` of their objects.
const WKB: [&str; 2] =
    ["AQEAACDmEAAAAAAA/IPXl8EAAAD8g9eXwQ==", "AQEAACDmEAAADCHn/f9/ZkAYQs77/39WQA=="];
/// Both coordinates of the placeholder for a point.
const POINT: f64 = -99_999_999.0;

/// Whether a column's JSON is the placeholder. `kind` is called only if it looks like one.
pub(super) fn is_placeholder(json: &str, kind: impl FnOnce() -> Option<Kind>) -> bool {
    // Most values are shorter than every form of the placeholder.
    if json.len() < PLACEHOLDER.len() {
        return false;
    }
    match json.as_bytes()[0] {
        b'"' if json == QUOTED => true,
        // A text column may really hold such text. Columns of bytes or of unknown type cannot.
        b'"' => is_encoded(json) && !matches!(kind(), Some(Kind::Text | Kind::Uuid)),
        b'[' => {
            [TEXT_ARRAY, UUID_ARRAY, BYTES_ARRAY].iter().any(|form| is_spaced(json, form))
                || is_byte_by_byte(json)
        }
        b'{' => is_spaced(json, MAP) || is_geometry(json),
        _ => false,
    }
}

/// `json` is a string that is not short. Its first byte rules out nearly every value.
fn is_encoded(json: &str) -> bool {
    let text = || json.get(1..json.len() - 1).unwrap_or_default();
    match json.as_bytes()[1] {
        b'X' => text().trim_end_matches('=') == BASE64_TEXT,
        b'5' => text().eq_ignore_ascii_case(HEX_TEXT),
        // hstore as text (`hstore.handling.mode=json`).
        b'{' => serde_json::from_str::<Text<'_>>(json).is_ok_and(|text| is_spaced(&text.0, MAP)),
        _ => false,
    }
}

/// Whether it is this form, white space aside: the placeholder has none.
fn is_spaced(json: &str, form: &str) -> bool {
    json.bytes().filter(|byte| !byte.is_ascii_whitespace()).eq(form.bytes())
}

/// Arrays of numbers, booleans and decimals hold an element for each byte of the placeholder.
fn is_byte_by_byte(json: &str) -> bool {
    let rest = json[1..].trim_ascii_start();
    let first = rest.split([',', '}', ']']).next().unwrap_or_default();
    // Arrays of other values are not taken apart.
    let begins = ["95", "95.0", "true", "\"Xw==\""].contains(&first.trim_ascii_end());
    if !begins && !rest.starts_with('{') {
        return false;
    }
    let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(json) else { return false };
    elements.len() == PLACEHOLDER.len()
        && elements.iter().zip(PLACEHOLDER.bytes()).all(|(element, byte)| is_byte(element, byte))
}

fn is_byte(element: &RawValue, byte: u8) -> bool {
    #[derive(Deserialize)]
    struct Scaled<'a> {
        scale: i64,
        value: &'a str,
    }
    let base64 = |text: &str| BASE64.decode(text).is_ok_and(|bytes| bytes == [byte]);
    let text = element.get();
    match text.as_bytes().first() {
        Some(b'{') => serde_json::from_str::<Scaled<'_>>(text)
            .is_ok_and(|scaled| scaled.scale == 0 && base64(scaled.value)),
        Some(b'"') => base64(text.trim_matches('"')),
        Some(b't') => text == "true",
        _ => text.strip_suffix(".0").unwrap_or(text).parse() == Ok(byte),
    }
}

fn is_geometry(json: &str) -> bool {
    #[derive(Deserialize)]
    struct Shape<'a> {
        wkb: Option<&'a str>,
        x: Option<f64>,
        y: Option<f64>,
    }
    serde_json::from_str::<Shape<'_>>(json).is_ok_and(|shape| {
        shape.wkb.is_some_and(|wkb| WKB.contains(&wkb))
            || (shape.x == Some(POINT) && shape.y == Some(POINT))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn each_byte(element: impl Fn(u8) -> Value) -> Value {
        PLACEHOLDER.bytes().map(element).collect()
    }

    /// By its type in PostgreSQL.
    fn forms() -> Vec<(&'static str, Value)> {
        let base64 = |byte: u8| BASE64.encode([byte]);
        vec![
            ("text, json, jsonb, inet", json!(PLACEHOLDER)),
            ("bytea as base64", json!(BASE64.encode(PLACEHOLDER))),
            ("bytea as base64 without padding", json!(BASE64_TEXT)),
            ("bytea as hex", json!(HEX_TEXT)),
            ("text[], json[]", json!([PLACEHOLDER])),
            ("bytea[]", json!([BASE64.encode(PLACEHOLDER)])),
            ("uuid[]", json!(["b68a35a7-17ad-35b3-af2a-ae46edb4545a"])),
            ("smallint[], int[], bigint[], date[]", each_byte(|byte| json!(byte))),
            ("real[], double precision[]", each_byte(|byte| json!(f64::from(byte)))),
            ("boolean[]", each_byte(|_| json!(true))),
            ("numeric(12,2)[]", each_byte(|byte| json!(base64(byte)))),
            ("numeric[]", each_byte(|byte| json!({"scale": 0, "value": base64(byte)}))),
            ("hstore", json!({ PLACEHOLDER: PLACEHOLDER })),
            ("hstore as text", json!(json!({ PLACEHOLDER: PLACEHOLDER }).to_string())),
            ("geometry", json!({"wkb": WKB[0], "srid": 4326})),
            ("geography", json!({"wkb": WKB[1], "srid": 4326})),
            ("point", json!({"x": POINT, "y": POINT, "wkb": "AQ==", "srid": null})),
        ]
    }

    #[test]
    fn every_type_s_form_is_known_with_and_without_spaces() {
        for (form, value) in forms() {
            let spaced = value.to_string().replace("\":\"", "\": \"").replace(',', " , ");
            for json in [value.to_string(), spaced] {
                assert!(is_placeholder(&json, || None), "{form}: {json}");
                assert!(is_placeholder(&json, || Some(Kind::Other)), "{form}: {json}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_it_is_a_value() {
        for value in [
            json!([]),
            json!([95, 95]),
            json!(["b68a35a7-17ad-35b3-af2a-ae46edb4545a", "b68a35a7-17ad-35b3-af2a-ae46edb4545a"]),
            json!(["__debezium_unavailable_value", "and more of the same"]),
            json!({"__debezium_unavailable_value": "another value behind it"}),
            json!(format!("{PLACEHOLDER} ")),
            json!({"wkb": "AQEAACDmEAAAAAAAAAAA8D8AAAAAAADwPw==", "srid": 4326}),
            each_byte(|byte| json!(byte.saturating_sub(u8::from(byte == b'v')))),
            json!(vec![true; 29]),
        ] {
            assert!(!is_placeholder(&value.to_string(), || None), "{value}");
        }
        // Text columns hold what they like.
        for text in [BASE64.encode(PLACEHOLDER), HEX_TEXT.to_owned()] {
            assert!(!is_placeholder(&json!(text).to_string(), || Some(Kind::Text)), "{text}");
        }
    }

    #[test]
    fn the_points_of_geometries_are_those_that_debezium_makes() {
        let hex = |text: &str| -> Vec<u8> {
            let digits =
                text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("hex"));
            digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
        };
        let geometry = hex("0101000020E6100000000000FC83D797C1000000FC83D797C1");
        let geography = hex("0101000020E61000000C21E7FDFF7F66401842CEFBFF7F5640");
        assert_eq!(WKB, [BASE64.encode(geometry), BASE64.encode(geography)]);
        assert_eq!(hex(HEX_TEXT), PLACEHOLDER.as_bytes());
    }
}
