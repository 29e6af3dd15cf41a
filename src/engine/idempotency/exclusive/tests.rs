use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use super::*;
use crate::dedup::{LockOp, Op, Store};
use crate::engine::testing::{SENT, Scene, at, origin, record};
use crate::outage::Backoff;

const NAME: &str = "tier:u:m";

/// Of whoever takes what is sent.
fn breaker() -> Arc<Breaker> {
    let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
    Arc::new(Breaker::new("inngest", 1, backoff))
}

async fn when(held: LockGuard<'_>) -> Option<Timestamp> {
    held.accepted_at()
}

/// Runs work that only returns from when a settle time counts.
async fn since(cx: &Context) -> Option<Timestamp> {
    let told = Mutex::new(None);
    let tell = async |held| {
        *told.lock().expect("not poisoned") = Some(when(held).await);
        Ok(SENT)
    };
    let outcome = cx.exclusively(NAME, tell).await;
    assert_eq!(outcome.expect("it runs"), SENT);
    told.into_inner().expect("not poisoned").expect("it ran")
}

async fn send(cx: &Context, accepted: i64) {
    let work = async |held: LockGuard<'_>| {
        held.settling(&breaker(), async move { Ok(at(accepted)) }).await?;
        Ok(SENT)
    };
    assert_eq!(cx.exclusively(NAME, work).await.expect("it runs"), SENT);
}

/// Begins work that never ends by itself, and drops it with its process once it holds the claim.
async fn crash(cx: &Context) {
    let began = Notify::new();
    let work = cx.exclusively(NAME, |_| async {
        began.notify_one();
        std::future::pending().await
    });
    tokio::select! {
        _ = work => panic!("it does not end"),
        () = began.notified() => {}
    }
}

fn is_held(result: &Result<Outcome, Failure>) -> bool {
    matches!(result, Err(Failure::Wait { reason: "claim_held", .. }))
}

#[tokio::test]
async fn one_record_at_a_time_is_at_it_and_the_next_is_no_duplicate() {
    let scene = Scene::new(Duration::from_secs(300));
    let (one, other) = (record(&scene.process(), 1, 100), record(&scene.process(), 2, 100));
    let nested = one.exclusively(NAME, |_| async {
        let meanwhile = other.exclusively(NAME, |_| async { Ok(SENT) }).await;
        assert!(is_held(&meanwhile), "{meanwhile:?}");
        Ok(SENT)
    });
    assert_eq!(nested.await.expect("it runs"), SENT);
    assert_eq!(since(&other).await, Some(at(100)));
}

#[tokio::test]
async fn every_process_knows_when_an_event_was_last_accepted() {
    let scene = Scene::new(Duration::from_secs(300));
    let (one, other) = (scene.process(), scene.process());
    assert_eq!(since(&record(&one, 1, 100)).await, Some(at(100)), "no claim can tell");
    send(&record(&one, 2, 100), 500).await;
    assert_eq!(since(&record(&other, 3, 100)).await, Some(at(500)));
    assert_eq!(since(&record(&one, 4, 900)).await, Some(at(500)), "its own claim tells");
    scene.store.0.clear();
    assert_eq!(since(&record(&one, 5, 100)).await, Some(at(500)), "the process remembers");
}

#[tokio::test]
async fn a_time_of_acceptance_that_lies_ahead_is_when_its_record_learnt_of_it_however_often_it_asks()
 {
    let scene = Scene::new(Duration::from_secs(300));
    let (sender, cx) = (scene.process(), record(&scene.process(), 2, 100));
    let ahead = Timestamp::now() + jiff::SignedDuration::from_hours(5);
    send(&record(&sender, 1, 100), ahead.as_second()).await;
    let accepted = || async { Ok(Some(at(ahead.as_second()))) };
    record(&sender, 1, 100).once("award", accepted).await.expect("it runs");
    let waits = || Failure::Wait { until: std::time::Instant::now(), reason: "settle" };
    let mut told = Vec::new();
    for _ in 0..2 {
        let tell = async |held| {
            told.push(when(held).await);
            Err(waits())
        };
        cx.exclusively(NAME, tell).await.expect_err("it waits, and holds its claim");
        let of_step = cx.accepted_at("award").await.expect("it was done");
        told.push(of_step.expect("a claim tells"));
    }
    assert!(told.iter().all(|at| at.is_some_and(|at| at <= Timestamp::now())), "{told:?}");
    assert_eq!(told[..2], told[2..], "a wait that is counted from then ends");
}

