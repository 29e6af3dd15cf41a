//! One consumer: its client, made anew where that helps, and the session that each client lives in.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;

use super::backpressure::Bounds;
use super::permits::Permits;
use super::retry::Policy;
use super::session::{End, Session};
use super::vitals::Pulse;
use super::work::Shared;
use super::{Consumer, Observer};
use crate::cdc;
use crate::config::Properties;
use crate::dedup::Claims;
use crate::kafka::{self, Context, DeadLetters, Kafka};
use crate::outage::Breakers;

/// How long to wait before a client that the broker refuses is made anew.
const ANEW: Duration = Duration::from_secs(3);

/// What one consumer's engine is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its group.
    pub group: String,
    /// What the keys of its claims begin with. Groups have claims of their own: what one consumer
    /// has done, another may still have to do.
    pub claim_prefix: String,
    /// Its own librdkafka properties.
    pub properties: Properties,
    /// How to decode.
    pub decode: cdc::Options,
    /// What it may hold.
    pub bounds: Bounds,
    /// When and how often to try again.
    pub retry: Policy,
    /// How long a revoked partition may finish what is in flight.
    pub drain_deadline: Duration,
    /// How long everything in flight may take to finish at a stop.
    pub stop_deadline: Duration,
    /// How often offsets are stored and committed.
    pub commit_interval: Duration,
}

/// Why a consumer ended although nobody stopped it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Its group cannot start without a decision.
    #[error("{0}")]
    NoStart(String),
    /// The client gave up.
    #[error("kafka client of group {group} gave up ({code}): {advice}")]
    Fatal {
        /// The group.
        group: String,
        /// librdkafka's reason.
        code: RDKafkaErrorCode,
        /// What to do.
        advice: &'static str,
    },
    /// The client could not be made.
    #[error("kafka client of group {group} cannot be made: check KAFKA_* settings")]
    Client {
        /// The group.
        group: String,
        /// librdkafka's reason.
        source: KafkaError,
    },
}

/// Everything that one consumer needs to run; `Engine<()>` still lacks the consumer.
pub struct Engine<C> {
    /// The consumer.
    pub consumer: Arc<C>,
    /// Its settings.
    pub settings: Settings,
    /// The cluster.
    pub kafka: Kafka,
    /// Where records are set aside.
    pub dead_letters: Arc<DeadLetters>,
    /// Claims of the process.
    pub claims: Claims,
    /// Dependencies of the process.
    pub breakers: Arc<Breakers>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Its signs of life.
    pub pulse: Arc<Pulse>,
}

impl Engine<()> {
    /// The engine of `consumer`.
    #[must_use]
    pub fn with<C: Consumer>(self, consumer: Arc<C>) -> Engine<C> {
        Engine {
            consumer,
            settings: self.settings,
            kafka: self.kafka,
            dead_letters: self.dead_letters,
            claims: self.claims,
            breakers: self.breakers,
            observer: self.observer,
            pulse: self.pulse,
        }
    }
}

impl<C: Consumer> Engine<C> {
    /// Consumes until `stop` is cancelled; then finishes what is in flight, commits, and leaves
    /// the group.
    ///
    /// # Errors
    /// When the consumer cannot go on by itself; see [`EngineError`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), EngineError> {
        let shared = Arc::new(Shared {
            group: self.settings.group.clone(),
            claim_prefix: self.settings.claim_prefix.clone(),
            claims: self.claims.clone(),
            permits: Permits::new(self.consumer.limits()),
        });
        loop {
            match self.session(&shared, &stop).await? {
                End::Stopped => return Ok(()),
                End::Anew(code) => {
                    tracing::warn!(messaging.consumer.group.name = %self.settings.group, %code,
                        "broker refuses this client for now, making it anew");
                    tokio::select! {
                        () = tokio::time::sleep(ANEW) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn session(
        &self,
        shared: &Arc<Shared>,
        stop: &CancellationToken,
    ) -> Result<End, EngineError> {
        let group = &self.settings.group;
        let failed = |source| EngineError::Client { group: group.clone(), source };
        let (context, signals) = Context::new(group);
        let closing = Arc::clone(&signals.closing);
        let client =
            self.kafka.consumer(group, &self.settings.properties, context).map_err(failed)?;
        let client = Arc::new(client);
        let topics = self.consumer.topics();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        client.subscribe(&names).map_err(failed)?;
        self.announce_missing(&client, &topics);

        let session = Session::new(self, Arc::clone(shared), Arc::clone(&client), topics, stop);
        let end = session.run(signals).await;
        // A client that gave up may hang for good when it is dropped.
        if !matches!(end, Err(EngineError::Fatal { .. })) {
            closing.store(true, std::sync::atomic::Ordering::Release);
            kafka::close(client).await;
        } else {
            std::mem::forget(client);
        }
        end
    }

    /// Says once which topics are not there yet: they are looked for as long as it takes, and the
    /// client itself names none of them.
    fn announce_missing(&self, client: &Arc<kafka::GroupConsumer>, topics: &[String]) {
        const TIMEOUT: Duration = Duration::from_secs(10);
        let (client, topics) = (Arc::clone(client), topics.to_vec());
        let group = self.settings.group.clone();
        tokio::task::spawn_blocking(move || {
            for topic in topics {
                let missing = client.fetch_metadata(Some(&topic), TIMEOUT).is_ok_and(|metadata| {
                    metadata.topics().iter().all(|found| found.partitions().is_empty())
                });
                if missing {
                    tracing::warn!(messaging.consumer.group.name = %group,
                        messaging.destination.name = %topic,
                        "topic does not exist yet, consuming starts when it appears");
                }
            }
        });
    }
}
