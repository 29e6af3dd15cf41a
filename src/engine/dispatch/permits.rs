//! The bound on parallel requests, fixed (`5`) or adaptive (`5..64`).
//!
//! A permit is held only during a request to Supabase (behaviour section 1), never during a claim,
//! an event's post, a wait or a retry pause. The adaptive bound grows by one a round while latency
//! holds, and shrinks on overload or rising latency; its rule is the pure [`Controller`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Bounds of the number of requests at a time; equal when fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At least this many, and what an adaptive bound starts with.
    pub min: usize,
    /// At most this many.
    pub max: usize,
}

/// What a finished request says about the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Answered after this long.
    Answered(Duration),
    /// Refused for load: 429, 503, 504 or a time-out.
    Overloaded,
}

/// Decides the bound from samples: additive increase, multiplicative decrease.
#[derive(Debug)]
pub struct Controller {
    limits: Limits,
    bound: usize,
    round: usize,
    sum: Duration,
    overloaded: bool,
    used: bool,
    baseline: Option<Duration>,
}

/// A round's mean latency up to this multiple of the baseline counts as holding.
const HOLDS: f64 = 1.5;
/// From this multiple on it counts as rising.
const RISES: f64 = 2.0;
/// How fast the baseline follows a service that became slower for good.
const BASELINE_DRIFT: f64 = 1.02;

impl Controller {
    /// Starts at the lower limit.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { min: limits.min.max(1), max: limits.max.max(limits.min).max(1) };
        Self {
            limits,
            bound: limits.min,
            round: 0,
            sum: Duration::ZERO,
            overloaded: false,
            used: false,
            baseline: None,
        }
    }

    /// Takes in a sample and returns the bound from now on; `used` says whether as many requests
    /// as it allows were under way. A round is as many samples as the bound, so that one slow request
    /// does not count for more than its share.
    pub fn sample(&mut self, sample: Sample, used: bool) -> usize {
        self.used |= used;
        match sample {
            Sample::Answered(latency) => self.sum += latency,
            Sample::Overloaded => self.overloaded = true,
        }
        self.round += 1;
        if self.round >= self.bound {
            self.close_round();
        }
        self.bound
    }

    fn close_round(&mut self) {
        let mean = self.sum / u32::try_from(self.round).unwrap_or(u32::MAX);
        let baseline = self.baseline.map_or(mean, |old| mean.min(old.mul_f64(BASELINE_DRIFT)));
        if self.overloaded {
            self.bound = self.bound * 7 / 10;
        } else if mean > baseline.mul_f64(RISES) {
            self.bound = self.bound * 9 / 10;
        } else if self.used && mean <= baseline.mul_f64(HOLDS) {
            // What was not needed was not tried: latency that holds at five requests says nothing
            // of sixty.
            self.bound += 1;
        }
        self.bound = self.bound.clamp(self.limits.min, self.limits.max);
        if !self.overloaded {
            self.baseline = Some(baseline.max(Duration::from_micros(1)));
        }
        (self.round, self.sum) = (0, Duration::ZERO);
        (self.overloaded, self.used) = (false, false);
    }
}

/// Who waits for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// One record.
    One,
    /// Many records wait for this one answer (a look-up that they share): it goes first, or they
    /// would all wait behind each other's requests.
    Many,
}

/// The permits of one consumer.
#[derive(Debug)]
pub struct Permits {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    controller: Controller,
    in_use: usize,
    many: VecDeque<oneshot::Sender<Permit>>,
    one: VecDeque<oneshot::Sender<Permit>>,
}