#[tokio::test]
async fn a_claim_that_a_crash_left_is_known_by_its_own_record_alone() {
    let scene = Scene::new(Duration::from_secs(300));
    crash(&record(&scene.process(), 1, 100)).await;
    let process = scene.process();
    let other = record(&process, 2, 200);
    let refused = other.exclusively(NAME, |_| async { Ok(SENT) }).await;
    assert!(is_held(&refused), "{refused:?}");
    let (own, before) = (record(&process, 1, 300), Timestamp::now());
    let taken_over = since(&own).await;
    assert!(taken_over >= Some(before), "it may stand still only, and send something yet");
    assert_eq!(since(&other).await.map(to_the_ms), taken_over.map(to_the_ms));
}

fn to_the_ms(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// Both work on the same record: who stood still must not take the lock back, nor be waited for.
#[tokio::test]
async fn a_member_that_thaws_does_not_take_the_lock_from_who_has_its_partition_now() {
    let scene = Scene::new(Duration::from_secs(300));
    let (thawed, owner) = (record(&scene.process(), 1, 100), record(&scene.process(), 1, 200));
    let work = owner.exclusively(NAME, |_| async {
        let meanwhile = thawed.exclusively(NAME, |_| async { Ok(SENT) }).await;
        assert!(is_held(&meanwhile), "{meanwhile:?}");
        Ok(SENT)
    });
    assert_eq!(work.await.expect("it runs"), SENT);
}

#[tokio::test]
async fn who_thaws_with_the_lock_in_hand_loses_it_to_who_has_its_partition_now() {
    let scene = Scene::new(Duration::from_millis(30));
    let (thawed, owner) = (record(&scene.process(), 1, 100), record(&scene.process(), 1, 200));
    let before = Timestamp::now();
    let work = thawed.exclusively(NAME, |_| async {
        assert!(since(&owner).await >= Some(before), "it may send something yet");
        crash(&owner).await;
        std::future::pending().await
    });
    let lost = work.await;
    assert!(is_held(&lost), "{lost:?}");
}

#[tokio::test]
async fn a_claim_that_a_crash_left_is_known_by_its_record_when_that_was_merged() {
    let scene = Scene::new(Duration::from_secs(300));
    crash(&record(&scene.process(), 1, 100)).await;
    let mut newer = record(&scene.process(), 2, 200);
    newer.set_merged(vec![origin(7), origin(1)], at(300));
    let before = Timestamp::now();
    let taken_over = since(&newer).await;
    assert!(taken_over >= Some(before));
    let after = record(&scene.process(), 3, 200);
    let given_back = since(&after).await;
    assert_eq!(given_back.map(to_the_ms), taken_over.map(to_the_ms), "it was given back");
}

#[tokio::test]
async fn a_claim_is_renewed_while_its_work_takes_long() {
    let scene = Scene::new(Duration::from_millis(30));
    let cx = record(&scene.process(), 1, 100);
    let renewed = async {
        scene.until_taken(4).await;
        Ok(SENT)
    };
    assert_eq!(cx.exclusively(NAME, |_| renewed).await.expect("it ends"), SENT);
}

#[tokio::test]
async fn work_whose_claim_another_record_took_is_broken_off_and_counts_as_sent() {
    let scene = Scene::new(Duration::from_millis(30));
    let cx = record(&scene.process(), 1, 100);
    let (key, lease) = (format!("g:{NAME}").into(), Duration::from_secs(300));
    let thief = Op::Lock(LockOp::Acquire { key, asker: "thief".into(), left_by: None, lease });
    let store = &scene.store.0;
    let work = async |held: LockGuard<'_>| {
        store.clear();
        store.execute(std::slice::from_ref(&thief)).await.expect("answered");
        held.settling(&breaker(), std::future::pending()).await?;
        Ok(SENT)
    };
    let before = Timestamp::now();
    let lost = cx.exclusively(NAME, work).await;
    assert!(is_held(&lost), "{lost:?}");
    store.clear();
    assert!(since(&cx).await > Some(before), "its send may have been accepted");
}

