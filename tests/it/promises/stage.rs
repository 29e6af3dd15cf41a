//! The promises' surroundings: a topic, a group, and a consumer whose work the test scripts.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crm_event_processors::cdc::{self, Change, DecodeError, Record};
use crm_event_processors::config::{
    self, GroupProtocol, OffsetReset, Properties, ReplayRecognition,
};
use crm_event_processors::dedup::{
    ClaimOp, Claims, MemoryStore, OnOutage, Op, Reply, Store, StoreUnavailable,
};
use crm_event_processors::engine::dispatch::backpressure::Bounds;
use crm_event_processors::engine::dispatch::permits::Limits;
use crm_event_processors::engine::dispatch::retry::Policy;
use crm_event_processors::engine::vitals::Pulse;
use crm_event_processors::engine::{
    Consumer, Context, Engine, EngineError, Failure, Lane, Observed, Observer, Once, Origin,
    Outcome, Route, Settings, Step, Steps, Subscription,
};
use crm_event_processors::kafka::{DeadLetters, Kafka};
use crm_event_processors::outage::{Backoff, Breaker, Breakers};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use rdkafka::producer::FutureRecord;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use test_support::kafka::{committed, create_topic, produce};
use test_support::services::kafka;
use test_support::{PATIENCE, unique};

/// Bytes that work keeps if its value begins with `keeps`.
pub(super) const KEPT: usize = 10_000;

/// Longer than any test lasts.
pub(super) const NEVER: Duration = Duration::from_secs(24 * 3600);

/// One call of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// How often this record was worked on before, in this process.
    pub(super) earlier: usize,
}

type Script = dyn Fn(Call) -> BoxFuture<'static, Result<Outcome, Failure>> + Send + Sync;

/// A consumer of plain records: the key is the lane, the value is the work, and the script does it.
/// A value that begins with `malformed` is no work, one that begins with `skip` calls for none, and
/// the work of one that begins with `waits` counts as a mere wait.
pub(super) struct Scripted {
    claiming: bool,
    script: Box<Script>,
    calls: Mutex<Vec<Call>>,
    given_up: watch::Sender<usize>,
    away: Arc<Breaker>,
}

/// A record's key and value.
pub(super) struct Work {
    key: String,
    value: String,
}

impl Consumer for Scripted {
    type Work = Work;

    fn route(&self, _: &Change<'_>, _: Timestamp) -> Result<Route<Work>, DecodeError> {
        Ok(Route::Skip("not_scripted"))
    }

    fn route_command(&self, record: &Record<'_>) -> Result<Route<Work>, DecodeError> {
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let work = Work { key: text(record.key), value: text(record.value) };
        if work.value.starts_with("malformed") {
            return Err(DecodeError::Command { problem: "it is malformed".to_owned() });
        }
        if work.value.starts_with("skip") {
            return Ok(Route::Skip("told_to"));
        }
        let lane = Lane::in_partition(&work.key);
        Ok(Route::Process { work, lane })
    }

    fn steps(&self, work: &Work) -> Steps {
        Steps { lane: work.key.clone(), steps: vec![Step::claim(&work.value)] }
    }

    fn kept(&self, work: &Work) -> usize {
        if work.value.starts_with("keeps") { KEPT } else { 0 }
    }

    async fn process(&self, cx: &Context, work: &Work) -> Result<Outcome, Failure> {
        let Origin { partition, offset, .. } = *cx.origin();
        let call = self.note(Call {
            key: work.key.clone(),
            value: work.value.clone(),
            partition,
            offset,
            earlier: 0,
        });
        if call.value.starts_with("waits") {
            let waited = cx.with_client_retries(&self.away, (self.script)(call)).await;
            return waited.unwrap_or_else(|given_up| {
                self.given_up.send_modify(|count| *count += 1);
                Err(given_up)
            });
        }
        if !self.claiming {
            return (self.script)(call).await;
        }
        let sent = || async { (self.script)(call).await.map(|_| Some(Timestamp::now())) };
        Ok(match cx.once(&work.value, sent).await? {
            Once::Ran(_) => Outcome::Sent,
            Once::Duplicate | Once::TakenBack(_) => Outcome::Duplicate,
        })
    }
}

