//! The dead letter topic: records set aside for good reason, whole, with what went wrong.

use std::time::Duration;

use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::OnceCell;

use super::raw::owned_headers;
use super::{Kafka, SavedRecord};

/// How long a dead letter may take to be acknowledged before its lane waits and tries again.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long looking for the topic, or making it, may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A record on its way to the dead letter topic.
pub(crate) struct Letter<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) record: &'a SavedRecord,
    pub(crate) consumer: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) message: &'a str,
    pub(crate) attempts: u32,
    pub(crate) first_at: Timestamp,
    pub(crate) last_at: Timestamp,
}

/// Why a dead letter was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[error(
    "dead letter topic {topic} cannot be written ({cause}): create it, or allow this account to write it"
)]
pub(crate) struct NotWritten {
    topic: String,
    cause: KafkaError,
}

/// Writes dead letters, one after another acknowledged by all replicas.
pub struct DeadLetters {
    topic: String,
    client: ClientConfig,
    /// Made for the first letter: its polling thread costs about 1 % of a processor core from then
    /// on, and most processes never need it.
    producer: OnceCell<FutureProducer>,
}

impl DeadLetters {
    /// Letters to `topic`.
    #[must_use]
    pub fn new(kafka: &Kafka, topic: &str) -> Self {
        let mut client: ClientConfig = kafka.base();
        client.set("enable.idempotence", "true");
        client.set("message.timeout.ms", TIMEOUT.as_millis().to_string());
        client.set("queue.buffering.max.kbytes", "65536");
        // A record may be as large as its own topic takes, and the headers come on top: what is too
        // large is for the broker to say, which weighs what is compressed.
        client.set("message.max.bytes", "1000000000");
        client.set("compression.type", "zstd");
        // A topic that is missing is said to be so after this time, not after half a minute.
        client.set("topic.metadata.propagation.max.ms", "5000");
        Self { topic: topic.to_owned(), client, producer: OnceCell::new() }
    }

    /// Makes the topic where it is missing and may be made. What goes wrong is a warning: the
    /// topic is needed only once there is a dead letter.
    pub async fn ensure_topic(&self, kafka: &Kafka) {
        let ensured = async {
            if self.topic_exists(kafka).await? {
                return Ok(());
            }
            self.create_topic(kafka).await
        };
        if let Err(error) = ensured.await {
            tracing::warn!(messaging.destination.name = %self.topic, %error,
                "dead letter topic cannot be made; records that need it will wait");
        }
    }

    /// Asked first: an account may see the topic and not be allowed to make one.
    async fn topic_exists(&self, kafka: &Kafka) -> KafkaResult<bool> {
        // Not the producer: asking for a topic that is missing could make it.
        let client: BaseConsumer =
            kafka.base().set("allow.auto.create.topics", "false").create()?;
        let topic = self.topic.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let metadata = client.fetch_metadata(Some(&topic), ADMIN_TIMEOUT)?;
            Ok(metadata.topics().iter().any(|found| found.error().is_none()))
        });
        asking.await.unwrap_or(Err(KafkaError::Canceled))
    }

    async fn create_topic(&self, kafka: &Kafka) -> KafkaResult<()> {
        let admin: AdminClient<DefaultClientContext> = kafka.base().create()?;
        let topic = NewTopic::new(&self.topic, 1, TopicReplication::Fixed(-1));
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT));
        for result in admin.create_topics([&topic], &options).await? {
            match result {
                Ok(_) => {
                    tracing::info!(messaging.destination.name = %self.topic, "dead letter topic made");
                }
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(KafkaError::AdminOp(code)),
            }
        }
        Ok(())
    }

    /// Writes one record and waits until it is acknowledged.
    pub(crate) async fn write(&self, letter: &Letter<'_>) -> Result<(), NotWritten> {
        let timestamp = letter.record.timestamp_ms().map(|ms| ms.to_string());
        let (first_at, last_at) = (letter.first_at.to_string(), letter.last_at.to_string());
        let own = [
            ("dlq.topic", Some(letter.topic)),
            ("dlq.partition", Some(&*letter.partition.to_string())),
            ("dlq.offset", Some(&*letter.offset.to_string())),
            ("dlq.timestamp", timestamp.as_deref()),
            ("dlq.consumer", Some(letter.consumer)),
            ("dlq.error.kind", Some(letter.kind)),
            ("dlq.error.message", Some(letter.message)),
            ("dlq.attempts", Some(&*letter.attempts.to_string())),
            ("dlq.first_at", Some(&*first_at)),
            ("dlq.last_at", Some(&*last_at)),
        ];
        let own = own.iter().map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes)));
        let headers = owned_headers(letter.record.headers().chain(own));
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        record.key = letter.record.key();
        record.payload = letter.record.value();
        let not_written = |cause| NotWritten { topic: self.topic.clone(), cause };
        let producer = self.producer.get_or_try_init(async || self.client.create());
        let sent = producer.await.map_err(not_written)?.send(record, TIMEOUT).await;
        sent.map_or_else(|(cause, _)| Err(not_written(cause)), |_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{self, Environment};
    use crate::double::broker::Broker;

    #[tokio::test]
    async fn a_topic_is_looked_for_before_it_is_made() {
        let broker = Broker::start().expect("a broker");
        broker.create_topic("there", 1).expect("a topic");
        let environment: Environment = [
            ("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap()),
            ("INNGEST_EVENT_KEY", "test"),
            ("REDIS_URL", "redis://unused.invalid"),
            ("CONSUMERS", "marketplace"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let settings = config::load(&environment, Path::new("")).settings.expect("settings");
        let kafka = Kafka::of(&settings);
        for (topic, exists) in [("there", true), ("missing", false)] {
            let letters = DeadLetters::new(&kafka, topic);
            assert_eq!(letters.topic_exists(&kafka).await, Ok(exists), "{topic}");
        }
    }
}
