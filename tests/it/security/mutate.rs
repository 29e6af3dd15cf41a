//! Records spoilt at random, in their bytes and JSON. The same number spoils in the same way.

use std::ops::Range;

use fastrand::Rng;

/// Values that may replace others.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "\"\"",
    "{}",
    "[]",
    "-",
    "0",
    "-0",
    "-0.0",
    "1e-400",
    "-1.5e-310",
    "1e9999",
    "-1e999999999",
    "0.1e+131072",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "123456789012345678901234567890123456789.987654321",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"a\\nb\"",
    "\"1500\"",
    "\"-12.50\"",
    "\"+1\"",
    "\"1e5\"",
    "\"NaN\"",
    "\"-Infinity\"",
    "\"infinity\"",
    "\"JxA=\"",
    "\"gA==\"",
    "\"/////////////////////w==\"",
    "\"JxA\"",
    "\"completed\"",
    "\"refunded\"",
    "\"debit\"",
    "\"2024-02-30T25:61:61Z\"",
    "\"+292278994-08-17T00:00:00Z\"",
    "\"1970-01-01\"",
    "\"__debezium_unavailable_value\"",
    "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"",
    "[\"__debezium_unavailable_value\"]",
    "{\"scale\":2,\"value\":\"JxA=\"}",
    "{\"scale\":-9,\"value\":\"AA==\"}",
    "{\"scale\":131072,\"value\":\"fw==\"}",
    "{\"scale\":9223372036854775807,\"value\":\"gA==\"}",
    "{\"value\":1,\"scale\":\"2\"}",
    "\"c\"",
    "\"u\"",
    "\"d\"",
    "\"r\"",
    "\"[null,\\\"1\\\"]\"",
    "\"[\\\"18446744073709551615\\\",\\\"0\\\"]\"",
];

/// Names that may replace others: they decide what a record is.
const NAMES: &[&str] = &[
    "op",
    "before",
    "after",
    "source",
    "schema",
    "payload",
    "ts_ms",
    "ts_us",
    "lsn",
    "txId",
    "sequence",
    "snapshot",
    "table",
    "id",
    "status",
    "user_id",
    "merchant_id",
    "created_at",
    "final_amount",
    "__op",
    "__deleted",
    "__ts_ms",
    "__source_sequence",
    "__source_ts_us",
    "__source_txId",
    "scale",
    "fields",
    "type",
    "name",
    "",
    "a\\nb",
];

/// Bytes that may come before a record: wire prefixes and beginnings of compressed data.
const PREFIXES: &[&[u8]] = &[
    b"\0\0\0\0\x01",
    b"\0\xff\xff\xff\xff\0",
    b"\0\0\0\0\x01\x02\x04",
    b"\x78\x9c",
    b"\x1f\x8b\x08\0",
    b"\xef\xbb\xbf",
    b"\x28\xb5\x2f\xfd",
    b" \n\t",
];

/// Spoils `bytes` in one way; pieces may come from `other`.
pub(super) fn spoil(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    match rng.u8(..16) {
        0 => {
            if let Some(byte) = rng.choice(bytes.iter_mut()) {
                *byte ^= 1 << rng.u8(..8);
            }
        }
        1 => {
            if let Some(byte) = rng.choice(bytes.iter_mut()) {
                *byte = rng.u8(..);
            }
        }
        2 => bytes.truncate(rng.usize(..=bytes.len())),
        3 => drop(bytes.drain(range(bytes.len(), rng))),
        4 => {
            let more: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(8).collect();
            splice(bytes, &more, rng);
        }
        5 => {
            let piece = other[range(other.len(), rng)].to_vec();
            splice(bytes, &piece, rng);
        }
        6 => {
            let piece = bytes[range(bytes.len(), rng)].to_vec();
            splice(bytes, &piece, rng);
        }
        7 => {
            let prefix = PREFIXES[rng.usize(..PREFIXES.len())];
            bytes.splice(..0, prefix.iter().copied());
        }
        _ => spoil_json(bytes, other, rng),
    }
}