impl Scripted {
    fn note(&self, mut call: Call) -> Call {
        let mut calls = self.calls.lock().expect("not poisoned");
        let same = |other: &&Call| (other.partition, other.offset) == (call.partition, call.offset);
        call.earlier = calls.iter().filter(same).count();
        calls.push(call.clone());
        drop(calls);
        call
    }
}

/// A door where work waits until the test opens it.
#[derive(Clone)]
pub(super) struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gate {
    pub(super) fn closed() -> Self {
        Self { open: watch::Sender::new(false), waiting: watch::Sender::new(0) }
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }

    /// Stops here until the gate is open.
    pub(super) async fn pass(&self) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("the gate outlives its visitors");
    }

    /// Waits until this many have come to the gate.
    pub(super) async fn until_waiting(&self, visitors: usize) {
        let mut waiting = self.waiting.subscribe();
        let all = waiting.wait_for(|waiting| *waiting >= visitors);
        with_client_retries("visitors at the gate", all).await.expect("the gate is there");
    }
}

/// Waits for `what`, at most [`PATIENCE`].
pub(super) async fn with_client_retries<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Claims in memory that, on request, do not answer when a claim is to be marked done.
#[derive(Clone)]
pub(super) struct Silent {
    claims: Arc<MemoryStore>,
    silent: watch::Sender<bool>,
    asked: watch::Sender<usize>,
}

impl Silent {
    pub(super) fn say_nothing(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    /// Waits until this many would have been marked.
    pub(super) async fn until_asked(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        let all = asked.wait_for(|asked| *asked >= times);
        with_client_retries("claims to be marked", all).await.expect("the store is there");
    }
}

impl Store for Silent {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        let marks = ops
            .iter()
            .filter(|op| {
                matches!(op, Op::Claim(ClaimOp::Confirm { .. } | ClaimOp::ConfirmTaken { .. }))
            })
            .count();
        self.asked.send_modify(|asked| *asked += marks);
        let answer = self.claims.execute(ops);
        let mut silent = self.silent.subscribe();
        async move {
            if marks > 0 {
                silent.wait_for(|silent| !silent).await.expect("the store is there");
            }
            answer.await
        }
        .boxed()
    }
}

/// What an engine reported to its observer.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Outcomes in order, by topic, partition and offset.
    pub(super) outcomes: Vec<(String, i32, i64, Outcome)>,
    /// Offsets that had to wait or be tried again, and why.
    pub(super) retries: Vec<(i32, i64, String)>,
    /// Records lost, where known.
    pub(super) lost: Vec<(i32, Option<i64>)>,
    /// Partitions gained and given up since the start.
    pub(super) assigned: usize,
    pub(super) revoked: usize,
}

impl Seen {
    /// How the record at `offset` of a topic's partition ended.
    pub(super) fn outcome(&self, partition: i32, offset: i64) -> Option<Outcome> {
        let found = self.outcomes.iter().find(|seen| (seen.1, seen.2) == (partition, offset));
        found.map(|seen| seen.3)
    }

    /// How many records ended like this.
    pub(super) fn count(&self, outcome: Outcome) -> usize {
        self.outcomes.iter().filter(|seen| seen.3 == outcome).count()
    }
}

#[derive(Default)]
struct Watch(watch::Sender<Seen>);

impl Observer for Watch {
    fn observe(&self, _: &'static str, observed: &Observed<'_>) {
        self.0.send_modify(|seen| match observed {
            Observed::Outcome { origin, outcome, .. } => {
                let topic = origin.topic.to_string();
                seen.outcomes.push((topic, origin.partition, origin.offset, *outcome));
            }
            Observed::Retry { origin, reason } => {
                seen.retries.push((origin.partition, origin.offset, (*reason).to_owned()));
            }
            Observed::Lost { partition, records, .. } => seen.lost.push((*partition, *records)),
            Observed::Rebalanced { assigned, revoked } => {
                seen.assigned += assigned;
                seen.revoked += revoked;
            }
            Observed::Remarked { .. } => {}
        });
    }
}

