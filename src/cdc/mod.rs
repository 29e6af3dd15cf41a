//! Decoding: from the bytes of a Kafka record to a [`Change`], a command, or [`Nothing`]. Pure.
//!
//! Debezium and its Connect worker can write the same change in many ways, and a record does not
//! say which (behaviour section 2). A record goes through these steps:
//!
//! 1. `wire`: the Confluent wire prefix, UTF-8, JSON; Avro and Protobuf are named and refused;
//! 2. `envelope`: which form it is (bare envelope, `{schema, payload}`, flattened row) and its parts;
//! 3. [`Row`]: columns by name, decoded only when asked for, by the type that the record's own schema
//!    names, else the `catalogue`, else by the look of the value.
//!
//! Everything borrows from the record's bytes. Most records are skipped after a look at three columns.

use std::borrow::Cow;

use jiff::Timestamp;

mod catalogue;
mod decimal;
mod envelope;
mod error;
mod options;
mod position;
mod remark;
mod render;
mod row;
mod schema;
mod source;
#[cfg(test)]
mod testing;
mod text;
mod time;
mod unavailable;
mod wire;

pub use envelope::{decode, decode_key};
pub use error::DecodeError;
pub use options::{DecimalMode, Options, Scales, Tombstones};
pub use position::Position;
pub use remark::{Remark, Remarks};
pub use row::{Field, Row, word};
pub use wire::command;

/// One record as Kafka delivered it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Topic it came from.
    pub topic: &'a str,
    /// Partition it came from.
    pub partition: i32,
    /// Its offset in that partition.
    pub offset: i64,
    /// The record's timestamp in milliseconds since 1970, where the broker has one.
    pub timestamp_ms: Option<i64>,
    /// Key bytes; `None` is a Kafka null.
    pub key: Option<&'a [u8]>,
    /// Value bytes; `None` is a Kafka null, a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers in the order they came.
    pub headers: &'a [Header<'a>],
}

/// One header of a record.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Name; several headers may share one.
    pub name: &'a str,
    /// Value bytes; `None` is a null.
    pub value: Option<&'a [u8]>,
}

/// What a record of a change topic is.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "boxing would cost every change an allocation")]
pub enum Decoded<'a> {
    /// A row was created, updated, deleted or read by a snapshot.
    Change(Change<'a>),
    /// A record without a row: skipped and counted.
    Nothing(Nothing),
}

/// Why a sound record holds no change (behaviour section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nothing {
    /// A null value that lets compaction forget the key. The delete itself came before it.
    Tombstone,
    /// `op: t`, the whole table was emptied.
    Truncate,
    /// `op: m`, written with `pg_logical_emit_message`.
    Message,
    /// The connector's sign of life.
    Heartbeat,
    /// `BEGIN` or `END` of a transaction (`provide.transaction.metadata`).
    TransactionMarker,
}

impl Nothing {
    /// Stable label for metrics and `explain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::Truncate => "truncate",
            Self::Message => "message",
            Self::Heartbeat => "heartbeat",
            Self::TransactionMarker => "transaction_marker",
        }
    }
}

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `c`: inserted.
    Create,
    /// `u`: updated. Also a flattened row that does not say what happened to it.
    Update,
    /// `d`: deleted.
    Delete,
    /// `r`: read by a snapshot.
    Read,
}

impl Op {
    /// Debezium's letter for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "c",
            Self::Update => "u",
            Self::Delete => "d",
            Self::Read => "r",
        }
    }
}

/// One decoded change of one row.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// Partition and offset of its record.
    pub at: (i32, i64),
    /// What happened.
    pub op: Op,
    /// Table without its schema: as the change names it, else the last part of the topic. The topic
    /// also wins if a rule knows its table but not the one that the change names, a partition.
    pub table: Cow<'a, str>,
    /// The row was read by a snapshot (also an incremental one), not captured from the log.
    pub snapshot: bool,
    /// A flattened row that a snapshot may have read: neither its operation nor a snapshot is
    /// named. `op` is then an update, and `SNAPSHOT_POLICY` applies to it all the same.
    pub maybe_snapshot: bool,
    /// The columns of the record's key. Without a readable key, the primary key's columns of the
    /// row; empty if the table is not known either.
    pub key: Row<'a>,
    /// The row before, without what Debezium invented (see `before_invented`). `None` when the
    /// record does not hold it: inserts, snapshots, and updates under REPLICA IDENTITY DEFAULT.
    pub before: Option<Row<'a>>,
    /// The row after; `None` exactly for deletes.
    pub after: Option<Row<'a>>,
    /// Columns of `before` were invented (REPLICA IDENTITY DEFAULT) and removed: the key is left.
    pub before_invented: bool,
    /// Its place in the database's log, if the record names one (behaviour section 2).
    pub position: Option<Position>,
    /// When its transaction was committed, to the millisecond: `source.ts_ms`, else `__ts_ms`, else
    /// the record's timestamp (behaviour section 3).
    pub commit_time: Timestamp,
    /// Which log the position belongs to.
    pub source: SourceId<'a>,
    /// Half of a change of the primary key: the delete of the old key or the create of the new one.
    /// The row itself was neither deleted nor created.
    pub key_change: bool,
    /// What is unusual about it, for counting and warning.
    pub remarks: Remarks,
}

impl Change<'_> {
    /// Notes something unusual. The change is handled all the same.
    pub fn remark(&self, remark: Remark) {
        self.remarks.add(remark);
    }
}

/// The database and table that a change was read from. Parts that the record does not name are empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceId<'a> {
    /// `source.name`: the connector's topic prefix.
    pub name: Cow<'a, str>,
    /// `source.db`.
    pub db: Cow<'a, str>,
    /// `source.schema`.
    pub schema: Cow<'a, str>,
    /// As [`Change::table`].
    pub table: Cow<'a, str>,
}
