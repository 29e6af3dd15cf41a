//! Records in files: one JSON object a line, in any form of `tests/fixtures/README.md`, gzip or not.

use std::io::{self, BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Deserializer};

use crate::cdc::{Header, Record};

/// Some editors put it at the head of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// A header's name and value.
pub type NamedBytes = (String, Option<Vec<u8>>);

/// One recorded record, with bytes of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Topic it came from.
    pub topic: String,
    /// Partition it came from; 0 when the line does not say.
    pub partition: i32,
    /// Its offset; 0 when the line does not say.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    /// Key bytes.
    pub key: Option<Vec<u8>>,
    /// Value bytes.
    pub value: Option<Vec<u8>>,
    /// Names and values of the headers, in order.
    pub headers: Vec<NamedBytes>,
}

/// A recording that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// A line is not a record.
    #[error("line {line} is not a record: {problem}")]
    Line {
        /// Line number from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The file or stream failed.
    #[error("reading failed after line {line}")]
    Read {
        /// The last line that was read; 0 before the first.
        line: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl Recorded {
    /// Reads one line.
    ///
    /// # Errors
    /// The line is no JSON object with a topic and a value, or its base64 is broken; the text says which.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line.trim_start_matches(BYTE_ORDER_MARK))
            .map_err(|error| error.to_string())?;
        // A null value is a tombstone; a value under another name is none.
        let value = match (line.value.or(line.payload), line.value_base64) {
            (Some(Some(text)), _) => Some(text.into_bytes()),
            (_, Some(encoded)) => base64(encoded, "value_base64")?,
            (Some(None), None) => None,
            (None, None) => {
                return Err(
                    "it has no value, value_base64 or payload (null for a tombstone)".into()
                );
            }
        };
        Ok(Self {
            headers: line.headers.map(headers).transpose()?.unwrap_or_default(),
            topic: line.topic,
            partition: line.partition,
            offset: line.offset,
            // kcat writes -1 where the broker has none.
            timestamp_ms: line.timestamp_ms.filter(|ms| *ms >= 0),
            key: match line.key {
                Some(text) => Some(text.into_bytes()),
                None => base64(line.key_base64, "key_base64")?,
            },
            value,
        })
    }

    /// Lends the record to decoding.
    pub fn lend<T>(&self, take: impl FnOnce(&Record<'_>) -> T) -> T {
        let headers: Vec<Header<'_>> = self
            .headers
            .iter()
            .map(|(name, value)| Header { name, value: value.as_deref() })
            .collect();
        take(&Record {
            topic: &self.topic,
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
        })
    }
}

/// Reads a recording to its end; gzip is recognised by its first bytes. Ends after the first error.
pub fn read<'a>(
    input: impl Read + 'a,
) -> impl Iterator<Item = Result<Recorded, RecordingError>> + 'a {
    let mut input = BufReader::new(input);
    let lines: Box<dyn BufRead + 'a> = match input.fill_buf() {
        Ok([0x1f, 0x8b, ..]) => Box::new(BufReader::new(MultiGzDecoder::new(input))),
        // A failure shows again at the first line.
        _ => Box::new(input),
    };
    let mut failed = false;
    lines
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.as_ref().is_ok_and(|line| line.trim_ascii().is_empty()))
        .map(|(index, line)| match line {
            Ok(line) => Recorded::from_line(&line)
                .map_err(|problem| RecordingError::Line { line: index + 1, problem }),
            Err(source) => Err(RecordingError::Read { line: index, source }),
        })
        .take_while(move |record| !std::mem::replace(&mut failed, record.is_err()))
}

#[derive(Deserialize)]
struct Line {
    topic: String,
    #[serde(default)]
    partition: i32,
    #[serde(default)]
    offset: i64,
    #[serde(alias = "ts")]
    timestamp_ms: Option<i64>,
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    value_base64: Option<Option<String>>,
    /// kcat's name for it.
    #[serde(default, deserialize_with = "present")]
    payload: Option<Option<String>>,
    headers: Option<LineHeaders>,
}

