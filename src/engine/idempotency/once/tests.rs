use std::sync::Mutex;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::dedup::{ClaimOp, Op, Store};
use crate::engine::LockGuard;
use crate::engine::testing::{SENT, Scene, SecondPhase, at, origin, record};

const LOCK: &str = "tier:u:m";

#[tokio::test]
async fn a_claim_of_a_step_is_renewed_while_its_event_waits_for_an_outage() {
    let scene = Scene::new(Duration::from_millis(30));
    let cx = record(&scene.process(), 1, 100);
    let renewed = || async {
        scene.until_taken(4).await;
        Ok(Some(at(500)))
    };
    assert_eq!(
        cx.once("award:purchase:1", renewed).await.expect("it ends"),
        Once::Ran(Some(at(500)))
    );
}

#[tokio::test]
async fn a_step_whose_claim_another_record_took_is_broken_off_and_asks_again() {
    let scene = Scene::new(Duration::from_millis(30));
    let cx = record(&scene.process(), 1, 100);
    let store = &scene.store.0;
    let thief = Op::Claim(ClaimOp::Confirm {
        key: "g:award".into(),
        accepted_ms: 500_000,
        due_ms: 0,
        keep: Duration::from_secs(300),
    });
    let work = || async {
        store.execute(std::slice::from_ref(&thief)).await.expect("answered");
        std::future::pending::<Result<Option<Timestamp>, Failure>>().await
    };
    let lost = cx.once("award", work).await;
    assert!(matches!(lost, Err(Failure::Wait { reason: "claim_held", .. })), "{lost:?}");
    store.execute(std::slice::from_ref(&thief)).await.expect("answered");
    let never = || async { panic!("it was done") };
    let again = cx.once::<_, Option<Timestamp>>("award", never).await;
    assert_eq!(again.expect("answered"), Once::Duplicate);
}

#[tokio::test]
async fn what_is_done_while_claims_are_away_waits_for_them_and_is_done_once() {
    let scene = Scene::new(Duration::from_secs(300));
    let cx = record(&scene.process(), 1, 100);
    let runs = Mutex::new(0);
    let work = || async {
        *runs.lock().expect("not poisoned") += 1;
        Ok(Some(at(500)))
    };
    scene.second_phase(SecondPhase::Refused);
    let back = async {
        for _ in 0..3 {
            scene.store.1.ended.notified().await;
        }
        scene.second_phase(SecondPhase::Answered);
    };
    let (once, ()) = futures::future::join(cx.once("award", work), back).await;
    assert_eq!(once.expect("it ends"), Once::Ran(Some(at(500))));
    assert_eq!(*runs.lock().expect("not poisoned"), 1);
    let next = record(&scene.process(), 2, 100);
    assert_eq!(next.once("award", work).await.expect("answered"), Once::Duplicate);

    scene.second_phase(SecondPhase::Refused);
    let back = async {
        for _ in 0..3 {
            scene.store.1.ended.notified().await;
        }
        scene.second_phase(SecondPhase::Answered);
    };
    let (alone, ()) =
        futures::future::join(cx.exclusively(LOCK, |_| async { Ok(SENT) }), back).await;
    assert_eq!(alone.expect("it ends"), SENT);
    let other = next.exclusively(LOCK, |_| async { Ok(SENT) }).await;
    assert_eq!(other.expect("it was given back"), SENT);
}

#[tokio::test]
async fn what_is_done_when_its_record_is_given_up_is_done_whatever_claims_say() {
    let all = [SecondPhase::Answered, SecondPhase::Refused, SecondPhase::Silent];
    futures::future::join_all(all.map(given_up_when_done)).await;
}

/// Work of which each piece is done at the moment that its record is given up.
async fn given_up_when_done(becomes: SecondPhase) {
    let scene = Scene::new(Duration::from_secs(300));
    scene.second_phase(becomes);
    let given_up = |offset| {
        let drain = CancellationToken::new();
        (Context::new(scene.process(), origin(offset), at(100), drain.clone()), drain)
    };
    let accepted = Some(at(500));
    let ((one, drained), (two, lock_drained), (three, sleep_drained)) =
        (given_up(1), given_up(2), given_up(3));
    let work = || async {
        drained.cancel();
        Ok(accepted)
    };
    let locked = async |_: LockGuard<'_>| {
        lock_drained.cancel();
        Ok(SENT)
    };
    let sleeps = || async {
        sleep_drained.cancel();
        Ok(Accepted { at: accepted, due: Some(at(90_000)) })
    };
    let (once, alone, sleeps) = futures::future::join3(
        one.once("award", work),
        two.exclusively(LOCK, locked),
        three.once("sleeps", sleeps),
    )
    .await;
    assert_eq!(once.expect("it was accepted"), Once::Ran(accepted), "{becomes:?}");
    assert_eq!(alone.expect("it was accepted"), SENT, "{becomes:?}");
    let known = becomes == SecondPhase::Answered;
    assert_eq!(sleeps.is_ok(), known, "only its claim knows it for long enough: {sleeps:?}");
}
