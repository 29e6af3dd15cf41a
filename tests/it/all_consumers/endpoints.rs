//! What `/livez`, `/readyz` and `/metrics` of the real daemon say of a run that touches every
//! metric.

use crm_event_processors::fakes::{Endpoint, Fault, Lasting};
use crm_event_processors::metric_names::{self, ALL};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Map, Value, json};

use super::{COMMANDS, Scene, TAKES, order};
use crate::life::purchases;
use test_support::http::{Health, Metrics};
use test_support::kafka::{client, create_topic, delete_before};
use test_support::{recordings::recorded, until};

/// Orders that retention has removed although the group had not read them.
const LOST: usize = 2;
/// Orders of each kind that the marketplace consumer then finds.
const SENT: usize = 40;
const UNPAID: usize = 7;
const REPEATS: usize = 5;
const MALFORMED: usize = 3;

/// Fills partition 0 of the topic of orders: some lost, some of every outcome.
async fn orders(scene: &Scene, topic: &str) {
    create_topic(scene.brokers, topic, 1).await;
    let lost: Vec<_> = (0..LOST).map(|number| order(1_000 + number, "PAID")).collect();
    scene.send(topic, &lost).await;
    let group = scene.group("marketplace");
    let consumer: BaseConsumer =
        client(scene.brokers).set("group.id", &group).create().expect("a consumer");
    let mut first = TopicPartitionList::new();
    first.add_partition_offset(topic, 0, Offset::Offset(0)).expect("an offset");
    until("the group's first commit", async || consumer.commit(&first, CommitMode::Sync).ok())
        .await;
    let malformed = (0..MALFORMED).map(|number| (format!("m{number}"), "{}".to_owned()));
    let all: Vec<_> = (0..SENT)
        .map(|number| order(number, "PAID"))
        .chain((0..REPEATS).map(|number| order(number, "PAID")))
        .chain((0..UNPAID).map(|number| order(number, "UNPAID")))
        .chain(malformed)
        .collect();
    scene.send(topic, &all).await;
    delete_before(scene.brokers, topic, LOST as i64).await;
}

/// Every merchant of the recording, with an unknown time zone.
fn merchants() -> Vec<Map<String, Value>> {
    let rows = recorded("life/full.jsonl.gz").filter_map(|record| {
        let value: Value = serde_json::from_slice(record.value.as_deref()?).ok()?;
        let id = value["after"]["merchant_id"].as_str()?.to_owned();
        let row = json!({"id": id, "currency_award_delay_days": 0,
            "currency_award_delay_minutes": 0, "currency_award_time": "09:00:00",
            "currency_award_timezone": "Nowhere/Atlantis"});
        Some((id, row.as_object().cloned().expect("an object")))
    });
    rows.collect::<std::collections::BTreeMap<_, _>>().into_values().collect()
}

