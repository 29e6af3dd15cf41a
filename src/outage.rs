//! Outages: one breaker per dependency, and how long to wait before asking again.
//!
//! A dependency is whatever can be unwell alone: Inngest, Redis, the dead letter topic, and each
//! Supabase function or table. Everybody who talks to it shares its [`Breaker`], so that one outage
//! is noticed once, probed by one request at a time, and named once in readiness and metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Exponential backoff with full jitter: a random share of `base * 2^attempt`, at most `max`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub base: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
}

impl Backoff {
    /// How long to wait after failure number `attempt` (0 is the first). `random` lies in `0.0..1.0`.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let ceiling =
            self.base.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.max);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Why and since when a dependency counts as away.
#[derive(Debug, Clone)]
pub struct Away {
    /// When the breaker opened.
    pub since: Instant,
    /// No request is let through before this.
    pub until: Instant,
    /// The last failure, in one line.
    pub error: String,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { since: Instant, until: Instant, openings: u32, probing: bool },
}

/// The shared view of one dependency: closed while it answers, open while it does not.
#[derive(Debug)]
pub struct Breaker {
    name: String,
    threshold: u32,
    backoff: Backoff,
    state: Mutex<State>,
    successes: AtomicU64,
    failures: AtomicU64,
    away: watch::Sender<Option<Arc<Away>>>,
    /// Counts the recoveries of all dependencies in the same registry.
    recoveries: watch::Sender<u64>,
}

impl Breaker {
    /// A closed breaker that opens after `threshold` failures in a row and lets a single request
    /// through after each wait of `backoff`.
    #[must_use]
    pub fn new(name: impl Into<String>, threshold: u32, backoff: Backoff) -> Self {
        Self {
            name: name.into(),
            threshold: threshold.max(1),
            backoff,
            state: Mutex::new(State::Closed { failures: 0 }),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            away: watch::Sender::new(None),
            recoveries: watch::Sender::new(0),
        }
    }

    /// The dependency's name, as logs, metrics and readiness show it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many got an answer so far that could be used. Tells whether a dependency served others
    /// while one record kept failing (behaviour section 8.4).
    #[must_use]
    pub fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// How many requests failed so far through the dependency's fault. Where these are far more than
    /// the successes, no record that fails is alone with it.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The outage, while there is one.
    #[must_use]
    pub fn away(&self) -> Option<Arc<Away>> {
        self.away.borrow().clone()
    }

