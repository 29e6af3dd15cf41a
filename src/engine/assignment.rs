//! What is under way of assignments and revocations, and lists of partitions for librdkafka.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Instant;

use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use super::committed::Name;
use super::partition::{Commit, Partition};
use super::start::{Bounds, PlanError, Planned};
use crate::kafka::{Rebalance, TopicId};

pub(super) type Plan = JoinHandle<Result<Planned, PlanError>>;

/// A look into a partition's log.
pub(super) struct Repair {
    pub(super) id: u32,
    /// The offset that should have come next.
    pub(super) next: i64,
    /// Whether its topic is another one by now.
    pub(super) anew: bool,
    /// What the log holds, and of which topic it is where that was asked.
    pub(super) log: JoinHandle<KafkaResult<(Bounds, Option<TopicId>)>>,
}

/// What is under way, and what comes after it.
#[derive(Default)]
pub(super) struct Assignment {
    pub(super) planning: Option<(Plan, Vec<Name>)>,
    pub(super) draining: Option<Draining>,
    pub(super) waiting: VecDeque<Rebalance>,
    /// Partitions that nobody fetches, and what their logs hold.
    pub(super) repairs: Vec<Repair>,
    /// Whether this member may join its group, as soon as that is found out.
    pub(super) joining: Option<JoinHandle<KafkaResult<Option<bool>>>>,
    /// The group has taken this member in; before, it knows nothing of what it was told earlier.
    pub(super) joined: bool,
    /// How many partitions nobody has, as soon as that is found out.
    pub(super) unowned: Option<JoinHandle<KafkaResult<Option<usize>>>>,
}

/// Partitions that are being given up.
pub(super) struct Draining {
    pub(super) ids: Vec<u32>,
    /// Those of topics that have not begun.
    pub(super) unbegun: Vec<Name>,
    pub(super) deadline: Instant,
}

impl Assignment {
    /// Resolves when it is known where the partitions of the pending assignment start.
    pub(super) async fn planned(&mut self) -> Result<Planned, PlanError> {
        match &mut self.planning {
            Some((plan, _)) => match plan.await {
                Ok(planned) => planned,
                Err(_) => Err(PlanError::Interrupted),
            },
            None => pending().await,
        }
    }

    pub(super) fn is_planning(&self) -> bool {
        self.planning.is_some()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.planning.is_none() && self.draining.is_none()
    }

    /// Whether nothing is under way and nothing waits for its turn.
    pub(super) fn is_settled(&self) -> bool {
        self.is_idle() && self.waiting.is_empty()
    }
}

/// The names of partitions, as librdkafka wants them. Must not outlive the call it is made for: a
/// list that has been through some calls keeps the client alive.
pub(super) fn list<'a>(partitions: impl Iterator<Item = &'a Partition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.number);
    }
    list
}

/// What to commit, as librdkafka wants it; as short-lived as [`list`].
pub(super) fn commit_list(commits: &[Commit]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(&commit.topic, commit.partition);
        if element.set_offset(Offset::Offset(commit.offset)).is_ok() {
            element.set_metadata(&commit.metadata);
        }
    }
    list
}
