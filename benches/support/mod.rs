//! What the benchmarks with real services share: filling a topic, and running a daemon over it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use crm_event_processors::app::{App, RunError, Stores};
use crm_event_processors::clients::redis::{Cache, connect};
use crm_event_processors::config::{Environment, Settings};
use crm_event_processors::consumers::registry::{self, CONSUMERS};
use crm_event_processors::dedup::{MemoryStore, RedisStore, Store};
use crm_event_processors::engine::{Observed, Observer, Outcome};
use crm_event_processors::fakes::Fake;
use crm_event_processors::telemetry::metrics::Recorder;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

#[allow(dead_code, reason = "each benchmark has its own")]
pub(crate) mod sink;

use self::sink::Sink;

/// Counts the records of one consumer that have ended.
#[derive(Default)]
struct Outcomes {
    consumer: &'static str,
    first: OnceLock<Instant>,
    count: AtomicUsize,
    failed: AtomicUsize,
}

impl Observer for Outcomes {
    fn observe(&self, consumer: &'static str, observed: &Observed<'_>) {
        if let (Observed::Outcome { outcome, .. }, true) = (observed, consumer == self.consumer) {
            self.first.get_or_init(Instant::now);
            self.count.fetch_add(1, Ordering::Relaxed);
            if *outcome != Outcome::Sent {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The services that `tests/services/up` started.
pub(crate) struct Services {
    pub(crate) brokers: String,
    pub(crate) redis: String,
}

impl Services {
    pub(crate) fn from_environment() -> anyhow::Result<Self> {
        let var = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: run tests/services/up"))
        };
        Ok(Self { brokers: var("TEST_KAFKA")?, redis: var("TEST_REDIS")? })
    }

    /// Makes a topic and fills it with keys and values.
    pub(crate) async fn fill(
        &self,
        topic: &str,
        partitions: i32,
        records: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<()> {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("queue.buffering.max.messages", "1000000")
            // Else a retried batch could land behind the next one and look like a replay.
            .set("enable.idempotence", "true");
        let admin: AdminClient<DefaultClientContext> = client.create()?;
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        // A topic with a fixed name may exist already; its records then join the backlog.
        for created in admin.create_topics([&new], &AdminOptions::new()).await? {
            if let Err((topic, error)) = created
                && error != RDKafkaErrorCode::TopicAlreadyExists
            {
                anyhow::bail!("topic {topic} was not created: {error}");
            }
        }
        let producer: ThreadedProducer<_> = client.create()?;
        for (key, value) in records {
            producer
                .send(BaseRecord::to(topic).key(&key).payload(&value))
                .map_err(|(error, _)| error)?;
        }
        producer.flush(Duration::from_secs(60))?;
        Ok(())
    }

    /// Settings of a daemon on these services.
    pub(crate) fn settings(&self, variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let environment: Environment = [
            ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
            ("KAFKA_BOOTSTRAP_SERVERS", &*self.brokers),
            ("REDIS_URL", &*self.redis),
        ]
        .iter()
        .chain(variables)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
        Ok(*registry::load(&environment, Path::new("")).settings?)
    }

    /// Runs a daemon until `fake` has `events`, and returns how many came in a second. Claims are
    /// in Redis.
    #[allow(dead_code, reason = "each benchmark has its own")]
    pub(crate) async fn run(
        &self,
        fake: &Fake,
        cache: Cache,
        events: usize,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<f64> {
        let running = self.start(fake.url(), None, cache, variables)?;
        fake.until(|log| log.events.len() >= events).await;
        let (took, count) = fake.inspect(|log| {
            // The clock starts at the first event: joining the group is not measured.
            let first = log.events.first().map(|event| event.at).unwrap_or_default();
            let last = log.events.last().map(|event| event.at).unwrap_or_default();
            (last - first, log.events.len())
        });
        running.stop().await?;
        ensure!(count == events, "each event once: {events}, not {count}");
        Ok(events as f64 / took.as_secs_f64())
    }

    /// The same with a sink. With `claims` they are kept in that memory, else in Redis.
    #[allow(dead_code, reason = "each benchmark has its own")]
    pub(crate) async fn run_to_sink(
        &self,
        event: &str,
        claims: Option<Arc<MemoryStore>>,
        events: usize,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<f64> {
        let sink = Sink::start(event).await?;
        let running = self.start(&sink.url, claims, Cache::none(), variables)?;
        sink.until(events).await?;
        running.stop().await?;
        let (count, took) = sink.result();
        ensure!(count == events, "each event once: {events}, not {count}");
        Ok(events as f64 / took.as_secs_f64())
    }

    /// Runs a daemon until the consumer of this name has seen so many records to their ends, and returns how
    /// many in a second.
    #[allow(dead_code, reason = "each benchmark has its own")]
    pub(crate) async fn run_to_outcomes(
        &self,
        consumer: &'static str,
        records: usize,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<f64> {
        let settings = self.settings(variables)?;
        let outcomes = Arc::new(Outcomes { consumer, ..Outcomes::default() });
        let observer = Arc::clone(&outcomes);
        let app = App::build(settings, &CONSUMERS, Stores::redis, Arc::new(observer))?;
        let (stop, signals) = mpsc::channel(1);
        let running = Running { stop, ended: tokio::spawn(app.run(signals)) };
        while outcomes.count.load(Ordering::Relaxed) < records {
            ensure!(!running.ended.is_finished(), "the daemon ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = outcomes.first.get().map(Instant::elapsed).unwrap_or_default();
        running.stop().await?;
        let failed = outcomes.failed.load(Ordering::Relaxed);
        ensure!(failed == 0, "{failed} records were not acted on");
        Ok(records as f64 / took.as_secs_f64())
    }

    fn start(
        &self,
        inngest: &str,
        claims: Option<Arc<MemoryStore>>,
        cache: Cache,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Running> {
        let mut all = vec![("INNGEST_EVENT_API_BASE_URL", inngest), ("INNGEST_EVENT_KEY", "bench")];
        all.extend(variables);
        let settings = self.settings(&all)?;
        let claims: Box<dyn Store> = match claims {
            Some(claims) => Box::new(claims),
            None => Box::new(RedisStore::new(connect(&self.redis)?, settings.dedup.window)),
        };
        let stores = |_: &_, _: &_| Ok(Stores { claims, cache });
        let app = App::build(settings, &CONSUMERS, stores, Arc::new(Recorder::default()))?;
        let (stop, signals) = mpsc::channel(1);
        Ok(Running { stop, ended: tokio::spawn(app.run(signals)) })
    }
}

/// A daemon at work.
struct Running {
    stop: mpsc::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn stop(self) -> anyhow::Result<()> {
        self.stop.send(()).await?;
        Ok(self.ended.await??)
    }
}
