//! The outermost layer: the Confluent wire prefix, UTF-8 and JSON.

use serde::Deserialize;
use serde_json::error::Category;

use super::Record;
use super::error::{DecodeError, Part};
use super::row::Columns;

/// Some producers put it before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The record's text, without the wire prefix (byte 0 and four bytes of a schema id), a byte order mark
/// and white space around it.
pub(super) fn text(bytes: &[u8], part: Part) -> Result<&str, DecodeError> {
    let body = match bytes {
        [0, a, b, c, d, body @ ..] => {
            if !looks_like_json(body) {
                let schema_id = u32::from_be_bytes([*a, *b, *c, *d]);
                return Err(if is_protobuf(body) {
                    DecodeError::Protobuf { part, schema_id }
                } else {
                    DecodeError::Avro { part, schema_id }
                });
            }
            without_mark(body)
        }
        _ => without_mark(bytes),
    };
    let skipped = bytes.len() - body.len();
    std::str::from_utf8(body)
        .map(|text| text.trim_ascii())
        .map_err(|error| DecodeError::Utf8 { part, at: skipped + error.valid_up_to() })
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

fn looks_like_json(body: &[u8]) -> bool {
    let body = without_mark(body).trim_ascii();
    body.starts_with(b"{") || body == b"null"
}

/// Protobuf has the path of the message type after the prefix (nearly always the single byte 0),
/// then fields up to the exact end. Avro that begins with a 0 fails this check in its next bytes.
fn is_protobuf(body: &[u8]) -> bool {
    let Some((0, mut rest)) = body.split_first().map(|(first, rest)| (*first, rest)) else {
        return false;
    };
    let mut fields = 0;
    while !rest.is_empty() {
        let Some((tag, after)) = varint(rest) else { return false };
        let length = match tag & 7 {
            0 => varint(after).map(|(_, behind)| after.len() - behind.len()),
            1 => Some(8),
            2 => varint(after).and_then(|(length, behind)| {
                (after.len() - behind.len()).checked_add(usize::try_from(length).ok()?)
            }),
            5 => Some(4),
            _ => None,
        };
        match length.and_then(|length| after.get(length..)) {
            Some(behind) if tag >> 3 > 0 => rest = behind,
            _ => return false,
        }
        fields += 1;
    }
    fields > 0
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index).ok()? * 7)?;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

/// Splits a JSON object; `None` when it is well-formed JSON of another kind.
pub(super) fn object(text: &str, part: Part) -> Result<Option<Columns<'_>>, DecodeError> {
    match serde_json::from_str(text) {
        Ok(columns) => Ok(Some(columns)),
        Err(error) if error.classify() == Category::Data => Ok(None),
        Err(error) => Err(syntax(&error, part)),
    }
}

fn syntax(error: &serde_json::Error, part: Part) -> DecodeError {
    let problem = match error.classify() {
        Category::Eof => "it ends too early, perhaps it was cut off",
        _ => "it breaks the syntax here",
    };
    DecodeError::Json { part, problem, line: error.line(), column: error.column() }
}

/// This header names the parts of a record that were left out of its dead letter.
const LEFT_OUT: &str = "dlq.left_out";

/// The value's bytes; `None` is a tombstone.
///
/// # Errors
/// It was left out of a dead letter, so nobody can tell what the record was.
pub(super) fn value<'a>(record: &Record<'a>) -> Result<Option<&'a [u8]>, DecodeError> {
    let left_out = || record.headers.iter().any(|header| header.name == LEFT_OUT);
    if record.value.is_none() && left_out() {
        return Err(DecodeError::LeftOut);
    }
    Ok(record.value)
}

/// Reads a command: the plain JSON of `reward_redemptions` and of the marketplace orders (behaviour
/// sections 6 and 7), also behind the wire prefix. `None` is a tombstone, which commands nothing.
///
/// # Errors
/// The value is not JSON (or not the JSON of a `T`).
pub fn command<'a, T: Deserialize<'a>>(record: &Record<'a>) -> Result<Option<T>, DecodeError> {
    let Some(bytes) = value(record)? else { return Ok(None) };
    let text = text(bytes, Part::Value)?;
    serde_json::from_str(text).map(Some).map_err(|error| {
        if error.classify() != Category::Data {
            return syntax(&error, Part::Value);
        }
        // serde's other messages quote the value, which may be personal.
        let told = error.to_string();
        let problem = if told.starts_with("missing field") || told.starts_with("duplicate field") {
            told
        } else {
            let (line, column) = (error.line(), error.column());
            format!("a field has the wrong type or a value out of range, before line {line}, column {column}")
        };
        DecodeError::Command { problem }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Order<'a> {
        order_sn: &'a str,
        quantity: u32,
    }

    fn order(value: &[u8]) -> Result<Option<Order<'_>>, DecodeError> {
        command(&Record {
            topic: "marketplace.orders",
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: None,
            value: Some(value),
            headers: &[],
        })
    }

    #[test]
    fn a_command_is_read_with_and_without_the_wire_prefix() {
        let expected = Ok(Some(Order { order_sn: "A1", quantity: 2 }));
        assert_eq!(order(br#" {"order_sn":"A1","quantity":2} "#), expected);
        assert_eq!(order(b"\0\0\0\0\x07{\"order_sn\":\"A1\",\"quantity\":2}"), expected);
    }

    #[test]
    fn a_byte_order_mark_is_read_over() {
        let expected = Ok(Some(Order { order_sn: "A1", quantity: 2 }));
        assert_eq!(order(b"\xef\xbb\xbf {\"order_sn\":\"A1\",\"quantity\":2}"), expected);
        let framed = b"\0\0\0\0\x07\xef\xbb\xbf{\"order_sn\":\"A1\",\"quantity\":2}";
        assert_eq!(order(framed), expected);
        let error = text(b"\xef\xbb\xbf{\xff", Part::Value).expect_err("no text");
        assert_eq!(error, DecodeError::Utf8 { part: Part::Value, at: 4 });
    }

    #[test]
    fn a_bad_command_is_told_without_its_contents() {
        let error = order(br#"{"order_sn":"A1"}"#).expect_err("a field is missing");
        assert!(error.to_string().contains("missing field `quantity`"), "{error}");
        let error = order(br#"{"order_sn":"A1","quantity":"secret"}"#).expect_err("wrong type");
        assert_eq!(error.kind(), "command");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(order(b"{").expect_err("cut off").kind(), "invalid_json");
        assert_eq!(order(b"\xff{").expect_err("no text").kind(), "invalid_utf8");
    }

    #[test]
    fn protobuf_and_avro_are_told_apart_and_the_message_names_the_setting() {
        // Field 2 (after): a message with field 1, text; field 7 (op): text.
        let protobuf = b"\0\0\0\0\x09\0\x12\x04\x0a\x02ab\x3a\x01c";
        let error = text(protobuf, Part::Value).expect_err("Protobuf is not read");
        assert_eq!(error, DecodeError::Protobuf { part: Part::Value, schema_id: 9 });
        assert!(error.to_string().contains("output.data.format=JSON"), "{error}");
        // before: null; after: the second branch of the union.
        let avro = b"\0\0\x01\x86\xaa\0\x02\x48331b2fb3";
        let error = text(avro, Part::Key).expect_err("Avro is not read");
        assert_eq!(error, DecodeError::Avro { part: Part::Key, schema_id: 100_010 });
        assert!(error.to_string().contains("output.key.format=JSON"), "{error}");
    }
}
