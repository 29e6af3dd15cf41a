//! The dead letter topic: records set aside for good reason, whole, with what went wrong.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::types::RDKafkaErrorCode;

use super::dead_letter_topic::DeadLetterTopic;
use super::raw::owned_headers;
use super::{Kafka, SavedRecord};

/// How long a dead letter may take to be acknowledged before its lane waits and tries again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often and how soon a letter is sent again after its topic's limit was raised. The broker
/// applies the new limit a moment later.
const RESENDS: u32 = 5;
const SOON: Duration = Duration::from_millis(200);

/// A record on its way to the dead letter topic.
pub(crate) struct DeadLetter<'a> {
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
#[error("dead letter topic {topic} cannot be written ({cause}): {}", advice(cause))]
pub(crate) struct NotWritten {
    topic: String,
    cause: KafkaError,
}

fn advice(cause: &KafkaError) -> &'static str {
    if is_of_size(cause) {
        "raise its max.message.bytes to that of the topics whose records it takes"
    } else {
        "create it, or allow this account to write it"
    }
}

/// Whether a letter was refused because it is too large.
fn is_of_size(cause: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessageSize, MessageBatchTooLarge, MessageSizeTooLarge};
    let code = cause.rdkafka_error_code();
    code.is_some_and(|code| {
        matches!(code, MessageSizeTooLarge | MessageBatchTooLarge | InvalidMessageSize)
    })
}

/// The parts of a record that go into its letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Whole,
    WithoutValue,
    /// Where it lies, and what went wrong.
    PlaceAlone,
}

impl Content {
    /// What is left out, as the letter says it.
    fn left_out(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::WithoutValue => Some("value"),
            Self::PlaceAlone => Some("value, key, headers"),
        }
    }
}

/// Writes dead letters, one after another acknowledged by all replicas.
pub struct DeadLetters {
    topic: DeadLetterTopic,
    client: ClientConfig,
    /// Made for the first letter: its polling thread costs about 1 % of a processor core from then
    /// on, and most processes never need it.
    producer: Mutex<Option<FutureProducer>>,
}

impl DeadLetters {
    /// Letters to `topic`.
    #[must_use]
    pub fn new(kafka: &Kafka, topic: &str) -> Self {
        let topic = DeadLetterTopic::new(topic, kafka.base());
        Self { topic, client: Self::configure(kafka), producer: Mutex::default() }
    }

    fn configure(kafka: &Kafka) -> ClientConfig {
        let timeout = WRITE_TIMEOUT.as_millis().to_string();
        let mut client = kafka.client(&[
            ("message.timeout.ms", &timeout),
            ("queue.buffering.max.kbytes", "262144"),
            // A record may be as large as its source topic allows, and the letter's headers come on
            // top. Only the broker can say what is too large: it counts compressed bytes.
            ("message.max.bytes", "1000000000"),
            ("compression.codec", "zstd"),
            // Each is acknowledged by itself, and none is refused for the size of others with it.
            ("batch.num.messages", "1"),
            // A missing topic is reported after this time instead of half a minute.
            ("topic.metadata.propagation.max.ms", "5000"),
        ]);
        client.set("enable.idempotence", "true");
        client
    }

    /// Makes the topic where it is missing and may be made, and has it take what `sources` take.
    /// What goes wrong is a warning: the topic is needed only once there is a dead letter.
    pub async fn ensure_topic(&self, sources: &[String]) {
        if let Err(error) = self.topic.ensure(sources).await {
            tracing::warn!(messaging.destination.name = self.topic.name(), %error,
                "dead letter topic cannot be created; records that need it will wait");
        }
    }

    /// Writes one record and waits until it is acknowledged: whole if the topic takes it or can be
    /// made to, else without its value, which lies where the letter says.
    pub(crate) async fn write(&self, letter: &DeadLetter<'_>) -> Result<(), NotWritten> {
        let mut sent = self.send(letter, Content::Whole).await;
        if sent.as_ref().is_err_and(is_of_size) && self.makes_room(letter).await {
            for _ in 0..RESENDS {
                tokio::time::sleep(SOON).await;
                sent = self.send(letter, Content::Whole).await;
                if !sent.as_ref().is_err_and(is_of_size) {
                    break;
                }
            }
        }
        for content in [Content::WithoutValue, Content::PlaceAlone] {
            if !sent.as_ref().is_err_and(is_of_size) {
                break;
            }
            sent = self.send(letter, content).await;
            if sent.is_ok() {
                tracing::warn!(
                    messaging.destination.name = self.topic.name(),
                    left_out = content.left_out(),
                    bytes = letter.record.size(),
                    "dead letter is too large for its topic, written without what lies at its source: \
                     raise max.message.bytes of the dead letter topic"
                );
            }
        }
        sent.map_err(|cause| NotWritten { topic: self.topic.name().to_owned(), cause })
    }

