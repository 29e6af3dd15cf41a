//! Signs of life of one consumer: what readiness reports, and when a consumer counts as stalled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Origin;

/// What a consumer is doing, as of its last look at itself.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// When its loop last went round. A loop that stands still cannot say so itself.
    pub beat: Instant,
    /// When a record last came in or had its outcome, or when there last was nothing to do.
    pub progress: Instant,
    /// Partitions that it has.
    pub partitions: Vec<PartitionVitals>,
    /// Records without an outcome.
    pub open: usize,
    /// Records in the brokers that it has not been given, as far as statistics tell.
    pub lag: i64,
    /// What it waits for, if anything: not a stall, but degraded.
    pub waits_for: Vec<String>,
    /// The record in flight that has been at its work for longest.
    pub longest: Option<AtWork>,
    /// Topics that are not read yet. The others must make progress all the same.
    pub held: HeldTopics,
}

/// A record in flight of which nothing explains that it has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtWork {
    /// The record.
    pub origin: Origin,
    /// Since when: a step of its work ended then, or a wait that was explained.
    pub since: Instant,
}

/// Topics that have not begun (behaviour section 1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldTopics {
    /// Why each of them has not, and what to do.
    pub topics: BTreeMap<String, String>,
    /// Nobody has decided about any topic of the consumer: it may read nothing at all.
    pub all: bool,
}

/// The same of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionVitals {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub number: i32,
    /// Records in the broker that were not taken yet, as far as statistics tell.
    pub lag: i64,
    /// For how long the oldest record without an outcome has been in hand; zero without any.
    pub waiting: Duration,
}

impl Vitals {
    /// Those of a consumer that has nothing in hand.
    pub(crate) fn idle(now: Instant) -> Self {
        Self {
            beat: now,
            progress: now,
            partitions: Vec::new(),
            open: 0,
            lag: 0,
            waits_for: Vec::new(),
            longest: None,
            held: HeldTopics::default(),
        }
    }

    /// Whether the consumer has work, makes no progress, and waits for nothing that explains it; or
    /// a record in flight hangs, whatever others do or wait for (behaviour section 8.8).
    #[must_use]
    pub fn stalled(&self, now: Instant, timeout: Duration) -> bool {
        let fetch_has_stopped = now.saturating_duration_since(self.beat) > timeout;
        let idle = self.open == 0 && self.lag <= 0;
        let no_progress = now.saturating_duration_since(self.progress) > timeout;
        fetch_has_stopped
            || (!idle && no_progress && self.waits_for.is_empty())
            || self.hangs(now, timeout).is_some()
    }

    /// The record in flight that hangs.
    #[must_use]
    pub fn hangs(&self, now: Instant, timeout: Duration) -> Option<&AtWork> {
        let longest = self.longest.as_ref();
        longest.filter(|longest| now.saturating_duration_since(longest.since) > timeout)
    }
}

/// [`Vitals`], shared between a consumer's loop and those who watch it.
#[derive(Debug)]
pub struct Pulse(Mutex<Vitals>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Vitals::idle(Instant::now())))
    }
}

impl Pulse {
    /// The present vitals.
    #[must_use]
    pub fn read(&self) -> Vitals {
        self.lock().clone()
    }

    /// Replaces them.
    pub(crate) fn update(&self, vitals: Vitals) {
        *self.lock() = vitals;
    }

    fn lock(&self) -> MutexGuard<'_, Vitals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(300);

    fn vitals(now: Instant) -> Vitals {
        Vitals { open: 1, ..Vitals::idle(now) }
    }

    #[test]
    fn work_without_progress_is_a_stall() {
        let now = Instant::now();
        let late = now + TIMEOUT + Duration::from_secs(1);
        let frozen = Vitals { beat: late, ..vitals(now) };
        assert!(frozen.stalled(late, TIMEOUT));
        assert!(!frozen.stalled(now + TIMEOUT, TIMEOUT));
        assert!(Vitals { open: 0, lag: 5, ..frozen.clone() }.stalled(late, TIMEOUT));
    }

    #[test]
    fn nothing_to_do_or_something_to_wait_for_is_none() {
        let now = Instant::now();
        let late = now + TIMEOUT * 2;
        let idle = Vitals { beat: late, open: 0, ..vitals(now) };
        assert!(!idle.stalled(late, TIMEOUT));
        let waiting = Vitals { beat: late, waits_for: vec!["inngest".into()], ..vitals(now) };
        assert!(!waiting.stalled(late, TIMEOUT));
    }

    #[test]
    fn a_record_that_hangs_is_a_stall_whatever_others_wait_for() {
        let now = Instant::now();
        let late = now + TIMEOUT * 2;
        let origin = Origin { topic: "t".into(), partition: 0, offset: 7 };
        let waits_for = vec!["inngest".into()];
        let waiting = Vitals { beat: late, progress: late, waits_for, ..vitals(now) };
        let at_work = |since| Vitals {
            longest: Some(AtWork { origin: origin.clone(), since }),
            ..waiting.clone()
        };
        assert!(at_work(now).stalled(late, TIMEOUT));
        assert!(!at_work(now + TIMEOUT).stalled(late, TIMEOUT));
    }

    #[test]
    fn a_loop_that_stands_still_is_a_stall_whatever_it_said_last() {
        let now = Instant::now();
        let waiting = Vitals { waits_for: vec!["inngest".into()], open: 0, ..vitals(now) };
        assert!(waiting.stalled(now + TIMEOUT * 2, TIMEOUT));
    }
}
