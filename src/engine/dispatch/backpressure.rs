//! When to stop taking records, and which partitions to pause. Pure.
//!
//! Memory is bounded in records and in bytes (behaviour section 8.5). The bound is the total: a
//! busy partition uses what the others leave, and one that is stuck never takes the room of the
//! rest. A partition at its limit that finishes its records fast is waited for, because a pause
//! throws fetched records away. One that is slow is paused alone, and the others flow on.

use std::time::{Duration, Instant};

/// How long a partition may take to finish what it holds and still be waited for. A wait must be
/// short: a member that does not poll leaves a revoke unanswered and holds up its whole group.
pub const TURNOVER: Duration = Duration::from_millis(250);

/// Upper bounds of what one consumer holds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Records without an outcome.
    pub records: usize,
    /// Their keys, values and headers, and what their work keeps while it waits.
    pub bytes: usize,
    /// Delivered offsets that committable offsets have not passed, with an outcome or without:
    /// bookkeeping that grows while one record waits and the rest flows on.
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
    /// Delivered offsets that the committable offset has not passed.
    pub span: usize,
}

/// Measures how fast a partition finishes what it holds.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    /// What it held then.
    held: usize,
    /// Outcomes until it has finished as many.
    left: usize,
    speed: Speed,
}

/// How fast a partition finishes what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// Nobody knows yet.
    Unknown,
    /// Within [`TURNOVER`] it has finished as many records as it held.
    Fast,
    /// It takes longer than that.
    Slow,
}

