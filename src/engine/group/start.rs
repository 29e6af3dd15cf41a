//! Where a newly assigned partition starts, and what is known of it (behaviour section 1).
//!
//! Runs on a blocking thread before the assignment is answered. Only then can commits be read, new
//! partitions be told from a new group, and losses be found.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};

use crate::engine::group::beginnings::{Beginner, Begun, Why};
use crate::engine::group::committed::{BROKER_TIMEOUT, BROKER_TIMEOUT_AGAIN, Name, committed};
use crate::engine::partition::metadata::{self, Kept, Log, Untold};
use crate::engine::partition::offsets::OffsetMap;
use crate::engine::partition::replay_index::ReplayIndex;
use crate::kafka::{GroupConsumer, TopicId};

/// How often, and how soon, to look again into a log that seems to end before the position.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where one partition starts.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) struct Start {
    /// Topic.
    pub(in crate::engine) topic: String,
    /// Partition.
    pub(in crate::engine) partition: i32,
    /// First offset to be delivered.
    pub(in crate::engine) offset: i64,
    /// What was finished before, for replay recognition.
    pub(in crate::engine) replay_index: ReplayIndex,
    /// The log that the committed offset is of.
    pub(in crate::engine) log: Log,
    /// What was completed at and above `offset`.
    pub(in crate::engine) completed: OffsetMap,
    /// What the group had committed.
    pub(in crate::engine) committed: Option<i64>,
    /// Where its log begins is not known yet: `offset` is a guess.
    pub(in crate::engine) unknown: bool,
    /// Set when committed records are gone: how many, where that can be known.
    pub(in crate::engine) lost: Option<Loss>,
    /// The offset that the committed metadata was made for, where that is another.
    pub(in crate::engine) metadata_of: Option<i64>,
}

/// Records that are gone although the group had not read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Loss {
    /// Retention removed this many.
    Expired(i64),
    /// The topic was recreated, or ends before the committed offset and nobody can tell since when.
    Recreated,
    /// The log was cut back, as the election of a lagging replica does. So many records that the
    /// group had passed are gone, and what came after them.
    CutBack(i64),
}

/// What the log of a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct Bounds {
    /// Its first offset.
    pub(in crate::engine) low: i64,
    /// The offset that the next record will have.
    pub(in crate::engine) high: i64,
    /// The first record that is not older than the newest finished one, else its end. `None` where
    /// that was not asked, or the newest finished one is not known.
    pub(in crate::engine) resume: Option<i64>,
}

/// Why no start was found.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum PlanError {
    /// The broker did not answer; ask again.
    #[error("the broker did not answer where to start")]
    Broker(#[from] KafkaError),
    /// The process is stopping.
    #[error("interrupted")]
    Interrupted,
}

/// Where partitions start.
#[derive(Debug, Default)]
pub(in crate::engine) struct Planned {
    /// Those that may be read.
    pub(in crate::engine) starts: Vec<Start>,
    /// Those of topics that have not begun.
    pub(in crate::engine) unbegun: Vec<(Name, Why)>,
    /// Nobody has decided about any topic of the group.
    pub(in crate::engine) nothing: bool,
}