fn outcomes(metrics: &Metrics, topic: &str, outcome: &str) -> f64 {
    let labels = [("consumer", "marketplace"), ("topic", topic), ("outcome", outcome)];
    metrics.sum(metric_names::RECORDS, &labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoints_tell_what_was_fed_and_what_became_of_it() {
    let scene = Scene::with("life/full.jsonl.gz").await;
    scene.fake.fill("purchase_ledger", purchases());
    scene.fake.fill("merchant_master", merchants());
    scene.fake.fail(Endpoint::Broadcast, Fault::status(500), Lasting::UntilHealed);
    scene.send_redemptions(40).await;
    let lossy = scene.topic("lossy-orders");
    orders(&scene, &lossy).await;
    let health = Health::free();
    let daemon = scene
        .environment()
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &lossy)
        .with("HTTP_LISTEN", health.listen())
        .start();
    scene.caught_up(|consumer| consumer != "marketplace").await;
    test_support::feed::caught_up(scene.brokers, &scene.group("marketplace"), &lossy).await;

    assert_eq!(health.get("/livez").await, Some((200, "ok\n".to_owned())));
    let lag = |metrics: &Metrics| metrics.sum(metric_names::LAG, &[]);
    let metrics = until("the statistics of a broker without a backlog", async || {
        let (status, consumers) = health.readiness().await?;
        assert_eq!((status, consumers.len()), (200, TAKES.len()));
        let idle = consumers.values().all(|consumer| {
            consumer["state"] == "ready"
                && consumer["records_in_flight"] == 0
                && consumer["partitions"].as_u64() > Some(0)
        });
        let metrics = health.metrics().await;
        let told = metrics.tells_of(metric_names::BROADCASTS_LOST);
        (idle && told && lag(&metrics) == 0.0).then_some(metrics)
    })
    .await;
    // No record here is unusual, and Kessel's changes are counted in a test of their own.
    let elsewhere = [metric_names::REMARKS, metric_names::KESSEL_EVENTS];
    for (name, _) in ALL.iter().filter(|(name, _)| !elsewhere.contains(name)) {
        assert!(metrics.tells_of(name), "{name} in\n{metrics}");
    }

    for (consumer, tables) in TAKES.iter().filter(|(consumer, _)| *consumer != "marketplace") {
        for table in *tables {
            let topic = scene.topic(table);
            let labels = [("consumer", *consumer), ("topic", &*topic)];
            let ended = metrics.sum(metric_names::RECORDS, &labels);
            assert_eq!(ended, scene.fed(table).await as f64, "{consumer} {topic}");
            let partitions = metrics.samples(metric_names::LAG, &labels).len();
            assert_eq!(partitions, 6, "a lag for each partition: {consumer} {topic}\n{metrics}");
            assert_eq!(metrics.samples(metric_names::COMMITTABLE_AGE, &labels).len(), partitions);
        }
        let of = [("consumer", *consumer)];
        let skipped = metrics.sum(metric_names::RECORDS, &[of[0], ("outcome", "skipped")]);
        assert_eq!(metrics.sum(metric_names::SKIPPED, &of), skipped, "each for a reason");
        let letters = metrics.sum(metric_names::RECORDS, &[of[0], ("outcome", "dead_lettered")]);
        assert_eq!(metrics.sum(metric_names::DEAD_LETTERS, &of), letters, "each of a kind");
        let sent = metrics.sum(metric_names::RECORDS, &[of[0], ("outcome", "sent")]);
        assert!(sent > 0.0, "{consumer}");
        assert!(metrics.sum("crm_commit_to_acceptance_seconds_count", &of) <= sent);
        assert_eq!(metrics.samples(metric_names::OPEN, &of), [0.0], "{consumer}");
        let gained = metrics.sum(metric_names::REBALANCES, &[of[0], ("direction", "assigned")]);
        assert!(gained >= 1.0, "{consumer}");
    }
    let found = ["sent", "skipped", "duplicate", "dead_lettered"]
        .map(|outcome| outcomes(&metrics, &lossy, outcome));
    assert_eq!(found, [SENT, UNPAID, REPEATS, MALFORMED].map(|count| count as f64));
    let marketplace = ("consumer", "marketplace");
    let unpaid = metrics.sum(metric_names::SKIPPED, &[marketplace, ("reason", "unpaid")]);
    assert_eq!(unpaid, UNPAID as f64);
    let letters = [marketplace, ("topic", &*lossy), ("kind", "command")];
    assert_eq!(metrics.sum(metric_names::DEAD_LETTERS, &letters), MALFORMED as f64);
    let lost = metrics.sum(metric_names::LOST, &[marketplace, ("topic", &*lossy)]);
    assert_eq!(lost, LOST as f64);
    assert!(
        metrics.sum(metric_names::RECORDS, &[("consumer", "reward"), ("topic", COMMANDS)]) >= 40.0
    );
    let settled = [("consumer", "currency"), ("reason", "cancel_settle")];
    assert!(metrics.sum(metric_names::RETRIES, &settled) > 0.0, "\n{metrics}");
    for dependency in ["redis", "inngest", "supabase/rpc/calc_currency_for_source"] {
        let of = [("dependency", dependency)];
        assert_eq!(metrics.samples(metric_names::BREAKER, &of), [0.0], "{dependency}\n{metrics}");
    }
    let posts = [("dependency", "inngest"), ("result", "ok")];
    let answered = metrics.sum("crm_request_duration_seconds_count", &posts);
    assert_eq!(answered, scene.fake.inspect(|log| log.posts.len()) as f64);
    let batched = metrics.sum("crm_inngest_batch_events_sum", &[]);
    assert_eq!(batched, scene.fake.inspect(|log| log.events.len()) as f64);
    assert!(daemon.stop().success(), "a clean stop");
}