    /// A receiver that sees every change between available (`None`) and away.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Away>>> {
        self.away.subscribe()
    }

    /// Resolves as soon as the dependency counts as away; at once when it does already.
    pub async fn until_away(&self) {
        let mut watch = self.away.subscribe();
        if watch.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Asks for leave to send one request.
    ///
    /// # Errors
    /// The time before which it is pointless to ask again, while the breaker is open.
    pub fn admit(&self, now: Instant) -> Result<Leave<'_>, Instant> {
        let mut state = self.lock();
        match &mut *state {
            State::Closed { .. } => Ok(Leave { breaker: self, probe: false }),
            State::Open { until, probing, .. } => {
                if now < *until {
                    return Err(*until);
                }
                if *probing {
                    return Err(now + self.backoff.base.max(Duration::from_millis(50)));
                }
                *probing = true;
                Ok(Leave { breaker: self, probe: true })
            }
        }
    }

    /// Reports an answer that could be used: the dependency is well.
    pub fn succeeded(&self) {
        self.succeeded_for(1);
    }

    /// Reports one answer that `callers` could use.
    pub fn succeeded_for(&self, callers: u64) {
        self.successes.fetch_add(callers, Ordering::Relaxed);
        self.close();
    }

    fn close(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Closed { failures: 0 }) {
            return;
        }
        let was_open = matches!(*state, State::Open { .. });
        *state = State::Closed { failures: 0 };
        if was_open {
            // Under the lock, as below. Otherwise two reports at once could leave the older state
            // published: an outage without end, or an open breaker that nobody sees.
            self.away.send_replace(None);
        }
        drop(state);
        if was_open {
            self.recoveries.send_modify(|count| *count += 1);
            tracing::info!(dependency = %self.name, "dependency answers again");
        }
    }

    /// Reports a failure that is the dependency's. It is left alone for as long as it asked for with
    /// `retry_after`, but never for less than the backoff: some ask for nothing at all.
    pub fn failed(&self, now: Instant, retry_after: Option<Duration>, error: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        let (since, openings) = match &mut *state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures < self.threshold && retry_after.is_none() {
                    return;
                }
                (now, 0)
            }
            // A request sent before the breaker opened says nothing new.
            State::Open { until, .. } if now < *until => return,
            State::Open { since, openings, .. } => (*since, openings.saturating_add(1)),
        };
        let wait = self.backoff.delay(openings, 0.5 + fastrand::f64() / 2.0);
        let until = now + retry_after.map_or(wait, |asked| asked.max(wait));
        *state = State::Open { since, until, openings, probing: false };
        self.away.send_replace(Some(Arc::new(Away { since, until, error: error.to_owned() })));
        drop(state);
        if openings == 0 {
            tracing::warn!(dependency = %self.name, error, "dependency is away");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to send one request. Dropped without a report it counts as never used.
#[derive(Debug)]
#[must_use]
pub struct Leave<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Leave<'_> {
    /// The request was answered, and the answer could be used.
    pub fn succeeded(self) {
        self.breaker.succeeded();
    }

    /// The request was answered, and `callers` could use the answer.
    pub fn succeeded_for(self, callers: u64) {
        self.breaker.succeeded_for(callers);
    }

    /// The request was turned down. The dependency can be reached, but the caller got nothing, so
    /// this does not count among the [`Breaker::successes`].
    pub fn turned_down(self) {
        self.breaker.close();
    }

    /// The request failed through the dependency's fault.
    pub fn failed(self, now: Instant, retry_after: Option<Duration>, error: &str) {
        self.breaker.failed(now, retry_after, error);
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.probe
            && let State::Open { probing, .. } = &mut *self.breaker.lock()
        {
            *probing = false;
        }
    }
}

/// Every breaker of the process, by name.
#[derive(Debug)]
pub struct Breakers {
    threshold: u32,
    backoff: Backoff,
    all: Mutex<BTreeMap<String, Arc<Breaker>>>,
    recoveries: watch::Sender<u64>,
}

impl Breakers {
    /// An empty registry whose breakers open after `threshold` failures in a row.
    #[must_use]
    pub fn new(threshold: u32, backoff: Backoff) -> Self {
        Self { threshold, backoff, all: Mutex::default(), recoveries: watch::Sender::new(0) }
    }