impl Permits {
    /// Permits within `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        let controller = Controller::new(limits);
        let (many, one) = (VecDeque::new(), VecDeque::new());
        Arc::new(Self { state: Mutex::new(State { controller, in_use: 0, many, one }) })
    }

    /// Waits for a permit, first come, first served among the equally urgent.
    pub async fn acquire(self: &Arc<Self>, urgency: Urgency) -> Permit {
        let granted = {
            let mut state = self.lock();
            if state.in_use < state.controller.bound {
                state.in_use += 1;
                return Permit { permits: Arc::clone(self) };
            }
            let (grant, granted) = oneshot::channel();
            match urgency {
                Urgency::Many => state.many.push_back(grant),
                Urgency::One => state.one.push_back(grant),
            }
            granted
        };
        match granted.await {
            Ok(permit) => permit,
            // Whoever waits keeps the permits, and with them the queue, alive.
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands what is free to those who wait.
    fn grant(self: &Arc<Self>) {
        loop {
            let grant = {
                let mut state = self.lock();
                if state.in_use >= state.controller.bound {
                    return;
                }
                let Some(grant) = state.many.pop_front().or_else(|| state.one.pop_front()) else {
                    return;
                };
                if grant.is_closed() {
                    continue;
                }
                state.in_use += 1;
                grant
            };
            // One that stops waiting at this very moment gives it back by dropping it.
            drop(grant.send(Permit { permits: Arc::clone(self) }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave for one request at a time, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    permits: Arc<Permits>,
}

impl Permit {
    /// Tells what the request met; an adaptive bound learns from it.
    pub fn report(&self, sample: Sample) {
        {
            let mut state = self.permits.lock();
            let used = state.in_use >= state.controller.bound;
            state.controller.sample(sample, used);
        }
        self.permits.grant();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.lock().in_use -= 1;
        self.permits.grant();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    const FAST: Sample = Sample::Answered(Duration::from_millis(10));

    fn run(controller: &mut Controller, sample: Sample, times: usize) -> usize {
        (0..times).map(|_| controller.sample(sample, true)).last().unwrap_or_default()
    }

    #[test]
    fn grows_while_latency_holds_and_stops_at_its_limit() {
        let mut controller = Controller::new(Limits { min: 5, max: 8 });
        assert_eq!(run(&mut controller, FAST, 5), 6);
        assert_eq!(run(&mut controller, FAST, 100), 8);
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut controller = Controller::new(Limits { min: 5, max: 64 });
        for _ in 0..1_000 {
            assert_eq!(controller.sample(FAST, false), 5);
        }
        assert_eq!(run(&mut controller, FAST, 5), 6);
    }

    #[tokio::test]
    async fn one_request_at_a_time_does_not_make_room_for_many() {
        let permits = Permits::new(Limits { min: 2, max: 64 });
        for _ in 0..100 {
            permits.acquire(Urgency::One).await.report(FAST);
        }
        assert_eq!(free(&permits), 2);
    }

    #[test]
    fn shrinks_on_overload_and_on_rising_latency_but_not_below_its_limit() {
        let mut controller = Controller::new(Limits { min: 5, max: 64 });
        let grown = run(&mut controller, FAST, 3_000);
        assert_eq!(grown, 64);
        let slower = run(&mut controller, Sample::Answered(Duration::from_millis(40)), 150);
        assert!(slower < grown);
        assert!(run(&mut controller, Sample::Overloaded, 64) < slower);
        assert_eq!(run(&mut controller, Sample::Overloaded, 1_000), 5);
    }

    #[test]
    fn follows_a_service_that_became_slower_for_good() {
        let mut controller = Controller::new(Limits { min: 5, max: 64 });
        run(&mut controller, FAST, 3_000);
        let slow = Sample::Answered(Duration::from_millis(40));
        let shrunk = run(&mut controller, slow, 400);
        assert!(run(&mut controller, slow, 20_000) > shrunk);
    }

    fn free(permits: &Permits) -> usize {
        let state = permits.lock();
        state.controller.bound.saturating_sub(state.in_use)
    }

    #[tokio::test]
    async fn a_grown_bound_gives_more_permits_and_a_shrunk_one_takes_them_back() {
        let permits = Permits::new(Limits { min: 1, max: 3 });
        let held = permits.acquire(Urgency::One).await;
        assert_eq!(free(&permits), 0);
        held.report(FAST);
        assert_eq!(free(&permits), 1);
        held.report(Sample::Overloaded);
        held.report(Sample::Overloaded);
        drop(held);
        assert_eq!(free(&permits), 1);
    }

    #[tokio::test]
    async fn a_fixed_bound_stays() {
        let permits = Permits::new(Limits { min: 5, max: 5 });
        let held = permits.acquire(Urgency::One).await;
        for _ in 0..100 {
            held.report(FAST);
        }
        drop(held);
        assert_eq!(free(&permits), 5);
    }

    #[tokio::test]
    async fn what_many_wait_for_goes_first_and_the_rest_in_order() {
        let permits = Permits::new(Limits { min: 1, max: 1 });
        let held = permits.acquire(Urgency::One).await;
        let mut first = pin!(permits.acquire(Urgency::One));
        let mut second = pin!(permits.acquire(Urgency::One));
        let mut shared = pin!(permits.acquire(Urgency::Many));
        for waiting in [&mut first, &mut second] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        assert!(shared.as_mut().now_or_never().is_none());
        drop(held);
        drop(shared.now_or_never().expect("the look-up that many wait for"));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first.now_or_never().expect("the first to come"));
        drop(second.now_or_never().expect("the second"));
        assert_eq!(free(&permits), 1);
    }

    #[tokio::test]
    async fn one_that_stopped_waiting_holds_nothing_up() {
        let permits = Permits::new(Limits { min: 1, max: 1 });
        let held = permits.acquire(Urgency::One).await;
        {
            let mut gone = pin!(permits.acquire(Urgency::One));
            assert!(gone.as_mut().now_or_never().is_none());
        }
        let mut waiting = pin!(permits.acquire(Urgency::One));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        drop(waiting.now_or_never().expect("the one that still waits"));
        assert_eq!(free(&permits), 1);
    }
}
