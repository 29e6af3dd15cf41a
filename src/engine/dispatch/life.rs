//! What a job in flight is at, and since when without a sign that it will end: one record that waits
//! must not hide another that hangs (behaviour section 8.8).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::outage::Breaker;

/// What a job in flight is at.
#[derive(Debug, Clone)]
enum At {
    /// Work of its own, each step of which ends soon.
    Work,
    /// Behind other jobs, each of which has a life of its own.
    Turn,
    /// A request that is repeated for as long as it takes; how many requests were reported when that
    /// was last looked at.
    Dependency(Arc<Breaker>, u64),
}

/// The life of one job in flight, shared between its task and the loop.
#[derive(Debug)]
pub(crate) struct Life(Mutex<(At, Instant)>);

impl Default for Life {
    fn default() -> Self {
        Self(Mutex::new((At::Work, Instant::now())))
    }
}

impl Life {
    /// A new attempt begins.
    pub(in crate::engine) fn begin(&self) {
        *self.lock() = (At::Work, Instant::now());
    }

    /// It waits for its turn until what is answered is dropped.
    pub(in crate::engine) fn in_turn(&self) -> Episode<'_> {
        self.episode(At::Turn)
    }

    /// It is the one that others wait for, until what is answered is dropped.
    pub(in crate::engine) fn works(&self) -> Episode<'_> {
        self.episode(At::Work)
    }

    /// It waits for a dependency until what is answered is dropped.
    pub(in crate::engine) fn waits_for(&self, breaker: &Arc<Breaker>) -> Episode<'_> {
        self.episode(At::Dependency(Arc::clone(breaker), reports(breaker)))
    }

    /// Since when nothing explains that it has not ended, as of now; `None` while something does.
    pub(in crate::engine) fn still_since(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let (at, since) = &mut *state;
        let explained = match at {
            At::Work => false,
            At::Turn => true,
            At::Dependency(breaker, known) => {
                let reported = reports(breaker);
                let goes_on = std::mem::replace(known, reported) != reported;
                goes_on || breaker.away().is_some()
            }
        };
        if explained {
            *since = now;
            return None;
        }
        Some(*since)
    }

    fn episode(&self, at: At) -> Episode<'_> {
        let (before, _) = std::mem::replace(&mut *self.lock(), (at, Instant::now()));
        Episode { life: self, before: Some(before) }
    }

    fn lock(&self) -> MutexGuard<'_, (At, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests to a dependency that were answered or failed: it is asked, whatever becomes of it.
fn reports(breaker: &Breaker) -> u64 {
    breaker.successes().wrapping_add(breaker.failures())
}

/// A time in a job's life; when it ends the job goes on with what it was at before.
pub(in crate::engine) struct Episode<'a> {
    life: &'a Life,
    before: Option<At>,
}

impl Drop for Episode<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            *self.life.lock() = (before, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outage::Backoff;

    #[test]
    fn only_what_nothing_explains_counts_and_only_since_then() {
        let backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO };
        let breaker = Arc::new(Breaker::new("d", 1, backoff));
        let life = Life::default();
        let began = Instant::now();
        let later = |seconds| began + Duration::from_secs(seconds);
        assert!(life.still_since(later(10)).is_some_and(|since| since <= began), "it works");
        {
            let _turn = life.in_turn();
            assert_eq!(life.still_since(later(20)), None);
            {
                let _works = life.works();
                assert!(life.still_since(later(25)).is_some(), "others wait for it");
            }
            let _waits = life.waits_for(&breaker);
            assert!(life.still_since(later(30)).is_some(), "nobody hears of the dependency");
            breaker.failed(began, None, "refused");
            assert_eq!(life.still_since(later(40)), None, "it is away");
            breaker.succeeded();
            assert_eq!(life.still_since(later(50)), None, "it was asked since");
            assert_eq!(life.still_since(later(60)), Some(later(50)), "the outage does not count");
        }
        assert!(life.still_since(later(70)).is_some(), "it works again");
    }
}
