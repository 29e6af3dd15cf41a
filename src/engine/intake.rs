//! From a record to a routing decision: decode, note its position in the log, route. Pure, and the
//! same for `run` and
//! `explain`.

use std::hash::Hash;

use jiff::Timestamp;

use super::dispatch::lanes::LaneId;
use super::partition::recognition::set_aside_by;
use super::partition::replay_index::LoggedChange;
use super::{Consumer, Settings};
use crate::cdc::{self, Change, DecodeError, Decoded, Op, Record, Remarks};

/// What a consumer wants done about a record.
#[derive(Debug)]
pub enum Route<W> {
    /// Nothing, for this reason: a stable label.
    Skip(&'static str),
    /// This work, in order behind what waits in the same lane.
    Process {
        /// The work.
        work: W,
        /// Its lane.
        lane: Lane,
    },
}

/// The order domain of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    key: u64,
    across_partitions: bool,
}

impl Lane {
    /// Order among the records of one partition that share `key`.
    pub fn in_partition(key: impl Hash) -> Self {
        Self { key: hash(key), across_partitions: false }
    }

    /// Order among all records of this process that share `key`, whatever their partition.
    pub fn across_partitions(key: impl Hash) -> Self {
        Self { key: hash(key), across_partitions: true }
    }

    /// The lane's name; `partition` is unique per assigned partition.
    #[must_use]
    pub fn id(self, partition: u32) -> LaneId {
        if self.across_partitions { self.key } else { hash((self.key, partition)) }
    }
}

/// Lanes live within one process, so any good hash will do.
fn hash(key: impl Hash) -> u64 {
    const HASHER: ahash::RandomState = ahash::RandomState::with_seeds(1, 2, 3, 4);
    HASHER.hash_one(key)
}

/// A record, decoded and routed.
#[derive(Debug)]
pub struct Intake<W> {
    /// Its place in the log, for replay recognition. Snapshot rows have none: they are neither
    /// compared nor counted.
    pub logged: Option<LoggedChange>,
    /// When its change was committed.
    pub committed_at: Option<Timestamp>,
    /// Read by a snapshot.
    pub snapshot: bool,
    /// What is unusual about it.
    pub remarks: Remarks,
    /// What to do.
    pub route: Result<Route<W>, DecodeError>,
}

impl<W> Intake<W> {
    fn plain(route: Result<Route<W>, DecodeError>) -> Self {
        Self {
            logged: None,
            committed_at: None,
            snapshot: false,
            remarks: Remarks::default(),
            route,
        }
    }
}

/// Decodes and routes one record.
pub fn intake<C: Consumer>(
    consumer: &C,
    settings: &Settings,
    record: &Record<'_>,
    now: Timestamp,
) -> Intake<C::Work> {
    let Settings { subscription, decode, .. } = settings;
    let of_another = |route| unless_of_another(route, subscription.consumer, record);
    if subscription.takes_commands(record.topic) {
        return Intake::plain(of_another(consumer.route_command(record)));
    }
    match cdc::decode(record, decode) {
        Err(error) => Intake::plain(of_another(Err(error))),
        Ok(Decoded::Nothing(nothing)) => Intake::plain(Ok(Route::Skip(nothing.as_str()))),
        Ok(Decoded::Change(change)) => {
            let route = route(consumer, &change, now);
            Intake {
                logged: logged(&change, record.key),
                committed_at: Some(change.commit_time),
                snapshot: change.snapshot || change.maybe_snapshot,
                remarks: change.remarks,
                route,
            }
        }
    }
}

/// A dead letter without its value concerns only the consumer that set it aside.
fn unless_of_another<W>(
    route: Result<Route<W>, DecodeError>,
    consumer: &str,
    record: &Record<'_>,
) -> Result<Route<W>, DecodeError> {
    match route {
        Err(DecodeError::LeftOut) if set_aside_by(record.headers) != Some(consumer.as_bytes()) => {
            Ok(Route::Skip(super::DEAD_LETTER_OF_ANOTHER))
        }
        route => route,
    }
}

/// What a consumer does about a decoded change.
///
/// # Errors
/// As [`Consumer::route`].
pub fn route<C: Consumer>(
    consumer: &C,
    change: &Change<'_>,
    now: Timestamp,
) -> Result<Route<C::Work>, DecodeError> {
    if change.key_change && !consumer.reads_key_changes() {
        return Ok(Route::Skip(super::KEY_CHANGE));
    }
    consumer.route(change, now)
}

/// What identifies a change that was captured from the log. The hashes are kept in commits, so they
/// must be the same in every build: CRC-32, not the hasher of the day.
#[must_use]
pub fn logged(change: &Change<'_>, key: Option<&[u8]>) -> Option<LoggedChange> {
    if change.snapshot {
        return None;
    }
    let mut source = crc32fast::Hasher::new();
    for part in
        [&change.source.name, &change.source.db, &change.source.schema, &change.source.table]
    {
        source.update(part.as_bytes());
        source.update(b"\0");
    }
    let mut tie = crc32fast::Hasher::new();
    tie.update(key.unwrap_or_default());
    tie.update(match change.op {
        Op::Create => b"c",
        Op::Update => b"u",
        Op::Delete => b"d",
        Op::Read => b"r",
    });
    Some(LoggedChange {
        source: source.finalize(),
        position: change.position?,
        tie: tie.finalize(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::partition::replay_index::ReplayIndex;

    /// A logged change of row `id`.
    fn stamp_of(value: &Value, id: u64) -> LoggedChange {
        let (key, value) = (json!({"id": id}).to_string(), value.to_string());
        let record = Record {
            topic: "crm.public.purchase_ledger",
            partition: 0,
            offset: 0,
            timestamp_ms: Some(0),
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            headers: &[],
        };
        let Ok(Decoded::Change(change)) = cdc::decode(&record, &cdc::Options::default()) else {
            panic!("a change: {value}");
        };
        logged(&change, record.key).expect("a position")
    }

    fn envelope(name: &str, db: &str, at: u64) -> Value {
        json!({"op": "c", "before": null, "after": {"id": at}, "source": {"name": name, "db": db,
            "schema": "public", "table": "purchase_ledger", "snapshot": "false", "txId": at, "lsn": at,
            "sequence": format!("[\"{at}\",\"{at}\"]"), "ts_ms": at, "ts_us": at * 1_000}})
    }

    fn flattened(name: &str, db: &str, at: u64) -> Value {
        json!({"id": at, "__op": "c", "__source_name": name, "__source_db": db, "__source_txId": at,
            "__source_sequence": format!("[\"{at}\",\"{at}\"]"), "__source_ts_us": at * 1_000,
            "__source_table": "purchase_ledger", "__source_schema": "public"})
    }

    #[test]
    fn databases_and_connectors_that_share_a_topic_are_told_apart() {
        for form in [envelope, flattened] {
            let mut replay_index = ReplayIndex::default();
            replay_index.pass(&stamp_of(&form("shop", "one", 900), 900));
            assert!(replay_index.covers(&stamp_of(&form("shop", "one", 800), 800)), "a replay");
            assert!(
                !replay_index.covers(&stamp_of(&form("shop", "two", 800), 800)),
                "another database"
            );
            assert!(
                !replay_index.covers(&stamp_of(&form("web", "one", 800), 800)),
                "another connector"
            );
        }
    }
}
