//! What a session knows of topics beyond one assignment: which topic a name stood for, and what was
//! finished of partitions that are gone.
//!
//! A topic that is deleted and made anew under a running client is another one. The group's offsets
//! go with the old one, or stay and mean nothing; librdkafka goes on at the old position where the
//! new log reaches that far, and commits nothing by itself until it does.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::error::KafkaResult;
use tokio::task::JoinHandle;

use super::Consumer;
use super::assignment::Repair;
use super::frontier::Frontier;
use super::partition::Partition;
use super::session::Session;
use super::start::log;
use crate::kafka::TopicId;

/// How often it is asked which topics the names stand for.
const LOOK: Duration = Duration::from_secs(5);
/// How long a broker may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

type Look = JoinHandle<KafkaResult<HashMap<String, TopicId>>>;

/// What a partition was when it was last given up here.
#[derive(Debug)]
pub(super) struct Left {
    /// The highest offset that this client has committed.
    pub(super) committed: i64,
    /// What was finished.
    pub(super) frontier: Frontier,
    /// The topic that it belonged to, where that is known.
    pub(super) topic_id: Option<TopicId>,
}

/// What a session knows beyond one assignment.
#[derive(Default)]
pub(super) struct Known {
    left: HashMap<(Arc<str>, i32), Left>,
    topics: HashSet<Arc<str>>,
    /// A look under way, and how many partitions had been assigned by then.
    look: Option<(Look, u32)>,
    next: Option<Instant>,
}

impl Known {
    /// Keeps what is known of a partition that is given up.
    pub(super) fn keep(&mut self, partition: &Partition) {
        let name = (Arc::clone(&partition.topic), partition.number);
        self.left.insert(name, partition.left());
    }

    /// What is known of a partition that is assigned again.
    pub(super) fn take(&mut self, topic: &Arc<str>, number: i32) -> Option<Left> {
        self.topics.insert(Arc::clone(topic));
        self.left.remove(&(Arc::clone(topic), number))
    }

    /// The topics that this session has had partitions of: none of them is new to the group.
    pub(super) fn topics(&self) -> HashSet<Arc<str>> {
        self.topics.clone()
    }
}

impl<C: Consumer> Session<'_, C> {
    /// Looks now and then whether a name stands for another topic than before.
    pub(super) fn look_for_new_topics(&mut self, now: Instant) {
        if let Some((look, assigned)) = &mut self.known.look {
            let (Some(found), assigned) = (look.now_or_never(), *assigned) else { return };
            self.known.look = None;
            match found {
                // Whether it saw what has been assigned since cannot be known.
                Ok(Ok(ids)) if assigned == self.next_id => self.compare_topics(&ids),
                Ok(Ok(_)) => self.known.next = None,
                Ok(Err(error)) => tracing::debug!(%error, "ids of topics not told"),
                Err(_) => {}
            }
            return;
        }
        if self.partitions.is_empty() || self.known.next.is_some_and(|next| now < next) {
            return;
        }
        self.known.next = Some(now + LOOK);
        for partition in self.partitions.values_mut() {
            partition.note_frontier();
        }
        let topics: HashSet<&Arc<str>> = self.partitions.values().map(|p| &p.topic).collect();
        let topics: Vec<String> = topics.into_iter().map(ToString::to_string).collect();
        let kafka = self.engine.kafka.clone();
        let look = tokio::task::spawn_blocking(move || kafka.topic_ids(&topics, TIMEOUT));
        self.known.look = Some((look, self.next_id));
    }

    /// Has the partitions read from their beginning whose topic is another one by now.
    fn compare_topics(&mut self, ids: &HashMap<String, TopicId>) {
        for (id, partition) in &mut self.partitions {
            let Some(found) = ids.get(&*partition.topic) else { continue };
            if !partition.draining && partition.is_of_another(*found) {
                let under_way = self.assignment.repairs.iter().any(|repair| repair.id == *id);
                if under_way {
                    continue;
                }
                let (topic, number) = (Arc::clone(&partition.topic), partition.number);
                let client = Arc::clone(&self.client);
                let look =
                    tokio::task::spawn_blocking(move || log(&client, &topic, number, 0, TIMEOUT));
                let next = partition.next_offset();
                self.assignment.repairs.push(Repair { id: *id, next, anew: true, log: look });
            }
        }
    }
}