    /// Whether the topic did not take what the letter's source takes, and does from now on.
    async fn makes_room(&self, letter: &DeadLetter<'_>) -> bool {
        let widened = self.topic.widen(&[letter.topic], 1).await;
        widened.unwrap_or_else(|error| {
            tracing::debug!(messaging.destination.name = self.topic.name(), %error,
                "could not raise the size limit of the dead letter topic");
            false
        })
    }

    async fn send(&self, letter: &DeadLetter<'_>, content: Content) -> Result<(), KafkaError> {
        let timestamp = letter.record.timestamp_ms().map(|ms| ms.to_string());
        let (first_at, last_at) = (letter.first_at.to_string(), letter.last_at.to_string());
        let size = letter.record.size().to_string();
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
        let left_out = content.left_out();
        let left_out =
            left_out.map(|what| [("dlq.left_out", Some(what)), ("dlq.size", Some(&*size))]);
        let own = own.into_iter().chain(left_out.into_iter().flatten());
        let own = own.map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes)));
        let its = letter.record.headers().take_while(|_| content != Content::PlaceAlone);
        let headers = owned_headers(its.chain(own));
        let mut record = FutureRecord::<[u8], [u8]>::to(self.topic.name()).headers(headers);
        record.key = letter.record.key().filter(|_| content != Content::PlaceAlone);
        record.payload = letter.record.value().filter(|_| content == Content::Whole);
        let producer = self.producer()?;
        let Err((cause, _)) = producer.send(record, WRITE_TIMEOUT).await else { return Ok(()) };
        // The cause says more than the fact that the producer has failed for good.
        let why =
            producer.client().fatal_error().map(|(code, _)| KafkaError::MessageProduction(code));
        Err(why.unwrap_or(cause))
    }

    /// A producer that has not failed for good. An idempotent one does where the account may not
    /// write, and does not recover when it may. So the next letter gets a new one.
    fn producer(&self) -> KafkaResult<FutureProducer> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failed) = producer.take_if(|made| made.client().fatal_error().is_some()) {
            thread::spawn(move || drop(failed)); // it waits for its own thread
        }
        if let Some(made) = &*producer {
            return Ok(made.clone());
        }
        Ok(producer.insert(self.client.create()?).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rdkafka::message::OwnedMessage;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::config::{self, Environment};
    use crate::consumers::registry;

    #[test]
    fn what_is_too_large_is_advised_about_its_size() {
        let told = |code| {
            let cause = KafkaError::MessageProduction(code);
            NotWritten { topic: "crm.dlq".to_owned(), cause }.to_string()
        };
        assert!(told(RDKafkaErrorCode::MessageSizeTooLarge).ends_with("records it takes"));
        assert!(
            told(RDKafkaErrorCode::MessageBatchTooLarge).contains("raise its max.message.bytes")
        );
        assert!(told(RDKafkaErrorCode::TopicAuthorizationFailed).contains("allow this account"));
    }

    #[tokio::test]
    async fn a_letter_is_written_once_it_may_be() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("crm.dlq", 1, 1).expect("a topic");
        // What a broker says to an account that may not write any topic.
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refused]);
        let brokers = cluster.bootstrap_servers();
        let letters = DeadLetters::new(&Kafka::of(&settings(&brokers)), "crm.dlq");
        let record = SavedRecord::copy(
            &OwnedMessage::new(
                Some(b"whole".to_vec()),
                None,
                "orders".to_owned(),
                rdkafka::Timestamp::NotAvailable,
                0,
                7,
                None,
            ),
            &[],
        );
        let letter = DeadLetter {
            topic: "orders",
            partition: 0,
            offset: 7,
            record: &record,
            consumer: "marketplace",
            kind: "invalid_json",
            message: "spoilt",
            attempts: 1,
            first_at: Timestamp::UNIX_EPOCH,
            last_at: Timestamp::UNIX_EPOCH,
        };
        let refused = letters.write(&letter).await.expect_err("it may not").to_string();
        assert!(refused.contains("ClusterAuthorizationFailed"), "{refused}");
        letters.write(&letter).await.expect("it may now");
    }

    fn settings(brokers: &str) -> Box<config::Settings> {
        let environment: Environment = [
            ("KAFKA_BOOTSTRAP_SERVERS", brokers),
            ("INNGEST_EVENT_KEY", "test"),
            ("REDIS_URL", "redis://unused.invalid"),
            ("CONSUMERS", "marketplace"),
            ("KAFKA_PROPERTIES", "compression.type=lz4,delivery.timeout.ms=5000,linger.ms=1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        registry::load(&environment, Path::new("")).settings.expect("settings")
    }

    #[test]
    fn what_is_given_by_an_alias_is_what_counts_at_every_start() {
        let client = DeadLetters::configure(&Kafka::of(&settings("broker.invalid:9092")));
        for (name, value) in [
            ("compression.codec", Some("lz4")),
            ("compression.type", None),
            ("message.timeout.ms", Some("5000")),
            ("delivery.timeout.ms", None),
            ("enable.idempotence", Some("true")),
        ] {
            assert_eq!(client.get(name), value, "{name}");
        }
    }
}
