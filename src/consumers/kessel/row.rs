//! Rows of `relation_tuple`, and what happens to them (behaviour section 9, "Rows"). Pure.
//!
//! SpiceDB inserts a row, marks it deleted once, and its garbage collection deletes it much later. A
//! row is the tuple and `created_xid`, alive or dead, and dead is for ever. So the end is right in
//! whatever order the partitions come, and however often.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cdc::{Change, DecodeError, Op, Row};

/// `deleted_xid` of a row that nobody has marked.
pub const LIVING: u64 = 9_223_372_036_854_775_807;
/// The subject's relation where it has none.
const NO_RELATION: &str = "...";

/// The operations, with the words of the log and of filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A row was written and lives.
    Create,
    /// It was written some time before: a snapshot read it.
    Read,
    /// It was changed in place, which SpiceDB does not do: only with `RELATIONSHIPS_HARD_DELETES`.
    Update,
    /// It was marked as deleted, or deleted for good with `RELATIONSHIPS_HARD_DELETES`.
    Delete,
    /// It had expired, and was collected.
    Expire,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 5] = [Self::Create, Self::Read, Self::Update, Self::Delete, Self::Expire];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Read => "READ",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Expire => "EXPIRE",
        }
    }

    /// Whether the row lives after it.
    #[must_use]
    pub fn lives(self) -> bool {
        matches!(self, Self::Create | Self::Read | Self::Update)
    }
}

/// A relationship: a subject stands in a relation to a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Relationship {
    /// Type of the resource.
    pub namespace: Box<str>,
    /// Id of the resource.
    pub object_id: Box<str>,
    /// The relation.
    pub relation: Box<str>,
    /// Type of the subject.
    pub subject_namespace: Box<str>,
    /// Id of the subject; `*` is every one of its type.
    pub subject_id: Box<str>,
    /// The subject's own relation; `None` where the subject is the object itself.
    pub subject_relation: Option<Box<str>>,
}

impl Relationship {
    /// The resource, `type:id`.
    #[must_use]
    pub fn resource(&self) -> String {
        format!("{}:{}", self.namespace, self.object_id)
    }

    /// The subject, `type:id` or `type:id#relation`.
    #[must_use]
    pub fn subject(&self) -> String {
        let Self { subject_namespace, subject_id, subject_relation, .. } = self;
        match subject_relation {
            Some(relation) => format!("{subject_namespace}:{subject_id}#{relation}"),
            None => format!("{subject_namespace}:{subject_id}"),
        }
    }

    fn of(row: &Row<'_>) -> Result<Self, DecodeError> {
        let text = |column: &str| -> Result<Box<str>, DecodeError> {
            Ok(row.needed(column)?.value().unwrap_or_default().into())
        };
        let subject_relation = text("userset_relation")?;
        let none = subject_relation.is_empty() || *subject_relation == *NO_RELATION;
        Ok(Self {
            namespace: text("namespace")?,
            object_id: text("object_id")?,
            relation: text("relation")?,
            subject_namespace: text("userset_namespace")?,
            subject_id: text("userset_object_id")?,
            subject_relation: (!none).then_some(subject_relation),
        })
    }
}

impl fmt::Display for Relationship {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, object_id, relation, .. } = self;
        write!(f, "{namespace}:{object_id}#{relation}@{}", self.subject())
    }
}

/// Under which condition a relationship holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caveat {
    /// Its name.
    pub name: Box<str>,
    /// What the condition is asked with, JSON; `None` where there is nothing, or the record leaves it out.
    pub context: Option<Box<str>>,
}

/// What happened to one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// What.
    pub operation: Operation,
    /// The row's relationship.
    pub relationship: Relationship,
    /// The transaction that wrote the row, which tells rows of one relationship apart; `None` where
    /// the connector leaves transactions out.
    pub created_xid: Option<u64>,
    /// The transaction that marked it as deleted, where the record shows it.
    pub deleted_xid: Option<u64>,
    /// Its caveat. A delete does not show it.
    pub caveat: Option<Caveat>,
    /// When the row expires. A delete does not show it.
    pub expires: Option<Timestamp>,
    /// When it was committed.
    pub committed: Timestamp,
    /// Its place in the log, `lsn/txid`. It tells repeats apart if there is no `created_xid`.
    pub place: Option<(u64, Option<u64>)>,
    /// Partition and offset of its record. Without `created_xid` the offset is the row's version.
    pub at: (i32, i64),
}

impl RowChange {
    /// Stands in [`Self::at`] where no record says what happened: an expiration's time has come.
    pub const NO_RECORD: (i32, i64) = (-1, -1);

    /// Whether its row lives, and will expire.
    #[must_use]
    pub fn will_expire(&self) -> bool {
        self.operation.lives() && self.expires.is_some()
    }

    /// Whether it ends a row that has an expiration.
    #[must_use]
    pub fn ends_what_expires(&self) -> bool {
        let ends = !self.operation.lives();
        ends && (self.expires.is_some() || self.operation == Operation::Expire)
    }