/// Finds where each of `assigned` starts. `own` are those that this member has and that have not
/// begun, these among them. Blocks.
pub(in crate::engine) fn plan(
    beginner: &Beginner,
    assigned: &[Name],
    own: &HashSet<Name>,
) -> Result<Planned, PlanError> {
    let (consumer, group) = (&*beginner.client, &*beginner.group);
    beginner.look();
    let mut committed = committed(consumer, assigned)?;
    // The group's offsets go with a deleted topic, so one that is recreated has none.
    let is_new = |name: &&Name| !committed.contains_key(*name) && !beginner.read.contains(&*name.0);
    let new: HashSet<&str> = assigned.iter().filter(is_new).map(|(topic, _)| &**topic).collect();
    let mut begun = Begun::default();
    if !new.is_empty() {
        begun = beginner.begin(&new, own)?;
        committed = crate::engine::group::committed::committed(consumer, assigned)?;
    }
    for (topic, _) in committed.keys() {
        beginner.sights.has_begun(topic);
    }
    let ids = topic_ids(beginner, &committed);
    let mut planned = Planned { nothing: begun.nothing, ..Planned::default() };
    let mut timeout = BROKER_TIMEOUT;
    for name @ (topic, partition) in assigned {
        if let Some(why) = begun.not.get(topic) {
            planned.unbegun.push((name.clone(), *why));
            continue;
        }
        let known = committed.get(name);
        let log = bounds_of(consumer, (topic, *partition), known, timeout).inspect_err(|error| {
            // One partition without a leader must not hold up the others or the whole group. Where
            // its log begins, and whether it lost anything, is found once it can be read again.
            tracing::warn!(messaging.consumer.group.name = group,
                messaging.destination.name = topic,
                messaging.destination.partition.id = partition,
                %error, "partition cannot be reached, reading starts when it can");
            timeout = BROKER_TIMEOUT_AGAIN;
        });
        let log = log.ok();
        let start = start(topic, *partition, known, log);
        planned.starts.push(unless_replaced(start, log, ids.get(topic).copied()));
    }
    warn_of_moved(group, &planned.starts);
    Ok(planned)
}

/// The topics that the names stand for now, where commits say which they stood for. Blocks. A later
/// look finds what is not reported here.
fn topic_ids(
    beginner: &Beginner,
    committed: &HashMap<Name, (i64, String)>,
) -> HashMap<String, TopicId> {
    let names = committed.iter().filter(|(_, (offset, text))| {
        metadata::decode(*offset, text).is_ok_and(|kept| kept.log.topic.is_some())
    });
    let topics: HashSet<&String> = names.map(|((topic, _), _)| topic).collect();
    let topics: Vec<String> = topics.into_iter().cloned().collect();
    if topics.is_empty() {
        return HashMap::new();
    }
    beginner.kafka.topic_ids(&topics, BROKER_TIMEOUT).unwrap_or_default()
}

/// Starts at the beginning where another topic was made in the place of the one that the commit is
/// of. Nothing of it may be handled before: it would count as finished beside what the old one's
/// commit says.
fn unless_replaced(start: Start, bounds: Option<Bounds>, found: Option<TopicId>) -> Start {
    match (bounds, found, start.log.topic) {
        (Some(Bounds { low, .. }), Some(found), Some(was)) if found.replaces(was) => Start {
            offset: low,
            completed: OffsetMap::default(),
            lost: Some(Loss::Recreated),
            log: Log { topic: Some(found), newest_ms: None },
            ..start
        },
        _ => start,
    }
}

/// What the log of a partition holds for which this is committed. Blocks.
///
/// # Errors
/// As [`bounds`].
pub(in crate::engine) fn bounds_of(
    consumer: &GroupConsumer,
    name: (&str, i32),
    committed: Option<&(i64, String)>,
    timeout: Duration,
) -> KafkaResult<Bounds> {
    let next = committed.map_or(0, |(offset, _)| *offset);
    let kept = committed.and_then(|(offset, text)| metadata::decode(*offset, text).ok());
    bounds(consumer, name, next, kept.and_then(|kept| kept.log.newest_ms), false, timeout)
}

/// Says once that a tool committed offsets beside metadata that was made for others.
fn warn_of_moved(group: &str, starts: &[Start]) {
    let moved = starts.iter().filter_map(|start| Some((start, start.metadata_of?)));
    let partitions = moved.clone().count();
    let Some((start, made_for)) = { moved }.next() else { return };
    tracing::warn!(messaging.consumer.group.name = group, partitions,
        messaging.destination.name = %start.topic,
        messaging.destination.partition.id = start.partition,
        messaging.kafka.offset = start.offset, made_for,
        "committed metadata was made for another offset, as a tool leaves it that mirrors or moves offsets: \
         it is ignored, so what was finished there is known only from claims and event ids");
}

