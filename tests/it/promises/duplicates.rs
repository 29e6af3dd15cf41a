//! Behaviour section 8.2: a claim that another record holds is in flight, not done. The second copy
//! waits for it, and only then is a duplicate.

use crm_event_processors::engine::{Failure, Outcome};

use super::stage::{Gate, Stage};

#[tokio::test]
async fn a_copy_in_another_partition_waits_for_the_first_and_is_then_a_duplicate() {
    let mut stage = Stage::new(2).await;
    stage.claiming = true;
    stage.send(&[(0, "a", "same"), (1, "a", "same")]).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    gate.until_waiting(1).await;
    let held = |seen: &super::stage::Seen| seen.retries.iter().any(|(.., why)| why == "claim_held");
    let seen = member.until("the held claim", held).await;
    assert!(seen.outcomes.is_empty());
    gate.open();
    let seen = member.until_outcomes(2).await;
    assert_eq!((seen.count(Outcome::Sent), seen.count(Outcome::Duplicate)), (1, 1));
    member.stop().await;
}

#[tokio::test]
async fn a_claim_of_a_record_that_was_set_aside_is_given_back() {
    let mut stage = Stage::new(1).await;
    stage.claiming = true;
    stage.send(&[(0, "a", "same"), (0, "b", "same")]).await;
    let member = stage.start(async |call| match call.offset {
        0 => Err(Failure::Poison { kind: "refused", message: "told to".to_owned() }),
        _ => Ok(Outcome::Sent),
    });
    let seen = member.until_outcomes(2).await;
    assert_eq!(seen.outcome(0, 0), Some(Outcome::DeadLettered("refused")));
    assert_eq!(seen.outcome(0, 1), Some(Outcome::Sent));
    member.stop().await;
}
