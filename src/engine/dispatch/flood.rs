//! A flood of dead letters is an outage too (behaviour section 8.4).
//!
//! Pure. When one cause sets aside too many records, and more than half of what its consumer
//! handles, something is wrong that no record is at fault for: a function was deployed that refuses
//! everything, a column is gone. What follows is then held in its lanes, within the bound on
//! memory, and one of them is tried now and then. When that passes, or when most of the others
//! pass, all go on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

/// Over how long records are counted.
const WINDOW: Duration = Duration::from_secs(300);
/// In steps of this length.
const STEP: Duration = Duration::from_secs(10);

/// What to do with a record that is to be set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Judgement {
    /// Set it aside.
    SetAside,
    /// LockState it: it is one of a flood.
    LockState,
}

/// The guard of one consumer against floods.
#[derive(Debug)]
pub(in crate::engine) struct Guard {
    /// So many records of one cause within [`WINDOW`] are no flood yet; none where it is off.
    limit: Option<u32>,
    /// How often one of those that are held is tried.
    every: Duration,
    steps: VecDeque<Step>,
    floods: SmallVec<[Flood; 1]>,
}

/// What a consumer handled in a part of the window.
#[derive(Debug)]
struct Step {
    began: Instant,
    /// What was done: sent, or found to be done already.
    done: u64,
    /// What was set aside, by cause: a few labels.
    set_aside: SmallVec<[(&'static str, u64); 2]>,
}

/// One flood.
#[derive(Debug)]
struct Flood {
    cause: &'static str,
    /// Records that it set aside, and those that it would have.
    bad: u64,
    /// Records done since it began.
    done: u64,
    try_at: Instant,
}

impl Guard {
    pub(in crate::engine) fn new(limit: Option<u32>, every: Duration) -> Self {
        Self { limit, every, steps: VecDeque::new(), floods: SmallVec::new() }
    }

    /// Judges a record that `cause` would set aside; `again` says that it is held already.
    pub(in crate::engine) fn judge(
        &mut self,
        cause: &'static str,
        again: bool,
        now: Instant,
    ) -> Judgement {
        let Some(limit) = self.limit else { return Judgement::SetAside };
        if let Some(flood) = self.floods.iter_mut().find(|flood| flood.cause == cause) {
            flood.bad += u64::from(!again);
            return Judgement::LockState;
        }
        self.expire(now);
        let bad: u64 = self.steps.iter().map(|step| step.of(cause)).sum();
        let handled: u64 = self.steps.iter().map(Step::handled).sum();
        // With this one.
        if bad < u64::from(limit) || (bad + 1) * 2 <= handled + 1 {
            let step = self.step(now);
            match step.set_aside.iter_mut().find(|(of, _)| *of == cause) {
                Some((_, count)) => *count += 1,
                None => step.set_aside.push((cause, 1)),
            }
            return Judgement::SetAside;
        }
        self.floods.push(Flood { cause, bad: bad + 1, done: 0, try_at: now + self.every });
        Judgement::LockState
    }

    /// A record was done. Answers the causes whose flood is over, since most pass.
    pub(in crate::engine) fn done(&mut self, now: Instant) -> bool {
        if self.limit.is_none() {
            return false;
        }
        self.expire(now);
        self.step(now).done += 1;
        let before = self.floods.len();
        for flood in &mut self.floods {
            flood.done += 1;
        }
        self.floods.retain(|flood| flood.done < flood.bad);
        self.floods.len() < before
    }

    /// A record passed that `cause` had held: what held the others is gone.
    pub(in crate::engine) fn passed(&mut self, cause: &'static str) {
        self.floods.retain(|flood| flood.cause != cause);
    }

    /// Whether records are held for `cause`.
    pub(in crate::engine) fn holds(&self, cause: &str) -> bool {
        self.floods.iter().any(|flood| flood.cause == cause)
    }

    /// The causes of which one record is to be tried now.
    pub(in crate::engine) fn due(&mut self, now: Instant) -> SmallVec<[&'static str; 1]> {
        let mut due = SmallVec::new();
        for flood in self.floods.iter_mut().filter(|flood| flood.try_at <= now) {
            flood.try_at = now + self.every;
            due.push(flood.cause);
        }
        due
    }

    /// Why records are held, in a line for each cause.
    pub(in crate::engine) fn reasons(&self) -> impl Iterator<Item = String> {
        self.floods.iter().map(|Flood { cause, bad, .. }| {
            format!(
                "dead letters: {cause} would set aside {bad} records, most of what comes: what \
                 follows is held; mend the cause, or let them go with DLQ_FLOOD=off"
            )
        })
    }

    /// The part of the window that `now` lies in.
    fn step(&mut self, now: Instant) -> &mut Step {
        let fresh = self.steps.back().is_none_or(|last| now >= last.began + STEP);
        if fresh {
            self.steps.push_back(Step { began: now, done: 0, set_aside: SmallVec::new() });
        }
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    fn expire(&mut self, now: Instant) {
        while self.steps.front().is_some_and(|first| first.began + WINDOW <= now) {
            self.steps.pop_front();
        }
    }
}

impl Step {
    fn of(&self, cause: &str) -> u64 {
        self.set_aside.iter().find(|(of, _)| *of == cause).map_or(0, |(_, count)| *count)
    }

    fn handled(&self) -> u64 {
        self.done + self.set_aside.iter().map(|(_, count)| count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(30);
    const CAUSE: &str = "missing_column";

    fn set_aside(guard: &mut Guard, records: u32, now: Instant) -> u32 {
        let judged = (0..records).map(|_| guard.judge(CAUSE, false, now));
        u32::try_from(judged.filter(|judgement| *judgement == Judgement::SetAside).count())
            .expect("few")
    }

    #[test]
    fn the_first_ones_are_set_aside_and_what_follows_is_held() {
        let (mut guard, now) = (Guard::new(Some(50), EVERY), Instant::now());
        assert_eq!(set_aside(&mut guard, 1_000, now), 50);
        assert!(guard.holds(CAUSE));
        assert_eq!(guard.judge("another", false, now), Judgement::SetAside, "another cause");
        // However long it takes.
        assert_eq!(set_aside(&mut guard, 1_000, now + WINDOW * 3), 0);
        let reasons: Vec<String> = guard.reasons().collect();
        assert!(reasons[0].contains(CAUSE) && reasons[0].contains("DLQ_FLOOD"), "{reasons:?}");
    }

    #[test]
    fn where_most_records_are_done_many_are_set_aside() {
        let (mut guard, now) = (Guard::new(Some(50), EVERY), Instant::now());
        for _ in 0..10_000 {
            guard.done(now);
        }
        assert_eq!(set_aside(&mut guard, 1_000, now), 1_000);
    }

    #[test]
    fn what_comes_slowly_is_no_flood() {
        let (mut guard, mut now) = (Guard::new(Some(50), EVERY), Instant::now());
        for _ in 0..1_000 {
            assert_eq!(guard.judge(CAUSE, false, now), Judgement::SetAside);
            now += Duration::from_secs(7);
        }
        assert!(guard.steps.len() <= 31, "{}", guard.steps.len());
    }

    #[test]
    fn off_holds_nothing() {
        let (mut guard, now) = (Guard::new(None, EVERY), Instant::now());
        assert_eq!(set_aside(&mut guard, 1_000, now), 1_000);
        assert!(!guard.done(now));
    }

    #[test]
    fn one_is_tried_now_and_then_and_when_it_passes_all_go_on() {
        let (mut guard, now) = (Guard::new(Some(3), EVERY), Instant::now());
        assert_eq!(set_aside(&mut guard, 10, now), 3);
        assert!(guard.due(now).is_empty());
        assert_eq!(guard.due(now + EVERY).as_slice(), [CAUSE]);
        assert!(guard.due(now + EVERY).is_empty(), "one at a time");
        guard.passed(CAUSE);
        assert!(!guard.holds(CAUSE) && guard.due(now + EVERY * 2).is_empty());
    }

    #[test]
    fn when_most_of_the_others_pass_it_is_no_flood_any_more() {
        let (mut guard, now) = (Guard::new(Some(50), EVERY), Instant::now());
        assert_eq!(set_aside(&mut guard, 60, now), 50);
        // Tried again in vain: counted once.
        assert_eq!(guard.judge(CAUSE, true, now), Judgement::LockState);
        let over = (0..60).map(|_| guard.done(now)).collect::<Vec<_>>();
        assert_eq!(over.iter().position(|over| *over), Some(59));
        assert_eq!(set_aside(&mut guard, 9, now), 9, "those that were held");
    }
}
