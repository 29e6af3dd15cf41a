//! Where a newly assigned partition starts, and what is known of it (contract section 1).
//!
//! Runs on a blocking thread before the assignment is answered: that is the place where what was
//! committed can be read, new partitions be told from a new group, and losses be found.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};

use super::begin::{Beginner, Begun, Why};
use super::frontier::Frontier;
use super::metadata;
use super::offsets::OffsetMap;
use crate::kafka::{self, GroupConsumer};

/// How long the broker may take for one answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The same once one partition could not be reached: there may be many, and the group waits.
pub(super) const TIMEOUT_AGAIN: Duration = Duration::from_secs(1);
/// How often a log that seems to end before the position is looked into again, and how soon.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where one partition starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Start {
    /// Topic.
    pub(super) topic: String,
    /// Partition.
    pub(super) partition: i32,
    /// First offset to be delivered.
    pub(super) offset: i64,
    /// What was finished before, for replay recognition.
    pub(super) frontier: Frontier,
    /// What was completed at and above `offset`.
    pub(super) completed: OffsetMap,
    /// What the group had committed.
    pub(super) committed: Option<i64>,
    /// Where its log begins is not known yet: `offset` is a guess.
    pub(super) unknown: bool,
    /// Set when committed records are gone: how many, where that can be known.
    pub(super) lost: Option<Loss>,
}

/// Records that are gone although the group had not read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Retention removed this many.
    Expired(i64),
    /// The topic ends before the committed offset: it was made anew or cut off.
    Recreated,
}

/// Why no start was found.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    /// The broker did not answer; ask again.
    #[error("the broker did not tell where to start")]
    Broker(#[from] KafkaError),
    /// The process is stopping.
    #[error("interrupted")]
    Interrupted,
}

/// Topic and partition.
pub(super) type Name = (String, i32);

/// Where partitions start.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// Those that may be read.
    pub(super) starts: Vec<Start>,
    /// Those of topics that have not begun.
    pub(super) unbegun: Vec<(Name, Why)>,
    /// Nobody has decided about any topic of the group.
    pub(super) nothing: bool,
}

/// Finds where each of `assigned` starts. `own` are those that this member has and that have not
/// begun, these among them. Blocks.
pub(super) fn plan(
    beginner: &Beginner,
    assigned: &[Name],
    own: &HashSet<Name>,
) -> Result<Planned, PlanError> {
    let (consumer, group) = (&*beginner.client, &*beginner.group);
    beginner.look();
    let mut committed = committed(consumer, assigned)?;
    // The group's offsets go with a topic that is deleted: one that is made anew begins nowhere new.
    let is_new = |name: &&Name| !committed.contains_key(*name) && !beginner.read.contains(&*name.0);
    let new: HashSet<&str> = assigned.iter().filter(is_new).map(|(topic, _)| &**topic).collect();
    let mut begun = Begun::default();
    if !new.is_empty() {
        begun = beginner.begin(&new, own)?;
        committed = self::committed(consumer, assigned)?;
    }
    let mut planned = Planned { nothing: begun.nothing, ..Planned::default() };
    let mut timeout = TIMEOUT;
    for name @ (topic, partition) in assigned {
        if let Some(why) = begun.not.get(topic) {
            planned.unbegun.push((name.clone(), *why));
            continue;
        }
        let known = committed.get(name);
        let next = known.map_or(0, |(offset, _)| *offset);
        let log = log(consumer, topic, *partition, next, timeout).inspect_err(|error| {
            // One partition without a leader must not hold up the others, nor the whole group: where
            // its log begins, and whether it has lost anything, is found when it can be read again.
            tracing::warn!(messaging.consumer.group.name = group,
                messaging.destination.name = topic,
                messaging.destination.partition.id = partition,
                %error, "partition cannot be reached, is read when it can");
            timeout = TIMEOUT_AGAIN;
        });
        planned.starts.push(start(topic, *partition, known, log.ok()));
    }
    Ok(planned)
}

