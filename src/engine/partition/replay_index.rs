//! Replay recognition: has this group finished this change before?
//!
//! Pure. A connector that loses its place sends days of changes again, long after every claim has
//! expired. What the group has finished is therefore kept with its commits: per partition and
//! source table a *replay index*, pairs of log position and commit time that the committable offset
//! has passed (behaviour section 8.2). A change that lies before one of them in position **and** in
//! time is a replay. Position and time stay paired, entry by entry: as two separate maxima they
//! would take true changes of a restored database for replays.
//!
//! An entry goes only when a later one lies beyond it in both. So a restored or moved database,
//! whose positions are smaller and whose times are later, opens another entry, and so does the same
//! log when its server's clock steps back: its positions grow and its times are earlier. What was
//! known before stays known either way.

use std::collections::HashMap;

use crate::cdc::Position;

/// Entries that are kept of one table: of logs that it came from, and of times at which a clock
/// stepped back. Transactions that commit at the same moment also get times that are not quite in
/// the order of their positions, and each such pair is two entries until the next change.
const ENTRIES_KEPT: usize = 8;

/// A change without a known predecessor is a replay only when it is this much older, in
/// microseconds, than what was finished.
const UNSEQUENCED_MARGIN_US: i64 = 1_000_000;

/// What two commits of the same moment can differ in the wrong direction, in microseconds; more is
/// a clock that stepped back.
const SAME_MOMENT_US: i64 = 1_000_000;

/// Where a change stands in its source's log, and which of the changes at that position it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedChange {
    /// Hash of the source: connector name, database, schema and table.
    pub source: u32,
    /// Log position and commit time.
    pub position: Position,
    /// Hash of key and operation: several changes can share one position (COPY, key changes).
    pub tie: u32,
}

/// A change that the committable offset passed, and beyond which no later one lies in both position
/// and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub position: Position,
    /// Which changes at exactly that position are finished, ascending.
    pub ties: Vec<u32>,
}

impl Entry {
    fn new(logged: &LoggedChange) -> Self {
        Self { position: logged.position, ties: vec![logged.tie] }
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
    fn covers_sequenced(&self, logged: &LoggedChange) -> bool {
        let (mine, theirs) = (order(&self.position), order(&logged.position));
        let not_later = logged.position.commit_us <= self.position.commit_us;
        not_later && (theirs < mine || (theirs == mine && self.has_tie(logged.tie)))
    }

    /// Whether it is the log of `earlier` going on with a clock that has stepped back.
    fn steps_back_from(&self, earlier: &Self) -> bool {
        order(&self.position) > order(&earlier.position)
            && self.position.commit_us < earlier.position.commit_us
    }

    /// Rule 3: without a predecessor, a change of the entry's own transaction is compared within
    /// it, and any other must be clearly older.
    fn covers_unsequenced(&self, logged: &LoggedChange) -> bool {
        let (mine, theirs) = (self.position.lsn, logged.position.lsn);
        if self.same_transaction(&logged.position) {
            return theirs < mine || (theirs == mine && self.has_tie(logged.tie));
        }
        theirs < mine && logged.position.commit_us + UNSEQUENCED_MARGIN_US < self.position.commit_us
    }
}

fn order(position: &Position) -> (Option<u64>, u64) {
    (position.first, position.lsn)
}

/// What is finished of one source table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// In the order in which they were passed, the newest last.
    pub logs: Vec<Entry>,
    /// The last finished change that had no predecessor. Kept apart: it says nothing about order
    /// against sequenced changes, so it never moves their entry.
    pub unsequenced: Option<Entry>,
}

impl Source {
    fn covers(&self, logged: &LoggedChange) -> bool {
        if logged.position.first.is_some() {
            return self.logs.iter().any(|entry| entry.covers_sequenced(logged));
        }
        // Times from before a step back say nothing about a change whose order is not known.
        let comparable = self.logs.iter().enumerate().filter(|(at, entry)| {
            !self.logs[at + 1..].iter().any(|later| later.steps_back_from(entry))
        });
        let mut comparable = comparable.map(|(_, entry)| entry).chain(&self.unsequenced);
        comparable.any(|entry| entry.covers_unsequenced(logged))
    }

