//! Outage or poison: what to do with a record whose work failed (contract section 8.4).
//!
//! Pure. What fails because a dependency is unwell is tried again for as long as it takes. What
//! fails because of the record goes to the dead letter topic, and so does a record that keeps
//! failing like an outage while the same dependency answers others.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        /// Whether this may be about the record. A breaker that let no request through, claims that
        /// cannot be reached, a gateway's answer and a rate limit say nothing about it.
        attempted: bool,
    },
    /// The dependency refused the record, but might have failed itself: poison only once it has
    /// answered others since the first refusal.
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
}

/// What a record has been through.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    /// Failed attempts; waits do not count.
    pub failures: u32,
    /// Attempts that say nothing about the record: they count for the pause alone.
    silent: u32,
    /// When the first attempt failed.
    pub first_at: Option<Instant>,
    /// How often the failing dependency had answered anybody when this record last failed on it
    /// as in an outage.
    answered: Option<(String, u64)>,
    /// The same when it was first refused without a clear reason.
    refused: Option<(String, u64)>,
    /// When something that it names was first found missing.
    missing_since: Option<Instant>,
    /// Failures before each of which the dependency had answered somebody else since the one
    /// before, and when the first of them was. Failures of an outage say nothing about the record,
    /// however many they were.
    alone: u32,
    alone_since: Option<Instant>,
}

/// When a record that fails like an outage is its own fault after all.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// At least this many failed attempts.
    pub poison_attempts: u32,
    /// Over at least this long.
    pub poison_after: Duration,
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
    /// Leave it to whoever owns the partition next.
    GiveUp,
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
            Failure::GivenUp => Next::GiveUp,
            Failure::Poison { kind, message } => {
                attempts.count(now);
                Next::DeadLetter { kind, message }
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
                let answered = answered_since(&mut attempts.refused, &breaker);
                let failures = attempts.count(now);
                if answered {
                    return Next::DeadLetter { kind, message };
                }
                self.retry(breaker, None, failures, now, random)
            }
            Failure::Outage { breaker, retry_after, attempted: false, .. } => {
                // A breaker that is open says itself when the next one goes out.
                attempts.silent += u32::from(breaker.away().is_none());
                let failures = attempts.failures.max(attempts.silent).max(1);
                self.retry(breaker, retry_after, failures, now, random)
            }
            Failure::Outage { breaker, kind, message, retry_after, attempted: true } => {
                let (alone, since) = attempts.count_alone(&breaker, now);
                let failures = attempts.count(now);
                if alone >= self.poison_attempts && since >= self.poison_after {
                    return Next::DeadLetter { kind, message };
                }
                self.retry(breaker, retry_after, failures, now, random)
            }
        }
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

    /// Counts this failure against the record if the dependency has answered others since the one
    /// before: how many such failures there were, and over what time.
    fn count_alone(&mut self, breaker: &Breaker, now: Instant) -> (u32, Duration) {
        if answered_since(&mut self.answered, breaker) {
            self.alone = self.alone.saturating_add(1);
            self.alone_since.get_or_insert(now);
            self.answered = Some((breaker.name().to_owned(), breaker.successes()));
        }
        let since = self.alone_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (self.alone, since)
    }
}

