//! Where topics begin of which the group has committed nothing (behaviour section 1).
//!
//! A topic begins with one commit for all its partitions, so that it has begun for every member or
//! for none. Where it begins at a moment (its end, a time), two members would decide differently.
//! So the member with its first partition decides, and the others wait for its commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Beginning;
use crate::engine::Consumer;
use crate::engine::group::committed::{BROKER_TIMEOUT, BROKER_TIMEOUT_AGAIN, Name, committed};
use crate::engine::settings::Engine;
use crate::kafka::{GroupConsumer, Kafka};

/// Why a topic has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Why {
    /// It holds records, and nobody has said where it begins.
    Undecided,
    /// The member that has its first partition says where it begins.
    Another,
    /// Its log cannot be looked into, or its beginning not be committed.
    Unreachable,
}

/// What was seen of a topic when it was first looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// It did not exist or was empty, or the group has read it. If nothing of it is committed, all
    /// that it holds came afterwards.
    New,
    /// It exists; what it holds was not looked at.
    There,
    /// It held records.
    Old,
}

/// What one consumer has seen of its topics since it was started, whatever clients it has had.
#[derive(Debug, Default)]
pub(in crate::engine) struct Sights(Mutex<HashMap<String, Sight>>);

impl Sights {
    fn of(&self, topic: &str) -> Option<Sight> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(topic).copied()
    }

    /// The group has read some of it. If it is recreated, all that it holds then is new.
    pub(in crate::engine) fn has_begun(&self, topic: &str) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(topic.to_owned(), Sight::New);
    }

    /// Notes what was seen, unless more was seen before; answers what is known now, and whether it
    /// was noted.
    fn note(&self, topic: &str, sight: Sight) -> (Sight, bool) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.get(topic).copied();
        if known.is_none() || (known == Some(Sight::There) && sight != Sight::There) {
            seen.insert(topic.to_owned(), sight);
            return (sight, true);
        }
        (known.unwrap_or(sight), false)
    }
}

/// Who begins topics.
pub(in crate::engine) struct Beginner {
    pub(in crate::engine) client: Arc<GroupConsumer>,
    pub(in crate::engine) kafka: Kafka,
    pub(in crate::engine) group: String,
    /// All topics of the group, and where they begin if anybody has said so.
    pub(in crate::engine) topics: Vec<(String, Option<Beginning>)>,
    /// Those that this session has read: none of them is new to the group.
    pub(in crate::engine) read: HashSet<Arc<str>>,
    /// What was seen of them.
    pub(in crate::engine) sights: Arc<Sights>,
}

/// What came of beginning topics.
#[derive(Debug, Default)]
pub(in crate::engine) struct Begun {
    /// Those that have not, of those that were to.
    pub(in crate::engine) not: BTreeMap<String, Why>,
    /// Nobody has decided about any topic of the group.
    pub(in crate::engine) nothing: bool,
}

impl Beginner {
    /// Begins the topics of an engine's group; those that are `read` are not new to it.
    pub(in crate::engine) fn new<C: Consumer>(
        engine: &Engine<C>,
        client: &Arc<GroupConsumer>,
        read: HashSet<Arc<str>>,
        sights: &Arc<Sights>,
    ) -> Self {
        let topics = engine.settings.subscription.topics.clone().into_iter();
        Self {
            client: Arc::clone(client),
            kafka: engine.kafka.clone(),
            group: engine.settings.group.clone(),
            topics: topics
                .map(|topic| {
                    let start = engine.settings.start;
                    (topic.clone(), start.or_else(|| engine.kafka.beginning_of(&topic)))
                })
                .collect(),
            read,
            sights: Arc::clone(sights),
        }
    }

    /// Notes which topics do not exist yet, and says so once, since the client names none of them.
    /// They are looked for as long as it takes. Answers whether all were looked at. Blocks.
    pub(in crate::engine) fn look(&self) -> bool {
        let unseen = self.topics.iter().filter(|(topic, _)| self.sights.of(topic).is_none());
        let mut all = true;
        for (topic, _) in unseen {
            match partitions(&self.client, topic) {
                Ok(found) if !found.is_empty() => drop(self.sights.note(topic, Sight::There)),
                Ok(_) if self.sights.note(topic, Sight::New).1 => {
                    tracing::warn!(messaging.consumer.group.name = %self.group,
                        messaging.destination.name = %topic,
                        "topic does not exist yet, consuming starts when it appears");
                }
                Ok(_) => {}
                Err(_) => all = false,
            }
        }
        all
    }

