//! The bound on parallel requests, fixed (`5`) or adaptive (`5..64`).
//!
//! A permit is held only during a request to Supabase (contract section 1), never during a claim,
//! an event's post, a wait or a retry pause. The adaptive bound grows by one a round while latency
//! holds, and shrinks on overload or rising latency; its rule is the pure [`Controller`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

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
            baseline: None,
        }
    }

    /// Takes in a sample and returns the bound from now on. A round is as many samples as the
    /// bound, so that one slow request does not count for more than its share.
    pub fn sample(&mut self, sample: Sample) -> usize {
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
        } else if mean <= baseline.mul_f64(HOLDS) {
            self.bound += 1;
        }
        self.bound = self.bound.clamp(self.limits.min, self.limits.max);
        if !self.overloaded {
            self.baseline = Some(baseline.max(Duration::from_micros(1)));
        }
        (self.round, self.sum, self.overloaded) = (0, Duration::ZERO, false);
    }
}

/// The permits of one consumer.
#[derive(Debug)]
pub struct Permits {
    semaphore: Semaphore,
    adaptive: Option<Mutex<(Controller, usize)>>,
}

impl Permits {
    /// Permits within `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        let controller = Controller::new(limits);
        let start = controller.bound;
        let adaptive = (controller.limits.min < controller.limits.max)
            .then(|| Mutex::new((controller, start)));
        Arc::new(Self { semaphore: Semaphore::new(start), adaptive })
    }

    /// Waits for a permit, first come, first served.
    pub async fn acquire(&self) -> SemaphorePermit<'_> {
        match self.semaphore.acquire().await {
            Ok(permit) => permit,
            // Never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells what a request met, while its permit is still held.
    pub fn report(&self, sample: Sample) {
        let Some(adaptive) = &self.adaptive else { return };
        let mut guard = adaptive.lock().unwrap_or_else(PoisonError::into_inner);
        let (controller, issued) = &mut *guard;
        let bound = controller.sample(sample);
        if bound > *issued {
            self.semaphore.add_permits(bound - *issued);
            *issued = bound;
        } else {
            // Only free permits can be taken back now; the rest follows with later samples.
            *issued -= self.semaphore.forget_permits(*issued - bound);
        }
    }

    /// The present bound.
    #[must_use]
    pub fn bound(&self, limits: Limits) -> usize {
        self.adaptive.as_ref().map_or(limits.min, |adaptive| {
            adaptive.lock().unwrap_or_else(PoisonError::into_inner).0.bound
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Sample = Sample::Answered(Duration::from_millis(10));

    fn run(controller: &mut Controller, sample: Sample, times: usize) -> usize {
        (0..times).map(|_| controller.sample(sample)).last().unwrap_or_default()
    }

    #[test]
    fn grows_while_latency_holds_and_stops_at_its_limit() {
        let mut controller = Controller::new(Limits { min: 5, max: 8 });
        assert_eq!(run(&mut controller, FAST, 5), 6);
        assert_eq!(run(&mut controller, FAST, 100), 8);
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

    #[tokio::test]
    async fn a_grown_bound_gives_more_permits_and_a_shrunk_one_takes_them_back() {
        let permits = Permits::new(Limits { min: 1, max: 3 });
        let held = permits.acquire().await;
        assert_eq!(permits.semaphore.available_permits(), 0);
        permits.report(FAST);
        assert_eq!(permits.semaphore.available_permits(), 1);
        drop(held);
        permits.report(Sample::Overloaded);
        permits.report(Sample::Overloaded);
        assert_eq!(permits.semaphore.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_fixed_bound_stays() {
        let permits = Permits::new(Limits { min: 5, max: 5 });
        for _ in 0..100 {
            permits.report(FAST);
        }
        assert_eq!(permits.semaphore.available_permits(), 5);
    }
}
