//! Kessel's relationships on a real Kafka (behaviour section 9).

use std::collections::BTreeSet;

use crm_event_processors::cdc::{self, Decoded};
use crm_event_processors::consumers::kessel::actions::log::Line;
use crm_event_processors::consumers::kessel::row::{Reading, read};
use crm_event_processors::metric_names;
use crm_event_processors::recording::Recorded;
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use test_support::daemon::{Environment, Log};
use test_support::http::Health;
use test_support::recordings::recorded;
use test_support::{feed, kafka, services, unique, until};

const PARTITIONS: i32 = 6;

pub(super) struct Scene {
    pub(super) group: String,
    pub(super) topic: String,
}

impl Scene {
    /// With these records in a topic of their own, in the partitions that they came from.
    pub(super) async fn with(records: &[Recorded]) -> Self {
        let group = unique("kessel");
        let scene = Self { topic: format!("{group}.relation_tuple"), group };
        kafka::create_topic(services::kafka(), &scene.topic, PARTITIONS).await;
        let futures = records.iter().map(|record| {
            let headers =
                record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: value.as_deref() })
                });
            let mut future = FutureRecord::to(&scene.topic).headers(headers);
            future.key = record.key.as_deref();
            future.payload = record.value.as_deref();
            future.timestamp = record.timestamp_ms;
            future.partition = Some(record.partition);
            future
        });
        kafka::produce(services::kafka(), futures).await;
        scene
    }

    /// Neither Redis nor Inngest nor Supabase: this consumer needs none of them.
    pub(super) fn environment(&self) -> Environment {
        Environment::default()
            .with("KAFKA_BOOTSTRAP_SERVERS", services::kafka())
            .with("KAFKA_AUTO_OFFSET_RESET", "earliest")
            .with("CONSUMER_GROUP", &self.group)
            .with("DLQ_TOPIC", &format!("{}.dlq", self.group))
            .with("CONSUMERS", "relationships")
            .with("RELATIONSHIPS_TOPIC", &self.topic)
            .with("LOG_LEVEL", "warn")
    }

    pub(super) async fn caught_up(&self) {
        feed::caught_up(services::kafka(), &self.group, &self.topic).await;
    }
}

pub(super) fn relationships(recording: &str) -> Vec<Recorded> {
    recorded(recording).filter(|record| record.topic.ends_with(".relation_tuple")).collect()
}

/// The line of each change in a recording, repeats once.
fn lines(records: &[Recorded]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let line = |record: &Recorded| {
        record.lend(|record| {
            let decoded = cdc::decode(record, &cdc::Options::default()).expect("a sound record");
            let Decoded::Change(change) = decoded else { return None };
            let change = read(&change, Reading::default()).expect("a sound row").ok()?;
            let fresh = seen.insert(change.idempotency_key());
            fresh.then(|| Line { change: &change }.to_string())
        })
    };
    records.iter().filter_map(line).collect()
}

/// All that a daemon wrote; a killed one may have left its last line unfinished.
fn written(log: Log) -> Vec<String> {
    let lines = log.whole().lines().map(str::to_owned).collect::<Vec<_>>();
    lines.into_iter().filter(|line| line.ends_with('Z')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_relationship_is_logged_though_the_daemon_is_killed() {
    let records = relationships("spicedb2/xids_keyed.jsonl.gz");
    let expected = lines(&records);
    let scene = Scene::with(&records).await;
    let (killed, log) = scene.environment().start_reading_output();
    until("some changes", async || (log.lines().len() > 100).then_some(())).await;
    killed.kill();
    let first = written(log);
    let (daemon, log) = scene.environment().start_reading_output();
    scene.caught_up().await;
    assert!(daemon.stop().success(), "a clean stop");
    let second = written(log);
    for run in [&first, &second] {
        assert_eq!(run.iter().collect::<BTreeSet<_>>().len(), run.len(), "each once in a run");
    }
    let all: BTreeSet<String> = first.into_iter().chain(second).collect();
    assert_eq!(all, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_a_dead_letter_that_says_why_and_holds_up_nobody() {
    let mut records = relationships("spicedb2/xids_keyed.jsonl.gz");
    let spoilt = records.iter_mut().find(|record| record.value.is_some()).expect("a record");
    let value = String::from_utf8(spoilt.value.take().expect("a value")).expect("text");
    spoilt.value = Some(value.replace("\"userset_object_id\"", "\"renamed\"").into_bytes());
    let place = (spoilt.partition, spoilt.offset);
    let scene = Scene::with(&records).await;
    let health = Health::free();
    let environment = scene.environment().with("HTTP_LISTEN", health.listen());
    let (daemon, log) = environment.start_reading_output();
    scene.caught_up().await;
    let counted = health.metrics().await.sum(metric_names::KESSEL_EVENTS, &[]);
    assert!(daemon.stop().success(), "a clean stop");
    let spoilt = |record: &&Recorded| (record.partition, record.offset) == place;
    let sound: Vec<Recorded> = records.iter().filter(|record| !spoilt(record)).cloned().collect();
    let lines_of = written(log);
    assert_eq!(counted, lines_of.len() as f64, "a line for each change that is counted");
    assert_eq!(lines_of.into_iter().collect::<BTreeSet<_>>(), lines(&sound));
    let letters = kafka::read_topic(services::kafka(), &format!("{}.dlq", scene.group)).await;
    assert_eq!(letters.len(), 1);
    let headers = letters[0].headers().expect("headers");
    let reason = headers.iter().find(|header| header.key == "dlq.error.message");
    let reason = reason.and_then(|header| header.value).expect("a reason");
    let reason = String::from_utf8_lossy(reason);
    assert!(reason.contains("relation_tuple.userset_object_id"), "{reason}");
}
