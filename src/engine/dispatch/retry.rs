//! Outage or poison: what to do with a record whose work failed (behaviour section 8.4).
//!
//! Pure. What fails because a dependency is unwell is tried again for as long as it takes. What
//! fails because of the record goes to the dead letter topic, and so does a record that keeps
//! failing like an outage while the same dependency answers others.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::outage::{Backoff, Breaker};

/// Why a record's work did not end.
#[derive(Debug)]
pub enum Failure {
    /// A dependency is unwell: pause and try again.
    Outage {
        /// Who is unwell.
        breaker: Arc<Breaker>,
        /// A stable label.
        kind: &'static str,
        /// One line for people.
        message: String,
        /// What the dependency asked for; wins over the backoff.
        retry_after: Option<Duration>,
        /// Whether this may be about the record: a time-out, a failure that the dependency itself
        /// names. What says nothing about it, however often it comes: a breaker that let no request
        /// through, a refused connection or key, a rate limit, a gateway's answer, an answer in
        /// another shape.
        attempted: bool,
    },
    /// The dependency refused the record, but might have failed itself: poison only once it has
    /// refused it again and again, for a while, and served others in between.
    Suspect {
        /// Who refused.
        breaker: Arc<Breaker>,
        /// A stable label.
        kind: &'static str,
        /// One line for people.
        message: String,
    },
    /// The record's own fault, and no trying again can help.
    Poison {
        /// A stable label.
        kind: &'static str,
        /// One line for people.
        message: String,
    },
    /// The record was refused for what it is. Whoever takes it may change its mind so many times.
    Refused {
        /// A stable label.
        kind: &'static str,
        /// One line for people.
        message: String,
        /// How often it is tried again.
        retries: u32,
    },
    /// Something that the record names is not there, and may be on its way.
    NotYet {
        /// A stable label.
        kind: &'static str,
        /// One line for people.
        message: String,
        /// How long after the first attempt it turns into poison.
        patience: Duration,
    },
    /// Nothing failed: the work must wait (settle time, a claim that is held elsewhere).
    Wait {
        /// Until when.
        until: Instant,
        /// For what, as a stable label.
        reason: &'static str,
    },
    /// The partition or the process is being given up; the record comes again elsewhere.
    GivenUp,
    /// Something among the records that it went with failed, maybe itself: it goes alone next.
    Alone,
}

/// What a record has been through.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    /// Failed attempts; waits do not count, nor does what an open breaker kept from being asked.
    pub failures: u32,
    /// When the first attempt failed.
    pub first_at: Option<Instant>,
    /// When something that it names was first found missing.
    missing_since: Option<Instant>,
    /// How often it was refused.
    refusals: u32,
    /// How often it was given up although its partition stays.
    given_up: u32,
    /// It no longer goes with others.
    pub alone: bool,
    evidence: Evidence,
}

/// What speaks against a record: one count, to which each failure adds its weight.
#[derive(Debug, Clone, Default)]
struct Evidence {
    weight: u32,
    /// Since when there is any.
    since: Option<Instant>,
    /// The dependencies that it failed on; mostly one, and none for the records that never fail.
    others: Vec<Others>,
}

/// What became of other records at a dependency since this one first failed there.
#[derive(Debug, Clone)]
struct Others {
    breaker: Arc<Breaker>,
    /// The dependency's counts when this record first failed there, and what it did itself since.
    successes: u64,
    failures: u64,
    /// How many others had been served when something was last counted against this record.
    served: u64,
}

/// Others fail too where the dependency is unwell: from this many failures for each that was served
/// on, no record is alone with it.
const UNWELL: u64 = 4;

/// When a record that fails like an outage is its own fault after all.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// At least this many failed attempts, each with others served since the one before.
    pub poison_attempts: u32,
    /// Over at least this long.
    pub poison_after: Duration,
}

/// How much a failure says about the record.
#[derive(Debug, Clone, Copy)]
struct Weight {
    /// What it adds to the evidence, of which [`Policy::poison_attempts`] is enough.
    adds: u32,
    /// Over how long there must have been evidence.
    over: Duration,
}

/// What happens next.
#[derive(Debug)]
pub enum Next {
    /// Try again at this time.
    Retry {
        /// When.
        at: Instant,
        /// The dependency that it waits for; its recovery ends the wait.
        waits_for: Option<Arc<Breaker>>,
        /// For what, as a stable label.
        reason: Cow<'static, str>,
    },
    /// Set the record aside.
    DeadLetter {
        /// A stable label.
        kind: &'static str,
        /// One line for people.
        message: String,
    },
    /// Leave it to whoever owns the partition next; where that is still this process, try again at
    /// this time.
    GiveUp {
        /// When.
        at: Instant,
    },
}

