//! Stops under load, and refused starts: exit codes (behaviour sections 8.6 and 8.8).

use crm_event_processors::fakes::{Endpoint, Fault, Lasting};
use crm_event_processors::metric_names;
use serde_json::Value;

use super::{Scene, ids, missions_of_the_load, same};
use crate::load;
use test_support::http::Health;
use test_support::until;

const IN_PEACE: &str = "stopped";
const OVERRUN: &str = "SHUTDOWN_GRACE is over";

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_is_clean_and_the_next_life_repeats_nothing() {
    const ORDERS: usize = 20_000;
    let scene = Scene::with("load_50k.jsonl.gz").await;
    scene.send_orders(ORDERS).await;
    let (daemon, log) = scene.environment().start_logging();
    let all_at_work = ["currency/award", "tier/upgrade-cancelled", "mission/evaluate"];
    scene
        .fake
        .until(|log| {
            let sends = |name: &&str| log.events.iter().rev().any(|event| &*event.name == *name);
            log.events.len() > 5_000 && all_at_work.iter().all(sends)
        })
        .await;
    assert_eq!(daemon.stop().code(), Some(0));
    let log = log.whole();
    assert!(log.contains(IN_PEACE) && !log.contains(OVERRUN), "within the grace");
    let before = scene.fake.inspect(|log| log.events.len());

    let daemon = scene.environment().start();
    scene.caught_up(|_| true).await;
    assert_eq!(daemon.stop().code(), Some(0));
    scene.fake.inspect(|log| {
        assert!(log.events.len() > before, "it was stopped midway");
        load::verify(log);
        assert_eq!(load::repeats(log), 0, "each event once over both lives");
        same("missions", &ids(log, "mission/evaluate"), &missions_of_the_load());
        assert_eq!(ids(log, "marketplace/order-received").len(), ORDERS);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_and_loses_nothing() {
    const FUNCTION: &str = "calc_currency_for_source";
    let scene = Scene::with("life/full.jsonl.gz").await;
    scene.fake.fill("purchase_ledger", crate::life::purchases());
    scene.fake.fail_function(FUNCTION, Fault::Hang, Lasting::UntilHealed);
    // What is in flight would neither end nor be given up for an hour.
    let environment =
        scene.environment().with("CLIENT_REQUEST_TIMEOUT", "2h").with("SHUTDOWN_GRACE", "1h");
    let environment = environment.with("KAFKA_SESSION_TIMEOUT", "30s").with("STALL_TIMEOUT", "3h");
    let (daemon, log) = environment.with("KAFKA_INSTANCE_ID", "one").start_logging();
    scene.fake.until(|log| log.requests(Endpoint::Rpc).faults > 0).await;
    daemon.ask_to_stop();
    log.until("stop signal").await;
    daemon.ask_to_stop();
    assert_eq!(daemon.ended().code(), Some(0));
    let log = log.whole();
    assert!(log.contains("second signal") && !log.contains(OVERRUN), "not the end of the grace");

    scene.fake.heal_function(FUNCTION);
    let daemon = scene.environment().with("KAFKA_INSTANCE_ID", "one").start();
    scene.caught_up(|_| true).await;
    assert_eq!(daemon.stop().code(), Some(0));
    scene.fake.inspect(|log| assert!(!ids(log, "currency/award").is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_history_without_a_decision_ends_with_64_and_names_the_setting() {
    let scene = Scene::with("life/full.jsonl.gz").await;
    // Each of its topics holds records.
    let environment = scene.environment().with("CONSUMERS", "currency");
    let output = environment.without("KAFKA_AUTO_OFFSET_RESET").run();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{log}");
    assert!(log.contains("KAFKA_AUTO_OFFSET_RESET") && log.contains("KAFKA_START_AT"), "{log}");
    scene.fake.inspect(|log| assert!(log.events.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_may_read_nothing_is_named_and_holds_up_no_other() {
    let scene = Scene::with("life/full.jsonl.gz").await;
    let health = Health::free();
    let environment = scene
        .environment()
        .with("CONSUMERS", "currency,marketplace")
        .with("HTTP_LISTEN", health.listen())
        .without("KAFKA_AUTO_OFFSET_RESET");
    let (daemon, log) = environment.start_logging();
    let held = until("its topics to be held", async || {
        let (status, consumers) = health.readiness().await?;
        assert_eq!(status, 200, "a restart would not help");
        let currency = &consumers["currency"];
        let held = currency["waits_for"].as_array().expect("a list").clone();
        (held.len() == 3).then_some((held, currency["state"].clone()))
    })
    .await;
    assert_eq!(held.1, "degraded");
    for table in ["purchase_ledger", "referral_ledger", "mission_claims"] {
        let topic = scene.topic(table);
        let named = |held: &Value| held.as_str().is_some_and(|held| held.starts_with(&topic));
        let told = held.0.iter().find(|held| named(held)).expect("each is named").to_string();
        assert!(told.contains("KAFKA_START_AT"), "{told}");
        log.until(&format!("{topic}=earliest|latest|<time>")).await;
    }
    let metrics = health.metrics().await;
    let held = |consumer| metrics.samples(metric_names::HELD_TOPICS, &[("consumer", consumer)]);
    assert_eq!((held("currency"), held("marketplace")), (vec![3.0], vec![0.0]));
    scene.send_orders(50).await;
    scene.caught_up(|consumer| consumer == "marketplace").await;
    assert_eq!(daemon.stop().code(), Some(0));
    let arrived = |name: &str| scene.fake.inspect(|log| ids(log, name).len());
    assert_eq!((arrived("marketplace/order-received"), arrived("currency/award")), (50, 0));

    let beginnings =
        ["purchase_ledger=earliest", "referral_ledger=latest", "mission_claims=latest"]
            .map(|told| scene.topic(told));
    let daemon = environment.with("KAFKA_START_AT", &beginnings.join(",")).start();
    scene.caught_up(|consumer| consumer == "currency").await;
    assert_eq!(daemon.stop().code(), Some(0));
    let awarded = scene.fake.inspect(|log| ids(log, "currency/award"));
    assert!(!awarded.is_empty() && awarded.iter().all(|id| id.contains(":purchase:")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_end_with_64_and_are_all_named() {
    let scene = Scene::with("life/full.jsonl.gz").await;
    let output = scene
        .environment()
        .with("TIER_CONCURRENCY", "none")
        .with("SHUTDOWN_GRACE", "soon")
        .with("SUPABASE_SERVICE_ROLE_KEY", "")
        .run();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for variable in ["TIER_CONCURRENCY", "SHUTDOWN_GRACE", "SUPABASE_SERVICE_ROLE_KEY"] {
        assert!(said.contains(variable), "{variable} in {said}");
    }
}