    /// The breaker of one dependency, made on first use.
    pub fn get(&self, name: &str) -> Arc<Breaker> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(breaker) = all.get(name) {
            return Arc::clone(breaker);
        }
        let mut breaker = Breaker::new(name, self.threshold, self.backoff);
        breaker.recoveries = self.recoveries.clone();
        let breaker = Arc::new(breaker);
        all.insert(name.to_owned(), Arc::clone(&breaker));
        breaker
    }

    /// Changes whenever any dependency answers again.
    #[must_use]
    pub fn recoveries(&self) -> watch::Receiver<u64> {
        self.recoveries.subscribe()
    }

    /// Every dependency seen so far, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Breaker>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(8) };

    #[test]
    fn backoff_doubles_up_to_its_bound_and_never_overflows() {
        assert_eq!(BACKOFF.delay(0, 1.0), Duration::from_secs(1));
        assert_eq!(BACKOFF.delay(2, 1.0), Duration::from_secs(4));
        assert_eq!(BACKOFF.delay(200, 1.0), Duration::from_secs(8));
        assert_eq!(BACKOFF.delay(2, 0.25), Duration::from_secs(1));
    }

    #[test]
    fn opens_after_the_threshold_and_lets_one_probe_through() {
        let breaker = Breaker::new("d", 2, BACKOFF);
        let now = Instant::now();
        breaker.failed(now, None, "refused");
        assert!(breaker.away().is_none());
        breaker.failed(now, None, "refused");
        let away = breaker.away().expect("open");
        assert_eq!(breaker.admit(now).expect_err("closed to requests"), away.until);

        let probe = breaker.admit(away.until).expect("one probe");
        assert!(breaker.admit(away.until).is_err(), "a second request while one probes");
        probe.succeeded();
        assert!(breaker.away().is_none());
        breaker.admit(now).expect("closed again").succeeded();
        assert_eq!(breaker.successes(), 2);
    }

    #[test]
    fn a_probe_that_is_dropped_leaves_room_for_the_next() {
        let breaker = Breaker::new("d", 1, BACKOFF);
        let now = Instant::now();
        breaker.failed(now, Some(Duration::from_secs(3)), "429");
        assert_eq!(breaker.away().expect("open").until, now + Duration::from_secs(3));
        let later = now + Duration::from_secs(4);
        drop(breaker.admit(later).expect("a probe"));
        breaker.admit(later).expect("another probe").failed(later, None, "503");
        assert!(breaker.away().expect("open").until > later);
    }

    #[test]
    fn a_wait_that_is_asked_for_lengthens_the_pause_and_never_shortens_it() {
        for (asked, at_least) in [(0, 500), (100, 500), (5_000, 5_000)] {
            let breaker = Breaker::new("d", 1, BACKOFF);
            let now = Instant::now();
            breaker.failed(now, Some(Duration::from_millis(asked)), "429");
            let wait = breaker.away().expect("open").until - now;
            assert!(wait >= Duration::from_millis(at_least), "asked {asked} ms, waits {wait:?}");
        }
    }

    #[test]
    fn a_request_turned_down_at_the_door_closes_the_breaker_and_is_no_success() {
        let breaker = Breaker::new("d", 1, BACKOFF);
        breaker.failed(Instant::now(), None, "refused");
        let until = breaker.away().expect("open").until;
        breaker.admit(until).expect("a probe").turned_down();
        assert!(breaker.away().is_none());
        assert_eq!(breaker.successes(), 0);
    }

    /// Whether `report` lets nobody see the new state before it is published: publishing waits for
    /// whoever reads what was published last.
    fn tells_under_the_lock(
        breaker: &Breaker,
        was_open: bool,
        report: impl FnOnce() + Send,
    ) -> bool {
        let is_open = |state: &State| matches!(*state, State::Open { .. });
        std::thread::scope(|scope| {
            let reading = breaker.away.borrow();
            let reporter = scope.spawn(report);
            let mut blocked = 0;
            let told = loop {
                match breaker.state.try_lock() {
                    Ok(state) if is_open(&state) != was_open => break false,
                    Ok(_) => blocked = 0,
                    Err(_) => blocked += 1,
                }
                if blocked > 20_000 {
                    break true;
                }
                std::thread::yield_now();
            };
            drop(reading);
            reporter.join().expect("it reports");
            told
        })
    }

    #[test]
    fn what_is_published_is_what_is_true_whoever_reports_at_the_same_time() {
        let breaker = Breaker::new("d", 1, BACKOFF);
        let failed = || breaker.failed(Instant::now(), None, "refused");
        assert!(tells_under_the_lock(&breaker, false, failed), "an outage");
        assert!(tells_under_the_lock(&breaker, true, || breaker.succeeded()), "a recovery");
        assert!(breaker.away().is_none());
    }

    #[test]
    fn a_late_failure_of_an_older_request_does_not_lengthen_the_wait() {
        let breaker = Breaker::new("d", 1, BACKOFF);
        let now = Instant::now();
        breaker.failed(now, Some(Duration::from_secs(3)), "429");
        breaker.failed(now + Duration::from_secs(1), Some(Duration::from_secs(60)), "429");
        assert_eq!(breaker.away().expect("open").until, now + Duration::from_secs(3));
    }
}