impl Pace {
    /// A partition that holds nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, held: 0, left: 0, speed: Speed::Unknown }
    }

    /// A record has its outcome.
    pub fn finished(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Looks at a partition that holds `open` records.
    pub fn look(&mut self, now: Instant, open: usize) {
        let in_time = now.saturating_duration_since(self.since) < TURNOVER;
        if self.left > 0 {
            if !in_time {
                self.speed = Speed::Slow;
            }
            return;
        }
        if self.held > 0 {
            self.speed = if in_time { Speed::Fast } else { Speed::Unknown };
        }
        (self.since, self.held, self.left) = (now, open, open);
    }

    /// What the last look found.
    #[must_use]
    pub fn speed(&self) -> Speed {
        self.speed
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
    /// How fast it finishes its records.
    pub speed: Speed,
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
    /// Whether one more record may be taken from the partition of `view`, out of `partitions`, when
    /// all of them hold `total`.
    #[must_use]
    pub fn admit<P>(self, total: Load, view: &View<P>, partitions: usize) -> bool {
        let room = self.room(total, partitions);
        !room.full && !reaches(view.load, room.limit(view)) && view.load.span < self.span
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
        let room = self.room(total, count);
        // Bookkeeping is shared unequally for as long as there is room: where one record waits, the
        // rest of its partition shall flow on.
        let crowds = |load: Load, span| total.span >= span && load.span >= span / count.max(1);
        let blocks = |view: &View<P>| {
            let used = room.full || reaches(view.load, room.limit(view));
            !view.paused && (used || crowds(view.load, self.span))
        };
        // Waiting is for what will be finished soon: not for the slow, nor for who holds nothing.
        let pauses =
            |view: &View<P>| blocks(view) && (view.speed == Speed::Slow || view.load.records == 0);
        // Half the limit, so that a partition is not paused again at once.
        let resumes = |view: &View<P>| {
            let limit = room.limit(view);
            let low = view.load.records <= limit.records / 2 && view.load.bytes <= limit.bytes / 2;
            view.paused && !room.full && low && !crowds(view.load, self.span / 2)
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

    fn room(self, total: Load, partitions: usize) -> Room {
        let full = total.records >= self.records || total.bytes >= self.bytes;
        Room { bounds: self, total, partitions, full }
    }
}

/// What may be held of a consumer's bound: all of it by a partition that is alone. Of several, one
/// leaves as much free as it holds, unless it is known to be fast: then it leaves a thirty-second,
/// and as much as it holds where less than twice that is left. A thirty-second more is shared out
/// equally, so that each partition flows on however many others are stuck.
struct Room {
    bounds: Bounds,
    total: Load,
    partitions: usize,
    /// All of the bound is used.
    full: bool,
}

impl Room {
    /// What the partition of `view` may hold.
    fn limit<P>(&self, view: &View<P>) -> Load {
        let of = |whole: usize, total: usize, load: usize| {
            if self.partitions <= 1 {
                return whole;
            }
            // By what the others hold, so that it does not shrink as the partition takes it.
            let left = (whole - whole / 32).saturating_sub(total.saturating_sub(load));
            let half = left / 2;
            let most =
                if view.speed == Speed::Fast { left.saturating_sub(whole / 32) } else { half };
            most.max(half).max(whole / 32 / self.partitions).max(1)
        };
        Load {
            records: of(self.bounds.records, self.total.records, view.load.records),
            bytes: of(self.bounds.bytes, self.total.bytes, view.load.bytes),
            span: self.bounds.span,
        }
    }
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
        View { partition, load: load(records), paused: false, speed: Speed::Fast }
    }

    fn slow(partition: i32, records: usize) -> View<i32> {
        View { speed: Speed::Slow, ..fast(partition, records) }
    }

    fn paused(partition: i32, records: usize) -> View<i32> {
        View { paused: true, ..slow(partition, records) }
    }

    fn decide(views: &[View<i32>]) -> Decision<i32> {
        BOUNDS.decide(views.iter().copied())
    }

    fn admits(total: usize, view: &View<i32>, partitions: usize) -> bool {
        BOUNDS.admit(load(total), view, partitions)
    }

    #[test]
    fn a_partition_that_is_alone_uses_the_whole_bound_and_is_waited_for_until_it_is_slow() {
        assert!(admits(99, &fast(0, 99), 1));
        assert!(!admits(100, &fast(0, 100), 1));
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
    fn a_busy_partition_uses_what_the_others_leave_and_is_waited_for() {
        for others in [1, 5, 49] {
            let others = (1..=others).map(|partition| fast(partition, 0));
            let views = |records| [fast(0, records)].into_iter().chain(others.clone());
            let flows = Decision { poll: true, pause: vec![], resume: vec![] };
            assert_eq!(BOUNDS.decide(views(93)), flows);
            let waits = Decision { poll: false, ..flows };
            assert_eq!(BOUNDS.decide(views(94)), waits, "the rest is for others");
        }
    }

    #[test]
    fn busy_partitions_use_the_same_however_many_they_are() {
        for partitions in [2, 6, 11] {
            let views = |each| (0..partitions).map(move |partition| fast(partition, each));
            let all = 93 / usize::try_from(partitions).expect("small");
            assert!(BOUNDS.decide(views(all)).poll);
            assert!(!BOUNDS.decide(views(all + 1)).poll);
        }
    }

    #[test]
    fn a_slow_partition_at_its_limit_is_paused_alone_and_at_once() {
        let decision = decide(&[slow(0, 47), fast(1, 3)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![0]), "it leaves as much free");
        assert!(!admits(50, &slow(0, 47), 2));
        assert!(admits(50, &fast(0, 47), 2));
        assert!(admits(50, &slow(1, 3), 2));
    }

    #[test]
    fn a_slow_partition_below_its_limit_flows_on_and_one_that_is_paused_from_half_of_it() {
        let decision = decide(&[slow(0, 46), fast(1, 3)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![]));
        assert!(decide(&[paused(0, 24), fast(1, 3)]).resume.is_empty());
        assert_eq!(decide(&[paused(0, 23), fast(1, 3)]).resume, [0]);
    }

    #[test]
    fn one_that_took_much_before_it_stood_still_keeps_no_other_paused() {
        let decision = decide(&[paused(0, 91), fast(1, 2)]);
        assert_eq!((decision.poll, decision.resume), (true, vec![]));
        let stopped = |records| View { paused: true, ..fast(1, records) };
        assert!(decide(&[paused(0, 91), stopped(2)]).resume.is_empty(), "3 are its, half is 1");
        assert_eq!(decide(&[paused(0, 91), stopped(1)]).resume, [1]);
    }

    #[test]
    fn one_that_holds_nothing_is_not_waited_for_where_a_stuck_one_fills_all() {
        let large = View { load: Load { bytes: 10_000, ..load(1) }, ..paused(0, 1) };
        let decision = decide(&[large, fast(1, 0)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![1]));
        let left = View { load: Load { bytes: 9_000, ..load(1) }, ..large };
        let waiting = View { paused: true, ..fast(1, 0) };
        assert_eq!(decide(&[left, waiting]).resume, [1]);
    }

    #[test]
    fn where_little_is_left_each_may_take_its_own_share() {
        let stuck = [94, 1, 1, 1].into_iter().zip(0..).map(|(records, n)| paused(n, records));
        assert!(BOUNDS.decide(stuck.chain([fast(4, 0)])).poll);
        assert!(admits(97, &fast(4, 0), 5));
        assert!(!admits(98, &fast(4, 1), 5));
    }

    #[test]
    fn bytes_and_bookkeeping_count_as_records_do() {
        let heavy = |bytes| View { load: Load { bytes, ..load(1) }, ..fast(0, 1) };
        assert!(!BOUNDS.admit(heavy(10_000).load, &heavy(10_000), 1));
        assert!(BOUNDS.admit(heavy(9_375).load, &heavy(9_375), 2));
        assert!(!BOUNDS.admit(heavy(9_376).load, &heavy(9_376), 2));
        let wide = View { load: Load { span: 1_000, ..load(1) }, ..fast(0, 1) };
        assert!(!BOUNDS.admit(Load::default(), &wide, 1));
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
    fn a_partition_that_nobody_knows_leaves_as_much_as_a_slow_one_and_is_waited_for() {
        let new = |records| View { speed: Speed::Unknown, ..fast(0, records) };
        assert!(admits(47, &new(47), 2));
        assert!(!admits(48, &new(48), 2));
        let decision = decide(&[new(48), fast(1, 0)]);
        assert_eq!((decision.poll, decision.pause), (false, vec![]));
    }

    #[test]
    fn a_partition_is_slow_until_it_has_finished_as_many_as_it_held() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.look(now, 3);
        pace.finished();
        pace.look(now + TURNOVER / 2, 3);
        assert_eq!(pace.speed(), Speed::Unknown, "it has had little time");
        pace.finished();
        pace.look(now + TURNOVER, 3);
        assert_eq!(pace.speed(), Speed::Slow, "two of three in that time");
        pace.finished();
        pace.look(now + TURNOVER, 2);
        assert_eq!(pace.speed(), Speed::Unknown, "all three, but too late");
        pace.finished();
        pace.finished();
        pace.look(now + TURNOVER + TURNOVER / 2, 0);
        assert_eq!(pace.speed(), Speed::Fast, "counted from then on");
        pace.look(now + TURNOVER * 4, 5);
        assert_eq!(pace.speed(), Speed::Fast, "it had nothing to finish");
    }

    proptest! {
        /// However partitions get stuck one after the other: the bound holds, and each of the rest
        /// may take something.
        #[test]
        fn the_stuck_leave_something_to_every_other(
            taken in prop::collection::vec((0_usize..8, any::<bool>()), 1..300),
        ) {
            let mut loads = [0_usize; 8];
            for (partition, slow) in taken {
                let known = fast(0, loads[partition]);
                let view = View { speed: if slow { Speed::Slow } else { Speed::Fast }, ..known };
                if admits(loads.iter().sum(), &view, loads.len()) {
                    loads[partition] += 1;
                }
            }
            let total: usize = loads.iter().sum();
            prop_assert!(total <= BOUNDS.records);
            for records in loads {
                prop_assert!(records > 0 || admits(total, &fast(0, 0), loads.len()));
            }
        }
    }
}
