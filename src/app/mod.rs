//! The app: builds the enabled consumers and what they share once from the settings, runs them,
//! watches over them, and stops them.
//!
//! One consumer that cannot go on ends the process, so that the platform starts it again: a worker
//! without health checks has nobody else to notice (behaviour section 8.8).

mod error;
mod parts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::error::RunError;
pub use self::parts::{Stores, unasked};
use crate::clients::SetupError;
use crate::config::{Beginning, DedupOutage, ReplayRecognition, Settings, Spec};
use crate::consumers::entry::{AnyConsumer, Dependencies, Entry};
use crate::dedup::{Claims, OnOutage};
use crate::engine::dispatch::backpressure::Bounds;
use crate::engine::dispatch::permits::Limits;
use crate::engine::dispatch::retry::Policy;
use crate::engine::vitals::{AtWork, Pulse};
use crate::engine::{self, Engine, EngineError, Observer, Origin, Subscription};
use crate::kafka::{DeadLetters, Kafka};
use crate::outage::{Backoff, Breakers};

/// What a stop needs after the last work has ended: the last commit and leaving the group.
const STOP_RESERVE: Duration = Duration::from_secs(5);
/// Delivered offsets that may be above the committable offsets for each record that may be in hand:
/// about a hundred bytes each, kept while one record waits and the rest flows on.
const SPAN_PER_RECORD: usize = 30;
/// How often consumers are looked at.
const WATCH: Duration = Duration::from_secs(1);

/// The daemon, built and not yet running.
pub struct App {
    settings: Settings,
    breakers: Arc<Breakers>,
    claims: Claims,
    kafka: Kafka,
    dead_letters: Arc<DeadLetters>,
    observer: Arc<dyn Observer>,
    consumers: Vec<Enabled>,
}

/// A consumer that runs, or a branch of one.
struct Enabled {
    spec: &'static Spec,
    /// Its name in metrics and logs.
    name: &'static str,
    group: String,
    /// Where its group begins, if it says so itself.
    start: Option<Beginning>,
    takes_replays: bool,
    consumer: Arc<dyn AnyConsumer>,
    pulse: Arc<Pulse>,
}

impl Enabled {
    /// A consumer of an entry, then its branches.
    fn of(entry: &Entry, parts: &Dependencies<'_>) -> Result<Vec<Self>, SetupError> {
        let spec = entry.spec;
        let group = parts.settings.kafka.group_of(spec.name);
        let consumer = (entry.build)(parts)?;
        let pulse = Arc::default();
        let main = Self {
            spec,
            name: spec.name,
            group: group.clone(),
            start: None,
            takes_replays: false,
            consumer,
            pulse,
        };
        let branches = (entry.branches)(parts)?.into_iter().map(|branch| Self {
            spec,
            // As many as there are in the configuration, for as long as the process lives.
            name: format!("{}-{}", spec.name, branch.name).leak(),
            group: format!("{group}-{}", branch.name),
            start: branch.start,
            takes_replays: branch.takes_replays,
            consumer: branch.consumer,
            pulse: Arc::default(),
        });
        let all = std::iter::once(main).chain(branches);
        Ok(all.filter(|enabled| enabled.consumer.has_work()).collect())
    }
}

impl App {
    /// Builds everything that the enabled consumers need, which are among `registry`; `stores` says where
    /// claims are kept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn build(
        settings: Settings,
        registry: &[Entry],
        stores: impl FnOnce(&Settings, &Breakers) -> Result<Stores, RunError>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, RunError> {
        let breakers = parts::breakers(&settings);
        let stores = stores(&settings, &breakers)?;
        let on_outage = match settings.dedup.on_outage {
            DedupOutage::Wait => OnOutage::Wait,
            DedupOutage::Proceed => OnOutage::Proceed,
        };
        let claims = Claims::start(
            stores.claims,
            breakers.get("redis"),
            on_outage,
            settings.dedup.window,
            settings.inngest.cancel_settle,
        );
        let kafka = Kafka::of(&settings);
        let dead_letters = Arc::new(DeadLetters::new(&kafka, &settings.kafka.dlq_topic));
        let parts = parts::dependencies(&settings, &breakers, stores.cache)?;
        let enabled = registry.iter().filter(|entry| settings.consumers.contains(&entry.spec));
        let mut consumers = Vec::new();
        for entry in enabled {
            consumers.extend(Enabled::of(entry, &parts)?);
        }
        Ok(Self { settings, breakers, claims, kafka, dead_letters, observer, consumers })
    }