/// A topic with its group, and the settings of engines on it. Tests change what they need.
pub(super) struct Stage {
    pub(super) kafka: config::Kafka,
    pub(super) settings: Settings,
    pub(super) topic: String,
    /// Whether work on each value holds a claim of its name.
    pub(super) claiming: bool,
    pub(super) store: Silent,
    pub(super) breakers: Arc<Breakers>,
}

/// Short pauses: a test's outages are short too.
pub(super) const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(10), max: Duration::from_millis(50) };

impl Stage {
    /// A topic with this many partitions on the shared Kafka, and a dead letter topic.
    pub(super) async fn new(partitions: i32) -> Self {
        let stage = Self::bare(kafka());
        create_topic(kafka(), &stage.topic, partitions).await;
        create_topic(kafka(), &stage.kafka.dlq_topic, 1).await;
        stage
    }

    /// Names on the cluster at `bootstrap`; creates no topic.
    pub(super) fn bare(bootstrap: &str) -> Self {
        let topic = unique("stage");
        let store = Silent {
            claims: Arc::new(MemoryStore::new(Duration::from_secs(300))),
            silent: watch::Sender::default(),
            asked: watch::Sender::default(),
        };
        Self {
            kafka: config::Kafka {
                bootstrap: bootstrap.to_owned(),
                credentials: None,
                topic_prefix: String::new(),
                group_id: topic.clone(),
                group_as_it_stands: false,
                group_protocol: GroupProtocol::Classic,
                session_timeout: Duration::from_secs(30),
                instance_id: None,
                start_at: config::StartAt::default(),
                auto_offset_reset: Some(OffsetReset::Earliest),
                properties: Properties::default(),
                ca_file: None,
                dlq_topic: format!("{topic}.dlq"),
                metadata_refresh: Duration::from_millis(500),
            },
            settings: Settings {
                subscription: Subscription {
                    consumer: "scripted",
                    topics: Vec::new(),
                    command_topics: Vec::new(),
                },
                start: None,
                limits: Limits { min: 5, max: 5 },
                group: topic.clone(),
                claim_prefix: String::new(),
                properties: Properties::default(),
                decode: cdc::Options::default(),
                replay_recognition: ReplayRecognition::On,
                bounds: Bounds { records: 1_000, bytes: 1 << 20, span: 10_000 },
                dlq_flood: Some(50),
                retry: Policy {
                    backoff: BACKOFF,
                    poison_attempts: 10,
                    poison_after: Duration::from_secs(600),
                },
                drain_deadline: Duration::from_secs(30),
                stop_deadline: Duration::from_secs(30),
                commit_interval: Duration::from_millis(100),
            },
            topic,
            claiming: false,
            store,
            breakers: Arc::new(Breakers::new(1, BACKOFF)),
        }
    }

    /// Sends records as (partition, key, value), in order.
    pub(super) async fn send(&self, records: &[(i32, &str, &str)]) {
        let records = records.iter().map(|(partition, key, value)| {
            FutureRecord::to(&self.topic)
                .partition(*partition)
                .key(key.as_bytes())
                .payload(value.as_bytes())
        });
        produce(&self.kafka.bootstrap, records).await;
    }

    /// What the group has committed, by partition: the next offset and its metadata.
    pub(super) async fn committed(&self) -> BTreeMap<i32, (i64, String)> {
        committed(&self.kafka.bootstrap, &self.settings.group, &self.topic).await
    }

    /// Waits until the group has committed `offset` of `partition`.
    pub(super) async fn until_committed(&self, partition: i32, offset: i64) {
        let what = format!("commit of offset {offset}");
        test_support::until(&what, async || {
            let committed = self.committed().await;
            committed.get(&partition).filter(|(next, _)| *next == offset).map(|_| ())
        })
        .await;
    }

