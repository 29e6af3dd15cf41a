//! Replay recognition on recordings: every copy is known, no true change is taken for one.

use std::collections::HashSet;

use crm_event_processors::cdc::{self, Decoded, Options};
use crm_event_processors::engine::frontier::{Frontier, Stamp};
use crm_event_processors::engine::intake;

use crate::support::recordings::recorded;

/// The stamps of a recording's changes, each with its partition out of `partitions`.
fn stamps(name: &str, partitions: u32) -> Vec<(u32, Stamp)> {
    let mut stamps = Vec::new();
    for record in recorded(name) {
        record.lend(|record| {
            if let Ok(Decoded::Change(change)) = cdc::decode(record, &Options::default())
                && let Some(stamp) = intake::stamp(&change, record.key)
            {
                stamps.push((stamp.tie % partitions, stamp));
            }
        });
    }
    stamps
}

#[test]
fn every_copy_is_known_and_no_true_change_is_taken_for_one() {
    for (name, partitions) in
        [("load_50k.jsonl.gz", 1), ("load_50k.jsonl.gz", 6), ("J_restart_replay.jsonl.gz", 1)]
    {
        let mut frontiers = vec![Frontier::default(); partitions as usize];
        let mut seen = HashSet::new();
        let (mut copies, mut missed, mut false_replays) = (0, 0, 0);
        for (partition, stamp) in stamps(name, partitions) {
            let frontier = &mut frontiers[partition as usize];
            let copy =
                !seen.insert((stamp.source, stamp.tie, stamp.position.lsn, stamp.position.tx_id));
            copies += usize::from(copy);
            match (copy, frontier.covers(&stamp)) {
                (true, false) => missed += 1,
                (false, true) => false_replays += 1,
                _ => {}
            }
            frontier.pass(&stamp);
        }
        assert!(copies > 0, "{name} holds copies");
        assert_eq!((missed, false_replays), (0, 0), "{name}: of {copies} copies");
    }
}
