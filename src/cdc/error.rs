//! Why a record cannot be decoded.

use std::fmt;

/// Which half of the record is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The record's key.
    Key,
    /// The record's value.
    Value,
}

impl Part {
    /// The connector setting that decides how this half is written.
    fn setting(self) -> &'static str {
        match self {
            Self::Key => "output.key.format=JSON (or key.converter=JsonConverter)",
            Self::Value => "output.data.format=JSON (or value.converter=JsonConverter)",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Value => "value",
        })
    }
}

/// A record that is neither a change nor a command. It is the record's fault, never an outage.
///
/// Messages name places and types but never contents: rows hold personal data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload after the wire prefix is Avro.
    #[error("{part} is Avro (schema id {schema_id}), which is not read here: set {} on the connector", .part.setting())]
    Avro {
        /// Key or value.
        part: Part,
        /// The schema registry's id from the wire prefix.
        schema_id: u32,
    },
    /// The payload after the wire prefix is Protobuf.
    #[error("{part} is Protobuf (schema id {schema_id}), which is not read here: set {} on the connector", .part.setting())]
    Protobuf {
        /// Key or value.
        part: Part,
        /// The schema registry's id from the wire prefix.
        schema_id: u32,
    },
    /// The bytes are not UTF-8 text.
    #[error("{part} is not UTF-8 at byte {at}: set {} on the connector", .part.setting())]
    Utf8 {
        /// Key or value.
        part: Part,
        /// Offset of the first bad byte.
        at: usize,
    },
    /// The text is not JSON, is cut off, or has something after the JSON.
    #[error("{part} is not valid JSON at line {line}, column {column}: {problem}")]
    Json {
        /// Key or value.
        part: Part,
        /// What is wrong.
        problem: &'static str,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// JSON, but neither an envelope nor a row.
    #[error("value is JSON but not a Debezium change: {0}")]
    NotAChange(&'static str),
    /// An envelope whose `op` is none of c, u, d, r, t, m.
    #[error("value has an op that is not known: use Debezium 2.x or 3.x (c, u, d, r, t, m)")]
    UnknownOp,
    /// A part of an envelope, `{schema, payload}` or a flattened row that is not what it should be.
    #[error("{place} is not {expected}")]
    Malformed {
        /// Where, such as `source.lsn`.
        place: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A delete without `before` whose key cannot be read names no row.
    #[error("key of a delete cannot be read, so the deleted row is not known: {0}")]
    DeleteWithoutKey(Box<DecodeError>),
    /// The row lacks a column that a rule needs. A missing column is not NULL.
    #[error(
        "column {table}.{column} is not there: check the connector's column filters and the table's migrations"
    )]
    MissingColumn {
        /// Table, as far as it is known.
        table: String,
        /// Column name.
        column: String,
    },
    /// A column holds something that its type does not allow.
    #[error("column {table}.{column} is not {expected}")]
    Column {
        /// Table, as far as it is known.
        table: String,
        /// Column name.
        column: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A `numeric` that a rule needs holds a value that is not a number.
    #[error("column {table}.{column} is {value}, which no rule can use: correct the row")]
    NotFinite {
        /// Table, as far as it is known.
        table: String,
        /// Column name.
        column: String,
        /// `NaN`, `Infinity` or `-Infinity`.
        value: &'static str,
    },
    /// A dead letter whose value was left out for its size was produced to its topic again.
    #[error(
        "value was left out of this dead letter for its size: produce the record that lies at dlq.topic, dlq.partition and dlq.offset"
    )]
    LeftOut,
    /// A command lacks a field, or one has the wrong type.
    #[error("value is not a valid command: {problem}")]
    Command {
        /// What is wrong, without the value.
        problem: String,
    },
}

impl DecodeError {
    /// Stable label for metrics and the dead letter header `dlq.error.kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Avro { .. } => "avro",
            Self::Protobuf { .. } => "protobuf",
            Self::Utf8 { .. } => "invalid_utf8",
            Self::Json { .. } => "invalid_json",
            Self::NotAChange(_) => "not_a_change",
            Self::UnknownOp => "unknown_op",
            Self::Malformed { .. } => "malformed",
            Self::DeleteWithoutKey(_) => "delete_without_key",
            Self::MissingColumn { .. } => "missing_column",
            Self::Column { .. } => "column",
            Self::NotFinite { .. } => "not_finite",
            Self::LeftOut => "left_out",
            Self::Command { .. } => "command",
        }
    }
}