    /// Names the change, and each repeat of it the same (behaviour section 9, "Repeats, names,
    /// repair"). The commit time stands in where the record has neither a transaction nor a position.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        let Self { relationship, operation, created_xid, place, committed, .. } = self;
        let Relationship { namespace, object_id, relation, .. } = relationship;
        // A row is written and marked once, but one that is changed in place is so any number of times.
        let xid = created_xid.filter(|_| *operation != Operation::Update);
        let version = match (xid, place) {
            (Some(xid), _) => xid.to_string(),
            (None, Some((lsn, Some(tx_id)))) => format!("{lsn}/{tx_id}"),
            (None, Some((lsn, None))) => lsn.to_string(),
            (None, None) => format!("@{}", committed.as_millisecond()),
        };
        let (subject, operation) = (relationship.subject(), operation.as_str());
        format!("{namespace}:{object_id}:{relation}:{subject}:{version}:{operation}")
    }
}

/// How to read the tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// The store really deletes rows (`RELATIONSHIPS_HARD_DELETES`).
    pub hard_deletes: bool,
    /// A snapshot's rows live although nothing in them says so (`RELATIONSHIPS_SNAPSHOT=trust`).
    pub trust_snapshot: bool,
}

/// What a change of `relation_tuple` means, or a stable label for why it means nothing.
///
/// # Errors
/// When a column that the meaning rests on is missing or holds something unexpected.
pub fn read(
    change: &Change<'_>,
    reading: Reading,
) -> Result<Result<RowChange, &'static str>, DecodeError> {
    let image = change.after.as_ref().or(change.before.as_ref()).unwrap_or(&change.key);
    let created = xid(image, "created_xid")?;
    let deleted = xid(image, "deleted_xid")?;
    let snapshot = change.op == Op::Read || change.snapshot;
    let operation = match (deleted, created) {
        (Some(deleted), Some(_)) => of_row_with_xids(change, deleted == LIVING, snapshot, reading),
        _ => of_row_without_xids(change.op, snapshot, reading),
    };
    let operation = match operation {
        Ok(operation) => operation,
        Err(reason) => return Ok(Err(reason)),
    };
    let expires = image.timestamp("expiration")?.value();
    // It was over before it was marked.
    let expired = expires.is_some_and(|expires| expires <= change.commit_time) && !snapshot;
    let operation = match operation {
        Operation::Delete if expired => Operation::Expire,
        operation => operation,
    };
    let caveat = match image.filled("caveat_name")? {
        Some(name) => {
            let context = image.text("caveat_context")?.value().filter(|context| context != "null");
            Some(Caveat {
                name: name.into(),
                context: context.map(|context| context.as_ref().into()),
            })
        }
        None => None,
    };
    Ok(Ok(RowChange {
        operation,
        relationship: Relationship::of(image)?,
        created_xid: created,
        deleted_xid: deleted.filter(|deleted| *deleted != LIVING),
        caveat,
        expires,
        committed: change.commit_time,
        place: change.position.map(|position| (position.lsn, position.tx_id)),
        at: change.at,
    }))
}

fn of_row_with_xids(
    change: &Change<'_>,
    living: bool,
    snapshot: bool,
    reading: Reading,
) -> Result<Operation, &'static str> {
    match (change.op, living) {
        // The change that creates the row under its new key shows that it was marked.
        (Op::Delete, _) if change.key_change => Err("key_change"),
        (Op::Delete, _) if reading.hard_deletes => Ok(Operation::Delete),
        (Op::Delete, true) => Ok(Operation::Expire),
        (Op::Delete, false) => Err("garbage_collected"),
        (_, false) => Ok(Operation::Delete),
        (_, true) if snapshot => Ok(Operation::Read),
        (Op::Update, true) if reading.hard_deletes => Ok(Operation::Update),
        (_, true) => Ok(Operation::Create),
    }
}

/// Nothing tells which row of a relationship this is, nor whether it lives.
fn of_row_without_xids(
    op: Op,
    snapshot: bool,
    reading: Reading,
) -> Result<Operation, &'static str> {
    match op {
        Op::Delete if reading.hard_deletes => Ok(Operation::Delete),
        // This row was marked before, and its relationship may live again since.
        Op::Delete => Err("garbage_collected"),
        _ if snapshot && reading.trust_snapshot => Ok(Operation::Read),
        _ if snapshot => Err("snapshot_not_trusted"),
        Op::Update if reading.hard_deletes => Ok(Operation::Update),
        // The only column that ever changes, `deleted_xid`, is not shown.
        Op::Update => Ok(Operation::Delete),
        Op::Create | Op::Read => Ok(Operation::Create),
    }
}

fn xid(row: &Row<'_>, column: &str) -> Result<Option<u64>, DecodeError> {
    Ok(row.integer(column)?.value().and_then(|xid| u64::try_from(xid).ok()))
}

#[cfg(test)]
#[path = "row_tests.rs"]
mod tests;
