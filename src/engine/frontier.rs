//! Replay recognition: has this group finished this change before?
//!
//! Pure. A connector that loses its place sends days of changes again, long after every claim has
//! expired. What the group has finished is therefore kept with its commits: per partition and
//! source table a *frontier*, the log position and commit time of the last change that the
//! watermark passed (contract section 8.2). A change that lies before it in position **and** in
//! time is a replay. Position and time stay paired, entry by entry: as two separate maxima they
//! would take true changes of a restored database for replays.

use std::collections::HashMap;

use crate::cdc::Position;

/// Logs that one table can have come from: a restored or moved database starts another one.
const LOGS_KEPT: usize = 3;

/// A change without a known predecessor is a replay only when it is this much older, in
/// microseconds, than what was finished.
const UNSEQUENCED_MARGIN_US: i64 = 1_000_000;

/// Where a change stands in its source's log, and which of the changes at that position it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Hash of the source: connector name, database, schema and table.
    pub source: u32,
    /// Log position and commit time.
    pub position: Position,
    /// Hash of key and operation: several changes can share one position (COPY, key changes).
    pub tie: u32,
}

/// The last change of one log that the watermark passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub position: Position,
    /// Which changes at exactly that position are finished, ascending.
    pub ties: Vec<u32>,
}

impl Entry {
    fn new(stamp: &Stamp) -> Self {
        Self { position: stamp.position, ties: vec![stamp.tie] }
    }

    fn add_tie(&mut self, tie: u32) {
        if let Err(at) = self.ties.binary_search(&tie) {
            self.ties.insert(at, tie);
        }
    }

    fn has_tie(&self, tie: u32) -> bool {
        self.ties.binary_search(&tie).is_ok()
    }

    fn same_transaction(&self, position: &Position) -> bool {
        self.position.tx_id == position.tx_id && self.position.commit_us == position.commit_us
    }

    /// Rule 1: before this entry in position and not later in time; at its very position only if
    /// it is one of those finished there.
    fn covers_sequenced(&self, stamp: &Stamp) -> bool {
        let (mine, theirs) = (order(&self.position), order(&stamp.position));
        let not_later = stamp.position.commit_us <= self.position.commit_us;
        not_later && (theirs < mine || (theirs == mine && self.has_tie(stamp.tie)))
    }

    /// Rule 3: without a predecessor, a change of the entry's own transaction is compared within
    /// it, and any other must be clearly older.
    fn covers_unsequenced(&self, stamp: &Stamp) -> bool {
        let (mine, theirs) = (self.position.lsn, stamp.position.lsn);
        if self.same_transaction(&stamp.position) {
            return theirs < mine || (theirs == mine && self.has_tie(stamp.tie));
        }
        theirs < mine && stamp.position.commit_us + UNSEQUENCED_MARGIN_US < self.position.commit_us
    }
}

fn order(position: &Position) -> (Option<u64>, u64) {
    (position.first, position.lsn)
}

/// What is finished of one source table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// One entry a log, the newest last.
    pub logs: Vec<Entry>,
    /// The last finished change that had no predecessor. Kept apart: it says nothing about order
    /// against sequenced changes, so it never moves their entry.
    pub unsequenced: Option<Entry>,
}

impl Source {
    fn covers(&self, stamp: &Stamp) -> bool {
        if stamp.position.first.is_some() {
            self.logs.iter().any(|entry| entry.covers_sequenced(stamp))
        } else {
            self.logs.iter().chain(&self.unsequenced).any(|entry| entry.covers_unsequenced(stamp))
        }
    }

    fn pass(&mut self, stamp: &Stamp) {
        if stamp.position.first.is_none() {
            self.pass_unsequenced(stamp);
            return;
        }
        // A replay says nothing new, and one of an older log must not take the newest one's place.
        if self.logs.iter().any(|entry| entry.covers_sequenced(stamp)) {
            return;
        }
        let Some(newest) = self.logs.last_mut() else {
            self.logs.push(Entry::new(stamp));
            return;
        };
        let (mine, theirs) = (order(&newest.position), order(&stamp.position));
        if theirs > mine {
            *newest = Entry::new(stamp);
        } else if stamp.position.commit_us > newest.position.commit_us {
            // Rule 2: a smaller position with a later commit time is another log.
            self.logs.push(Entry::new(stamp));
            if self.logs.len() > LOGS_KEPT {
                self.logs.remove(0);
            }
        } else if theirs == mine {
            newest.add_tie(stamp.tie);
        }
    }