/// What the log of a partition holds whose next offset should be `next`. Where that is beyond its
/// end, or it is looked at `closely`, also where it goes on: the newest finished record has this
/// timestamp. Blocks.
///
/// # Errors
/// When its broker does not answer within `timeout`.
pub(in crate::engine) fn bounds(
    consumer: &GroupConsumer,
    (topic, partition): (&str, i32),
    next: i64,
    newest_ms: Option<i64>,
    closely: bool,
    timeout: Duration,
) -> KafkaResult<Bounds> {
    let mut found = consumer.fetch_watermarks(topic, partition, timeout)?;
    for _ in 0..LOOKS {
        if next <= found.1 {
            break;
        }
        // A leader that has just become one may not know the log's end yet.
        std::thread::sleep(LOOK_AGAIN);
        found = consumer.fetch_watermarks(topic, partition, timeout)?;
    }
    let (low, high) = found;
    let resume = match newest_ms {
        Some(ms) if next > high || closely => {
            Some(first_since(consumer, topic, partition, ms, timeout)?.unwrap_or(high))
        }
        _ => None,
    };
    Ok(Bounds { low, high, resume })
}

/// The first record of a partition that is not older than this, in milliseconds since 1970.
fn first_since(
    consumer: &GroupConsumer,
    topic: &str,
    partition: i32,
    ms: i64,
    timeout: Duration,
) -> KafkaResult<Option<i64>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(ms))?;
    let found = consumer.offsets_for_times(list, timeout)?;
    let Some(element) = found.elements().into_iter().next() else { return Ok(None) };
    element.error()?;
    Ok(match element.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    })
}

