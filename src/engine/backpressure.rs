//! When to stop taking records, and which partitions to pause. Pure.
//!
//! Memory is bounded in records and in bytes (behaviour section 8.5). The bound is the total: a busy
//! partition uses what the others leave, and one that is stuck never takes the room of the rest. A
//! partition at its limit that finishes its records fast is waited for, because a pause throws fetched
//! records away. One that is slow is paused alone, and the others flow on.

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
    /// What it held then.
    held: usize,
    /// Outcomes until it has finished as many.
    left: usize,
    slow: bool,
    /// The most that it has finished within [`PATIENCE`] since it was last slow.
    proved: usize,
}

impl Pace {
    /// A partition that holds nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, held: 0, left: 0, slow: false, proved: 0 }
    }

    /// A record has its outcome.
    pub fn finished(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Looks at a partition that holds `open` records. It is slow when it takes longer than
    /// [`PATIENCE`] to finish as many as it held.
    pub fn look(&mut self, now: Instant, open: usize) {
        let in_time = now.saturating_duration_since(self.since) < PATIENCE;
        if self.left > 0 {
            self.slow = !in_time;
            if self.slow {
                self.proved = 0;
            }
            return;
        }
        if in_time {
            self.proved = self.proved.max(self.held);
        }
        (self.since, self.held, self.left, self.slow) = (now, open, open, false);
    }

    /// How fast it was at the last look.
    #[must_use]
    pub fn speed(&self) -> Speed {
        if self.slow { Speed::Slow } else { Speed::Fast { proved: self.proved } }
    }
}

/// What is known of how fast a partition finishes what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// It has finished so many records at a time fast enough.
    Fast {
        /// Records.
        proved: usize,
    },
    /// It takes longer than [`PATIENCE`].
    Slow,
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
    /// How fast it finishes its records ([`Pace`]).
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
        !room.full && !room.is_used_by(view) && view.load.span < self.span
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
            !view.paused && (room.full || room.is_used_by(view) || crowds(view.load, self.span))
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
        let whole = Load { records: self.records, bytes: self.bytes, span: self.span };
        let limit = |share: &dyn Fn(usize) -> usize| {
            let of = |whole: usize, taken: usize| {
                let own = (whole / 16 / partitions.max(1)).max(1);
                share(whole).saturating_sub(taken).max(own)
            };
            let (records, bytes) = (of(self.records, total.records), of(self.bytes, total.bytes));
            Load { records, bytes, ..whole }
        };
        let most = |whole: usize| whole - whole / 8;
        let open = total.records < most(self.records) && total.bytes < most(self.bytes);
        Room {
            full: total.records >= self.records || total.bytes >= self.bytes,
            open,
            records: self.records,
            fast: limit(&|whole| whole - whole / 16),
            slow: limit(&most),
        }
    }
}

/// What may be held of a consumer's bound. Seven eighths are for whoever comes. A fast partition may
/// take all of them, but no more than twice what it was fast with, or half: one that is stuck from
/// the first leaves the rest. A slow one may hold as much as is still free. Of a sixteenth more each
/// fast one may hold as much as is still free. The last sixteenth is shared out equally, so that each
/// partition flows on however many others are stuck.
struct Room {
    /// All of the bound is used.
    full: bool,
    /// Some of the seven eighths is free.
    open: bool,
    /// The whole.
    records: usize,
    /// What a fast partition may hold where nothing is free.
    fast: Load,
    /// What a slow partition may hold.
    slow: Load,
}

impl Room {
    fn limit<P>(&self, view: &View<P>) -> Load {
        match view.speed {
            Speed::Slow => self.slow,
            Speed::Fast { .. } if !self.open => self.fast,
            Speed::Fast { proved } => {
                let records = (proved * 2).max(self.records / 2).max(1);
                Load { records, bytes: usize::MAX, ..self.fast }
            }
        }
    }

    fn is_used_by<P>(&self, view: &View<P>) -> bool {
        let limit = self.limit(view);
        view.load.records >= limit.records || view.load.bytes >= limit.bytes
    }
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
        View { partition, load: load(records), paused: false, speed: Speed::Fast { proved: 50 } }
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
    fn a_busy_partition_uses_what_the_others_leave_and_is_waited_for() {
        for others in [0, 5, 49] {
            let others = (1..=others).map(|partition| fast(partition, 0));
            let views = |records| [fast(0, records)].into_iter().chain(others.clone());
            let flows = Decision { poll: true, pause: vec![], resume: vec![] };
            assert_eq!(BOUNDS.decide(views(87)), flows);
            let waits = Decision { poll: false, ..flows };
            assert_eq!(BOUNDS.decide(views(88)), waits, "the rest is for others");
        }
    }