    fn pass_unsequenced(&mut self, stamp: &Stamp) {
        match &mut self.unsequenced {
            Some(entry) if entry.same_transaction(&stamp.position) => {
                if stamp.position.lsn > entry.position.lsn {
                    *entry = Entry::new(stamp);
                } else if stamp.position.lsn == entry.position.lsn {
                    entry.add_tie(stamp.tie);
                }
            }
            Some(entry) if stamp.position.commit_us < entry.position.commit_us => {}
            entry => *entry = Some(Entry::new(stamp)),
        }
    }
}

/// What one partition's watermark has passed, by source table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    /// By hash of the source, ascending.
    pub sources: Vec<(u32, Source)>,
}

impl Frontier {
    /// Whether the change at `stamp` was finished before.
    #[must_use]
    pub fn covers(&self, stamp: &Stamp) -> bool {
        self.find(stamp.source).is_ok_and(|at| self.sources[at].1.covers(stamp))
    }

    /// Notes that the watermark passed the change at `stamp`, whatever its outcome was.
    pub fn pass(&mut self, stamp: &Stamp) {
        let at = match self.find(stamp.source) {
            Ok(at) => at,
            Err(at) => {
                self.sources.insert(at, (stamp.source, Source::default()));
                at
            }
        };
        self.sources[at].1.pass(stamp);
    }

    fn find(&self, source: u32) -> Result<usize, usize> {
        self.sources.binary_search_by_key(&source, |(hash, _)| *hash)
    }
}

/// The finished changes above the watermark, where a frontier cannot tell yet: a copy is
/// recognised by its key, operation, position and transaction.
#[derive(Debug, Default)]
pub struct Finished(HashMap<(u32, u32, u64, Option<u64>), u32, ahash::RandomState>);

impl Finished {
    /// Notes a finished change.
    pub fn insert(&mut self, stamp: &Stamp) {
        *self.0.entry(Self::identity(stamp)).or_default() += 1;
    }

    /// Forgets a change that the watermark has passed.
    pub fn remove(&mut self, stamp: &Stamp) {
        if let std::collections::hash_map::Entry::Occupied(mut seen) =
            self.0.entry(Self::identity(stamp))
        {
            *seen.get_mut() -= 1;
            if *seen.get() == 0 {
                seen.remove();
            }
        }
    }

    /// Whether a copy of this change is finished.
    #[must_use]
    pub fn contains(&self, stamp: &Stamp) -> bool {
        self.0.contains_key(&Self::identity(stamp))
    }

    fn identity(stamp: &Stamp) -> (u32, u32, u64, Option<u64>) {
        (stamp.source, stamp.tie, stamp.position.lsn, stamp.position.tx_id)
    }
}

#[cfg(test)]
mod tests {
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
        let frontier =
            after(&[stamp(Some(100), 105, 7, 1_000, 1), stamp(Some(200), 150, 8, 2_000, 2)]);
        assert!(frontier.covers(&stamp(Some(100), 105, 7, 1_000, 1)));
        assert!(frontier.covers(&stamp(Some(200), 150, 8, 2_000, 2)));
        assert!(!frontier.covers(&stamp(Some(200), 160, 8, 2_000, 3)), "later in the transaction");
        assert!(
            !frontier.covers(&stamp(Some(300), 120, 9, 2_000, 4)),
            "a later commit, smaller lsn"
        );
    }

    #[test]
    fn changes_at_one_position_are_told_apart_by_key_and_operation() {
        let frontier =
            after(&[stamp(Some(100), 105, 7, 1_000, 1), stamp(Some(100), 105, 7, 1_000, 2)]);
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
}
