use proptest::prelude::*;

use super::*;

fn logged(first: Option<u64>, lsn: u64, tx_id: u64, commit_us: i64, tie: u32) -> LoggedChange {
    LoggedChange {
        source: 1,
        position: Position { first, lsn, tx_id: Some(tx_id), commit_us },
        tie,
    }
}

fn after(passed: &[LoggedChange]) -> ReplayIndex {
    let mut replay_index = ReplayIndex::default();
    for logged in passed {
        replay_index.pass(logged);
    }
    replay_index
}

#[test]
fn what_lies_before_in_position_and_time_is_a_replay() {
    let replay_index =
        after(&[logged(Some(100), 105, 7, 1_000, 1), logged(Some(200), 150, 8, 2_000, 2)]);
    assert!(replay_index.covers(&logged(Some(100), 105, 7, 1_000, 1)));
    assert!(replay_index.covers(&logged(Some(200), 150, 8, 2_000, 2)));
    assert!(!replay_index.covers(&logged(Some(200), 160, 8, 2_000, 3)), "later in the transaction");
    assert!(
        !replay_index.covers(&logged(Some(300), 120, 9, 2_000, 4)),
        "a later commit, smaller lsn"
    );
}

#[test]
fn changes_at_one_position_are_told_apart_by_key_and_operation() {
    let replay_index =
        after(&[logged(Some(100), 105, 7, 1_000, 1), logged(Some(100), 105, 7, 1_000, 2)]);
    assert!(replay_index.covers(&logged(Some(100), 105, 7, 1_000, 1)));
    assert!(replay_index.covers(&logged(Some(100), 105, 7, 1_000, 2)));
    assert!(!replay_index.covers(&logged(Some(100), 105, 7, 1_000, 3)));
}

#[test]
fn a_restored_database_is_handled_and_replays_of_both_logs_are_still_known() {
    let mut replay_index = after(&[logged(Some(900), 905, 7, 1_000, 1)]);
    let restored = logged(Some(10), 15, 3, 2_000, 2);
    assert!(!replay_index.covers(&restored));
    replay_index.pass(&restored);
    assert!(replay_index.covers(&restored));
    assert!(replay_index.covers(&logged(Some(800), 805, 6, 900, 3)), "the old log, again");
    assert!(!replay_index.covers(&logged(Some(20), 25, 4, 2_100, 4)), "the new log goes on");
    assert!(!replay_index.covers(&logged(Some(20), 25, 4, 1_500, 4)), "beyond the new log's end");
}

#[test]
fn a_replay_of_the_old_log_takes_nothing_from_what_is_known_of_the_new_one() {
    let (old, new) = (logged(Some(900), 905, 7, 1_000, 1), logged(Some(10), 15, 3, 2_000, 2));
    let mut replay_index = after(&[old, new]);
    for number in 0..10 {
        replay_index.pass(&logged(Some(800 + number), 805 + number, 6, 900, 3));
        let live = logged(Some(20 + number), 25 + number, 4, 2_100 + number as i64, 4);
        assert!(!replay_index.covers(&live));
        replay_index.pass(&live);
        assert!(
            replay_index.covers(&live) && replay_index.covers(&new) && replay_index.covers(&old)
        );
    }
}

#[test]
fn a_clock_that_steps_back_takes_nothing_from_what_is_known_of_the_same_log() {
    let hour = 3_600_000_000;
    let before = logged(Some(100), 105, 7, 10 * hour, 1);
    let mut replay_index = after(&[before]);
    let live = logged(Some(200), 205, 8, 9 * hour, 2);
    assert!(!replay_index.covers(&live), "a change after the step");
    replay_index.pass(&live);
    assert!(replay_index.covers(&before) && replay_index.covers(&live));
    assert!(
        replay_index.covers(&logged(Some(90), 95, 6, 10 * hour - 1, 3)),
        "from before the step"
    );
    assert!(!replay_index.covers(&logged(Some(300), 305, 9, 9 * hour + 1, 4)), "the log goes on");
    assert!(!replay_index.covers(&logged(None, 104, 5, 9 * hour + 1, 5)), "of an unknown order");
    let restored = logged(Some(10), 15, 3, 11 * hour, 6);
    assert!(!replay_index.covers(&restored));
}

#[test]
fn commits_of_the_same_moment_push_out_neither_logs_nor_steps() {
    let hour = 3_600_000_000;
    let (old, before) = (logged(Some(900), 905, 1, hour, 1), logged(Some(10), 15, 2, 3 * hour, 2));
    let mut replay_index = after(&[old, before]);
    for at in 0..100 {
        let time = 2 * hour - i64::try_from(at).expect("a small number");
        replay_index.pass(&logged(Some(20 + at), 25 + at, 3, time, 3));
    }
    assert!(replay_index.covers(&old) && replay_index.covers(&before));
    assert!(replay_index.sources[0].1.logs.len() <= ENTRIES_KEPT);
}

