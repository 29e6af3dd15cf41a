//! What is evidence about a record, and what is not.

use super::*;

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };
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
            Next::GiveUp { .. } => panic!("not given up"),
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
    assert!(attempts.evidence.since.is_none());
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

/// A refusal that does not name the record.
fn suspect(breaker: &Arc<Breaker>) -> Failure {
    Failure::Suspect { breaker: Arc::clone(breaker), kind: "refused", message: "400".into() }
}

/// Fails as `failure` says until it is set aside, or for an hour; how long it was tried, if it was.
fn tried_for(
    attempts: &mut Attempts,
    mut failure: impl FnMut() -> Failure,
) -> Option<(Duration, u32)> {
    let (start, before) = (Instant::now(), attempts.failures);
    let mut now = start;
    while now < start + Duration::from_secs(3_600) {
        match POLICY.next(attempts, failure(), now, 0.5) {
            Next::Retry { at, .. } => now = at,
            Next::DeadLetter { .. } => return Some((now - start, attempts.failures - before)),
            Next::GiveUp { .. } => panic!("not given up"),
        }
    }
    None
}

#[test]
fn a_suspect_is_poison_only_once_others_were_served_again_and_again_for_a_while() {
    let (breaker, mut attempts) = (breaker(), Attempts::default());
    assert_eq!(tried_for(&mut attempts, || suspect(&breaker)), None, "nobody else was served");
    let mut served = 0;
    let once = tried_for(&mut attempts, || {
        served += 1;
        if served == 3 {
            breaker.succeeded();
        }
        suspect(&breaker)
    });
    assert_eq!(once, None, "one other alone says little");
    let mut attempts = Attempts::default();
    let (time, refusals) = tried_for(&mut attempts, || {
        breaker.succeeded();
        suspect(&breaker)
    })
    .expect("set aside");
    assert!(time >= POLICY.poison_after / 10 && time < POLICY.poison_after, "{time:?}");
    assert!(refusals >= 4, "{refusals}");
}

#[test]
fn a_time_out_and_a_refusal_are_counted_together() {
    let (breaker, mut attempts) = (breaker(), Attempts::default());
    let mut turn = 0;
    let tried = tried_for(&mut attempts, || {
        turn += 1;
        breaker.succeeded();
        if turn % 2 == 0 { outage(&breaker) } else { suspect(&breaker) }
    });
    assert!(tried.is_some_and(|(time, _)| time < POLICY.poison_after), "{tried:?}");
}

/// Records that fail with 95 of 100 requests, each request reported to the breaker.
fn set_aside_of(failure: impl Fn(&Arc<Breaker>) -> Failure, records: u32) -> u32 {
    let breaker = Arc::new(Breaker::new("d", u32::MAX, BACKOFF));
    let mut random = fastrand::Rng::with_seed(16);
    let start = Instant::now();
    let mut waiting: std::collections::BTreeMap<(Instant, u32), Attempts> =
        (0..records).map(|id| ((start, id), Attempts::default())).collect();
    let mut set_aside = 0;
    while let Some(((now, id), mut attempts)) = waiting.pop_first() {
        if random.u32(..100) >= 95 {
            breaker.succeeded();
            continue;
        }
        breaker.failed(now, None, "unwell");
        match POLICY.next(&mut attempts, failure(&breaker), now, random.f64()) {
            Next::Retry { at, .. } => drop(waiting.insert((at, id), attempts)),
            Next::DeadLetter { .. } => set_aside += 1,
            Next::GiveUp { .. } => panic!("not given up"),
        }
    }
    set_aside
}

#[test]
fn no_record_is_set_aside_where_most_requests_of_all_fail() {
    assert_eq!(set_aside_of(outage, 2_000), 0, "time-outs");
    assert_eq!(set_aside_of(suspect, 2_000), 0, "refusals");
    let too_many = |breaker: &Arc<Breaker>| Failure::Outage {
        breaker: Arc::clone(breaker),
        kind: "rate_limited",
        message: "429".into(),
        retry_after: Some(Duration::from_millis(500)),
        attempted: true,
    };
    assert_eq!(set_aside_of(too_many, 2_000), 0, "rate limits");
}

#[test]
fn what_asks_for_a_pause_never_speaks_against_the_record() {
    let (breaker, mut attempts) = (breaker(), Attempts::default());
    let tried = tried_for(&mut attempts, || {
        breaker.succeeded();
        Failure::Outage {
            breaker: Arc::clone(&breaker),
            kind: "rate_limited",
            message: "429".into(),
            retry_after: Some(Duration::from_secs(1)),
            attempted: true,
        }
    });
    assert_eq!(tried, None);
    assert!(attempts.failures > 100, "attempts all the same");
}

#[test]
fn what_a_record_was_served_itself_does_not_say_that_others_were() {
    for failure in [outage, suspect] {
        let (breaker, mut attempts) = (breaker(), Attempts::default());
        let mut now = Instant::now();
        for _ in 0..200 {
            // Its first event is accepted each time, its second is refused.
            breaker.succeeded();
            let mut own = Served::default();
            own.add(&breaker, 1);
            attempts.served(&own);
            match POLICY.next(&mut attempts, failure(&breaker), now, 0.5) {
                Next::Retry { at, .. } => now = at,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn what_is_given_up_although_its_partition_stays_does_not_spin() {
    let (mut attempts, now) = (Attempts::default(), Instant::now());
    let mut at = Vec::new();
    for _ in 0..20 {
        match POLICY.next(&mut attempts, Failure::GivenUp, now, 1.0) {
            Next::GiveUp { at: next } => at.push(next - now),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(at[..3], [Duration::ZERO, BACKOFF.base, BACKOFF.base * 2]);
    assert_eq!(at[19], BACKOFF.max);
    assert_eq!(attempts.failures, 0);
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
            Next::GiveUp { .. } => panic!("not given up"),
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