    /// Begins those of `topics` of which the group has committed nothing. `own` are the partitions
    /// that this member has. Blocks.
    ///
    /// # Errors
    /// When the group's offsets cannot be read.
    pub(in crate::engine) fn begin(
        &self,
        topics: &HashSet<&str>,
        own: &HashSet<Name>,
    ) -> KafkaResult<Begun> {
        let mut begun = Begun { nothing: true, ..Begun::default() };
        for (topic, told) in &self.topics {
            let ours = topics.contains(&**topic);
            let numbers = partitions(&self.client, topic).unwrap_or_default();
            let names: Vec<Name> = numbers.iter().map(|part| (topic.clone(), *part)).collect();
            if names.is_empty() && ours {
                begun.not.insert(topic.clone(), Why::Unreachable);
            }
            // One that is away, or was read by this member and recreated, may be read.
            if names.is_empty() || self.read.contains(&**topic) {
                begun.nothing = false;
                continue;
            }
            if !committed(&self.client, &names)?.is_empty() {
                self.sights.has_begun(topic);
                begun.nothing = false;
                continue;
            }
            let beginning = self.beginning(topic, &names, *told);
            begun.nothing &= beginning == Err(Why::Undecided);
            if !ours {
                continue;
            }
            let is_first = names.first().is_some_and(|first| own.contains(first));
            let done = match beginning {
                Ok(Some(_)) if !is_first => Err(Why::Another),
                Ok(Some(told)) => self.begin_at(&names, &names, Some(told)),
                // Every member begins what it has. One that comes late takes no other member's
                // commit back.
                Ok(None) => {
                    let had: Vec<Name> =
                        names.iter().filter(|name| own.contains(*name)).cloned().collect();
                    self.begin_at(&names, &had, None)
                }
                Err(why) => Err(why),
            };
            if let Err(why) = done {
                begun.not.insert(topic.clone(), why);
            }
        }
        Ok(begun)
    }

    /// Where a topic begins of which nothing is committed: where the settings say, or at its
    /// beginning if it is new.
    pub(in crate::engine) fn beginning(
        &self,
        topic: &str,
        names: &[Name],
        told: Option<Beginning>,
    ) -> Result<Option<Beginning>, Why> {
        let sight = match self.sights.of(topic) {
            Some(sight @ (Sight::New | Sight::Old)) => sight,
            Some(Sight::There) | None => {
                let bounds: Vec<_> = self.bounds(names).into_iter().map(Result::ok).collect();
                self.sights.note(topic, sight(&bounds).ok_or(Why::Unreachable)?).0
            }
        };
        match sight {
            Sight::New => Ok(None),
            Sight::Old | Sight::There => told.map(Some).ok_or(Why::Undecided),
        }
    }

    /// What the logs of these partitions hold.
    fn bounds(&self, names: &[Name]) -> Vec<KafkaResult<(i64, i64)>> {
        let mut timeout = BROKER_TIMEOUT;
        let bounds = |(topic, partition): &Name| {
            let found = self.client.fetch_watermarks(topic, *partition, timeout);
            if found.is_err() {
                timeout = BROKER_TIMEOUT_AGAIN;
            }
            found
        };
        names.iter().map(bounds).collect()
    }

