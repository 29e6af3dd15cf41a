//! When to stop taking records, and which partitions to pause. Pure.
//!
//! Memory is bounded in records and in bytes (behaviour section 8.5). The bound is the total: a
//! partition may hold as much as is still free, so a busy one uses what the others leave, and one
//! that is stuck never takes the room of the rest. A partition at its limit that finishes its
//! records fast is waited for, because a pause throws fetched records away. One that is slow is
//! paused alone, and the others flow on.

use std::time::{Duration, Instant};

/// How long a partition may take to finish what it holds and still be waited for. A wait must be
/// short: a member that does not poll leaves a revoke unanswered and holds up its whole group.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// Upper bounds of what one consumer holds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Records without an outcome.
    pub records: usize,
    /// Their keys, values and headers, and what their work keeps while it waits.
    pub bytes: usize,
    /// Delivered offsets that watermarks have not passed, with an outcome or without: bookkeeping
    /// that grows while one record waits and the rest flows on.
    pub span: usize,
}

impl Bounds {
    /// Bytes of answers that work may keep while it waits: a part of the whole.
    #[must_use]
    pub fn answers(self) -> usize {
        self.bytes / 4
    }

    /// What is left for records.
    #[must_use]
    pub fn of_records(self) -> Self {
        Self { bytes: self.bytes - self.answers(), ..self }
    }
}

/// What one partition holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Records without an outcome.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Delivered offsets that the watermark has not passed.
    pub span: usize,
}

/// How fast a partition finishes what it holds.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    /// Outcomes until it has finished as many records as it held then.
    left: usize,
    slow: bool,
}

impl Pace {
    /// A partition that holds nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, left: 0, slow: false }
    }

    /// A record has its outcome.
    pub fn finished(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Looks at a partition that holds `open` records. It is slow when it takes longer than
    /// [`PATIENCE`] to finish as many as it held.
    pub fn look(&mut self, now: Instant, open: usize) {
        if self.left == 0 {
            *self = Self { since: now, left: open, slow: false };
        } else {
            self.slow = now.saturating_duration_since(self.since) >= PATIENCE;
        }
    }

    /// Whether it was slow at the last look.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.slow
    }
}

/// An assigned partition, as a decision sees it.
#[derive(Debug, Clone, Copy)]
pub struct View<P> {
    /// Its name.
    pub partition: P,
    /// What it holds.
    pub load: Load,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether it finishes its records slowly ([`Pace`]).
    pub slow: bool,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision<P> {
    /// Whether to ask for records.
    pub poll: bool,
    /// Partitions to pause.
    pub pause: Vec<P>,
    /// Partitions to resume.
    pub resume: Vec<P>,
}

impl Bounds {
    /// Whether one more record may be taken from a partition with `load`, out of `partitions`,
    /// when all of them hold `total`.
    #[must_use]
    pub fn admit(self, total: Load, load: Load, partitions: usize) -> bool {
        let room = self.room(total, partitions);
        !room.full && !reaches(load, room.limit) && load.span < self.span
    }

    /// Decides for every assigned partition.
    #[must_use]
    pub fn decide<P: Copy>(self, partitions: impl Iterator<Item = View<P>> + Clone) -> Decision<P> {
        let count = partitions.clone().count();
        let total = partitions.clone().fold(Load::default(), |sum, View { load, .. }| Load {
            records: sum.records + load.records,
            bytes: sum.bytes + load.bytes,
            span: sum.span + load.span,
        });
        let Room { full, tight, limit } = self.room(total, count);
        // Bookkeeping is shared unequally for as long as there is room: where one record waits, the
        // rest of its partition shall flow on.
        let crowds = |load: Load, span| total.span >= span && load.span >= span / count.max(1);
        let blocks = |view: &View<P>| {
            !view.paused && (full || reaches(view.load, limit) || crowds(view.load, self.span))
        };
        // Waiting pays where much will be finished soon.
        let pauses = |view: &View<P>| blocks(view) && (view.slow || tight);
        // Half the limit, so that a partition is not paused again at once.
        let half = Load { records: limit.records / 2, bytes: limit.bytes / 2, ..limit };
        let resumes = |view: &View<P>| {
            let low = view.load.records <= half.records && view.load.bytes <= half.bytes;
            view.paused && !full && low && !crowds(view.load, self.span / 2)
        };
        let named = |wanted: &dyn Fn(&View<P>) -> bool| {
            partitions.clone().filter(wanted).map(|view| view.partition).collect()
        };
        Decision {
            poll: !partitions.clone().any(|view| blocks(&view) && !pauses(&view)),
            pause: named(&pauses),
            resume: named(&resumes),
        }
    }

