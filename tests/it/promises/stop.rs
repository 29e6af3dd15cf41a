//! Behaviour sections 8.6 and 8.7: a stop or a revoke lets what is in flight finish, gives up what
//! merely waits, and commits; nothing is done twice for it.

use std::time::{Duration, Instant};

use crm_event_processors::config::GroupProtocol;
use crm_event_processors::engine::{Failure, Outcome};

use super::stage::{Gate, NEVER, Stage};

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_gives_up_what_waits() {
    let stage = Stage::new(1).await;
    stage
        .send(&[
            (0, "waits", "parked"),
            (0, "works", "in flight"),
            (0, "works", "behind it"),
            (0, "waits", "behind the parked"),
        ])
        .await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |call| {
        let gate = script.clone();
        async move {
            if call.value == "parked" {
                return Err(Failure::Wait { until: Instant::now() + NEVER, reason: "settle" });
            }
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    gate.until_waiting(1).await;
    member.until("the parked record", |seen| !seen.retries.is_empty()).await;
    member.ask_to_stop();
    gate.open();
    let seen = member.stop().await;
    assert_eq!(seen.outcomes.len(), 1);
    assert_eq!(seen.outcome(0, 1), Some(Outcome::Sent));
    assert_eq!(stage.committed().await[&0].0, 0, "the parked record comes again");

    let member = stage.start(async |_| Ok(Outcome::Sent));
    let seen = member.until_outcomes(3).await;
    assert_eq!(seen.outcome(0, 1), None, "done before the stop, above the committable offset");
    stage.until_committed(0, 4).await;
    member.stop().await;
}

async fn handed_over_cleanly(protocol: GroupProtocol) {
    let mut stage = Stage::new(4).await;
    stage.kafka.group_protocol = protocol;
    for partition in 0..4 {
        stage.send(&[(partition, "tells", "waits until revoked")]).await;
        for key in ["a", "b", "a", "b", "a", "b", "a", "b", "a"] {
            stage.send(&[(partition, key, "work")]).await;
        }
    }
    let gate = Gate::closed();
    let script = gate.clone();
    // The first member is in the middle of a record of every key when the second comes.
    let first = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    gate.until_waiting(12).await;
    let second = stage.start(async |_| Ok(Outcome::Sent));
    first.until_given_up(1).await;
    assert_eq!(second.seen().outcomes.len(), 0, "nothing moves before it is drained");
    gate.open();
    let given = first.until("partitions to be given up", |seen| seen.revoked > 0).await;
    second.until("partitions to arrive", |seen| seen.assigned > 0).await;
    test_support::until("all records", async || {
        let done = first.seen().outcomes.len() + second.seen().outcomes.len();
        (done >= 40).then_some(())
    })
    .await;
    assert!(given.revoked < 4);
    let (first, second) = (first.stop().await, second.stop().await);
    let mut done: Vec<(i32, i64)> =
        first.outcomes.iter().chain(&second.outcomes).map(|seen| (seen.1, seen.2)).collect();
    done.sort_unstable();
    let all: Vec<(i32, i64)> =
        (0..4).flat_map(|partition| (0..10).map(move |offset| (partition, offset))).collect();
    assert_eq!(done, all, "each record once");
    assert!(!second.outcomes.is_empty(), "the second member took over");
    for (_, (next, _)) in stage.committed().await {
        assert_eq!(next, 10);
    }
}

#[tokio::test]
async fn a_revoked_partition_is_drained_and_committed_before_it_is_given_up() {
    handed_over_cleanly(GroupProtocol::Classic).await;
}

#[tokio::test]
async fn so_it_is_under_kip_848() {
    handed_over_cleanly(GroupProtocol::Consumer).await;
}

#[tokio::test]
async fn what_is_done_and_only_lacks_the_word_of_its_claim_is_committed_at_a_stop() {
    let mut stage = Stage::new(1).await;
    stage.claiming = true;
    stage.store.say_nothing(true);
    stage.send(&[(0, "a", "one"), (0, "b", "two")]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.store.until_asked(2).await;
    assert!(member.seen().outcomes.is_empty(), "it is not done before its claim says so");
    let seen = member.stop().await;
    assert_eq!(seen.count(Outcome::Sent), 2);
    assert_eq!(stage.committed().await[&0].0, 2, "nothing of it comes again");
}

#[tokio::test]
async fn what_is_done_and_only_lacks_the_word_of_its_claim_is_committed_at_a_revoke() {
    let mut stage = Stage::new(2).await;
    stage.claiming = true;
    stage.store.say_nothing(true);
    stage.send(&[(0, "a", "one"), (1, "b", "two")]).await;
    let first = stage.start(async |_| Ok(Outcome::Sent));
    stage.store.until_asked(2).await;
    let second = stage.start(async |_| Ok(Outcome::Sent));
    let seen = first.until("a partition to be given up", |seen| seen.revoked > 0).await;
    assert_eq!(seen.count(Outcome::Sent), seen.revoked, "what was given up was done");
    second.until("partitions to arrive", |seen| seen.assigned > 0).await;
    stage.store.say_nothing(false);
    first.until_outcomes(2).await;
    let (_, second) = (first.stop().await, second.stop().await);
    assert!(second.outcomes.is_empty(), "nothing of it came again: {:?}", second.outcomes);
    assert!(stage.committed().await.values().all(|(next, _)| *next == 1));
}

#[tokio::test]
async fn an_engine_that_is_dropped_midway_leaves_its_group() {
    let mut stage = Stage::new(1).await;
    // Longer than the test: the second member must not wait for the first one's session to end.
    stage.kafka.session_timeout = Duration::from_secs(300);
    stage.send(&[(0, "a", "work")]).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let first = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    gate.until_waiting(1).await;
    first.abort();
    let second = stage.start(async |_| Ok(Outcome::Sent));
    second.until_outcomes(1).await;
    second.stop().await;
}
