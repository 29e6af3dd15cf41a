//! Behaviour sections 8.1 and 10: a broker that goes and comes back, and a static member that was
//! killed and goes on at once.

use crm_event_processors::engine::Outcome;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::stage::Stage;
use super::world::World;
use test_support::mock::Mock;
use test_support::until;

#[tokio::test]
async fn a_broker_that_goes_and_comes_back_is_waited_for() {
    let mock = Mock::start();
    let stage = Stage::bare(mock.bootstrap());
    mock.create_topic(&stage.topic, 1);
    stage.send(&[(0, "a", "1")]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 1).await;

    mock.down();
    until("readiness to name the broker", async || {
        let waits_for = member.pulse().read().waits_for;
        waits_for.iter().any(|reason| reason.starts_with("kafka: ")).then_some(())
    })
    .await;
    mock.up();
    stage.send(&[(0, "a", "2")]).await;
    let seen = member.until_outcomes(2).await;
    assert_eq!(seen.count(Outcome::Sent), 2);
    stage.until_committed(0, 2).await;
    member.stop().await;
}

#[tokio::test]
async fn a_partition_without_a_leader_holds_up_no_other_and_is_read_on_when_it_has_one() {
    let mock = Mock::start();
    let stage = Stage::bare(mock.bootstrap());
    mock.create_topic(&stage.topic, 2);
    stage.send(&[(0, "a", "1"), (1, "b", "1")]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 1).await;
    stage.until_committed(1, 1).await;
    member.stop().await;

    stage.send(&[(0, "a", "2"), (1, "b", "2")]).await;
    mock.lead(&stage.topic, 1, false);
    let member = stage.start(async |_| Ok(Outcome::Sent));
    let seen = member.until_outcomes(1).await;
    assert_eq!((seen.outcome(0, 1), seen.assigned), (Some(Outcome::Sent), 2));
    mock.lead(&stage.topic, 1, true);
    let seen = member.until_outcomes(2).await;
    assert_eq!((seen.outcome(1, 1), seen.lost.len()), (Some(Outcome::Sent), 0));
    member.stop().await;
}

#[tokio::test]
async fn an_account_that_may_not_use_its_group_is_told_what_to_do() {
    let mock = Mock::start();
    let stage = Stage::bare(mock.bootstrap());
    mock.create_topic(&stage.topic, 1);
    mock.refuse(
        RDKafkaApiKey::JoinGroup,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        3,
    );
    stage.send(&[(0, "a", "1")]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    until("readiness to name the group", async || {
        let waits_for = member.pulse().read().waits_for;
        waits_for.iter().any(|reason| reason.contains("may not use the group")).then_some(())
    })
    .await;
    // It joins as soon as it is allowed to.
    member.until_outcomes(1).await;
    until("readiness to be well again", async || {
        member.pulse().read().waits_for.is_empty().then_some(())
    })
    .await;
    member.stop().await;
}

#[tokio::test]
async fn a_static_member_that_was_killed_goes_on_long_before_its_session_is_over() {
    let mut world = World::new().await;
    let start = |world: &World| world.start_with("KAFKA_SESSION_TIMEOUT", "5m");
    let daemon = start(&world);
    let first = world.purchase().await;
    world.until_awarded(&first).await;
    daemon.kill();
    let second = world.purchase().await;
    let daemon = start(&world);
    // Waits a minute at most, a fifth of the session.
    world.until_awarded(&second).await;
    daemon.kill();
}