/// A database's life: each change lies further on in the log, and the clock now and then stands or
/// steps back; at last it is restored from long ago.
fn life(steps: &[(u64, i64)]) -> Vec<LoggedChange> {
    let mut at = (1_000, 1_000_000_000);
    let mut life = Vec::new();
    for (number, (bytes, us)) in (0..).zip(steps) {
        at = (at.0 + bytes, at.1 + us);
        life.push(logged(Some(at.0), at.0, number, at.1, 1));
    }
    life
}

fn step() -> impl Strategy<Value = (u64, i64)> {
    // Mostly on, sometimes a little back, seldom far.
    let time = prop_oneof![8 => 0_i64..1_000, 3 => -50_i64..0];
    (1_u64..100, time)
}

proptest! {
    #[test]
    fn however_the_clock_steps_new_changes_are_handled_and_finished_ones_known(
        parts in prop::collection::vec(
            (prop::collection::vec(step(), 1..40), 0_i64..5_000_000_000), 1..5),
    ) {
        let mut steps = Vec::new();
        for (part, back) in parts {
            steps.extend(part);
            steps.push((10, -back));
        }
        let life = life(&steps);
        let mut replay_index = ReplayIndex::default();
        let mut full = false;
        for (number, change) in life.iter().enumerate() {
            prop_assert!(!replay_index.covers(change), "{change:?} is new");
            replay_index.pass(change);
            full |= is_full(&replay_index);
            for known in &life[..=number] {
                prop_assert!(full || replay_index.covers(known), "{known:?}");
            }
        }
    }

    /// Nothing counts as finished but what lies before one finished change in both.
    #[test]
    fn position_and_time_stay_paired(
        passed in prop::collection::vec((0_u64..30, 0_i64..30, 0_u32..3), 0..40),
        asked in (0_u64..30, 0_i64..30, 0_u32..3),
    ) {
        let logged = |(at, us, tie): (u64, i64, u32)| logged(Some(at), at, 1, us, tie);
        let mut replay_index = ReplayIndex::default();
        let mut full = false;
        for place in &passed {
            replay_index.pass(&logged(*place));
            full |= is_full(&replay_index);
        }
        let beyond = passed.iter().any(|(at, us, tie)| {
            asked.1 <= *us && (asked.0 < *at || (asked.0 == *at && asked.2 == *tie))
        });
        let covered = replay_index.covers(&logged(asked));
        prop_assert!(beyond || !covered);
        prop_assert!(full || covered || !beyond);
    }
}

/// Whether there may be more to keep than is kept.
fn is_full(replay_index: &ReplayIndex) -> bool {
    replay_index.sources.iter().any(|(_, source)| source.logs.len() == ENTRIES_KEPT)
}

#[test]
fn a_change_without_predecessor_must_be_clearly_older_or_of_the_same_transaction() {
    let replay_index = after(&[logged(Some(100), 500, 7, 10_000_000, 1)]);
    assert!(!replay_index.covers(&logged(None, 600, 9, 11_000_000, 2)), "new after a restart");
    assert!(!replay_index.covers(&logged(None, 400, 6, 9_500_000, 2)), "not clearly older");
    assert!(replay_index.covers(&logged(None, 400, 5, 8_000_000, 2)));
    assert!(
        replay_index.covers(&logged(None, 450, 7, 10_000_000, 2)),
        "earlier in its transaction"
    );
    assert!(!replay_index.covers(&logged(None, 550, 7, 10_000_000, 2)), "later in its transaction");
}

#[test]
fn a_first_start_is_recognised_when_it_is_sent_again() {
    let first_run = [
        logged(None, 100, 7, 1_000_000, 1),
        logged(None, 110, 7, 1_000_000, 2),
        logged(None, 90, 6, 5_000_000, 3),
    ];
    let replay_index = after(&first_run);
    assert!(replay_index.covers(&first_run[2]));
    assert!(!replay_index.covers(&logged(None, 95, 8, 5_000_001, 4)), "a new change right after");
}

#[test]
fn other_tables_have_a_frontier_of_their_own() {
    let replay_index = after(&[logged(Some(100), 105, 7, 1_000, 1)]);
    let other = LoggedChange { source: 2, ..logged(Some(50), 55, 6, 500, 1) };
    assert!(!replay_index.covers(&other));
}

#[test]
fn a_finished_change_is_known_until_the_committable_offset_passes_each_copy() {
    let mut finished = Finished::default();
    let change = logged(Some(1), 2, 3, 4, 5);
    finished.insert(&change);
    finished.insert(&change);
    finished.remove(&change);
    assert!(finished.contains(&change));
    finished.remove(&change);
    assert!(!finished.contains(&change));
    finished.remove(&change);
}