    fn pass(&mut self, logged: &LoggedChange) {
        if logged.position.first.is_none() {
            self.pass_unsequenced(logged);
            return;
        }
        // A replay says nothing new.
        if self.covers(logged) {
            return;
        }
        let (at, time) = (order(&logged.position), logged.position.commit_us);
        let same =
            |entry: &&mut Entry| order(&entry.position) == at && entry.position.commit_us == time;
        if let Some(entry) = self.logs.iter_mut().find(same) {
            entry.add_tie(logged.tie);
            return;
        }
        // Rule 2: a smaller position with a later time is another log; and a clock may step back.
        self.logs.retain(|entry| order(&entry.position) >= at || entry.position.commit_us > time);
        self.logs.push(Entry::new(logged));
        if self.logs.len() > ENTRIES_KEPT {
            self.logs.remove(self.least());
        }
    }

    /// The entry without which the least is forgotten: one that the next differs from by a moment,
    /// else the oldest.
    fn least(&self) -> usize {
        let a_moment = |pair: &[Entry]| {
            let gap = pair[0].position.commit_us.saturating_sub(pair[1].position.commit_us);
            pair[1].steps_back_from(&pair[0]) && gap < SAME_MOMENT_US
        };
        self.logs.windows(2).position(a_moment).unwrap_or(0)
    }

    fn pass_unsequenced(&mut self, logged: &LoggedChange) {
        match &mut self.unsequenced {
            Some(entry) if entry.same_transaction(&logged.position) => {
                if logged.position.lsn > entry.position.lsn {
                    *entry = Entry::new(logged);
                } else if logged.position.lsn == entry.position.lsn {
                    entry.add_tie(logged.tie);
                }
            }
            Some(entry) if logged.position.commit_us < entry.position.commit_us => {}
            entry => *entry = Some(Entry::new(logged)),
        }
    }
}

/// What one partition's committable offset has passed, by source table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayIndex {
    /// By hash of the source, ascending.
    pub sources: Vec<(u32, Source)>,
}

impl ReplayIndex {
    /// Whether the change at `logged` was finished before.
    #[must_use]
    pub fn covers(&self, logged: &LoggedChange) -> bool {
        self.find(logged.source).is_ok_and(|at| self.sources[at].1.covers(logged))
    }

    /// Notes that the committable offset passed the change at `logged`, whatever its outcome was.
    pub fn pass(&mut self, logged: &LoggedChange) {
        let at = match self.find(logged.source) {
            Ok(at) => at,
            Err(at) => {
                self.sources.insert(at, (logged.source, Source::default()));
                at
            }
        };
        self.sources[at].1.pass(logged);
    }

    fn find(&self, source: u32) -> Result<usize, usize> {
        self.sources.binary_search_by_key(&source, |(hash, _)| *hash)
    }
}

/// The finished changes above the committable offset, where a replay index cannot tell yet: a copy
/// is recognised by its key, operation, position and transaction.
#[derive(Debug, Default)]
pub struct Finished(HashMap<(u32, u32, u64, Option<u64>), u32, ahash::RandomState>);

impl Finished {
    /// Notes a finished change.
    pub fn insert(&mut self, logged: &LoggedChange) {
        *self.0.entry(Self::identity(logged)).or_default() += 1;
    }

    /// Forgets a change that the committable offset has passed.
    pub fn remove(&mut self, logged: &LoggedChange) {
        if let std::collections::hash_map::Entry::Occupied(mut seen) =
            self.0.entry(Self::identity(logged))
        {
            *seen.get_mut() -= 1;
            if *seen.get() == 0 {
                seen.remove();
            }
        }
    }

    /// Whether a copy of this change is finished.
    #[must_use]
    pub fn contains(&self, logged: &LoggedChange) -> bool {
        self.0.contains_key(&Self::identity(logged))
    }

    fn identity(logged: &LoggedChange) -> (u32, u32, u64, Option<u64>) {
        (logged.source, logged.tie, logged.position.lsn, logged.position.tx_id)
    }
}

#[cfg(test)]
mod tests;