impl Policy {
    /// Decides, and keeps count in `attempts`. `random` lies in `0.0..1.0`.
    pub fn next(
        &self,
        attempts: &mut Attempts,
        failure: Failure,
        now: Instant,
        random: f64,
    ) -> Next {
        match failure {
            Failure::GivenUp => {
                let pause = match attempts.given_up {
                    // What was merged from a partition that stays goes on at once.
                    0 => Duration::ZERO,
                    again => self.backoff.delay(again - 1, random),
                };
                attempts.given_up = attempts.given_up.saturating_add(1);
                Next::GiveUp { at: now + pause }
            }
            Failure::Poison { kind, message } => {
                attempts.count(now);
                Next::DeadLetter { kind, message }
            }
            Failure::Refused { kind, message, retries } => {
                let failures = attempts.count(now);
                attempts.refusals = attempts.refusals.saturating_add(1);
                if attempts.refusals > retries {
                    return Next::DeadLetter { kind, message };
                }
                let at = now + self.backoff.delay(failures - 1, random);
                Next::Retry { at, waits_for: None, reason: kind.into() }
            }
            Failure::Alone => {
                attempts.alone = true;
                Next::Retry { at: now, waits_for: None, reason: "alone".into() }
            }
            Failure::Wait { until, reason } => {
                Next::Retry { at: until, waits_for: None, reason: reason.into() }
            }
            Failure::NotYet { kind, message, patience } => {
                let failures = attempts.count(now);
                let missing_since = *attempts.missing_since.get_or_insert(now);
                let since = now.saturating_duration_since(missing_since);
                if since >= patience {
                    return Next::DeadLetter { kind, message };
                }
                let at = now + self.backoff.delay(failures - 1, random).min(patience - since);
                Next::Retry { at, waits_for: None, reason: kind.into() }
            }
            Failure::Suspect { breaker, kind, message } => {
                let failures = attempts.count(now);
                if self.is_at_fault(attempts, &breaker, Some(self.refusal()), now) {
                    return Next::DeadLetter { kind, message };
                }
                self.retry(breaker, None, failures, now, random)
            }
            Failure::Outage { breaker, kind, message, retry_after, attempted } => {
                // Who asks for a pause asks everybody.
                let telling = attempted && retry_after.is_none();
                // A breaker that is open says itself when the next one goes out.
                if telling || breaker.away().is_none() {
                    attempts.count(now);
                }
                let weight = telling.then_some(self.silence());
                if self.is_at_fault(attempts, &breaker, weight, now) {
                    return Next::DeadLetter { kind, message };
                }
                self.retry(breaker, retry_after, attempts.failures.max(1), now, random)
            }
        }
    }

    /// A time-out, or a failure that the dependency itself names: mostly not the record's doing.
    fn silence(&self) -> Weight {
        Weight { adds: 1, over: self.poison_after }
    }

    /// A refusal that does not name the record: mostly its doing, but a server that fails for a
    /// moment says the same, and one that fails for a minute is noticed by others.
    fn refusal(&self) -> Weight {
        Weight { adds: self.poison_attempts.div_ceil(3), over: self.poison_after / 10 }
    }

    /// Takes a failure at `breaker` in, and answers whether the record is at fault: there is enough
    /// evidence, over long enough, and it is alone with it.
    fn is_at_fault(
        &self,
        attempts: &mut Attempts,
        breaker: &Arc<Breaker>,
        weight: Option<Weight>,
        now: Instant,
    ) -> bool {
        let evidence = &mut attempts.evidence;
        let known = evidence.others.iter_mut().find(|others| Arc::ptr_eq(&others.breaker, breaker));
        let (Some(others), Some(weight)) = (known, weight) else {
            evidence.note(breaker);
            return false;
        };
        // Its own failure, which the breaker has counted.
        others.failures += 1;
        let served = breaker.successes().saturating_sub(others.successes);
        let failed = breaker.failures().saturating_sub(others.failures);
        if served <= others.served {
            return false;
        }
        others.served = served;
        evidence.weight = evidence.weight.saturating_add(weight.adds);
        let since = *evidence.since.get_or_insert(now);
        evidence.weight >= self.poison_attempts
            && now.saturating_duration_since(since) >= weight.over
            && failed <= served.saturating_mul(UNWELL)
    }

    fn retry(
        &self,
        breaker: Arc<Breaker>,
        retry_after: Option<Duration>,
        failures: u32,
        now: Instant,
        random: f64,
    ) -> Next {
        let at = match (retry_after, breaker.away()) {
            // Nobody who asks for no pause gets none: the record would go round and round.
            (Some(asked), _) => now + asked.max(self.backoff.delay(failures - 1, random)),
            // Spread behind the breaker's own time, so that its one probe is not a stampede.
            (None, Some(away)) => away.until.max(now) + self.backoff.base.mul_f64(random),
            (None, None) => now + self.backoff.delay(failures - 1, random),
        };
        let reason = breaker.name().to_owned().into();
        Next::Retry { at, waits_for: Some(breaker), reason }
    }
}

impl Attempts {
    /// Counts a failed attempt; answers how many there were.
    fn count(&mut self, now: Instant) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.first_at.get_or_insert(now);
        self.failures
    }

    /// Takes in what this record itself was served since it last failed: that says nothing about
    /// others.
    pub(in crate::engine) fn served(&mut self, own: &Served) {
        for others in &mut self.evidence.others {
            others.successes += own.of(&others.breaker);
        }
    }
}

impl Evidence {
    /// Takes in a failure at `breaker` that says nothing about the record.
    fn note(&mut self, breaker: &Arc<Breaker>) {
        let known = self.others.iter_mut().find(|others| Arc::ptr_eq(&others.breaker, breaker));
        if let Some(others) = known {
            others.failures += 1;
            return;
        }
        self.others.push(Others {
            successes: breaker.successes(),
            failures: breaker.failures(),
            breaker: Arc::clone(breaker),
            served: 0,
        });
    }
}

/// How often a record was served by each dependency since it last failed.
#[derive(Debug, Default)]
pub(in crate::engine) struct Served(SmallVec<[(usize, u64); 2]>);

impl Served {
    /// Counts answers that the record could use.
    pub(in crate::engine) fn add(&mut self, breaker: &Arc<Breaker>, times: u64) {
        // Breakers live as long as the process, so that an address stands for one of them.
        let id = Arc::as_ptr(breaker) as usize;
        match self.0.iter_mut().find(|(known, _)| *known == id) {
            Some((_, count)) => *count += times,
            None => self.0.push((id, times)),
        }
    }

    fn of(&self, breaker: &Arc<Breaker>) -> u64 {
        let id = Arc::as_ptr(breaker) as usize;
        self.0.iter().find(|(known, _)| *known == id).map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests;
