//! What a session knows of topics beyond one assignment: which topic a name stood for, and what was
//! finished of partitions that are gone.
//!
//! A topic that is recreated under a running client is another topic. The group's offsets go with
//! the old one, or stay and mean nothing. librdkafka goes on at the old position once the new log
//! reaches that far, and commits nothing by itself until then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::error::KafkaResult;
use tokio::task::JoinHandle;

use crate::engine::partition::assigned::Partitions;
use crate::engine::partition::{Left, Partition};
use crate::kafka::{Kafka, TopicId};

/// How often it is asked which topics the names stand for.
const LOOK_AT_IDS_EVERY: Duration = Duration::from_secs(5);
/// How long a broker may take for one answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

type Look = JoinHandle<KafkaResult<HashMap<String, TopicId>>>;

/// What a session knows beyond one assignment.
#[derive(Default)]
pub(in crate::engine) struct Known {
    left: HashMap<(Arc<str>, i32), Left>,
    topics: HashSet<Arc<str>>,
    /// A look under way, and how many partitions had been assigned by then.
    look: Option<(Look, u32)>,
    next: Option<Instant>,
}

impl Known {
    /// Keeps what is known of a partition that is given up.
    pub(in crate::engine) fn keep(&mut self, partition: &Partition) {
        self.keep_as(&partition.topic, partition.number, partition.left());
    }

    /// Keeps this of a partition that is given up.
    pub(in crate::engine) fn keep_as(&mut self, topic: &str, number: i32, left: Left) {
        self.left.insert((Arc::from(topic), number), left);
    }

    /// What is known of a partition that is assigned again.
    pub(in crate::engine) fn take(&mut self, topic: &Arc<str>, number: i32) -> Option<Left> {
        self.topics.insert(Arc::clone(topic));
        self.left.remove(&(Arc::clone(topic), number))
    }

    /// The topics that this session has had partitions of: none of them is new to the group.
    pub(in crate::engine) fn topics(&self) -> HashSet<Arc<str>> {
        self.topics.clone()
    }

    /// Looks now and then which topics the names of assigned partitions stand for, of which `assigned`
    /// were assigned so far. What a look found is reported once.
    pub(in crate::engine) fn look(
        &mut self,
        now: Instant,
        assigned: u32,
        partitions: &mut Partitions,
        kafka: &Kafka,
    ) -> Option<HashMap<String, TopicId>> {
        if let Some((look, assigned_then)) = &mut self.look {
            let (found, assigned_then) = (look.now_or_never()?, *assigned_then);
            self.look = None;
            match found {
                // Whether it saw what has been assigned since cannot be known.
                Ok(Ok(ids)) if assigned_then == assigned => return Some(ids),
                Ok(Ok(_)) => self.next = None,
                Ok(Err(error)) => tracing::debug!(%error, "could not read the ids of topics"),
                Err(_) => {}
            }
            return None;
        }
        if partitions.len() == 0 || self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now + LOOK_AT_IDS_EVERY);
        for partition in partitions.values_mut() {
            partition.ask_for_topic();
        }
        let topics: HashSet<&Arc<str>> = partitions.values().map(|p| &p.topic).collect();
        let topics: Vec<String> = topics.into_iter().map(ToString::to_string).collect();
        let kafka = kafka.clone();
        let look = tokio::task::spawn_blocking(move || kafka.topic_ids(&topics, BROKER_TIMEOUT));
        self.look = Some((look, assigned));
        None
    }
}