/// Tells null from a member that is not there.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LineHeaders {
    Each(Vec<LineHeader>),
    /// kcat's: names and values by turns.
    Flat(Vec<Option<String>>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LineHeader {
    Pair(String, Option<String>),
    Named { key: String, value_base64: Option<String> },
}

fn headers(headers: LineHeaders) -> Result<Vec<NamedBytes>, String> {
    match headers {
        LineHeaders::Each(headers) => headers
            .into_iter()
            .map(|header| match header {
                LineHeader::Pair(name, text) => Ok((name, text.map(String::into_bytes))),
                LineHeader::Named { key, value_base64 } => {
                    let value = base64(value_base64, &key)?;
                    Ok((key, value))
                }
            })
            .collect(),
        LineHeaders::Flat(parts) => parts
            .chunks(2)
            .map(|pair| match pair {
                [Some(name), value] => Ok((name.clone(), value.clone().map(String::into_bytes))),
                _ => Err("headers are neither pairs nor names and values by turns".to_owned()),
            })
            .collect(),
    }
}

fn base64(encoded: Option<String>, field: &str) -> Result<Option<Vec<u8>>, String> {
    encoded
        .map(|text| BASE64.decode(text).map_err(|error| format!("{field} is not base64: {error}")))
        .transpose()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const LINES: &str = concat!(
        r#"{"topic":"t","partition":3,"offset":7,"timestamp_ms":1,"key_base64":"a2V5","value_base64":null,"headers":[{"key":"h","value_base64":"AP8=","value_utf8":null},{"key":"n","value_base64":null}]}"#,
        "\n\n",
        r#"{"topic":"t","partition":3,"offset":8,"timestamp_ms":2,"key":"key","value":"{}","headers":[["h","x"],["n",null]]}"#,
        "\n",
    );

    #[test]
    fn both_forms_are_read_plain_and_compressed() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(LINES.as_bytes()).expect("memory takes it");
        let gzip = gzip.finish().expect("memory takes it");
        for input in [LINES.as_bytes(), &gzip] {
            let records: Vec<_> =
                read(input).collect::<Result<_, _>>().expect("both lines are records");
            assert_eq!(records.len(), 2);
            let [full, lean] = &records[..] else { unreachable!("two records were counted") };
            assert_eq!(full.key.as_deref(), Some(&b"key"[..]));
            assert_eq!(full.value, None);
            assert_eq!(
                full.headers,
                [("h".to_owned(), Some(vec![0, 0xff])), ("n".to_owned(), None)]
            );
            assert_eq!((lean.partition, lean.offset, lean.timestamp_ms), (3, 8, Some(2)));
            assert_eq!(lean.value.as_deref(), Some(&b"{}"[..]));
            assert_eq!(
                lean.headers,
                [("h".to_owned(), Some(b"x".to_vec())), ("n".to_owned(), None)]
            );
        }
    }

    #[test]
    fn a_line_of_kcat_is_read() {
        let line = r#"{"topic":"t","partition":1,"offset":5,"tstype":"create","ts":7,"broker":1,"headers":["h","x","n",null],"key":"k","payload":"{}"}"#;
        let record = Recorded::from_line(line).expect("kcat -J writes so");
        assert_eq!((record.partition, record.offset, record.timestamp_ms), (1, 5, Some(7)));
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"{}"[..]));
        let headers = [("h".to_owned(), Some(b"x".to_vec())), ("n".to_owned(), None)];
        assert_eq!(record.headers, headers);
        let line = r#"{"topic":"t","tstype":"unknown","ts":-1,"key":null,"payload":null}"#;
        let tombstone = Recorded::from_line(line).expect("kcat -J writes so");
        assert_eq!((tombstone.timestamp_ms, tombstone.key, tombstone.value), (None, None, None));
    }

    #[test]
    fn a_value_under_another_name_is_no_tombstone() {
        for line in [r#"{"topic":"t","key":"k"}"#, r#"{"topic":"t","message":"{}"}"#] {
            let problem = Recorded::from_line(line).expect_err("it has no value");
            assert!(problem.contains("value, value_base64 or payload"), "{problem}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_read_over() {
        let input = format!("\u{feff}{LINES}\u{feff}{LINES}");
        assert_eq!(read(input.as_bytes()).filter(Result::is_ok).count(), 4);
    }

    #[test]
    fn a_bad_line_is_named_and_ends_the_reading() {
        let input = format!("{LINES}{{\"topic\":1}}\n{LINES}");
        let records: Vec<_> = read(input.as_bytes()).collect();
        assert_eq!(records.len(), 3);
        let error = records[2].as_ref().expect_err("the third record is none");
        assert!(error.to_string().starts_with("line 4 is not a record"), "{error}");
    }

    #[test]
    fn a_torn_file_is_an_error() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(LINES.as_bytes()).expect("memory takes it");
        let gzip = gzip.finish().expect("memory takes it");
        let last = read(&gzip[..gzip.len() - 12]).last().expect("something is there");
        assert!(matches!(last, Err(RecordingError::Read { .. })), "{last:?}");
    }
}