    /// Where these partitions begin, all those of a topic.
    ///
    /// # Errors
    /// When their logs cannot be looked into.
    pub(in crate::engine) fn places(
        &self,
        names: &[Name],
        beginning: Option<Beginning>,
    ) -> KafkaResult<Vec<(Name, i64)>> {
        // The ends are read before the times. What arrives in between lies behind the end that is
        // known here.
        let bounds = self.bounds(names);
        let later = match beginning {
            Some(Beginning::At(time)) => self.at(names, time)?,
            _ => HashMap::new(),
        };
        let mut places = Vec::with_capacity(names.len());
        for (name, bounds) in names.iter().zip(bounds) {
            let (low, high) = match (bounds, beginning) {
                (Ok(bounds), _) => bounds,
                (Err(error), Some(_)) => return Err(error),
                // It is new as soon as another is committed, and begins where a new topic's does.
                (Err(_), None) => continue,
            };
            let place = match beginning {
                None | Some(Beginning::Earliest) => low,
                Some(Beginning::Latest) => high,
                Some(Beginning::At(_)) => later.get(name).copied().unwrap_or(high),
            };
            places.push((name.clone(), place));
        }
        Ok(places)
    }

    /// Commits where `some` of a topic's partitions begin; `names` are all.
    fn begin_at(
        &self,
        names: &[Name],
        some: &[Name],
        beginning: Option<Beginning>,
    ) -> Result<(), Why> {
        let begin = || -> KafkaResult<()> {
            let mut list = TopicPartitionList::new();
            for (name, place) in self.places(some, beginning)? {
                list.add_partition_offset(&name.0, name.1, Offset::Offset(place))?;
            }
            // Looked at again right before: another member may have begun it in the meantime.
            if list.count() > 0 && committed(&self.client, names)?.is_empty() {
                self.client.commit(&list, CommitMode::Sync)?;
            }
            Ok(())
        };
        let topic = names.first().map_or("", |name| &*name.0);
        begin().map_err(|error| {
            tracing::warn!(messaging.consumer.group.name = %self.group,
                messaging.destination.name = topic, %error,
                "the beginning of a topic cannot be committed, trying again");
            Why::Unreachable
        })?;
        let place = match beginning {
            None => "its beginning, it is new".to_owned(),
            Some(Beginning::Earliest) => "its beginning".to_owned(),
            Some(Beginning::Latest) => "its end".to_owned(),
            Some(Beginning::At(time)) => time.to_string(),
        };
        tracing::info!(messaging.consumer.group.name = %self.group,
            messaging.destination.name = topic, place, "topic begins");
        Ok(())
    }

    /// The first record of each partition that is not older than `time`, of those that have one.
    fn at(&self, names: &[Name], time: jiff::Timestamp) -> KafkaResult<HashMap<Name, i64>> {
        let mut list = TopicPartitionList::new();
        // Negative ones mean something else.
        let time = Offset::Offset(time.as_millisecond().max(0));
        for (topic, partition) in names {
            list.add_partition_offset(topic, *partition, time)?;
        }
        let mut found = HashMap::new();
        for element in self.client.offsets_for_times(list, BROKER_TIMEOUT)?.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                found.insert((element.topic().to_owned(), element.partition()), offset);
            }
        }
        Ok(found)
    }
}

/// What a topic with these logs is at first sight, where that is known. Pure.
fn sight(bounds: &[Option<(i64, i64)>]) -> Option<Sight> {
    if bounds.iter().flatten().any(|(low, high)| low < high) {
        return Some(Sight::Old);
    }
    (!bounds.contains(&None)).then_some(Sight::New)
}

/// The partitions of a topic; none where it does not exist.
pub(in crate::engine) fn partitions(client: &GroupConsumer, topic: &str) -> KafkaResult<Vec<i32>> {
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    let metadata = client.fetch_metadata(Some(topic), BROKER_TIMEOUT)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(Vec::new());
    };
    match found.error() {
        None => {
            let mut numbers: Vec<i32> = found.partitions().iter().map(|part| part.id()).collect();
            numbers.sort_unstable();
            Ok(numbers)
        }
        Some(error) if error == unknown => Ok(Vec::new()),
        // One that may not be read is not one that is missing.
        Some(error) => Err(KafkaError::MetadataFetch(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_new_only_if_all_of_it_is_known_to_be_empty() {
        assert_eq!(sight(&[Some((0, 0)), Some((7, 7))]), Some(Sight::New));
        assert_eq!(sight(&[Some((0, 0)), None]), None);
        assert_eq!(sight(&[None, Some((3, 4))]), Some(Sight::Old), "one record is enough");
    }
}
