//! Behaviour sections 8.1 and 8.2: after a kill between any two steps nothing is lost. Only work in
//! flight is repeated, with the same event id.

use std::sync::{Arc, Mutex};

use crm_event_processors::fakes::{Endpoint, Fault, Lasting, Reply, currency_rows};
use serde_json::Value;

use super::world::World;
use test_support::daemon::Daemon;
use test_support::until;

/// Starts the daemon and has one purchase handled, so that the group has begun.
async fn begun(world: &mut World) -> (Daemon, String) {
    let daemon = world.start();
    let first = world.purchase().await;
    world.until_awarded(&first).await;
    world.until_committed(1).await;
    (daemon, first)
}

/// Starts the daemon again, and waits until everything up to one more purchase is committed.
async fn recovered(world: &mut World, sent: i64) {
    let last = world.purchase().await;
    let daemon = world.start();
    world.until_awarded(&last).await;
    world.until_committed(sent + 1).await;
    daemon.kill();
    assert_eq!(world.awards(&last), 1);
}

#[tokio::test]
async fn killed_after_the_claim_the_record_knows_its_claim_and_what_passed_it_is_not_repeated() {
    let mut world = World::new().await;
    let (daemon, first) = begun(&mut world).await;
    let refused: Arc<Mutex<Option<String>>> = Arc::default();
    let refuse = Arc::clone(&refused);
    world.fake.define("calc_currency_for_source", move |arguments| {
        let id = arguments.get("p_source_id").and_then(Value::as_str).unwrap_or_default();
        let mut refused = refuse.lock().expect("not poisoned");
        // The first purchase to come is the victim.
        if refused.get_or_insert_with(|| id.to_owned()) == id {
            return Reply::error(503, "PGRST002", "no schema cache");
        }
        Reply::json(&currency_rows(id).into())
    });
    let victim = world.purchase().await;
    until("the victim's claim", async || world.claim(&victim).await).await;
    let passing = world.purchase().await;
    world.until_awarded(&passing).await;
    assert_eq!(world.committed().await, 1, "nothing above an unfinished record is committed");
    daemon.kill();
    assert_eq!(world.awards(&victim), 0);

    refused.lock().expect("not poisoned").replace(String::new());
    recovered(&mut world, 3).await;
    for id in [first, victim, passing] {
        assert_eq!(world.awards(&id), 1);
    }
}

#[tokio::test]
async fn killed_before_the_event_is_accepted_the_record_is_awarded_once() {
    let mut world = World::new().await;
    let (daemon, first) = begun(&mut world).await;
    world.fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    let victim = world.purchase().await;
    world.fake.until(|log| log.posts.iter().any(|post| post.status == 503)).await;
    assert_eq!(world.committed().await, 1);
    daemon.kill();

    world.fake.heal(Endpoint::Post);
    recovered(&mut world, 2).await;
    assert_eq!((world.awards(&first), world.awards(&victim)), (1, 1));
}

#[tokio::test]
async fn killed_after_the_event_was_accepted_and_before_that_was_known_it_is_repeated_with_its_id()
{
    let mut world = World::new().await;
    let (daemon, first) = begun(&mut world).await;
    // Every request is handled, and no answer arrives.
    world.fake.fail(Endpoint::Post, Fault::HandledThenReset, Lasting::UntilHealed);
    let victim = world.purchase().await;
    world.until_awarded(&victim).await;
    daemon.kill();
    assert_eq!(world.committed().await, 1);
    let before = world.awards(&victim);

    world.fake.heal(Endpoint::Post);
    recovered(&mut world, 2).await;
    assert_eq!(world.awards(&first), 1);
    assert_eq!(world.awards(&victim), before + 1, "in flight at the kill, so sent once more");
}

#[tokio::test]
async fn killed_after_the_claim_was_confirmed_and_before_the_commit_it_is_a_duplicate() {
    let mut world = World::new().await;
    let daemon = world.start_with("COMMIT_INTERVAL", "1h");
    let victim = world.purchase().await;
    until("the confirmed claim", async || {
        world.claim(&victim).await.filter(|value| value.starts_with("done:"))
    })
    .await;
    assert_eq!(world.committed().await, 0);
    daemon.kill();

    recovered(&mut world, 1).await;
    assert_eq!(world.awards(&victim), 1);
}

#[tokio::test]
async fn killed_after_the_commit_nothing_is_looked_at_again() {
    let mut world = World::new().await;
    let (daemon, first) = begun(&mut world).await;
    daemon.kill();
    let before = world.calls();
    recovered(&mut world, 1).await;
    assert_eq!(world.awards(&first), 1);
    assert_eq!(world.calls(), before + 1, "one call for the purchase that came after");
}

#[tokio::test]
async fn a_static_member_killed_while_it_gives_partitions_up_leaves_none_without_an_owner() {
    const PARTITIONS: i32 = 4;
    let mut world = World::with_partitions(PARTITIONS).await;
    world.fake.fail(Endpoint::Post, Fault::Hang, Lasting::UntilHealed);
    let one = world.start();
    for _ in 0..PARTITIONS {
        world.purchase().await;
    }
    world.fake.until(|log| !log.posts.is_empty()).await;
    // The first member must now give up half of them, but keeps them while it waits for Inngest.
    let (_two, log) = world
        .environment
        .clone()
        .with("KAFKA_INSTANCE_ID", "two")
        .with("LOG_LEVEL", "info")
        .start_logging();
    log.until("partitions assigned").await;
    one.kill();
    world.fake.heal(Endpoint::Post);

    // The broker returns the half that it was to keep, and mentions the other half to nobody.
    let _one = world.start();
    for _ in 0..PARTITIONS {
        let id = world.purchase().await;
        world.until_awarded(&id).await;
    }
}
