use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::Path;

use flate2::read::GzDecoder;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::cdc::{self, Decoded};
use crate::recording::{self, Recorded};

const LIVING_ROWS: Reading = Reading { hard_deletes: false, trust_snapshot: true };
/// When the expected end of the second set was read.
const END: &str = "2026-11-29T01:22:07.549355Z";

fn fixture(name: &str) -> String {
    let path = Path::new("tests/fixtures").join(name);
    let mut text = String::new();
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    text
}

/// The changes of `relation_tuple` in a recording, in order, by partition.
fn partitions(name: &str) -> Vec<Vec<Recorded>> {
    let mut all: BTreeMap<i32, Vec<Recorded>> = BTreeMap::new();
    for record in recording::read(io::Cursor::new(fixture(name))) {
        let record = record.expect("a record");
        if record.topic.ends_with(".relation_tuple") {
            all.entry(record.partition).or_default().push(record);
        }
    }
    all.into_values().collect()
}

/// What a record says about a row, if it says anything.
fn change(record: &Recorded, reading: Reading) -> Option<RowChange> {
    record.lend(|record| {
        match cdc::decode(record, &cdc::Options::default()).expect("a sound record") {
            Decoded::Change(change) => read(&change, reading).expect("a sound row").ok(),
            Decoded::Nothing(_) => None,
        }
    })
}

/// What identifies a row: without `created_xid` a relationship has one row.
type Name = (Relationship, Option<u64>);

/// What is known of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    lives: bool,
    expires: Option<Timestamp>,
    offset: i64,
}

/// A reader that keeps rows, as every action that keeps state must.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rows(BTreeMap<Name, Known>);

impl Rows {
    fn take(&mut self, record: &Recorded, reading: Reading) {
        let Some(change) = change(record, reading) else { return };
        let RowChange { operation, relationship, created_xid, expires, .. } = change;
        let name = (relationship, created_xid);
        let known = Known { lives: operation.lives(), expires, offset: record.offset };
        match self.0.get_mut(&name) {
            // Without `created_xid` the order within the partition decides.
            Some(row) if created_xid.is_none() => {
                if row.offset < known.offset {
                    *row = known;
                }
            }
            Some(row) => {
                row.lives &= known.lives;
                row.expires = row.expires.or(known.expires);
            }
            None => drop(self.0.insert(name, known)),
        }
    }

    /// Those that live and have not expired at `now`; without a time, those that live.
    fn living(&self, now: Option<Timestamp>) -> BTreeSet<Name> {
        let lives = |row: &Known| {
            row.lives && now.is_none_or(|now| row.expires.is_none_or(|expires| expires > now))
        };
        self.0.iter().filter(|(_, row)| lives(row)).map(|(name, _)| name.clone()).collect()
    }
}

#[derive(Deserialize)]
struct Truth {
    namespace: String,
    object_id: String,
    relation: String,
    userset_namespace: String,
    userset_object_id: String,
    userset_relation: String,
    created_xid: String,
}

fn truth(name: &str, with_xids: bool) -> BTreeSet<Name> {
    let row = |line: &str| {
        let row: Truth = serde_json::from_str(line).expect("a row");
        let relationship = Relationship {
            namespace: row.namespace.into(),
            object_id: row.object_id.into(),
            relation: row.relation.into(),
            subject_namespace: row.userset_namespace.into(),
            subject_id: row.userset_object_id.into(),
            subject_relation: match &*row.userset_relation {
                "" | "..." => None,
                relation => Some(relation.into()),
            },
        };
        (relationship, with_xids.then(|| row.created_xid.parse().expect("an xid")))
    };
    fixture(name).lines().map(row).collect()
}

/// Takes the partitions in an order that `seed` decides, and some of the records twice.
fn interleaved(partitions: &[Vec<Recorded>], seed: u64, repeats: bool) -> Rows {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut next = vec![0; partitions.len()];
    let mut rows = Rows::default();
    loop {
        let open: Vec<usize> =
            (0..partitions.len()).filter(|at| next[*at] < partitions[*at].len()).collect();
        let Some(at) = random.choice(open) else { return rows };
        // One partition may run far ahead of the others.
        for _ in 0..random.usize(1..200) {
            let Some(record) = partitions[at].get(next[at]) else { break };
            rows.take(record, LIVING_ROWS);
            next[at] += 1;
        }
        if repeats && random.u8(0..4) == 0 {
            next[at] -= random.usize(0..=next[at].min(50));
        }
    }
}