/// What the log of a partition holds whose next offset should be `next`. Blocks.
///
/// # Errors
/// When its broker does not answer within `timeout`.
pub(super) fn log(
    consumer: &GroupConsumer,
    topic: &str,
    partition: i32,
    next: i64,
    timeout: Duration,
) -> KafkaResult<(i64, i64)> {
    let mut found = consumer.fetch_watermarks(topic, partition, timeout)?;
    for _ in 0..LOOKS {
        if next <= found.1 {
            break;
        }
        // A leader that has just become one may not know the log's end yet.
        std::thread::sleep(LOOK_AGAIN);
        found = consumer.fetch_watermarks(topic, partition, timeout)?;
    }
    Ok(found)
}

/// Decides for one partition, of which the log is known to hold `low..high`. Pure.
pub(super) fn start(
    topic: &str,
    partition: i32,
    known: Option<&(i64, String)>,
    log: Option<(i64, i64)>,
) -> Start {
    let low = log.map_or(0, |(low, _)| low);
    // Without a commit on a topic that has begun, the partition is new: all of it is to be read.
    let (committed, text) = known.map_or((low, ""), |(offset, text)| (*offset, text));
    let (frontier, completed) = metadata::decode(committed, text).unwrap_or_default();
    let (offset, completed, lost) = match log {
        Some((low, _)) if committed < low => {
            let gone = low - committed - completed.count_in(committed, low);
            (low, completed, (gone > 0).then_some(Loss::Expired(gone)))
        }
        Some((_, high)) if committed > high => (low, OffsetMap::default(), Some(Loss::Recreated)),
        _ => (committed, completed, None),
    };
    let unknown = log.is_none() && known.is_none();
    let topic = topic.to_owned();
    let committed = known.map(|(offset, _)| *offset);
    Start { topic, partition, offset, frontier, completed, lost, committed, unknown }
}

/// The committed offsets and their metadata, of those partitions that have any.
pub(super) fn committed(
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
    let list = consumer.committed_offsets(list, TIMEOUT)?;
    for (element, metadata) in list.elements().iter().zip(kafka::metadata(&list)) {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let name = (element.topic().to_owned(), element.partition());
            found.insert(name, (offset, metadata));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_goes_on_where_it_was_committed_with_what_was_finished_above() {
        let completed = OffsetMap::from_ascending([12, 13]);
        let text = metadata::encode(10, &Frontier::default(), &completed);
        let start = start("t", 0, Some(&(10, text)), Some((0, 100)));
        assert_eq!((start.offset, start.completed, start.lost), (10, completed, None));
    }

    #[test]
    fn a_new_partition_starts_at_its_beginning() {
        let start = start("t", 3, None, Some((5, 100)));
        assert_eq!((start.offset, start.lost), (5, None));
    }

    #[test]
    fn records_that_retention_took_are_counted_as_lost() {
        let start = start("t", 0, Some(&(10, String::new())), Some((25, 100)));
        assert_eq!((start.offset, start.lost), (25, Some(Loss::Expired(15))));
    }

    #[test]
    fn what_was_finished_above_a_record_that_retention_took_is_neither_lost_nor_done_again() {
        let completed = OffsetMap::from_ascending((11..20).chain(22..40));
        let text = metadata::encode(10, &Frontier::default(), &completed);
        let start = start("t", 0, Some(&(10, text)), Some((25, 100)));
        assert_eq!((start.offset, start.lost), (25, Some(Loss::Expired(3))), "10, 20 and 21");
        assert!((25..40).all(|offset| start.completed.contains(offset)));
    }

    #[test]
    fn a_partition_that_cannot_be_reached_goes_on_where_it_was_committed() {
        let start = start("t", 0, Some(&(10, String::new())), None);
        assert_eq!((start.offset, start.lost, start.unknown), (10, None, false));
        assert!(super::start("t", 0, None, None).unknown, "a new one, whose log begins somewhere");
    }

    #[test]
    fn a_topic_made_anew_is_read_from_its_beginning() {
        let start = start("t", 0, Some(&(90, "left by another client".into())), Some((0, 7)));
        assert_eq!((start.offset, start.lost), (0, Some(Loss::Recreated)));
        assert_eq!(start.completed, OffsetMap::default());
    }
}