    /// A quarter of the whole is shared out equally among the partitions, so that each flows on
    /// however many others are stuck. Of the rest a partition may hold as much as is still free.
    fn room(self, total: Load, partitions: usize) -> Room {
        let full = total.records >= self.records || total.bytes >= self.bytes;
        if partitions <= 1 {
            return Room { full, tight: false, limit: self.whole() };
        }
        let own = |whole: usize| (whole / 4 / partitions).max(1);
        let free = |whole: usize, taken: usize| (whole - whole / 4).saturating_sub(taken);
        let (records, bytes) = (free(self.records, total.records), free(self.bytes, total.bytes));
        let limit = Load {
            records: records.max(own(self.records)),
            bytes: bytes.max(own(self.bytes)),
            span: self.span,
        };
        let tight = limit.records > records || limit.bytes > bytes;
        Room { full, tight, limit }
    }

    fn whole(self) -> Load {
        Load { records: self.records, bytes: self.bytes, span: self.span }
    }
}

/// What may still be taken.
struct Room {
    /// All of the bound is used.
    full: bool,
    /// Each partition has but its own share.
    tight: bool,
    /// What one partition may hold.
    limit: Load,
}

fn reaches(load: Load, limit: Load) -> bool {
    load.records >= limit.records || load.bytes >= limit.bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { records: 100, bytes: 10_000, span: 1_000 };

    fn load(records: usize) -> Load {
        Load { records, bytes: records, span: records }
    }

    fn fast(partition: i32, records: usize) -> View<i32> {
        View { partition, load: load(records), paused: false, slow: false }
    }

    fn slow(partition: i32, records: usize) -> View<i32> {
        View { slow: true, ..fast(partition, records) }
    }

    fn paused(partition: i32, records: usize) -> View<i32> {
        View { paused: true, ..slow(partition, records) }
    }

    fn decide(views: &[View<i32>]) -> Decision<i32> {
        BOUNDS.decide(views.iter().copied())
    }

    #[test]
    fn a_partition_that_is_alone_uses_the_whole_bound_and_is_waited_for_until_it_is_slow() {
        assert!(BOUNDS.admit(load(99), load(99), 1));
        assert!(!BOUNDS.admit(load(100), load(100), 1));
        assert_eq!(
            decide(&[fast(0, 100)]),
            Decision { poll: false, pause: vec![], resume: vec![] }
        );
        let decision = decide(&[slow(0, 100)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![0]));
        assert!(decide(&[paused(0, 51)]).resume.is_empty());
        assert_eq!(decide(&[paused(0, 50)]).resume, [0]);
    }

    #[test]
    fn a_busy_partition_uses_what_the_others_leave_and_is_not_paused() {
        let others = (1..50).map(|partition| fast(partition, 0));
        let views = |records| [fast(0, records)].into_iter().chain(others.clone());
        let flows = Decision { poll: true, pause: vec![], resume: vec![] };
        assert_eq!(BOUNDS.decide(views(37)), flows, "far more than a fiftieth");
        let waits = Decision { poll: false, ..flows };
        assert_eq!(BOUNDS.decide(views(38)), waits, "it leaves as much to the others");
    }

    #[test]
    fn a_slow_partition_at_its_limit_is_paused_alone_and_at_once() {
        let decision = decide(&[slow(0, 38), fast(1, 3)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![0]));
        assert!(!BOUNDS.admit(load(41), load(38), 2));
        assert!(BOUNDS.admit(load(41), load(3), 2));
    }

    #[test]
    fn a_slow_partition_below_its_limit_flows_on() {
        let decision = decide(&[slow(0, 30), fast(1, 3)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![]));
    }

    #[test]
    fn one_that_stands_still_at_its_limit_keeps_no_other_paused() {
        let decision = decide(&[paused(0, 38), paused(1, 20)]);
        assert_eq!((decision.poll, decision.resume), (true, vec![]), "17 are free, half is 8");
        assert_eq!(decide(&[paused(0, 38), paused(1, 12)]).resume, [1]);
    }

    #[test]
    fn where_little_is_left_nobody_is_waited_for() {
        // Six that are stuck have taken what was free; a fast one has its own share, and is paused
        // when that is used, because the others would have to wait with it.
        let stuck = [38, 19, 9, 5, 2, 2]
            .into_iter()
            .enumerate()
            .map(|(n, records)| paused(i32::try_from(n).expect("small"), records));
        let decision = BOUNDS.decide(stuck.chain([fast(6, 3), fast(7, 2)]));
        assert_eq!((decision.poll, decision.pause), (true, vec![6]));
    }

    #[test]
    fn bytes_and_bookkeeping_count_as_records_do() {
        let heavy = Load { records: 1, bytes: 10_000, span: 1 };
        assert!(!BOUNDS.admit(heavy, heavy, 1));
        let half = Load { records: 1, bytes: 3_750, span: 1 };
        assert!(BOUNDS.admit(half, half, 1));
        assert!(!BOUNDS.admit(half, half, 2));
        let wide = Load { records: 1, bytes: 1, span: 1_000 };
        assert!(!BOUNDS.admit(Load::default(), wide, 1));
    }

    #[test]
    fn bookkeeping_is_bounded_for_all_and_what_takes_most_of_it_is_paused() {
        let wide = |view: View<i32>, span| View { load: Load { span, ..load(1) }, ..view };
        let room = [wide(slow(0, 1), 900), wide(slow(1, 1), 10)];
        assert!(decide(&room).pause.is_empty(), "one may take more than its half");
        let decision = decide(&[wide(slow(0, 1), 990), wide(slow(1, 1), 10)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![0]));
        let decision = decide(&[wide(paused(0, 1), 900), wide(slow(1, 1), 10)]);
        assert!(decision.poll && decision.resume.is_empty());
    }

    #[test]
    fn a_partition_is_slow_until_it_has_finished_as_many_as_it_held() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.look(now, 3);
        pace.finished();
        pace.look(now + PATIENCE / 2, 3);
        assert!(!pace.is_slow(), "it has had little time");
        pace.finished();
        pace.look(now + PATIENCE, 3);
        assert!(pace.is_slow(), "two of three in that time");
        pace.finished();
        pace.look(now + PATIENCE, 2);
        assert!(!pace.is_slow());
        pace.look(now + PATIENCE + PATIENCE / 2, 2);
        assert!(!pace.is_slow(), "counted from then on");
    }

    proptest! {
        /// However partitions get stuck one after the other: the bound holds, and each of the rest
        /// may take something.
        #[test]
        fn the_stuck_leave_something_to_every_other(
            stuck in prop::collection::vec(0_usize..8, 1..300),
        ) {
            let mut loads = [0_usize; 8];
            for partition in stuck {
                let total = load(loads.iter().sum());
                if BOUNDS.admit(total, load(loads[partition]), loads.len()) {
                    loads[partition] += 1;
                }
            }
            let total: usize = loads.iter().sum();
            prop_assert!(total <= BOUNDS.records);
            for records in loads {
                prop_assert!(records > 0 || BOUNDS.admit(load(total), load(0), loads.len()));
            }
        }
    }
}