    #[test]
    fn a_slow_partition_at_its_limit_is_paused_alone_and_at_once() {
        let decision = decide(&[slow(0, 44), fast(1, 3)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![0]), "it leaves as much free");
        assert!(!admits(47, &slow(0, 44), 2));
        assert!(admits(47, &fast(0, 44), 2));
        assert!(admits(47, &slow(1, 3), 2));
    }

    #[test]
    fn a_slow_partition_below_its_limit_flows_on_and_one_that_is_paused_from_half_of_it() {
        let decision = decide(&[slow(0, 30), fast(1, 3)]);
        assert_eq!((decision.poll, decision.pause), (true, vec![]));
        assert!(decide(&[paused(0, 30), fast(1, 3)]).resume.is_empty(), "55 are free, half is 27");
        assert_eq!(decide(&[paused(0, 28), fast(1, 3)]).resume, [0]);
    }

    #[test]
    fn one_that_took_much_before_it_stood_still_keeps_no_other_paused() {
        let decision = decide(&[paused(0, 88), fast(1, 1)]);
        assert_eq!((decision.poll, decision.resume), (true, vec![]));
        let stopped = |records| View { paused: true, ..fast(1, records) };
        assert!(decide(&[paused(0, 88), stopped(3)]).resume.is_empty(), "3 are free, half is 1");
        assert_eq!(decide(&[paused(0, 88), stopped(1)]).resume, [1]);
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
    fn a_partition_takes_more_only_as_it_proves_fast() {
        let proved = |proved, records| View { speed: Speed::Fast { proved }, ..fast(0, records) };
        assert!(admits(49, &proved(0, 49), 2));
        assert!(!admits(50, &proved(0, 50), 2));
        assert!(!admits(60, &proved(30, 60), 2));
        assert!(admits(87, &proved(44, 87), 2));
    }

    #[test]
    fn bytes_and_bookkeeping_count_as_records_do() {
        let heavy = |bytes| View { load: Load { bytes, ..load(1) }, ..fast(0, 1) };
        assert!(!BOUNDS.admit(heavy(10_000).load, &heavy(10_000), 1));
        assert!(BOUNDS.admit(heavy(8_749).load, &heavy(8_749), 2));
        assert!(!BOUNDS.admit(heavy(8_750).load, &heavy(8_750), 2));
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
    fn a_partition_is_slow_until_it_has_finished_as_many_as_it_held() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.look(now, 3);
        pace.finished();
        pace.look(now + PATIENCE / 2, 3);
        assert_eq!(pace.speed(), Speed::Fast { proved: 0 }, "it has had little time");
        pace.finished();
        pace.look(now + PATIENCE, 3);
        assert_eq!(pace.speed(), Speed::Slow, "two of three in that time");
        pace.finished();
        pace.look(now + PATIENCE, 2);
        assert_eq!(pace.speed(), Speed::Fast { proved: 0 }, "it took too long");
        pace.finished();
        pace.finished();
        pace.look(now + PATIENCE + PATIENCE / 2, 2);
        assert_eq!(pace.speed(), Speed::Fast { proved: 2 });
        pace.look(now + PATIENCE * 3, 2);
        assert_eq!(pace.speed(), Speed::Slow, "what it proved is over");
        pace.finished();
        pace.finished();
        pace.look(now + PATIENCE * 3, 2);
        assert_eq!(pace.speed(), Speed::Fast { proved: 0 });
    }

    proptest! {
        /// However partitions get stuck one after the other: the bound holds, and each of the rest
        /// may take something.
        #[test]
        fn the_stuck_leave_something_to_every_other(
            stuck in prop::collection::vec((0_usize..8, any::<bool>()), 1..300),
        ) {
            let mut loads = [0_usize; 8];
            for (partition, is_slow) in stuck {
                let view = if is_slow { slow(0, loads[partition]) } else { fast(0, loads[partition]) };
                if admits(loads.iter().sum(), &view, loads.len()) {
                    loads[partition] += 1;
                }
            }
            let total: usize = loads.iter().sum();
            prop_assert!(total <= BOUNDS.records);
            for records in loads {
                prop_assert!(records > 0 || admits(total, &slow(0, 0), loads.len()));
            }
        }
    }
}