    /// Starts an engine whose consumer does what `script` says.
    pub(super) fn start<F>(&self, script: impl Fn(Call) -> F + Send + Sync + 'static) -> Member
    where
        F: Future<Output = Result<Outcome, Failure>> + Send + 'static,
    {
        self.start_on(vec![self.topic.clone()], script)
    }

    /// The same, on these topics.
    pub(super) fn start_on<F>(
        &self,
        topics: Vec<String>,
        script: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Member
    where
        F: Future<Output = Result<Outcome, Failure>> + Send + 'static,
    {
        let away = Arc::new(Breaker::new("always away", 1, BACKOFF));
        away.failed(Instant::now(), None, "away");
        let consumer = Arc::new(Scripted {
            claiming: self.claiming,
            script: Box::new(move |call| script(call).boxed()),
            calls: Mutex::default(),
            given_up: watch::Sender::default(),
            away,
        });
        let claims = Claims::start(
            self.store.clone(),
            self.breakers.get("redis"),
            OnOutage::Wait,
            Duration::from_secs(300),
            Duration::from_secs(30),
        );
        self.start_with(topics, consumer, claims)
    }

    fn start_with(&self, topics: Vec<String>, consumer: Arc<Scripted>, claims: Claims) -> Member {
        let Settings { commit_interval, drain_deadline, .. } = self.settings;
        let kafka = Kafka::new(self.kafka.clone(), commit_interval, drain_deadline);
        let dead_letters = DeadLetters::new(&kafka, &self.kafka.dlq_topic);
        let (watch, pulse) = (Arc::new(Watch::default()), Arc::new(Pulse::default()));
        let engine = Engine {
            consumer: Arc::clone(&consumer),
            settings: Settings {
                subscription: Subscription {
                    consumer: "scripted",
                    command_topics: topics.clone(),
                    topics,
                },
                ..self.settings.clone()
            },
            kafka,
            dead_letters: Arc::new(dead_letters),
            claims,
            breakers: Arc::clone(&self.breakers),
            observer: Arc::clone(&watch) as Arc<dyn Observer>,
            pulse: Arc::clone(&pulse),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(engine.run(stop.clone()).boxed());
        Member { stop, task, watch, pulse, consumer }
    }
}

/// A running engine.
pub(super) struct Member {
    stop: CancellationToken,
    task: JoinHandle<Result<(), EngineError>>,
    watch: Arc<Watch>,
    pulse: Arc<Pulse>,
    consumer: Arc<Scripted>,
}

impl Member {
    /// Waits until what was seen satisfies a condition, and returns it.
    pub(super) async fn until(&self, what: &str, mut seen: impl FnMut(&Seen) -> bool) -> Seen {
        let mut watch = self.watch.0.subscribe();
        let reached = with_client_retries(what, watch.wait_for(|now| seen(now))).await;
        reached.expect("the observer is there").clone()
    }

    /// Waits for the number of outcomes.
    pub(super) async fn until_outcomes(&self, count: usize) -> Seen {
        self.until(&format!("{count} outcomes"), |seen| seen.outcomes.len() >= count).await
    }

    pub(super) fn seen(&self) -> Seen {
        self.watch.0.borrow().clone()
    }

    /// Waits until this many waits were given up, because of a stop or a revoke.
    pub(super) async fn until_given_up(&self, count: usize) {
        let mut given_up = self.consumer.given_up.subscribe();
        let reached =
            with_client_retries("waits given up", given_up.wait_for(|now| *now >= count)).await;
        reached.expect("the consumer is there");
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Asks it to stop, without waiting.
    pub(super) fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    /// Aborts it midway.
    pub(super) fn abort(&self) {
        self.task.abort();
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> Result<(), EngineError> {
        with_client_retries("the engine's end", &mut self.task).await.expect("no panic")
    }

    /// Stops it and waits for its end, which must be a clean one.
    pub(super) async fn stop(mut self) -> Seen {
        self.stop.cancel();
        self.ended().await.expect("a clean end");
        self.seen()
    }
}
