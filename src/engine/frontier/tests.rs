use proptest::prelude::*;

use super::*;

fn stamp(first: Option<u64>, lsn: u64, tx_id: u64, commit_us: i64, tie: u32) -> Stamp {
    Stamp { source: 1, position: Position { first, lsn, tx_id: Some(tx_id), commit_us }, tie }
}

fn after(passed: &[Stamp]) -> Frontier {
    let mut frontier = Frontier::default();
    for stamp in passed {
        frontier.pass(stamp);
    }
    frontier
}

#[test]
fn what_lies_before_in_position_and_time_is_a_replay() {
    let frontier = after(&[stamp(Some(100), 105, 7, 1_000, 1), stamp(Some(200), 150, 8, 2_000, 2)]);
    assert!(frontier.covers(&stamp(Some(100), 105, 7, 1_000, 1)));
    assert!(frontier.covers(&stamp(Some(200), 150, 8, 2_000, 2)));
    assert!(!frontier.covers(&stamp(Some(200), 160, 8, 2_000, 3)), "later in the transaction");
    assert!(!frontier.covers(&stamp(Some(300), 120, 9, 2_000, 4)), "a later commit, smaller lsn");
}

#[test]
fn changes_at_one_position_are_told_apart_by_key_and_operation() {
    let frontier = after(&[stamp(Some(100), 105, 7, 1_000, 1), stamp(Some(100), 105, 7, 1_000, 2)]);
    assert!(frontier.covers(&stamp(Some(100), 105, 7, 1_000, 1)));
    assert!(frontier.covers(&stamp(Some(100), 105, 7, 1_000, 2)));
    assert!(!frontier.covers(&stamp(Some(100), 105, 7, 1_000, 3)));
}

#[test]
fn a_restored_database_is_handled_and_replays_of_both_logs_are_still_known() {
    let mut frontier = after(&[stamp(Some(900), 905, 7, 1_000, 1)]);
    let restored = stamp(Some(10), 15, 3, 2_000, 2);
    assert!(!frontier.covers(&restored));
    frontier.pass(&restored);
    assert!(frontier.covers(&restored));
    assert!(frontier.covers(&stamp(Some(800), 805, 6, 900, 3)), "the old log, again");
    assert!(!frontier.covers(&stamp(Some(20), 25, 4, 2_100, 4)), "the new log goes on");
    assert!(!frontier.covers(&stamp(Some(20), 25, 4, 1_500, 4)), "beyond the new log's end");
}

#[test]
fn a_replay_of_the_old_log_takes_nothing_from_what_is_known_of_the_new_one() {
    let (old, new) = (stamp(Some(900), 905, 7, 1_000, 1), stamp(Some(10), 15, 3, 2_000, 2));
    let mut frontier = after(&[old, new]);
    for number in 0..10 {
        frontier.pass(&stamp(Some(800 + number), 805 + number, 6, 900, 3));
        let live = stamp(Some(20 + number), 25 + number, 4, 2_100 + number as i64, 4);
        assert!(!frontier.covers(&live));
        frontier.pass(&live);
        assert!(frontier.covers(&live) && frontier.covers(&new) && frontier.covers(&old));
    }
}

#[test]
fn a_clock_that_steps_back_takes_nothing_from_what_is_known_of_the_same_log() {
    let hour = 3_600_000_000;
    let before = stamp(Some(100), 105, 7, 10 * hour, 1);
    let mut frontier = after(&[before]);
    let live = stamp(Some(200), 205, 8, 9 * hour, 2);
    assert!(!frontier.covers(&live), "a change after the step");
    frontier.pass(&live);
    assert!(frontier.covers(&before) && frontier.covers(&live));
    assert!(frontier.covers(&stamp(Some(90), 95, 6, 10 * hour - 1, 3)), "from before the step");
    assert!(!frontier.covers(&stamp(Some(300), 305, 9, 9 * hour + 1, 4)), "the log goes on");
    assert!(!frontier.covers(&stamp(None, 104, 5, 9 * hour + 1, 5)), "of an unknown order");
    let restored = stamp(Some(10), 15, 3, 11 * hour, 6);
    assert!(!frontier.covers(&restored));
}

