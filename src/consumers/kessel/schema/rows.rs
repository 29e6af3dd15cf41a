//! Rows of the four tables that hold a schema, and what a change says about one.
//!
//! `namespace_config` and `caveat` hold a row for each definition and caveat. `schema` holds the
//! whole, cut into chunks, and `schema_revision` its hash. In all of them a row is written once,
//! marked once, and dead for ever (behaviour section 9).

use std::sync::Arc;

use super::model::{Caveat, Definition};
use crate::cdc::{Change, DecodeError, Field, Op, Row};
use crate::consumers::kessel::row::{LIVING, Reading};

/// The tables.
pub const TABLES: [&str; 4] = ["namespace_config", "caveat", "schema", "schema_revision"];
/// The only `name` in `schema`.
const UNIFIED: &str = "unified_schema";
/// The only `name` in `schema_revision`.
const CURRENT: &str = "current";

/// What a change says about one row.
#[derive(Debug, Clone, PartialEq)]
pub struct SchemaRow {
    /// What the row holds.
    pub part: Part,
    /// The transaction that wrote it; `None` where the connector leaves transactions out.
    pub created_xid: Option<u64>,
    /// The commit that wrote or marked it, as far as it can be told.
    pub commit: Commit,
    /// The same for all rows that one transaction wrote: `created_xid`, else the commit's time.
    pub written_by: u64,
    /// Without `created_xid` the version of the row: its record's offset.
    pub offset: i64,
}

/// What a row holds. The content is `None` where the row is dead.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// A definition.
    Definition(Box<str>, Option<Arc<Definition>>),
    /// A caveat.
    Caveat(Box<str>, Option<Arc<Caveat>>),
    /// A piece of the stored schema.
    Chunk(u32, Option<Arc<[u8]>>),
    /// The hash of the stored schema.
    Hash(Option<Box<str>>),
}

/// Orders what is written, as far as a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Commit {
    /// Without transactions: where the commit lies in the log.
    Place {
        /// The position, or the time where there is none.
        at: u64,
        /// A snapshot's rows were committed at any time before it.
        streamed: bool,
    },
    /// The transaction.
    Xid(u64),
}

/// What a change of one of [`TABLES`] means, or a stable label for why it means nothing.
///
/// # Errors
/// When a column that the meaning rests on is missing or holds something unexpected.
pub fn read(
    change: &Change<'_>,
    reading: Reading,
) -> Result<Result<SchemaRow, &'static str>, DecodeError> {
    let image = change.after.as_ref().or(change.before.as_ref()).unwrap_or(&change.key);
    let xids = (xid(image, "created_xid")?, xid(image, "deleted_xid")?);
    let lives = match xids {
        // The change that creates the row under its new key shows that it was marked.
        _ if change.op == Op::Delete && change.key_change => return Ok(Err("key_change")),
        (Some(_), Some(deleted)) => change.op != Op::Delete && deleted == LIVING,
        // A caveat's key does not say who wrote it, but it was marked before it was collected.
        (None, Some(_)) if change.op == Op::Delete => return Ok(Err("garbage_collected")),
        _ => match lives_without_xids(change, reading) {
            Ok(lives) => lives,
            Err(reason) => return Ok(Err(reason)),
        },
    };
    let part = match part(change, image, lives)? {
        Ok(part) => part,
        Err(reason) => return Ok(Err(reason)),
    };
    let (created_xid, deleted_xid) = xids;
    let time = u64::try_from(change.commit_time.as_microsecond()).unwrap_or_default();
    let written = change.position.map_or(time, |position| position.commit_us.unsigned_abs());
    Ok(Ok(SchemaRow {
        part,
        created_xid,
        commit: match (created_xid, deleted_xid) {
            (Some(_), Some(deleted)) if deleted != LIVING => Commit::Xid(deleted),
            (Some(created), _) => Commit::Xid(created),
            (None, _) => place(change, time),
        },
        written_by: created_xid.unwrap_or(written),
        offset: change.at.1,
    }))
}

