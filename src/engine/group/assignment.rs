//! What is under way of assignments and revocations, and lists of partitions for librdkafka.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Instant;

use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use crate::engine::group::committed::Name;
use crate::engine::group::start::{Bounds, PlanError, Planned};
use crate::engine::partition::{Commit, Partition};
use crate::kafka::{Rebalance, TopicId};

pub(in crate::engine) type Plan = JoinHandle<Result<Planned, PlanError>>;

/// A look into a partition's log.
pub(in crate::engine) struct Repair {
    pub(in crate::engine) id: u32,
    /// The offset that should have come next.
    pub(in crate::engine) next: i64,
    /// Whether its topic has been replaced.
    pub(in crate::engine) new_topic: bool,
    /// What the log holds, and of which topic it is where that was asked.
    pub(in crate::engine) log: JoinHandle<KafkaResult<(Bounds, Option<TopicId>)>>,
}

/// What is under way, and what comes after it.
#[derive(Default)]
pub(in crate::engine) struct Assignment {
    pub(in crate::engine) planning: Option<(Plan, Vec<Name>)>,
    pub(in crate::engine) draining: Option<Draining>,
    pub(in crate::engine) waiting: VecDeque<Rebalance>,
    /// Partitions that nobody fetches, and what their logs hold.
    pub(in crate::engine) repairs: Vec<Repair>,
    /// Whether this member may join its group, as soon as that is found out.
    pub(in crate::engine) joining: Option<JoinHandle<KafkaResult<Option<bool>>>>,
    /// The group has taken this member in; before, it knows nothing of its earlier assignments.
    pub(in crate::engine) joined: bool,
    /// How many partitions nobody has, as soon as that is found out.
    pub(in crate::engine) unowned: Option<JoinHandle<KafkaResult<Option<usize>>>>,
}

/// Partitions that are being given up.
pub(in crate::engine) struct Draining {
    pub(in crate::engine) ids: Vec<u32>,
    /// Those of topics that have not begun.
    pub(in crate::engine) unbegun: Vec<Name>,
    pub(in crate::engine) deadline: Instant,
}

impl Assignment {
    /// Resolves when it is known where the partitions of the pending assignment start.
    pub(in crate::engine) async fn planned(&mut self) -> Result<Planned, PlanError> {
        match &mut self.planning {
            Some((plan, _)) => match plan.await {
                Ok(planned) => planned,
                Err(_) => Err(PlanError::Interrupted),
            },
            None => pending().await,
        }
    }

    pub(in crate::engine) fn is_planning(&self) -> bool {
        self.planning.is_some()
    }

    pub(in crate::engine) fn is_idle(&self) -> bool {
        self.planning.is_none() && self.draining.is_none()
    }

    /// Whether nothing is under way and nothing waits for its turn.
    pub(in crate::engine) fn is_settled(&self) -> bool {
        self.is_idle() && self.waiting.is_empty()
    }
}

/// The names of partitions, as librdkafka wants them. Must not outlive the call it is made for: a
/// list that has been through some calls keeps the client alive.
pub(in crate::engine) fn list<'a>(
    partitions: impl Iterator<Item = &'a Partition>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.number);
    }
    list
}

/// What to commit, as librdkafka wants it; as short-lived as [`list`].
pub(in crate::engine) fn commit_list(commits: &[Commit]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(&commit.topic, commit.partition);
        if element.set_offset(Offset::Offset(commit.offset)).is_ok() {
            element.set_metadata(&commit.metadata);
        }
    }
    list
}
