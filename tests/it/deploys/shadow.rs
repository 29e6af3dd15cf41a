//! The dry run of a cut-over, beside the old service that still runs: it names what the daemon then
//! does, and leaves no trace.

use std::collections::{BTreeMap, BTreeSet};

use crm_event_processors::fakes::Endpoint;
use rdkafka::producer::FutureRecord;
use serde_json::Value;

use super::cut_over::{OldService, STREAMS, Scene, start_at};
use super::traffic;
use test_support::daemon::{Environment, Log};
use test_support::{feed, kafka, services, until};

fn lines(log: &Log) -> Vec<Value> {
    let lines = log.lines().into_iter();
    lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
}

fn told<'a>(lines: &'a [Value], what: &str) -> Vec<&'a Value> {
    lines
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(what)))
        .collect()
}

/// The ids of the events that these lines name.
fn ids(lines: &[&Value]) -> BTreeSet<String> {
    let plans = lines.iter().map(|line| line["plan"].as_str().expect("a plan"));
    let steps =
        plans.flat_map(|plan| plan.split(", ")).filter_map(|step| step.strip_prefix("event "));
    steps.filter_map(|event| event.split_once(' ')).map(|(_, id)| id.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_names_what_is_then_done_and_leaves_no_trace() {
    let scene = Scene::new().await;
    let referrals = format!("{}.referral_ledger", scene.prefix);
    let (award, value) = traffic::referral(1_001);
    let record = FutureRecord::to(&referrals);
    kafka::produce(scene.brokers, [record.key(award.as_bytes()).payload(value.as_bytes())]).await;
    let mut old = Vec::new();
    for (stream, consumer) in STREAMS {
        let (group, topic) = (scene.group(consumer), scene.topic(stream));
        old.push(OldService::join(scene.brokers, &group, &topic, scene.stands(stream)).await);
    }
    let mut joined: Vec<usize> = old.iter().map(OldService::rebalances).collect();
    let redis = services::Redis::own();
    let environment = scene.environment().with("REDIS_URL", redis.url());
    let environment = environment.with("KAFKA_START_AT", &start_at(&scene.prefix));
    let named = shadowed(&environment).await;

    // No trace: the old service keeps all its partitions and offsets.
    for (stream, consumer) in STREAMS {
        let (group, topic) = (scene.group(consumer), scene.topic(stream));
        let committed = kafka::committed(scene.brokers, &group, &topic).await;
        let committed: BTreeMap<i32, i64> =
            committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect();
        assert_eq!(committed, scene.stands(stream));
        assert!(kafka::committed(scene.brokers, &group, &referrals).await.is_empty());
    }
    scene.fake.inspect(|log| {
        assert!(log.events.is_empty());
        let endpoints = [Endpoint::Post, Endpoint::Rpc, Endpoint::Rest, Endpoint::Broadcast];
        assert!(endpoints.into_iter().all(|endpoint| log.requests(endpoint).count == 0));
    });
    assert_eq!(keys(&redis).await, 0, "nothing is claimed");

    for member in old {
        assert_eq!(member.rebalances(), joined.remove(0), "nobody has joined its group");
        member.leave().await;
    }
    let daemon = environment.start();
    scene.caught_up().await;
    feed::caught_up(scene.brokers, &scene.group("currency"), &referrals).await;
    assert_eq!(daemon.stop().code(), Some(0));
    let sent = scene.fake.inspect(|log| {
        log.events.iter().filter_map(|event| event.id.as_deref()).map(str::to_owned).collect()
    });
    assert_eq!(named, sent);
}

/// What a shadow would send, once it has read everything.
async fn shadowed(environment: &Environment) -> BTreeSet<String> {
    let environment = environment.clone().with("LOG_FORMAT", "json").with("LOG_LEVEL", "debug");
    let (daemon, log) = environment.start_quietly_with(&["run", "--shadow"]);
    until("both to have read all that there is", async || {
        (told(&lines(&log), "read to the ends").len() == STREAMS.len()).then_some(())
    })
    .await;
    assert_eq!(daemon.stop().code(), Some(0));
    let lines = lines(&log);
    let summaries = told(&lines, "this would have been done");
    assert_eq!(summaries.len(), STREAMS.len());
    let would: u64 = summaries.iter().filter_map(|line| line["would_do"].as_u64()).sum();
    let named = told(&lines, "would do");
    assert_eq!(named.len() as u64, would);
    for line in &named {
        assert!(line["consumer"].is_string() && line["messaging.kafka.offset"].is_i64());
    }
    ids(&named)
}

/// How many keys there are.
async fn keys(redis: &services::Redis) -> u64 {
    let client = redis::Client::open(redis.url()).expect("a Redis address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    redis::cmd("DBSIZE").query_async(&mut connection).await.expect("a number")
}
