//! The committable offset: per assigned partition, the lowest offset without an outcome.
//!
//! Pure. Only what lies below the committable offset is committed (behaviour section 8.1);
//! completed offsets above it travel in the commit's metadata, so that a restart repeats little.

use std::collections::VecDeque;

/// Completed offsets above a committable offset, as runs `start..end` in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffsetMap(Vec<(i64, i64)>);

impl OffsetMap {
    /// Builds a map from completed offsets in ascending order.
    pub fn from_ascending(offsets: impl IntoIterator<Item = i64>) -> Self {
        let mut runs: Vec<(i64, i64)> = Vec::new();
        for offset in offsets {
            match runs.last_mut() {
                Some((_, end)) if *end == offset => *end += 1,
                _ => runs.push((offset, offset + 1)),
            }
        }
        Self(runs)
    }

    /// Builds a map from runs `start..end`, ascending and disjoint.
    #[must_use]
    pub fn from_runs(runs: Vec<(i64, i64)>) -> Self {
        Self(runs)
    }

    /// The runs `start..end`, ascending.
    #[must_use]
    pub fn runs(&self) -> &[(i64, i64)] {
        &self.0
    }

    /// Whether `offset` was completed.
    #[must_use]
    pub fn contains(&self, offset: i64) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= offset);
        after > 0 && offset < self.0[after - 1].1
    }

    /// How many offsets of `from..to` were completed.
    #[must_use]
    pub fn count_in(&self, from: i64, to: i64) -> i64 {
        self.0.iter().map(|(start, end)| ((*end).min(to) - (*start).max(from)).max(0)).sum()
    }
}

/// What became of a record that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// New: it needs an outcome.
    Fresh,
    /// Completed before the restart that made it come again; it has its outcome.
    Completed,
    /// Handed in before (a fetch repeated after a pause); its first copy counts.
    Repeated,
}

#[derive(Debug)]
struct Slot<S> {
    offset: i64,
    done: bool,
    logged: S,
}

/// The delivered offsets of one partition that the committable offset has not passed.
///
/// `S` is what must be known of a record when the committable offset passes it (its log position).
/// Offsets may have gaps: only delivered records count.
#[derive(Debug)]
pub struct Offsets<S> {
    committable: i64,
    last: i64,
    open: usize,
    slots: VecDeque<Slot<S>>,
    resumed: OffsetMap,
}

impl<S> Offsets<S> {
    /// Starts at `start`, the first offset to be delivered, knowing what was `completed` above it.
    #[must_use]
    pub fn new(start: i64, completed: OffsetMap) -> Self {
        Self {
            committable: start,
            last: start - 1,
            open: 0,
            slots: VecDeque::new(),
            resumed: completed,
        }
    }

    /// Takes in the next delivered record.
    pub fn admit(&mut self, offset: i64, logged: S) -> Admission {
        if offset <= self.last {
            return Admission::Repeated;
        }
        self.last = offset;
        let done = self.resumed.contains(offset);
        self.open += usize::from(!done);
        self.slots.push_back(Slot { offset, done, logged });
        if done { Admission::Completed } else { Admission::Fresh }
    }

    /// Records the outcome of an offset. Returns what was kept with it, or `None` when it is not
    /// open.
    pub fn complete(&mut self, offset: i64) -> Option<&S> {
        let at = self.place(offset)?;
        let slot = &mut self.slots[at];
        if slot.done {
            return None;
        }
        slot.done = true;
        self.open -= 1;
        Some(&slot.logged)
    }

    /// Whether an offset was delivered and has no outcome yet.
    #[must_use]
    pub fn is_open(&self, offset: i64) -> bool {
        self.place(offset).is_some_and(|at| !self.slots[at].done)
    }

    /// Where an offset lies. Logs without gaps are the rule: there it is counted off.
    fn place(&self, offset: i64) -> Option<usize> {
        let first = self.slots.front()?.offset;
        let counted = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.slots.get(counted).is_some_and(|slot| slot.offset == offset) {
            return Some(counted);
        }
        self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()
    }

    /// Moves the committable offset over everything that has an outcome, handing what was kept with
    /// each to `passed` in offset order. Returns whether it moved.
    pub fn advance(&mut self, mut passed: impl FnMut(S)) -> bool {
        let before = self.committable;
        while self.slots.front().is_some_and(|slot| slot.done) {
            if let Some(slot) = self.slots.pop_front() {
                self.committable = slot.offset + 1;
                passed(slot.logged);
            }
        }
        if self.slots.is_empty() {
            // Further on after a skip.
            self.committable = self.last + 1;
        }
        self.committable != before
    }

    /// Goes on at `offset`: what lies before it and was not delivered is gone. Answers how many
    /// of these offsets had no outcome.
    pub fn skip_to(&mut self, offset: i64) -> i64 {
        let (from, to) = (self.next(), offset.max(self.next()));
        let gone = to - from - self.resumed.count_in(from, to);
        self.last = to - 1;
        self.advance(|_| ());
        gone
    }