/// Decides for one partition, with what its log is known to hold. Pure.
pub(in crate::engine) fn start(
    topic: &str,
    partition: i32,
    known: Option<&(i64, String)>,
    bounds: Option<Bounds>,
) -> Start {
    let low = bounds.map_or(0, |bounds| bounds.low);
    // Without a commit on a topic that has begun, the partition is new: all of it is to be read.
    let (committed, text) = known.map_or((low, ""), |(offset, text)| (*offset, text));
    let told = metadata::decode(committed, text);
    let metadata_of = match told {
        Err(Untold::OfOffset(offset)) => Some(offset),
        _ => None,
    };
    let Kept { log, replay_index, completed } = told.unwrap_or_default();
    let (offset, completed, lost) = match bounds {
        Some(Bounds { low, .. }) if committed < low => {
            let gone = low - committed - completed.count_in(committed, low);
            (low, completed, (gone > 0).then_some(Loss::Expired(gone)))
        }
        Some(Bounds { high, resume: Some(offset), .. }) if committed > high => {
            (offset, OffsetMap::default(), Some(Loss::CutBack(committed - high)))
        }
        Some(Bounds { high, .. }) if committed > high => {
            (low, OffsetMap::default(), Some(Loss::Recreated))
        }
        _ => (committed, completed, None),
    };
    let unknown = bounds.is_none() && known.is_none();
    let topic = topic.to_owned();
    let committed = known.map(|(offset, _)| *offset);
    Start {
        topic,
        partition,
        offset,
        replay_index,
        log,
        completed,
        committed,
        unknown,
        lost,
        metadata_of,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::Position;
    use crate::engine::partition::replay_index::LoggedChange;

    /// What a log holds.
    #[expect(clippy::unnecessary_wraps, reason = "it stands for what is known of a log")]
    fn held(offsets: std::ops::Range<i64>) -> Option<Bounds> {
        Some(Bounds { low: offsets.start, high: offsets.end, resume: None })
    }

    #[test]
    fn a_partition_goes_on_where_it_was_committed_with_what_was_finished_above() {
        let completed = OffsetMap::from_ascending([12, 13]);
        let text = metadata::encode(10, Log::default(), &ReplayIndex::default(), &completed);
        let start = start("t", 0, Some(&(10, text)), held(0..100));
        assert_eq!((start.offset, start.completed, start.lost), (10, completed, None));
    }

    #[test]
    fn what_was_finished_above_another_offset_says_nothing() {
        // A mirror's group stands at 4, where the original stood at 10.
        let completed = OffsetMap::from_ascending([12, 13]);
        let position = Position { first: Some(1), lsn: 2, tx_id: Some(3), commit_us: 4 };
        let mut replay_index = ReplayIndex::default();
        replay_index.pass(&LoggedChange { source: 1, position, tie: 0 });
        let text = metadata::encode(10, Log::default(), &replay_index, &completed);
        let start = start("t", 0, Some(&(4, text)), held(0..100));
        assert_eq!((start.offset, start.metadata_of), (4, Some(10)));
        assert_eq!(
            (start.replay_index, start.completed),
            (ReplayIndex::default(), OffsetMap::default())
        );
    }

    #[test]
    fn a_topic_in_the_place_of_the_committed_one_is_read_from_its_beginning() {
        let id = |number| TopicId { cluster: 1, id: (number, number) };
        let log = Log { topic: Some(id(1)), newest_ms: Some(5) };
        let completed = OffsetMap::from_ascending([12]);
        let text = metadata::encode(10, log, &ReplayIndex::default(), &completed);
        let plain = start("t", 0, Some(&(10, text)), held(3..100));
        let other = unless_replaced(plain.clone(), held(3..100), Some(id(2)));
        assert_eq!((other.offset, other.lost), (3, Some(Loss::Recreated)));
        assert_eq!((other.log.topic, other.completed), (Some(id(2)), OffsetMap::default()));
        for (bounds, found) in
            [(held(3..100), Some(id(1))), (held(3..100), None), (None, Some(id(2)))]
        {
            assert_eq!(unless_replaced(plain.clone(), bounds, found), plain);
        }
    }

    #[test]
    fn a_new_partition_starts_at_its_beginning() {
        let start = start("t", 3, None, held(5..100));
        assert_eq!((start.offset, start.lost), (5, None));
    }

    #[test]
    fn records_that_retention_took_are_counted_as_lost() {
        let start = start("t", 0, Some(&(10, String::new())), held(25..100));
        assert_eq!((start.offset, start.lost), (25, Some(Loss::Expired(15))));
    }

    #[test]
    fn what_was_finished_above_a_record_that_retention_took_is_neither_lost_nor_done_again() {
        let completed = OffsetMap::from_ascending((11..20).chain(22..40));
        let text = metadata::encode(10, Log::default(), &ReplayIndex::default(), &completed);
        let start = start("t", 0, Some(&(10, text)), held(25..100));
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
        let start = start("t", 0, Some(&(90, "left by another client".into())), held(0..7));
        assert_eq!((start.offset, start.lost), (0, Some(Loss::Recreated)));
        assert_eq!(start.completed, OffsetMap::default());
    }

    #[test]
    fn a_log_that_was_cut_back_goes_on_at_the_first_record_not_older_than_the_newest_finished_one()
    {
        let completed = OffsetMap::from_ascending([92, 93]);
        let mut replay_index = ReplayIndex::default();
        let position = Position { first: Some(1), lsn: 2, tx_id: Some(3), commit_us: 4 };
        replay_index.pass(&LoggedChange { source: 1, position, tie: 0 });
        let text = metadata::encode(90, Log::default(), &replay_index, &completed);
        let bounds = Bounds { low: 3, high: 70, resume: Some(64) };
        let start = start("t", 0, Some(&(90, text)), Some(bounds));
        assert_eq!((start.offset, start.lost), (64, Some(Loss::CutBack(20))));
        assert_eq!((start.replay_index, start.completed), (replay_index, OffsetMap::default()));
    }
}
