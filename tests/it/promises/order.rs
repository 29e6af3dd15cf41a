//! Behaviour section 8.3: changes of one key in order and one at a time, different keys in parallel,
//! also inside one partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crm_event_processors::engine::{Failure, Outcome};

use super::stage::{Gate, Stage};

/// Which records of each lane have begun and ended.
#[derive(Default)]
struct Ledger {
    running: BTreeSet<(i32, String)>,
    ended: BTreeMap<(i32, String), Vec<i64>>,
    violations: Vec<String>,
}

#[tokio::test]
async fn one_record_of_a_key_at_a_time_and_in_order_whatever_fails_or_waits() {
    let stage = Stage::new(2).await;
    let mut random = fastrand::Rng::with_seed(7);
    let keys: Vec<String> = (0..7).map(|key| format!("k{key}")).collect();
    let records: Vec<(i32, &str, &str)> =
        (0..300).map(|_| (random.i32(0..2), &*keys[random.usize(0..7)], "work")).collect();
    stage.send(&records).await;

    let ledger: Arc<Mutex<Ledger>> = Arc::default();
    let script = Arc::clone(&ledger);
    let breaker = stage.breakers.get("moody");
    let member = stage.start(move |call| {
        let (ledger, breaker) = (Arc::clone(&script), Arc::clone(&breaker));
        async move {
            let lane = (call.partition, call.key.clone());
            {
                let mut ledger = ledger.lock().expect("not poisoned");
                if !ledger.running.insert(lane.clone()) {
                    ledger.violations.push(format!("two records of {lane:?} at once"));
                }
            }
            for _ in 0..fastrand::u32(0..20) {
                tokio::task::yield_now().await;
            }
            let mut ledger = ledger.lock().expect("not poisoned");
            ledger.running.remove(&lane);
            match fastrand::u32(0..10) {
                0 => Err(Failure::Wait { until: Instant::now(), reason: "told_to" }),
                1 => Err(Failure::Outage {
                    breaker,
                    kind: "unavailable",
                    message: "told to".to_owned(),
                    retry_after: None,
                    attempted: true,
                }),
                _ => {
                    ledger.ended.entry(lane).or_default().push(call.offset);
                    Ok(Outcome::Sent)
                }
            }
        }
    });
    member.until_outcomes(records.len()).await;
    member.stop().await;
    let ledger = ledger.lock().expect("not poisoned");
    assert!(ledger.violations.is_empty(), "{:?}", ledger.violations);
    assert_eq!(ledger.ended.values().map(Vec::len).sum::<usize>(), records.len());
    for (lane, offsets) in &ledger.ended {
        assert!(offsets.is_sorted(), "{lane:?} out of order: {offsets:?}");
    }
}

#[tokio::test]
async fn keys_of_one_partition_are_worked_on_at_the_same_time() {
    let stage = Stage::new(1).await;
    let keys: Vec<String> = (0..50).map(|key| format!("k{key}")).collect();
    let records: Vec<(i32, &str, &str)> = keys.iter().map(|key| (0, &**key, "work")).collect();
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
    gate.until_waiting(50).await;
    assert!(member.seen().outcomes.is_empty());
    gate.open();
    member.until_outcomes(50).await;
    member.stop().await;
}