    /// The lowest offset without an outcome: what a commit may name.
    #[must_use]
    pub fn committable(&self) -> i64 {
        self.committable
    }

    /// The offset after the last delivered one.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.last + 1
    }

    /// Delivered records without an outcome.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// Delivered records that the committable offset has not passed, with and without outcome.
    #[must_use]
    pub fn span(&self) -> usize {
        self.slots.len()
    }

    /// What is completed above the committable offset, including what an earlier run completed and
    /// this one has not been given yet.
    #[must_use]
    pub fn completed(&self) -> OffsetMap {
        let done = self.slots.iter().filter(|slot| slot.done).map(|slot| slot.offset);
        let ahead =
            self.resumed.0.iter().flat_map(|(start, end)| (*start).max(self.last + 1)..*end);
        OffsetMap::from_ascending(done.chain(ahead))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn drain(offsets: &mut Offsets<i64>) -> Vec<i64> {
        let mut passed = Vec::new();
        offsets.advance(|logged| passed.push(logged));
        passed
    }

    #[test]
    fn the_committable_offset_waits_for_the_slowest_and_then_passes_all_at_once() {
        let mut offsets = Offsets::new(10, OffsetMap::default());
        for offset in [10, 11, 14] {
            assert_eq!(offsets.admit(offset, offset), Admission::Fresh);
        }
        offsets.complete(11);
        offsets.complete(14);
        assert!(drain(&mut offsets).is_empty());
        assert_eq!(offsets.committable(), 10);
        assert_eq!(offsets.completed().runs(), [(11, 12), (14, 15)]);
        offsets.complete(10);
        assert_eq!(drain(&mut offsets), [10, 11, 14]);
        assert_eq!(offsets.committable(), 15);
        assert_eq!(offsets.open(), 0);
    }

    #[test]
    fn a_record_given_twice_counts_once() {
        let mut offsets = Offsets::new(0, OffsetMap::default());
        assert_eq!(offsets.admit(0, 0), Admission::Fresh);
        assert_eq!(offsets.admit(0, 0), Admission::Repeated);
        assert!(offsets.complete(0).is_some());
        assert!(offsets.complete(0).is_none());
        assert!(offsets.complete(7).is_none());
    }

    #[test]
    fn after_a_skip_the_committable_offset_waits_for_what_is_open_and_then_follows() {
        let mut offsets = Offsets::new(5, OffsetMap::from_ascending([8]));
        offsets.admit(5, 5);
        assert_eq!(offsets.skip_to(10), 3, "6, 7 and 9");
        assert_eq!((offsets.committable(), offsets.next()), (5, 10));
        assert_eq!(offsets.skip_to(10), 0, "counted once");
        offsets.complete(5);
        assert_eq!(drain(&mut offsets), [5]);
        assert_eq!(offsets.committable(), 10);
        assert_eq!(offsets.admit(9, 9), Admission::Repeated);
        assert_eq!(offsets.admit(10, 10), Admission::Fresh);
    }

    proptest! {
        /// Over any order of completions and any crash, the committable offset never passes an open
        /// offset, and a restart asks for exactly what had no outcome.
        #[test]
        fn nothing_below_the_committable_offset_is_ever_open(
            gaps in prop::collection::vec(1_i64..4, 1..80),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
            read_again in 0_usize..80,
        ) {
            let delivered: Vec<i64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut offsets = Offsets::new(0, OffsetMap::default());
            for offset in &delivered {
                offsets.admit(*offset, *offset);
            }
            let mut open: BTreeSet<i64> = delivered.iter().copied().collect();
            let mut passed = Vec::new();
            for pick in order {
                let offset = delivered[pick.index(delivered.len())];
                prop_assert_eq!(offsets.complete(offset).is_some(), open.remove(&offset));
                offsets.advance(|logged| passed.push(logged));
                if let Some(lowest) = open.first() {
                    prop_assert!(offsets.committable() <= *lowest);
                }
                prop_assert_eq!(offsets.open(), open.len());
            }
            prop_assert!(passed.is_sorted());

            let completed = offsets.completed();
            let mut again = Offsets::new(offsets.committable(), completed.clone());
            let rest: Vec<i64> = delivered.iter().copied().filter(|o| *o >= offsets.committable()).collect();
            for offset in rest.iter().take(read_again) {
                let fresh = again.admit(*offset, *offset) == Admission::Fresh;
                prop_assert_eq!(fresh, open.contains(offset));
            }
            // Still the same knowledge after a second crash, however much was read again.
            again.advance(|_| ());
            for offset in &delivered {
                let known = *offset < again.committable() || again.completed().contains(*offset);
                prop_assert_eq!(known, !open.contains(offset));
            }
        }
    }
}