fn spoil_json(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let tokens = tokens(bytes);
    let Some(token) = rng.choice(tokens.iter()).cloned() else { return };
    let is_name = bytes.get(token.end) == Some(&b':');
    let new: Vec<u8> = match rng.u8(..8) {
        0 if !is_name => nested(rng),
        1 if !is_name => long(rng),
        // A value of another place, here or in another record.
        2 => {
            let from = if rng.bool() { bytes.as_slice() } else { other };
            let found = self::tokens(from);
            rng.choice(found.iter()).map_or_else(Vec::new, |range| from[range.clone()].to_vec())
        }
        3 => number(&bytes[token.clone()], rng),
        // A member is doubled or removed.
        4 if is_name => {
            let end = member_end(bytes, &token);
            let member = bytes[token.start..end].to_vec();
            return drop(bytes.splice(token.start..token.start, [&member[..], b","].concat()));
        }
        5 if is_name => {
            let end = member_end(bytes, &token);
            let comma = usize::from(bytes.get(end) == Some(&b','));
            return drop(bytes.drain(token.start..end + comma));
        }
        _ if is_name => format!("\"{}\"", NAMES[rng.usize(..NAMES.len())]).into_bytes(),
        _ => VALUES[rng.usize(..VALUES.len())].as_bytes().to_vec(),
    };
    bytes.splice(token, new);
}

/// A number like the one that is there: another sign, exponent or length.
fn number(token: &[u8], rng: &mut Rng) -> Vec<u8> {
    let text = String::from_utf8_lossy(token);
    let text = text.trim_matches('"');
    match rng.u8(..5) {
        0 => format!("-{text}"),
        1 => format!("{text}e{}", rng.i32(-400..400)),
        2 => format!("\"{text}.{}\"", rng.u32(..)),
        3 => format!("{text}{}", "0".repeat(rng.usize(..40))),
        _ => format!("\"{text}\""),
    }
    .into_bytes()
}

/// Rarely so deep that recursion would overflow.
fn nested(rng: &mut Rng) -> Vec<u8> {
    let depth = if rng.u8(..) == 0 { 50_000 } else { rng.usize(..200) };
    let (open, close) = if rng.bool() { ("[", "]") } else { ("{\"a\":", "}") };
    [open.repeat(depth), "1".to_owned(), close.repeat(depth)].concat().into_bytes()
}

/// Rarely as long as a record may be.
fn long(rng: &mut Rng) -> Vec<u8> {
    let length = if rng.u8(..) == 0 { 900_000 } else { rng.usize(..2000) };
    let digit = [b'9', b'A', b'\\', b'0', 0x80][rng.usize(..5)];
    match rng.u8(..3) {
        0 => vec![digit; length],
        1 => [&b"\""[..], &vec![digit; length], b"\""].concat(),
        _ => [&b"{\"scale\":1,\"value\":\""[..], &vec![digit; length], b"\"}"].concat(),
    }
}

fn range(length: usize, rng: &mut Rng) -> Range<usize> {
    let (a, b) = (rng.usize(..=length), rng.usize(..=length));
    a.min(b)..a.max(b)
}

fn splice(bytes: &mut Vec<u8>, piece: &[u8], rng: &mut Rng) {
    let at = rng.usize(..=bytes.len());
    bytes.splice(at..at, piece.iter().copied());
}

fn member_end(bytes: &[u8], name: &Range<usize>) -> usize {
    let found = tokens(&bytes[name.end..]);
    found.iter().find(|token| token.start == 1).map_or(name.end, |token| name.end + token.end)
}

/// Where names and values lie, objects and arrays too, as far as the bytes are JSON.
fn tokens(bytes: &[u8]) -> Vec<Range<usize>> {
    let (mut found, mut open, mut at) = (Vec::new(), Vec::new(), 0);
    while at < bytes.len() {
        let start = at;
        at += 1;
        match bytes[start] {
            b'"' => {
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(bytes.len());
                found.push(start..at);
            }
            b'{' | b'[' => {
                open.push(found.len());
                found.push(start..bytes.len());
            }
            b'}' | b']' => {
                if let Some(index) = open.pop() {
                    found[index].end = at;
                }
            }
            b',' | b':' | b' ' | b'\n' | b'\t' | b'\r' => {}
            _ => {
                let ends = |byte: &u8| b",:{}[]\" \n\t\r".contains(byte);
                at = bytes[at..].iter().position(ends).map_or(bytes.len(), |end| at + end);
                found.push(start..at);
            }
        }
    }
    found
}

#[test]
fn names_and_values_are_found() {
    let text = br#"{"a":[1,{"b\"":null}],"c":"x"}"#;
    let found: Vec<&[u8]> = tokens(text).into_iter().map(|token| &text[token]).collect();
    let expected: Vec<&[u8]> = vec![
        text,
        b"\"a\"",
        b"[1,{\"b\\\"\":null}]",
        b"1",
        b"{\"b\\\"\":null}",
        b"\"b\\\"\"",
        b"null",
        b"\"c\"",
        b"\"x\"",
    ];
    assert_eq!(found, expected);
}