/// Whether the dependency has answered anybody since it was noted in `then`; notes it where it was not.
fn answered_since(then: &mut Option<(String, u64)>, breaker: &Breaker) -> bool {
    let now = breaker.successes();
    match then {
        Some((name, then)) if name == breaker.name() => now > *then,
        _ => {
            *then = Some((breaker.name().to_owned(), now));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };
    const POLICY: Policy =
        Policy { backoff: BACKOFF, poison_attempts: 10, poison_after: Duration::from_secs(600) };

    fn outage(breaker: &Arc<Breaker>) -> Failure {
        Failure::Outage {
            breaker: Arc::clone(breaker),
            kind: "unavailable",
            message: "503".into(),
            retry_after: None,
            attempted: true,
        }
    }

    fn breaker() -> Arc<Breaker> {
        Arc::new(Breaker::new("d", 1_000, BACKOFF))
    }

    #[test]
    fn an_outage_is_retried_for_as_long_as_it_takes() {
        let (breaker, mut attempts, mut now) = (breaker(), Attempts::default(), Instant::now());
        for _ in 0..1_000 {
            match POLICY.next(&mut attempts, outage(&breaker), now, 1.0) {
                Next::Retry { at, .. } => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(attempts.failures, 1_000);
    }

    #[test]
    fn a_record_that_fails_while_others_are_answered_is_set_aside_in_the_end() {
        let (breaker, mut attempts, start) = (breaker(), Attempts::default(), Instant::now());
        let mut now = start;
        loop {
            breaker.succeeded();
            match POLICY.next(&mut attempts, outage(&breaker), now, 1.0) {
                Next::Retry { at, .. } => now = at,
                Next::DeadLetter { kind, .. } => {
                    assert_eq!(kind, "unavailable");
                    break;
                }
                Next::GiveUp => panic!("not given up"),
            }
        }
        assert!(attempts.failures >= 10 && now - start >= POLICY.poison_after);
    }

    #[test]
    fn an_outage_that_let_no_request_through_never_speaks_against_the_record() {
        let (breaker, mut attempts, mut now) = (breaker(), Attempts::default(), Instant::now());
        for _ in 0..1_000 {
            breaker.succeeded();
            let failure = Failure::Outage {
                breaker: Arc::clone(&breaker),
                kind: "away",
                message: "breaker open".into(),
                retry_after: Some(Duration::from_secs(5)),
                attempted: false,
            };
            match POLICY.next(&mut attempts, failure, now, 0.5) {
                Next::Retry { at, .. } => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(attempts.failures, 0);
    }

    #[test]
    fn a_long_outage_says_nothing_about_the_record_that_fails_once_more_at_its_end() {
        let (breaker, mut attempts, mut now) = (breaker(), Attempts::default(), Instant::now());
        for failure in 0..1_000 {
            if failure == 990 {
                breaker.succeeded();
            }
            match POLICY.next(&mut attempts, outage(&breaker), now, 1.0) {
                Next::Retry { at, .. } => now = at,
                other => panic!("{other:?} at failure {failure}"),
            }
        }
    }

    #[test]
    fn what_the_dependency_asks_for_wins() {
        let (breaker, mut attempts, now) = (breaker(), Attempts::default(), Instant::now());
        let failure = Failure::Outage {
            breaker,
            kind: "rate_limited",
            message: "429".into(),
            retry_after: Some(Duration::from_secs(77)),
            attempted: true,
        };
        let Next::Retry { at, .. } = POLICY.next(&mut attempts, failure, now, 0.1) else {
            panic!("retried")
        };
        assert_eq!(at, now + Duration::from_secs(77));
    }

    #[test]
    fn a_suspect_is_poison_only_once_others_were_accepted() {
        let (breaker, mut attempts, now) = (breaker(), Attempts::default(), Instant::now());
        let suspect = || Failure::Suspect {
            breaker: Arc::clone(&breaker),
            kind: "refused",
            message: "400".into(),
        };
        for _ in 0..50 {
            assert!(matches!(POLICY.next(&mut attempts, suspect(), now, 0.5), Next::Retry { .. }));
        }
        breaker.succeeded();
        assert!(matches!(POLICY.next(&mut attempts, suspect(), now, 0.5), Next::DeadLetter { .. }));
    }

    #[test]
    fn what_is_not_there_yet_is_looked_for_until_patience_ends() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        let start = now;
        loop {
            let failure = Failure::NotYet {
                kind: "original_not_found",
                message: "no such purchase".into(),
                patience: Duration::from_secs(60),
            };
            match POLICY.next(&mut attempts, failure, now, 1.0) {
                Next::Retry { at, .. } => {
                    assert!(at > now && at <= start + Duration::from_secs(60));
                    now = at;
                }
                Next::DeadLetter { .. } => break,
                Next::GiveUp => panic!("not given up"),
            }
        }
        assert_eq!(now, start + Duration::from_secs(60));
    }

    #[test]
    fn an_outage_before_takes_nothing_from_the_patience_with_what_is_not_there_yet() {
        let (breaker, mut attempts, now) = (breaker(), Attempts::default(), Instant::now());
        POLICY.next(&mut attempts, outage(&breaker), now, 0.5);
        let failure = Failure::NotYet {
            kind: "original_not_found",
            message: "no such purchase".into(),
            patience: Duration::from_secs(60),
        };
        let later = now + Duration::from_secs(120);
        assert!(matches!(POLICY.next(&mut attempts, failure, later, 0.5), Next::Retry { .. }));
    }

    #[test]
    fn answers_to_others_count_from_the_first_refusal_and_not_from_an_outage_before() {
        let (breaker, mut attempts, now) = (breaker(), Attempts::default(), Instant::now());
        POLICY.next(&mut attempts, outage(&breaker), now, 0.5);
        breaker.succeeded();
        let suspect = || Failure::Suspect {
            breaker: Arc::clone(&breaker),
            kind: "refused",
            message: "400".into(),
        };
        assert!(matches!(POLICY.next(&mut attempts, suspect(), now, 0.5), Next::Retry { .. }));
        breaker.succeeded();
        assert!(matches!(POLICY.next(&mut attempts, suspect(), now, 0.5), Next::DeadLetter { .. }));
    }

    #[test]
    fn a_dependency_that_asks_for_no_pause_gets_the_usual_one() {
        let (breaker, mut attempts, now) = (breaker(), Attempts::default(), Instant::now());
        let failure = Failure::Outage {
            breaker,
            kind: "rate_limited",
            message: "429".into(),
            retry_after: Some(Duration::ZERO),
            attempted: true,
        };
        let Next::Retry { at, .. } = POLICY.next(&mut attempts, failure, now, 1.0) else {
            panic!("retried")
        };
        assert_eq!(at, now + BACKOFF.base);
    }

    #[test]
    fn a_wait_is_no_failure() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let wait = Failure::Wait { until: now + Duration::from_secs(30), reason: "settle" };
        let next = POLICY.next(&mut attempts, wait, now, 0.5);
        assert!(matches!(next, Next::Retry { waits_for: None, .. }));
        assert_eq!(attempts.failures, 0);
    }
}
