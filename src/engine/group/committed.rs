//! What a group has committed.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::{self, GroupConsumer};

/// How long the broker may take for one answer.
pub(in crate::engine) const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same once one partition could not be reached. There may be many more, and the group waits.
pub(in crate::engine) const BROKER_TIMEOUT_AGAIN: Duration = Duration::from_secs(1);

/// Topic and partition.
pub(in crate::engine) type Name = (String, i32);

/// The committed offsets and their metadata, of those partitions that have any. Blocks.
///
/// # Errors
/// When the group's broker does not answer in time, or refuses.
pub(in crate::engine) fn committed(
    consumer: &GroupConsumer,
    names: &[Name],
) -> KafkaResult<HashMap<Name, (i64, String)>> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let mut list = TopicPartitionList::with_capacity(names.len());
    for (topic, partition) in names {
        list.add_partition(topic, *partition);
    }
    let mut found = HashMap::with_capacity(names.len());
    let list = consumer.committed_offsets(list, BROKER_TIMEOUT)?;
    for (element, metadata) in list.elements().iter().zip(kafka::metadata(&list)) {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let name = (element.topic().to_owned(), element.partition());
            found.insert(name, (offset, metadata));
        }
    }
    Ok(found)
}
