use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use rdkafka::mocking::MockCluster;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cdc::{self, Change, DecodeError};
use crate::config::{self, GroupProtocol, OffsetReset, Properties, ReplayRecognition};
use crate::dedup::{Claims, MemoryStore, OnOutage};
use crate::engine::dispatch::backpressure::Bounds;
use crate::engine::dispatch::permits::{Limits, Permits};
use crate::engine::dispatch::retry::Policy;
use crate::engine::dispatch::work::Shared;
use crate::engine::session::End;
use crate::engine::vitals::Pulse;
use crate::engine::{
    Context, Engine, Failure, Observed, Observer, Outcome, Route, Settings, Steps, Subscription,
};
use crate::kafka::{Callbacks, DeadLetters, GroupConsumer, Kafka, Rebalance};
use crate::outage::{Backoff, Breakers};

const TOPIC: &str = "t";
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
const LONG: Duration = Duration::from_secs(60);

struct Idle;

impl Consumer for Idle {
    type Work = ();

    fn route(&self, _: &Change<'_>, _: Timestamp) -> Result<Route<()>, DecodeError> {
        Ok(Route::Skip("idle"))
    }

    fn steps(&self, (): &()) -> Steps {
        Steps { lane: String::new(), steps: Vec::new() }
    }

    async fn process(&self, _: &Context, (): &()) -> Result<Outcome, Failure> {
        Ok(Outcome::Skipped("idle"))
    }
}

struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _: &'static str, _: &Observed<'_>) {}
}

fn engine(bootstrap: String) -> Engine<Idle> {
    let kafka = config::Kafka {
        bootstrap,
        credentials: None,
        topic_prefix: String::new(),
        group_id: "g".to_owned(),
        group_as_it_stands: false,
        group_protocol: GroupProtocol::Classic,
        session_timeout: Duration::from_secs(30),
        instance_id: None,
        start_at: config::StartAt::default(),
        auto_offset_reset: Some(OffsetReset::Earliest),
        properties: Properties::default(),
        ca_file: None,
        dlq_topic: "dlq".to_owned(),
        metadata_refresh: Duration::from_millis(500),
    };
    let kafka = Kafka::new(kafka, Duration::from_secs(1), Duration::from_secs(1));
    let breakers = Arc::new(Breakers::new(1, BACKOFF));
    let store = Arc::new(MemoryStore::new(LONG));
    Engine {
        consumer: Arc::new(Idle),
        settings: Settings {
            subscription: Subscription {
                consumer: "idle",
                topics: vec![TOPIC.to_owned()],
                command_topics: Vec::new(),
            },
            start: None,
            limits: Limits { min: 1, max: 1 },
            group: "g".to_owned(),
            claim_prefix: String::new(),
            properties: Properties::default(),
            decode: cdc::Options::default(),
            bounds: Bounds { records: 10, bytes: 1 << 20, span: 100 },
            retry: Policy { backoff: BACKOFF, poison_attempts: 1, poison_after: LONG },
            replay_recognition: ReplayRecognition::On,
            dlq_flood: None,
            drain_deadline: LONG,
            stop_deadline: LONG,
            commit_interval: Duration::from_secs(1),
        },
        dead_letters: Arc::new(DeadLetters::new(&kafka, "dlq")),
        kafka,
        claims: Claims::start(store, breakers.get("redis"), OnOutage::Wait, LONG, LONG),
        breakers,
        observer: Arc::new(Nobody),
        pulse: Arc::new(Pulse::default()),
    }
}

/// Runs a session whose partition the client is asked for by somebody else too, and answers how it
/// ends. The group tells it what `told` sends.
async fn ended(
    told: impl AsyncFnOnce(&mpsc::UnboundedSender<Rebalance>, &GroupConsumer, &Pulse),
) -> String {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic(TOPIC, 1, 1).expect("a topic");
    let engine = engine(cluster.bootstrap_servers());
    let shared = Arc::new(Shared {
        group: "g".to_owned(),
        claim_prefix: String::new(),
        claims: engine.claims.clone(),
        permits: Permits::new(Limits { min: 1, max: 1 }),
        answers: crate::room::Room::new(usize::MAX),
        client_retries: OnceLock::new(),
    });
    let (context, mut signals) = Callbacks::new("g");
    let client = engine.kafka.consumer("g", &Properties::default(), context).expect("a client");
    let client = Arc::new(client);
    let (group, rebalances) = mpsc::unbounded_channel();
    signals.rebalances = rebalances;
    let stop = CancellationToken::new();
    let session = Session::new(&engine, shared, Arc::default(), Arc::clone(&client), &stop);
    let both = futures::future::join(session.run(signals), told(&group, &client, &engine.pulse));
    let (end, ()) = tokio::time::timeout(LONG, both).await.expect("it ends");
    match end.expect("no fault of the engine") {
        End::Anew(how) => how,
        End::Stopped => panic!("nobody stopped it"),
    }
}

fn partition() -> Vec<(String, i32)> {
    vec![(TOPIC.to_owned(), 0)]
}

fn change(call: impl FnOnce(&TopicPartitionList) -> KafkaResult<()>) {
    let mut list = TopicPartitionList::new();
    list.add_partition(TOPIC, 0);
    call(&list).expect("the client changes its partitions");
}

#[tokio::test]
async fn a_client_that_refuses_what_it_is_assigned_is_made_anew() {
    let how = ended(async |group, client, _| {
        change(|list| client.incremental_assign(list));
        group.send(Rebalance::Assign(partition())).expect("it listens");
    });
    assert_eq!(how.await, "it refused to take partitions");
}

#[tokio::test]
async fn a_client_that_refuses_to_give_up_partitions_is_made_anew() {
    let how = ended(async |group, client, pulse| {
        group.send(Rebalance::Assign(partition())).expect("it listens");
        while pulse.read().partitions.is_empty() {
            tokio::task::yield_now().await;
        }
        change(|list| client.incremental_unassign(list));
        group.send(Rebalance::Revoke(partition())).expect("it listens");
    });
    assert_eq!(how.await, "it refused to give up partitions");
}

#[tokio::test]
async fn a_client_that_keeps_what_it_has_lost_is_made_anew() {
    let how = ended(async |group, _, _| {
        let refused = KafkaError::Subscription("refused".to_owned());
        group.send(Rebalance::Refused(refused)).expect("it listens");
    });
    assert_eq!(how.await, "it refused to give up partitions");
}
