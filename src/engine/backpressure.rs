//! When to stop taking records, and which partitions to pause. Pure.
//!
//! Memory is bounded in records and in bytes (contract section 8.5). A consumer that holds its
//! share simply stops asking for a moment; only when that does not help is anything paused,
//! because a pause throws fetched records away. Each partition has a share of the whole, so that
//! one stuck key cannot fill all of it: a partition that stays at its share is paused alone.

use std::time::{Duration, Instant};

/// How long a consumer may stop asking before it must pause and ask on: a member that does not
/// poll leaves a revoke unanswered and holds up its whole group.
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

/// Remembers since when taking has been held up.
#[derive(Debug)]
pub struct Backpressure {
    bounds: Bounds,
    held_since: Option<Instant>,
}

impl Backpressure {
    /// Nothing is held up yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, held_since: None }
    }

    /// Whether one more record may be taken from a partition with `load`, out of `partitions`,
    /// when all of them hold `total`.
    #[must_use]
    pub fn admits(&self, total: Load, load: Load, partitions: usize) -> bool {
        !at_bound(total, self.bounds, 1)
            && !at_bound(load, self.bounds, partitions)
            && load.span < self.bounds.span
    }

    /// Decides for every assigned partition: its name, its load, and whether it is paused.
    pub fn decide<P: Copy>(
        &mut self,
        now: Instant,
        partitions: impl Iterator<Item = (P, Load, bool)> + Clone,
    ) -> Decision<P> {
        let count = partitions.clone().count();
        let total = partitions.clone().fold(Load::default(), |sum, (_, load, _)| Load {
            records: sum.records + load.records,
            bytes: sum.bytes + load.bytes,
            span: sum.span + load.span,
        });
        let full = at_bound(total, self.bounds, 1);
        let mut decision = Decision { poll: true, pause: Vec::new(), resume: Vec::new() };
        let bounds = self.bounds;
        // Bookkeeping is shared unequally for as long as there is room: where one record waits, the
        // rest of its partition shall flow on.
        let crowds = |load: Load, span| total.span >= span && load.span >= span / count.max(1);
        let blocking = |load: Load, paused: bool| {
            !paused && (full || at_bound(load, bounds, count) || crowds(load, bounds.span))
        };
        if partitions.clone().any(|(_, load, paused)| blocking(load, paused)) {
            let since = *self.held_since.get_or_insert(now);
            if now.saturating_duration_since(since) < PATIENCE {
                decision.poll = false;
            } else {
                decision.pause = partitions
                    .clone()
                    .filter(|(_, load, paused)| blocking(*load, *paused))
                    .map(|(partition, ..)| partition)
                    .collect();
                self.held_since = None;
            }
        } else {
            self.held_since = None;
        }
        if !full {
            // Half the share, so that a partition is not paused again at once. Whatever the others
            // hold: one that stands still must not keep those that flow paused.
            decision.resume = partitions
                .filter(|(_, load, paused)| {
                    *paused
                        && !at_bound(*load, bounds, count * 2)
                        && !crowds(*load, bounds.span / 2)
                })
                .map(|(partition, ..)| partition)
                .collect();
        }
        decision
    }
}

fn at_bound(load: Load, bounds: Bounds, divisor: usize) -> bool {
    let divisor = divisor.max(1);
    load.records >= (bounds.records / divisor).max(1)
        || load.bytes >= (bounds.bytes / divisor).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { records: 100, bytes: 10_000, span: 1_000 };

    fn load(records: usize) -> Load {
        Load { records, bytes: records, span: records }
    }

    #[test]
    fn a_full_consumer_first_stops_asking_and_then_pauses_and_asks_on() {
        let mut backpressure = Backpressure::new(BOUNDS);
        let now = Instant::now();
        let partitions = [(0, load(60), false), (1, load(40), false)];
        let at = |backpressure: &mut Backpressure, after, partitions: &[(i32, Load, bool)]| {
            backpressure.decide(now + after, partitions.iter().copied())
        };
        assert!(!at(&mut backpressure, Duration::ZERO, &partitions).poll);
        assert!(!at(&mut backpressure, PATIENCE / 2, &partitions).poll);
        let decision = at(&mut backpressure, PATIENCE, &partitions);
        assert_eq!((decision.poll, decision.pause), (true, vec![0, 1]));

        let paused = [(0, load(60), true), (1, load(40), true)];
        assert!(at(&mut backpressure, PATIENCE, &paused).resume.is_empty(), "still full");
        let paused = [(0, load(30), true), (1, load(20), true)];
        assert_eq!(
            at(&mut backpressure, PATIENCE, &paused).resume,
            [1],
            "each below half its share"
        );
    }

    #[test]
    fn a_partition_that_stays_at_its_share_is_paused_alone() {
        let mut backpressure = Backpressure::new(BOUNDS);
        let now = Instant::now();
        let partitions = [(0, load(50), false), (1, load(3), false)];
        backpressure.decide(now, partitions.iter().copied());
        let decision = backpressure.decide(now + PATIENCE, partitions.iter().copied());
        assert_eq!((decision.poll, decision.pause), (true, vec![0]));
        let total = load(53);
        assert!(!backpressure.admits(total, load(50), 2));
        assert!(backpressure.admits(total, load(3), 2));
    }

    #[test]
    fn one_that_stands_still_at_its_share_keeps_no_other_paused() {
        let mut backpressure = Backpressure::new(BOUNDS);
        let partitions = [(0, load(50), true), (1, load(0), true)];
        let decision = backpressure.decide(Instant::now(), partitions.iter().copied());
        assert_eq!((decision.poll, decision.resume), (true, vec![1]));
    }

    #[test]
    fn bytes_and_bookkeeping_count_as_records_do() {
        let backpressure = Backpressure::new(BOUNDS);
        let heavy = Load { records: 1, bytes: 10_000, span: 1 };
        assert!(!backpressure.admits(heavy, heavy, 1));
        let wide = Load { records: 1, bytes: 1, span: 1_000 };
        assert!(!backpressure.admits(Load::default(), wide, 1));
    }

    #[test]
    fn bookkeeping_is_bounded_for_all_and_what_takes_most_of_it_is_paused() {
        let mut backpressure = Backpressure::new(BOUNDS);
        let now = Instant::now();
        let wide = |span| Load { records: 1, bytes: 1, span };
        let room = [(0, wide(900), false), (1, wide(10), false)];
        assert!(backpressure.decide(now, room.into_iter()).poll, "one may take more than its half");
        let crowded = [(0, wide(990), false), (1, wide(10), false)];
        backpressure.decide(now, crowded.into_iter());
        let decision = backpressure.decide(now + PATIENCE, crowded.into_iter());
        assert_eq!((decision.poll, decision.pause), (true, vec![0]));
        let paused = [(0, wide(900), true), (1, wide(10), false)];
        let decision = backpressure.decide(now + PATIENCE, paused.into_iter());
        assert!(decision.poll && decision.resume.is_empty());
    }

    #[test]
    fn a_moment_of_relief_starts_the_patience_anew() {
        let mut backpressure = Backpressure::new(BOUNDS);
        let now = Instant::now();
        backpressure.decide(now, [(0, load(100), false)].into_iter());
        backpressure.decide(now + PATIENCE / 2, [(0, load(10), false)].into_iter());
        let decision = backpressure.decide(now + PATIENCE, [(0, load(100), false)].into_iter());
        assert!(!decision.poll && decision.pause.is_empty());
    }
}
