//! Behaviour section 8.5: bounded memory, whatever the backlog; one stuck key does not take all of it.

use std::collections::BTreeSet;
use std::time::Duration;

use crm_event_processors::engine::Outcome;

use super::stage::{Gate, KEPT, Seen, Stage};

#[tokio::test]
async fn a_stuck_consumer_holds_no_more_than_its_bound() {
    let mut stage = Stage::new(1).await;
    stage.settings.bounds.records = 40;
    let records = vec![(0, "key", "work"); 400];
    stage.send(&records).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    test_support::until("the bound to be reached", async || {
        (member.pulse().read().open == 40).then_some(())
    })
    .await;
    // The partition is paused by now, or soon will be. From here to the end it never holds more.
    gate.open();
    let mut most = 0;
    test_support::until("all records", async || {
        most = most.max(member.pulse().read().open);
        (member.seen().outcomes.len() == 400).then_some(())
    })
    .await;
    assert!(most <= 40, "held {most} records");
    member.stop().await;
}

#[tokio::test]
async fn what_work_keeps_besides_its_record_counts_too() {
    let mut stage = Stage::new(1).await;
    stage.settings.bounds.bytes = 20 * KEPT;
    stage.send(&vec![(0, "key", "keeps"); 100]).await;
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
    // The lag shows once the bound is reached and nothing more is fetched.
    let mut most = 0;
    test_support::until("the bound to be reached", async || {
        let vitals = member.pulse().read();
        most = most.max(vitals.open);
        (vitals.open > 10 && vitals.lag > 0).then_some(())
    })
    .await;
    gate.open();
    test_support::until("all records", async || {
        most = most.max(member.pulse().read().open);
        (member.seen().outcomes.len() == 100).then_some(())
    })
    .await;
    assert!(most <= 20, "held {most} records of {KEPT} bytes each");
    member.stop().await;
}

#[tokio::test]
async fn a_partition_uses_what_the_others_leave() {
    let mut stage = Stage::new(10).await;
    stage.settings.bounds.records = 40;
    stage.send(&vec![(0, "key", "work"); 100]).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    // A tenth of the bound would be 4. Until it is known to be slow it may take nearly all.
    test_support::until("more than an equal share", async || {
        (member.pulse().read().open >= 19).then_some(())
    })
    .await;
    gate.open();
    member.until_outcomes(100).await;
    member.stop().await;
}

/// If each finished record of the slow partition restarted the wait for it, the other would get its
/// turn only at the end.
#[tokio::test]
async fn a_slow_partition_that_moves_on_holds_up_no_other() {
    let mut stage = Stage::new(2).await;
    stage.settings.bounds.records = 40;
    stage.send(&vec![(0, "slow", "slow"); 600]).await;
    stage.send(&vec![(1, "flows", "work"); 600]).await;
    let member = stage.start(move |call| async move {
        if call.value == "slow" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Outcome::Sent)
    });
    let done = |seen: &Seen, partition| seen.outcomes.iter().filter(|o| o.1 == partition).count();
    member.until("all of the other", |seen| done(seen, 1) == 600).await;
    let slow = done(&member.seen(), 0);
    assert!(slow < 300, "{slow} of the slow partition's 600 came first");
    member.stop().await;
}

#[tokio::test]
async fn lag_grows_with_the_log_while_nothing_is_fetched() {
    let mut stage = Stage::new(1).await;
    stage.settings.bounds.records = 4;
    let records = |count| vec![(0, "key", "work"); count];
    stage.send(&records(10)).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    let lags = async |lag| {
        test_support::until("the lag", async || (member.pulse().read().lag == lag).then_some(()))
            .await;
    };
    lags(6).await;
    for count in 1..=3 {
        stage.send(&records(100)).await;
        lags(6 + 100 * count).await;
    }
    gate.open();
    member.until_outcomes(310).await;
    lags(0).await;
    member.stop().await;
}

#[tokio::test]
async fn a_stuck_key_holds_a_part_of_the_bound_and_the_other_partition_flows() {
    let mut stage = Stage::new(2).await;
    stage.settings.bounds.records = 40;
    let stuck: Vec<(i32, &str, &str)> = (0..200).map(|_| (0, "stuck", "stuck")).collect();
    let flowing: Vec<(i32, &str, &str)> = (0..200).map(|_| (1, "flows", "work")).collect();
    stage.send(&stuck).await;
    stage.send(&flowing).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |call| {
        let gate = script.clone();
        async move {
            if call.value == "stuck" {
                gate.pass().await;
            }
            Ok(Outcome::Sent)
        }
    });
    let seen = member.until_outcomes(200).await;
    assert!(seen.outcomes.iter().all(|seen| seen.1 == 1), "only the other partition flows");
    stage.until_committed(1, 200).await;
    let open = member.pulse().read().open;
    assert!(open <= 20, "the stuck partition holds {open} records, more than half");
    gate.open();
    member.until_outcomes(400).await;
    stage.until_committed(0, 200).await;
    member.stop().await;
}

#[tokio::test]
async fn a_partition_that_was_paused_when_it_went_is_read_on_when_it_comes_back() {
    let mut stage = Stage::new(3).await;
    stage.settings.bounds.records = 42;
    let key = |partition| ["stuck", "stuck", "flows"][partition];
    let records: Vec<(i32, &str, &str)> = [0, 1, 2]
        .into_iter()
        .flat_map(|partition| {
            let value = if partition == 2 { "work" } else { "waits" };
            (0..200).map(move |_| (partition as i32, key(partition), value))
        })
        .collect();
    stage.send(&records).await;
    let start = |gate: &Gate| {
        let gate = gate.clone();
        stage.start(move |call| {
            let gate = gate.clone();
            async move {
                if call.key == "stuck" {
                    gate.pass().await;
                }
                Ok(Outcome::Sent)
            }
        })
    };
    let gate = Gate::closed();
    let member = start(&gate);
    // It finishes one partition only because it has paused the others.
    member.until_outcomes(200).await;

    let never = Gate::closed();
    let others = [start(&never), start(&never)];
    for other in &others {
        other.until("a partition", |seen| seen.assigned > seen.revoked).await;
    }
    member.until("two partitions to go", |seen| seen.revoked >= 2).await;
    for other in others {
        other.stop().await;
    }
    gate.open();
    member
        .until("all records", |seen| {
            let done: BTreeSet<(i32, i64)> = seen.outcomes.iter().map(|o| (o.1, o.2)).collect();
            done.len() == 600
        })
        .await;
    member.stop().await;
}
