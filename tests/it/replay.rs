//! Replay recognition on recordings: every copy is known, no true change is taken for one.

use std::collections::HashSet;

use crm_event_processors::cdc::{self, Decoded, Options};
use crm_event_processors::engine::intake;
use crm_event_processors::engine::partition::replay_index::{LoggedChange, ReplayIndex};

use test_support::recordings::recorded;

/// The logged changes of a recording's changes, each with its partition out of `partitions`.
fn logged_changes(name: &str, partitions: u32) -> Vec<(u32, LoggedChange)> {
    let mut logged_changes = Vec::new();
    for record in recorded(name) {
        record.lend(|record| {
            if let Ok(Decoded::Change(change)) = cdc::decode(record, &Options::default())
                && let Some(logged) = intake::logged(&change, record.key)
            {
                logged_changes.push((logged.tie % partitions, logged));
            }
        });
    }
    logged_changes
}

#[test]
fn every_copy_is_known_and_no_true_change_is_taken_for_one() {
    for (name, partitions) in
        [("load_50k.jsonl.gz", 1), ("load_50k.jsonl.gz", 6), ("J_restart_replay.jsonl.gz", 1)]
    {
        let mut replay_indexes = vec![ReplayIndex::default(); partitions as usize];
        let mut seen = HashSet::new();
        let (mut copies, mut missed, mut false_replays) = (0, 0, 0);
        for (partition, logged) in logged_changes(name, partitions) {
            let replay_index = &mut replay_indexes[partition as usize];
            let copy = !seen.insert((
                logged.source,
                logged.tie,
                logged.position.lsn,
                logged.position.tx_id,
            ));
            copies += usize::from(copy);
            match (copy, replay_index.covers(&logged)) {
                (true, false) => missed += 1,
                (false, true) => false_replays += 1,
                _ => {}
            }
            replay_index.pass(&logged);
        }
        assert!(copies > 0, "{name} holds copies");
        assert_eq!((missed, false_replays), (0, 0), "{name}: of {copies} copies");
    }
}
