//! What one consumer's engine is made of, its settings, and what it can fail with.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::Observer;
use super::dispatch::backpressure::Bounds;
use super::dispatch::permits::Limits;
use super::dispatch::retry::Policy;
use super::vitals::Pulse;
use crate::cdc;
use crate::config::{Beginning, Properties, ReplayRecognition};
use crate::dedup::Claims;
use crate::kafka::{DeadLetters, Kafka};
use crate::outage::Breakers;

/// Who consumes what.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The consumer's name: in metrics, logs and dead letters.
    pub consumer: &'static str,
    /// The topics that it takes, in full.
    pub topics: Vec<String>,
    /// Those of them that carry commands in plain JSON instead of changes.
    pub command_topics: Vec<String>,
}

impl Subscription {
    /// Whether `topic` carries commands.
    #[must_use]
    pub fn takes_commands(&self, topic: &str) -> bool {
        self.command_topics.iter().any(|commands| commands == topic)
    }
}

/// Settings of one consumer's engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who consumes what.
    pub subscription: Subscription,
    /// Bound on parallel requests to Supabase.
    pub limits: Limits,
    /// Its group.
    pub group: String,
    /// Where the group begins with topics in which it has committed nothing; `None` where the cluster's
    /// settings say.
    pub start: Option<Beginning>,
    /// What the keys of its claims begin with. Groups have claims of their own: what one consumer
    /// has done, another may still have to do.
    pub claim_prefix: String,
    /// Its own librdkafka properties.
    pub properties: Properties,
    /// How to decode.
    pub decode: cdc::Options,
    /// Which changes are held against what is finished.
    pub replay_recognition: ReplayRecognition,
    /// What it may hold.
    pub bounds: Bounds,
    /// When and how often to try again.
    pub retry: Policy,
    /// How many records of one cause may be set aside before what follows is held; `None` never
    /// holds any.
    pub dlq_flood: Option<u32>,
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
    #[error("kafka client of group {group} cannot be created: check KAFKA_* settings")]
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