fn end() -> Timestamp {
    END.parse().expect("a time")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The end is right in every setting that shows transactions, whatever the order of partitions.
    #[test]
    fn with_xids_exactly_the_living_rows_live_in_the_end(seed in any::<u64>()) {
        for (recording, live) in [
            ("spicedb/xids.jsonl.gz", "spicedb/live.jsonl.gz"),
            ("spicedb/xids_keyed.jsonl.gz", "spicedb/live.jsonl.gz"),
            ("spicedb2/xids.jsonl.gz", "spicedb2/live.jsonl.gz"),
            ("spicedb2/xids_keyed.jsonl.gz", "spicedb2/live.jsonl.gz"),
            ("spicedb2/replayed/replayed_xids.jsonl.gz", "spicedb2/replayed/live.jsonl.gz"),
            ("spicedb2/replayed/replayed_xids_keyed.jsonl.gz", "spicedb2/replayed/live.jsonl.gz"),
        ] {
            let partitions = partitions(recording);
            let rows = interleaved(&partitions, seed, true);
            prop_assert_eq!(&rows.living(None), &truth(live, true), "{}", recording);
            let again = partitions.iter().flatten().fold(rows, |mut rows, record| {
                rows.take(record, LIVING_ROWS);
                rows
            });
            prop_assert_eq!(again.living(None), truth(live, true), "{}, all of it again", recording);
        }
    }

    /// It is right without transactions too, if the snapshot holds only living rows.
    #[test]
    fn without_xids_exactly_what_has_not_expired_lives_in_the_end(seed in any::<u64>()) {
        let partitions = partitions("spicedb2/default_living.jsonl.gz");
        let rows = interleaved(&partitions, seed, true);
        prop_assert_eq!(rows.living(Some(end())), truth("spicedb2/live_now.jsonl.gz", false));
    }
}

#[test]
fn what_has_expired_is_hidden_with_xids_too() {
    for recording in ["spicedb2/xids.jsonl.gz", "spicedb2/xids_keyed.jsonl.gz"] {
        let rows = interleaved(&partitions(recording), 7, false);
        assert_eq!(rows.living(Some(end())), truth("spicedb2/live_now.jsonl.gz", true));
    }
}

#[test]
fn rows_of_a_snapshot_that_may_be_dead_are_left_out_unless_they_are_trusted() {
    let all = partitions("spicedb2/default.jsonl.gz");
    let mut careful = Rows::default();
    for record in all.iter().flatten() {
        careful.take(record, Reading::default());
    }
    let truth = truth("spicedb2/live_now.jsonl.gz", false);
    let living = careful.living(Some(end()));
    assert!(living.is_subset(&truth), "nothing that is dead: {:?}", living.difference(&truth));
    assert!(living.len() < truth.len(), "the snapshot's rows are missing");
    let trusting = interleaved(&all, 7, false).living(Some(end()));
    assert_eq!(trusting.difference(&truth).count(), 4, "marked before the snapshot (README, 1)");
}

#[test]
fn each_end_of_a_recorded_row_is_one_operation() {
    #[derive(Deserialize)]
    struct End {
        end: String,
        created_xid: String,
    }
    let ends: Vec<End> = fixture("spicedb2/rows.jsonl.gz")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    assert!(ends.iter().all(|row| row.created_xid.parse::<u64>().is_ok()));
    let expired = ends.iter().filter(|row| row.end.starts_with("expired")).count();
    for recording in ["spicedb2/xids.jsonl.gz", "spicedb2/xids_keyed.jsonl.gz"] {
        let mut expiries = BTreeSet::new();
        for record in partitions(recording).iter().flatten() {
            if let Some(row) = change(record, LIVING_ROWS)
                && row.operation == Operation::Expire
            {
                if row.deleted_xid.is_some() {
                    let expires = row.expires.expect("a marking shows it");
                    assert!(expires <= row.committed, "it was over before it was marked");
                    continue;
                }
                expiries.insert((row.relationship, row.created_xid));
            }
        }
        assert_eq!(expiries.len(), expired, "{recording}");
    }
}