#[test]
fn commits_of_the_same_moment_push_out_neither_logs_nor_steps() {
    let hour = 3_600_000_000;
    let (old, before) = (stamp(Some(900), 905, 1, hour, 1), stamp(Some(10), 15, 2, 3 * hour, 2));
    let mut frontier = after(&[old, before]);
    for at in 0..100 {
        let time = 2 * hour - i64::try_from(at).expect("a small number");
        frontier.pass(&stamp(Some(20 + at), 25 + at, 3, time, 3));
    }
    assert!(frontier.covers(&old) && frontier.covers(&before));
    assert!(frontier.sources[0].1.logs.len() <= ENTRIES_KEPT);
}

/// A database's life: each change lies further on in the log, and the clock now and then stands or
/// steps back; at last it is restored from long ago.
fn life(steps: &[(u64, i64)]) -> Vec<Stamp> {
    let mut at = (1_000, 1_000_000_000);
    let mut life = Vec::new();
    for (number, (bytes, us)) in (0..).zip(steps) {
        at = (at.0 + bytes, at.1 + us);
        life.push(stamp(Some(at.0), at.0, number, at.1, 1));
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
        let mut frontier = Frontier::default();
        let mut full = false;
        for (number, change) in life.iter().enumerate() {
            prop_assert!(!frontier.covers(change), "{change:?} is new");
            frontier.pass(change);
            full |= is_full(&frontier);
            for known in &life[..=number] {
                prop_assert!(full || frontier.covers(known), "{known:?}");
            }
        }
    }

    /// Nothing counts as finished but what lies before one finished change in both.
    #[test]
    fn position_and_time_stay_paired(
        passed in prop::collection::vec((0_u64..30, 0_i64..30, 0_u32..3), 0..40),
        asked in (0_u64..30, 0_i64..30, 0_u32..3),
    ) {
        let stamp = |(at, us, tie): (u64, i64, u32)| stamp(Some(at), at, 1, us, tie);
        let mut frontier = Frontier::default();
        let mut full = false;
        for place in &passed {
            frontier.pass(&stamp(*place));
            full |= is_full(&frontier);
        }
        let beyond = passed.iter().any(|(at, us, tie)| {
            asked.1 <= *us && (asked.0 < *at || (asked.0 == *at && asked.2 == *tie))
        });
        let covered = frontier.covers(&stamp(asked));
        prop_assert!(beyond || !covered);
        prop_assert!(full || covered || !beyond);
    }
}

/// Whether there may be more to keep than is kept.
fn is_full(frontier: &Frontier) -> bool {
    frontier.sources.iter().any(|(_, source)| source.logs.len() == ENTRIES_KEPT)
}

#[test]
fn a_change_without_predecessor_must_be_clearly_older_or_of_the_same_transaction() {
    let frontier = after(&[stamp(Some(100), 500, 7, 10_000_000, 1)]);
    assert!(!frontier.covers(&stamp(None, 600, 9, 11_000_000, 2)), "new after a restart");
    assert!(!frontier.covers(&stamp(None, 400, 6, 9_500_000, 2)), "not clearly older");
    assert!(frontier.covers(&stamp(None, 400, 5, 8_000_000, 2)));
    assert!(frontier.covers(&stamp(None, 450, 7, 10_000_000, 2)), "earlier in its transaction");
    assert!(!frontier.covers(&stamp(None, 550, 7, 10_000_000, 2)), "later in its transaction");
}

#[test]
fn a_first_start_is_recognised_when_it_is_sent_again() {
    let first_run = [
        stamp(None, 100, 7, 1_000_000, 1),
        stamp(None, 110, 7, 1_000_000, 2),
        stamp(None, 90, 6, 5_000_000, 3),
    ];
    let frontier = after(&first_run);
    assert!(frontier.covers(&first_run[2]));
    assert!(!frontier.covers(&stamp(None, 95, 8, 5_000_001, 4)), "a new change right after");
}

#[test]
fn other_tables_have_a_frontier_of_their_own() {
    let frontier = after(&[stamp(Some(100), 105, 7, 1_000, 1)]);
    let other = Stamp { source: 2, ..stamp(Some(50), 55, 6, 500, 1) };
    assert!(!frontier.covers(&other));
}

#[test]
fn a_finished_change_is_known_until_the_watermark_passes_each_copy() {
    let mut finished = Finished::default();
    let change = stamp(Some(1), 2, 3, 4, 5);
    finished.insert(&change);
    finished.insert(&change);
    finished.remove(&change);
    assert!(finished.contains(&change));
    finished.remove(&change);
    assert!(!finished.contains(&change));
    finished.remove(&change);
}
