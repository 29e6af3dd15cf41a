//! Behaviour section 8.8: a stuck consumer is seen; one that waits for something is not stuck.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crm_event_processors::engine::vitals::Pulse;
use crm_event_processors::engine::{Failure, Outcome};

use super::stage::{Gate, NEVER, Stage};
use test_support::until;

const TIMEOUT: Duration = Duration::from_secs(300);

/// Whether the consumer would count as stalled, if nothing but time had gone by since its last beat.
fn would_stall(pulse: &Pulse) -> bool {
    let mut vitals = pulse.read();
    let later = Instant::now() + TIMEOUT * 2;
    vitals.beat = later;
    vitals.stalled(later, TIMEOUT)
}

#[tokio::test]
async fn work_that_never_ends_is_a_stall() {
    let stage = Stage::new(1).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    until("an idle consumer", async || (member.pulse().read().partitions.len() == 1).then_some(()))
        .await;
    assert!(!would_stall(member.pulse()), "nothing to do is no stall");
    stage.send(&[(0, "a", "1")]).await;
    gate.until_waiting(1).await;
    until("the stall", async || would_stall(member.pulse()).then_some(())).await;
    gate.open();
    until("the end of the stall", async || (!would_stall(member.pulse())).then_some(())).await;
    member.stop().await;
}

#[tokio::test]
async fn waiting_for_a_dependency_or_a_settle_time_is_none_and_readiness_names_it() {
    let stage = Stage::new(1).await;
    stage.send(&[(0, "a", "settles"), (0, "b", "needs")]).await;
    let breaker = stage.breakers.get("dependency");
    let script = Arc::clone(&breaker);
    let member = stage.start(move |call| {
        let breaker = Arc::clone(&script);
        async move {
            if call.value == "settles" {
                return Err(Failure::Wait { until: Instant::now() + NEVER, reason: "settle" });
            }
            let retry_after = Some(NEVER);
            breaker.failed(Instant::now(), retry_after, "refused");
            let message = "refused".to_owned();
            Err(Failure::Outage {
                breaker,
                kind: "unavailable",
                message,
                retry_after,
                attempted: true,
            })
        }
    });
    member.until("both to wait", |seen| seen.retries.len() >= 2).await;
    let named = until("both reasons", async || {
        let waits_for = member.pulse().read().waits_for;
        waits_for.iter().any(|reason| reason == "settle").then_some(waits_for)
    })
    .await;
    assert!(named.iter().any(|reason| reason.contains("dependency: refused")), "{named:?}");
    assert!(!would_stall(member.pulse()));
    member.stop().await;
}

#[tokio::test]
async fn one_record_that_waits_and_others_that_end_hide_none_that_hangs() {
    let stage = Stage::new(1).await;
    stage.send(&[(0, "a", "settles"), (0, "b", "waits"), (0, "c", "hangs")]).await;
    let member = stage.start(async |call| match &*call.value {
        "settles" => Err(Failure::Wait { until: Instant::now() + NEVER, reason: "settle" }),
        "ends" => Ok(Outcome::Sent),
        _ => std::future::pending().await,
    });
    let hanging = || member.pulse().read().longest.map(|longest| longest.origin.offset);
    until("the one that hangs", async || (hanging() == Some(2)).then_some(())).await;
    stage.send(&[(0, "d", "ends")]).await;
    member.until_outcomes(1).await;
    assert!(!member.pulse().read().waits_for.is_empty(), "the others are named");
    assert!(would_stall(member.pulse()));
    member.abort();
}

#[tokio::test]
async fn a_dead_letter_before_it_does_not_hide_what_work_in_flight_waits_for() {
    let stage = Stage::new(1).await;
    stage.send(&[(0, "a", "malformed")]).await;
    let member = stage.start(async |_| std::future::pending().await);
    member.until_outcomes(1).await;
    stage.send(&[(0, "b", "waits")]).await;
    until("readiness to name the dependency", async || {
        let waits_for = member.pulse().read().waits_for;
        waits_for.iter().any(|reason| reason.contains("always away")).then_some(())
    })
    .await;
    assert!(!would_stall(member.pulse()));
    member.stop().await;
}
