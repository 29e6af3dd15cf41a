//! Partitions of topics that have not begun: this member has them, so that nobody else looks after
//! them, and does not read them.

use std::collections::HashMap;
use std::time::Instant;

use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use crate::engine::group::assignment::Plan;
use crate::engine::group::beginnings::Why;
use crate::engine::group::committed::Name;
use crate::engine::vitals::HeldTopics;

/// Partitions of topics that have not begun, with why not.
#[derive(Default)]
pub(in crate::engine) struct Unbegun {
    pub(in crate::engine) partitions: HashMap<Name, (u32, Why)>,
    /// Nobody has decided about any topic of the group.
    pub(in crate::engine) nothing: bool,
    pub(in crate::engine) look: Option<Look>,
    /// A look at topics that were not looked at yet, or that all were.
    pub(in crate::engine) first: First,
    pub(in crate::engine) next: Option<Instant>,
    pub(in crate::engine) told: Option<Instant>,
}

/// Whether all topics of the group were looked at.
#[derive(Default)]
pub(in crate::engine) enum First {
    #[default]
    Due,
    UnderWay(JoinHandle<bool>),
    Done,
}

/// A look whether these have begun.
pub(in crate::engine) struct Look {
    pub(in crate::engine) plan: Plan,
    pub(in crate::engine) of: HashMap<Name, u32>,
}

impl Unbegun {
    pub(in crate::engine) fn names(&self) -> impl Iterator<Item = Name> {
        self.partitions.keys().cloned()
    }

    /// Those of `names` that have not begun.
    pub(in crate::engine) fn of(&self, names: &[Name]) -> Vec<Name> {
        names.iter().filter(|name| self.partitions.contains_key(*name)).cloned().collect()
    }

    /// The topics, and what each of them waits for.
    pub(in crate::engine) fn held(&self) -> HeldTopics {
        let held = self.partitions.iter();
        let topics =
            held.map(|((topic, _), (_, why))| (topic.clone(), reason(topic, *why))).collect();
        HeldTopics { topics, all: self.nothing }
    }
}

/// What a topic waits for that has not begun, and what to do.
pub(in crate::engine) fn reason(topic: &str, why: Why) -> String {
    match why {
        Why::Undecided => format!(
            "{topic} is held, this group has committed nothing of it and it holds records: set \
             KAFKA_START_AT to {topic}=earliest, {topic}=latest or {topic}=<time such as \
             2026-11-29T00:00:00Z>"
        ),
        Why::Another => format!("{topic}: the member that has its first partition begins it"),
        Why::Unreachable => format!("{topic}: its log cannot be read, so it does not begin"),
    }
}

/// Where partitions that are not read are assigned, before they are paused. It must be a number.
/// For a logical offset librdkafka asks the broker, and an answer that comes after a new assignment
/// makes it ask once more. Half a second later it would jump to the end, wherever the partition was
/// assigned by then.
pub(in crate::engine) fn unbegun_list<'a>(
    names: impl Iterator<Item = &'a Name>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in names {
        // This one is always taken.
        list.add_partition_offset(topic, *partition, Offset::Offset(0)).ok();
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_assigned_at_a_number_since_an_answer_about_its_end_may_come_late() {
        let names = [("topic".to_owned(), 0), ("topic".to_owned(), 1)];
        let list = unbegun_list(names.iter());
        assert!(list.elements().iter().all(|part| matches!(part.offset(), Offset::Offset(_))));
        assert_eq!(list.count(), 2);
    }
}