#[tokio::test]
async fn what_is_still_being_sent_when_its_record_is_given_up_keeps_the_claim_until_it_is_accepted()
{
    let scene = Scene::new(Duration::from_secs(300));
    let cx = record(&scene.process(), 1, 100);
    let (accept, accepted) = oneshot::channel();
    let began = Arc::new(Notify::new());
    let begins = Arc::clone(&began);
    let send = async move {
        begins.notify_one();
        Ok(accepted.await.expect("it is accepted"))
    };
    let work = cx.exclusively(NAME, async |held| {
        held.settling(&breaker(), send).await?;
        Ok(SENT)
    });
    tokio::select! {
        ended = work => panic!("{ended:?}"),
        () = began.notified() => {}
    }
    scene.until_taken(2).await;
    let next = record(&scene.process(), 1, 200);
    let meanwhile = next.exclusively(NAME, |_| async { Ok(SENT) }).await;
    assert!(is_held(&meanwhile), "{meanwhile:?}");
    accept.send(at(500)).expect("it is still being sent");
    let told = loop {
        let told = Mutex::new(None);
        let tell = async |held| {
            *told.lock().expect("not poisoned") = Some(when(held).await);
            Ok(SENT)
        };
        if !is_held(&next.exclusively(NAME, tell).await) {
            break told.into_inner().expect("not poisoned");
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(told, Some(Some(at(500))), "when it was accepted in the end");
}

#[tokio::test]
async fn a_send_that_failed_may_have_been_accepted() {
    let scene = Scene::new(Duration::from_secs(300));
    let cx = record(&scene.process(), 1, 100);
    let before = Timestamp::now();
    let failing = async |held: LockGuard<'_>| {
        held.settling(&breaker(), async { Err(Failure::GivenUp) }).await?;
        Ok(SENT)
    };
    let failed = cx.exclusively(NAME, failing).await;
    assert!(matches!(failed, Err(Failure::GivenUp)));
    assert!(since(&cx).await >= Some(before));
}

#[tokio::test]
async fn a_record_that_is_set_aside_gives_its_claim_back() {
    let scene = Scene::new(Duration::from_secs(300));
    let cx = record(&scene.process(), 1, 100);
    let poison = || Failure::Poison { kind: "no_tier", message: String::new() };
    let failed = cx.exclusively(NAME, |_| async { Err(poison()) }).await;
    assert!(matches!(failed, Err(Failure::Poison { .. })));
    cx.release_claims().await;
    assert_eq!(since(&record(&scene.process(), 2, 50)).await, Some(at(100)));
}

#[tokio::test]
async fn work_that_another_record_did_meanwhile_starts_again_and_lets_that_settle() {
    let scene = Scene::new(Duration::from_millis(30));
    let cx = record(&scene.process(), 1, 100);
    let store = &scene.store.0;
    let (key, asker) = (format!("g:{NAME}").into(), "g/t/9/9".into());
    let free = Op::Lock(LockOp::Free { key, asker, accepted_ms: 500_000 });
    let work = async |_: LockGuard<'_>| {
        store.clear();
        store.execute(std::slice::from_ref(&free)).await.expect("answered");
        std::future::pending().await
    };
    let lost = cx.exclusively(NAME, work).await;
    assert!(is_held(&lost), "{lost:?}");
    assert_eq!(since(&cx).await, Some(at(500)));
}

#[tokio::test]
async fn who_stood_still_looks_whether_its_record_has_gone_to_another_before_it_sends() {
    // The lease is the window here. It is renewed in a third of that, unless the process stands still.
    let scene = Scene::new(Duration::from_millis(600));
    let (stood_still, next) = (record(&scene.process(), 1, 100), record(&scene.process(), 1, 200));
    let sent = Mutex::new(false);
    let work = async |held: LockGuard<'_>| {
        let frozen = Instant::now();
        while frozen.elapsed() < Duration::from_millis(400) {
            std::thread::yield_now();
        }
        // The record's next owner takes the claim over, and its work is done meanwhile.
        send(&next, 500).await;
        let send = async {
            *sent.lock().expect("not poisoned") = true;
            Ok(at(900))
        };
        held.still_held().await?;
        send.await.map(|_| SENT)
    };
    let outcome = stood_still.exclusively(NAME, work).await;
    assert!(is_held(&outcome), "{outcome:?}");
    assert!(!*sent.lock().expect("not poisoned"), "nothing is sent");
}

#[tokio::test]
async fn claims_that_were_emptied_are_no_reason_to_break_off_whatever_the_process_remembers() {
    let scene = Scene::new(Duration::from_millis(300));
    let process = scene.process();
    // Remembered in the process, and not in claims by then.
    send(&record(&process, 1, 100), 500).await;
    let outcome = record(&process, 2, 100)
        .exclusively(NAME, |_| async {
            let asked = *scene.store.1.taken.lock().expect("not poisoned");
            scene.store.0.clear();
            // The second renewal comes only if the first did not break this off.
            scene.until_taken(asked + 2).await;
            Ok(SENT)
        })
        .await;
    assert_eq!(outcome.expect("it goes on"), SENT);
}
