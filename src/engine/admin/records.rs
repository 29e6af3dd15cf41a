//! Single records of a partition, in order. Blocks.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka;
use crate::recording::Recorded;

/// How long Kafka may stay silent before reading ends with an error.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Longest single wait for a record, so that the patience is looked at now and then.
const POLL: Duration = Duration::from_millis(200);

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No client can be made.
    #[error("cannot make a Kafka client")]
    Client(#[source] KafkaError),
    /// The partition cannot be read at all.
    #[error("cannot read the partition")]
    Partition(#[source] KafkaError),
    /// It ends where reading should begin.
    #[error("{place} holds no record yet: the partition ends there")]
    Empty {
        /// Topic, partition and offset.
        place: String,
    },
    /// The broker refuses.
    #[error("cannot read {place}")]
    Refused {
        /// Topic, partition and offset.
        place: String,
        /// librdkafka's reason.
        source: KafkaError,
    },
    /// Nothing came in time.
    #[error("cannot read {place} within {seconds} s: {why}")]
    Silent {
        /// Topic, partition and offset.
        place: String,
        /// How long was waited.
        seconds: u64,
        /// The last failure, if there was one.
        why: String,
    },
}

/// A partition from one offset on, up to its end.
pub struct Records {
    consumer: BaseConsumer,
    place: String,
    began: bool,
}

impl Records {
    /// Opens a partition with an assignment of its own, in no group.
    ///
    /// # Errors
    /// When there can be no client, or it does not take the partition.
    pub fn open(
        client: &ClientConfig,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<Self, ReadError> {
        let consumer: BaseConsumer = client
            .clone()
            // librdkafka wants a name although no group is joined.
            .set("group.id", "crm-event-processors-explain")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .create()
            .map_err(ReadError::Client)?;
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .and_then(|()| consumer.assign(&assignment))
            .map_err(ReadError::Partition)?;
        let place = format!("{topic} [{partition}] from offset {offset}");
        Ok(Self { consumer, place, began: false })
    }

    /// The next record; `None` at the partition's end.
    ///
    /// # Errors
    /// When there is no record at all, the broker refuses, or nothing comes within 30 s.
    pub fn read_next(&mut self) -> Result<Option<Recorded>, ReadError> {
        let asked = Instant::now();
        let mut last_error = None;
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let record = recorded(&message);
                    self.began = true;
                    return Ok(Some(record));
                }
                Some(Err(KafkaError::PartitionEOF(_))) if self.began => return Ok(None),
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    return Err(ReadError::Empty { place: self.place.clone() });
                }
                // Connections come and go; what stays wrong is told when patience ends.
                Some(Err(error)) if is_passing(&error) => last_error = Some(error),
                Some(Err(source)) => {
                    return Err(ReadError::Refused { place: self.place.clone(), source });
                }
                None => {}
            }
            if asked.elapsed() > READ_WITHIN {
                let why = last_error.map_or("no answer".to_owned(), |error| error.to_string());
                let (place, seconds) = (self.place.clone(), READ_WITHIN.as_secs());
                return Err(ReadError::Silent { place, seconds, why });
            }
        }
    }
}

fn is_passing(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
        )
    )
}

fn recorded(message: &BorrowedMessage<'_>) -> Recorded {
    let text = |name| String::from_utf8_lossy(name).into_owned();
    Recorded {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: kafka::headers(message)
            .into_iter()
            .map(|(name, value)| (text(name), value.map(<[u8]>::to_vec)))
            .collect(),
    }
}