/// Whether the row lives, where nothing in it says so.
fn lives_without_xids(change: &Change<'_>, reading: Reading) -> Result<bool, &'static str> {
    let snapshot = change.op == Op::Read || change.snapshot;
    match change.op {
        Op::Delete if reading.hard_deletes => Ok(false),
        // This row was marked before, and another one of its name may live since.
        Op::Delete => Err("garbage_collected"),
        _ if snapshot && !reading.trust_snapshot => Err("snapshot_not_trusted"),
        // It may be a creation.
        _ if change.maybe_snapshot => Err("operation_not_told"),
        // The only column that ever changes, `deleted_xid`, is not shown.
        Op::Update if !snapshot => Ok(reading.hard_deletes),
        Op::Create | Op::Read | Op::Update => Ok(true),
    }
}

fn part(
    change: &Change<'_>,
    image: &Row<'_>,
    lives: bool,
) -> Result<Result<Part, &'static str>, DecodeError> {
    let table = change.table.as_ref();
    let column = match table {
        "namespace_config" => "serialized_config",
        "caveat" => "definition",
        "schema" => "chunk_data",
        "schema_revision" => "hash",
        _ => return Ok(Err("another_table")),
    };
    let content = match image.bytes(column) {
        // What was marked is not asked for, and stands for an unchanged value where it is long.
        _ if !lives => None,
        content => match content? {
            Field::Value(content) => Some(content),
            Field::Unavailable => return Ok(Err("content_not_told")),
            Field::Missing | Field::Null => return Err(unread(table, column, "bytes")),
        },
    };
    let name = if table == "namespace_config" { "namespace" } else { "name" };
    let name: Box<str> = image.needed(name)?.value().unwrap_or_default().into();
    Ok(match table {
        "namespace_config" => {
            let definition = content.map(|bytes| Definition::decode(&bytes)).transpose();
            let definition = definition
                .map_err(|_| unread(table, column, "a definition (core.v1.NamespaceDefinition)"))?;
            Ok(Part::Definition(name, definition.map(Arc::new)))
        }
        "caveat" => {
            let caveat = content.map(|bytes| Caveat::decode(&bytes)).transpose();
            let caveat =
                caveat.map_err(|_| unread(table, column, "a caveat (core.v1.CaveatDefinition)"))?;
            Ok(Part::Caveat(name, caveat.map(Arc::new)))
        }
        "schema" if *name == *UNIFIED => {
            let index = image.integer("chunk_index")?.value();
            let index = index
                .and_then(|index| u32::try_from(index).ok())
                .ok_or_else(|| unread(table, "chunk_index", "the number of a chunk"))?;
            Ok(Part::Chunk(index, content.map(Into::into)))
        }
        "schema_revision" if *name == *CURRENT => {
            let hash = content.map(String::from_utf8).transpose();
            let hash = hash.map_err(|_| unread(table, column, "a hash as text"))?;
            Ok(Part::Hash(hash.map(Into::into)))
        }
        _ => Err("another_name"),
    })
}

/// All rows of a transaction share the position of the commit before it.
fn place(change: &Change<'_>, time: u64) -> Commit {
    let at = change.position.map_or(time, |position| position.first.unwrap_or(position.lsn));
    Commit::Place { at, streamed: !(change.op == Op::Read || change.snapshot) }
}

/// An invented xid is empty.
fn xid(row: &Row<'_>, column: &str) -> Result<Option<u64>, DecodeError> {
    if row.filled(column)?.is_none() {
        return Ok(None);
    }
    Ok(row.integer(column)?.value().and_then(|xid| u64::try_from(xid).ok()))
}

fn unread(table: &str, column: &str, expected: &'static str) -> DecodeError {
    DecodeError::Column { table: table.into(), column: column.into(), expected }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