    /// The dependencies, for the health endpoints.
    #[must_use]
    pub fn breakers(&self) -> Arc<Breakers> {
        Arc::clone(&self.breakers)
    }

    /// Each consumer's name and signs of life, for the health endpoints.
    #[must_use]
    pub fn pulses(&self) -> Vec<(&'static str, Arc<Pulse>)> {
        let pulses = self.consumers.iter();
        pulses.map(|enabled| (enabled.name, Arc::clone(&enabled.pulse))).collect()
    }

    /// Runs until the first word on `signals`, then finishes what is in flight; a second word, or
    /// the end of `SHUTDOWN_GRACE`, ends it at once and loses nothing.
    ///
    /// # Errors
    /// When a consumer cannot go on.
    pub async fn run(self, signals: mpsc::Receiver<()>) -> Result<(), RunError> {
        let dead_letters = Arc::clone(&self.dead_letters);
        let sources: Vec<String> = self
            .consumers
            .iter()
            .flat_map(|enabled| self.settings.topics_of(enabled.spec))
            .collect();
        tokio::spawn(async move { dead_letters.ensure_topic(&sources).await });
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        for enabled in &self.consumers {
            let engine = self.engine(enabled);
            tracing::info!(consumer = enabled.name,
                topics = ?engine.settings.subscription.topics, "consumer started");
            running.spawn(Arc::clone(&enabled.consumer).run(engine, stop.clone()));
        }
        self.watch(running, stop, signals).await
    }

    /// Says what [`Self::run`] would do, as long as that would run, and leaves no trace: no group
    /// is joined, nothing is committed, claimed, sent or set aside.
    ///
    /// # Errors
    /// When a consumer cannot go on, or may read nothing.
    pub async fn shadow(self, signals: mpsc::Receiver<()>) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        for enabled in &self.consumers {
            let engine = self.engine(enabled);
            tracing::info!(consumer = enabled.name,
                topics = ?engine.settings.subscription.topics,
                "consumer started as a shadow: it decides and does nothing");
            running.spawn(Arc::clone(&enabled.consumer).shadow(engine, stop.clone()));
        }
        self.watch(running, stop, signals).await
    }

    async fn watch(
        &self,
        mut running: JoinSet<Result<(), EngineError>>,
        stop: CancellationToken,
        mut signals: mpsc::Receiver<()>,
    ) -> Result<(), RunError> {
        let mut watch = tokio::time::interval(WATCH);
        let ended = loop {
            tokio::select! {
                _ = signals.recv() => break Ok(()),
                Some(ended) = running.join_next() => match flatten(ended) {
                    Ok(()) if running.is_empty() => return Ok(()),
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                _ = watch.tick() => {
                    if let Some(error) = self.nothing_to_read() {
                        break Err(error);
                    }
                    if let Some(error) = self.stalled() {
                        // Whatever holds it up may hold up a clean stop too.
                        return Err(error);
                    }
                }
            }
        };
        if ended.is_ok() {
            tracing::info!("stop signal, finishing what is in flight");
        }
        stop.cancel();
        let all = async {
            while let Some(ended) = running.join_next().await {
                if let Err(error) = flatten(ended) {
                    tracing::warn!(%error, "consumer ended while stopping");
                }
            }
        };
        tokio::select! {
            () = all => tracing::info!("stopped"),
            _ = signals.recv() => tracing::warn!("second signal, stopping at once"),
            () = tokio::time::sleep(self.settings.engine.shutdown_grace) => {
                tracing::warn!("SHUTDOWN_GRACE is over, stopping at once");
            }
        }
        ended
    }

    /// One consumer that may read nothing is no reason to stop the others; all of them are.
    fn nothing_to_read(&self) -> Option<RunError> {
        let vitals: Vec<_> = self.consumers.iter().map(|enabled| enabled.pulse.read()).collect();
        if vitals.is_empty() || !vitals.iter().all(|vitals| vitals.held.all) {
            return None;
        }
        let groups: Vec<_> = self.consumers.iter().map(|it| it.group.as_str()).collect();
        let example = vitals.iter().find_map(|vitals| vitals.held.topics.keys().next());
        Some(RunError::NothingToRead {
            groups: groups.join(", "),
            example: example.cloned().unwrap_or_default(),
        })
    }

    fn stalled(&self) -> Option<RunError> {
        let (now, timeout) = (Instant::now(), self.settings.engine.stall_timeout);
        let mut vitals = self.consumers.iter().map(|it| (it.name, it.pulse.read()));
        let (consumer, vitals) = vitals.find(|(_, vitals)| vitals.stalled(now, timeout))?;
        let hangs = vitals.hangs(now, timeout).map(|AtWork { origin, .. }| {
            let Origin { topic, partition, offset } = origin;
            format!(": the record at offset {offset} of {topic} [{partition}] hangs")
        });
        Some(RunError::Stalled {
            consumer,
            seconds: timeout.as_secs(),
            hangs: hangs.unwrap_or_default(),
        })
    }
}

