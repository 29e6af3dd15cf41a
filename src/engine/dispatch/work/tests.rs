use std::time::Duration;

use super::*;
use crate::engine::dispatch::permits::Limits;
use crate::engine::testing::{Scene, record};

#[tokio::test]
async fn who_keeps_no_answer_yet_waits_for_room_and_who_keeps_one_goes_on() {
    let mut shared = Scene::new(Duration::from_secs(300)).process();
    let owned = Arc::get_mut(&mut shared).expect("nobody else has it");
    owned.answers = Room::new(100);
    owned.permits = Permits::new(Limits { min: 9, max: 9 });
    let (keeps, begins) = (record(&shared, 1, 0), record(&shared, 2, 0));
    drop(begins.permit(Urgency::One).await.expect("there is room"));
    keeps.produced(150);
    keeps.produced(50);
    assert_eq!(shared.answers.held(), 200, "charged without waiting");
    let mut waits = Box::pin(begins.permit(Urgency::One));
    assert!(futures::poll!(&mut waits).is_pending());
    drop(keeps.permit(Urgency::One).await.expect("it may end"));
    drop(begins.permit(Urgency::Many).await.expect("many wait for it"));
    keeps.keep_nothing();
    assert_eq!(shared.answers.held(), 0);
    drop(waits.await.expect("there is room again"));
}

#[tokio::test]
async fn what_waits_for_room_is_given_up_at_once() {
    let mut shared = Scene::new(Duration::from_secs(300)).process();
    Arc::get_mut(&mut shared).expect("nobody else has it").answers = Room::new(100);
    let drain = CancellationToken::new();
    let origin = Origin { topic: "t".into(), partition: 0, offset: 1 };
    let cx = Context::new(Arc::clone(&shared), origin, Timestamp::UNIX_EPOCH, drain.clone());
    let _held = shared.answers.charge(100);
    let mut waits = Box::pin(cx.permit(Urgency::One));
    assert!(futures::poll!(&mut waits).is_pending());
    drain.cancel();
    assert!(matches!(waits.await, Err(Failure::GivenUp)));
}