fn flatten(ended: Result<Result<(), EngineError>, tokio::task::JoinError>) -> Result<(), RunError> {
    match ended {
        Ok(ended) => Ok(ended?),
        Err(_) => Err(RunError::Panicked),
    }
}

impl App {
    /// Everything that a consumer needs to run but itself.
    fn engine(&self, enabled: &Enabled) -> Engine<()> {
        let Settings { engine, cdc, .. } = &self.settings;
        let spec = enabled.spec;
        let group = enabled.group.clone();
        let own = self.settings.consumer(spec);
        // One bound for the process, shared out equally.
        let shares = self.consumers.len().max(1);
        Engine {
            consumer: Arc::new(()),
            settings: engine::Settings {
                subscription: Subscription {
                    consumer: enabled.name,
                    topics: self.settings.topics_of(spec),
                    command_topics: self.settings.command_topics_of(spec),
                },
                limits: Limits { min: own.concurrency.min, max: own.concurrency.max },
                claim_prefix: format!("{}{group}:", self.settings.redis.key_prefix),
                group,
                start: enabled.start,
                properties: own.kafka_properties,
                decode: cdc.clone(),
                replay_recognition: match enabled.takes_replays {
                    true => ReplayRecognition::Off,
                    false => self.settings.dedup.replay_recognition,
                },
                bounds: Bounds {
                    records: (engine.buffer_records / shares).max(1),
                    bytes: (engine.buffer_bytes - parts::written_bytes(engine)) / shares,
                    span: engine.buffer_records.saturating_mul(SPAN_PER_RECORD) / shares,
                },
                retry: Policy {
                    backoff: Backoff { base: engine.backoff_base, max: engine.backoff_max },
                    poison_attempts: engine.poison_attempts,
                    poison_after: engine.poison_after,
                },
                dlq_flood: engine.dlq_flood,
                drain_deadline: engine.drain_deadline,
                stop_deadline: engine.shutdown_grace.saturating_sub(STOP_RESERVE),
                commit_interval: engine.commit_interval,
            },
            kafka: self.kafka.clone(),
            dead_letters: Arc::clone(&self.dead_letters),
            claims: self.claims.clone(),
            breakers: Arc::clone(&self.breakers),
            observer: Arc::clone(&self.observer),
            pulse: Arc::clone(&enabled.pulse),
        }
    }
}
