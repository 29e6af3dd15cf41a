//! Assignments and revocations, carried out by the loop one after another, and commits.
//!
//! An assignment is answered once it is known where each partition starts. A revocation is
//! answered once its partitions are drained: what waits is dropped, what is in flight may finish
//! within the deadline, and the committable offset is stored before the partitions are given up, so
//! that librdkafka commits it with the unassignment.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use jiff::Timestamp;
use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use crate::engine::group::assignment::{Draining, commit_list, list};
use crate::engine::group::committed::Name;
use crate::engine::group::start::{Loss, PlanError, Planned, Start, plan};
use crate::engine::group::unbegun::unbegun_list;
use crate::engine::partition::{Commit, Partition};
use crate::engine::report::ANOTHER_ASSIGNOR;
use crate::engine::session::Session;
use crate::engine::settings::EngineError;
use crate::engine::{Consumer, Observed};
use crate::kafka::{self, Rebalance, Signals};

/// How long to wait before the broker is asked again where to start.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long a member asks who is in its group while not all brokers answer.
const ENTRY: Duration = Duration::from_secs(20);
/// How long the last commit may take.
const LAST_COMMIT: Duration = Duration::from_secs(2);
/// How long to wait before a last commit that met a rebalance is tried again.
const COMMIT_AGAIN: Duration = Duration::from_millis(50);

impl<C: Consumer> Session<'_, C> {
    /// Joins the group. Where the broker does not see to it, first looks that no member uses
    /// another assignor.
    pub(in crate::engine) fn join_group(&mut self) -> Result<(), EngineError> {
        if self.engine.kafka.uses_consumer_protocol() {
            let (client, group) = (Arc::clone(&self.client), self.engine.settings.group.clone());
            let ask =
                tokio::task::spawn_blocking(move || kafka::uses_our_assignor(&client, &group));
            self.membership.assignment.joining = Some(ask);
            return Ok(());
        }
        self.subscribe()
    }

    /// Joins as soon as it is known that this member may.
    pub(in crate::engine) fn finish_joining(&mut self) -> Result<(), EngineError> {
        let Some(ask) = &mut self.membership.assignment.joining else { return Ok(()) };
        let Some(answer) = ask.now_or_never() else { return Ok(()) };
        self.membership.assignment.joining = None;
        match answer {
            Ok(Ok(Some(true))) => {}
            Ok(Ok(Some(false))) => {
                self.refuse(ANOTHER_ASSIGNOR);
                return self.join_group();
            }
            Ok(Ok(None)) => return self.join_group(),
            // While a broker is away that cannot be known, and is no reason to stay out of the
            // group.
            Ok(Err(_)) if self.times.began.elapsed() < ENTRY => return self.join_group(),
            Ok(Err(_)) | Err(_) => {}
        }
        self.membership.refused = None;
        self.subscribe()
    }

    pub(in crate::engine) fn subscribe(&self) -> Result<(), EngineError> {
        let topics: Vec<&str> =
            self.engine.settings.subscription.topics.iter().map(String::as_str).collect();
        let group = &self.engine.settings.group;
        let failed = |source| EngineError::Client { group: group.clone(), source };
        self.client.subscribe(&topics).map_err(failed)
    }

    /// Takes in what a callback has noted.
    pub(in crate::engine) fn rebalanced(&mut self, rebalance: Rebalance, signals: &Signals) {
        if let Rebalance::Refused(error) = rebalance {
            return self.distrust_client("give up", error);
        }
        if let Rebalance::Lost(names) = rebalance {
            tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
                partitions = names.len(), "partitions lost, another member may have them already");
            let ids = self.ids(&names);
            self.mark_draining(&ids);
            self.remove_partitions(&ids);
            self.forget_unbegun(&names);
            self.membership.assignment.joined = false;
            // The next answer is a whole one.
            *signals.heartbeat_lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return;
        }
        self.membership.refused = None;
        self.membership.assignment.waiting.push_back(rebalance);
        self.next_rebalance();
    }

    fn next_rebalance(&mut self) {
        while self.membership.assignment.is_idle() {
            match self.membership.assignment.waiting.pop_front() {
                Some(Rebalance::Assign(names)) => self.plan(names, Duration::ZERO),
                Some(Rebalance::Revoke(names)) => self.begin_revoke(&names),
                Some(Rebalance::Lost(_) | Rebalance::Refused(_)) | None => return,
            }
        }
    }

    fn plan(&mut self, names: Vec<Name>, after: Duration) {
        let beginner = self.beginner();
        let assigned = names.clone();
        let own = self.membership.unbegun.names().chain(names.iter().cloned()).collect();
        let plan = tokio::task::spawn(async move {
            tokio::time::sleep(after).await;
            let planned = tokio::task::spawn_blocking(move || plan(&beginner, &assigned, &own));
            planned.await.unwrap_or(Err(PlanError::Interrupted))
        });
        self.membership.assignment.planning = Some((plan, names));
    }

    /// Answers the pending assignment.
    pub(in crate::engine) fn assign(&mut self, planned: Result<Planned, PlanError>) {
        let Some((_, names)) = self.membership.assignment.planning.take() else { return };
        let Planned { starts, unbegun, nothing } = match planned {
            Ok(planned) => planned,
            Err(error) => {
                tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
                    error = %anyhow::Error::from(error).root_cause(),
                    "committed offsets cannot be read, asking again");
                self.plan(names, ASK_AGAIN_AFTER);
                return;
            }
        };
        let mut list = unbegun_list(unbegun.iter().map(|(name, _)| name));
        for start in &starts {
            let offset = Offset::Offset(start.offset);
            let added = list.add_partition_offset(&start.topic, start.partition, offset);
            self.warn_on_error("assign", added);
        }
        let assigned = list.count();
        if let Err(error) = self.client.incremental_assign(&list) {
            return self.distrust_client("take", error);
        }
        for start in starts {
            if let Some(loss) = start.lost {
                self.report_loss(&start.topic, start.partition, loss);
            }
            self.add(start);
        }
        self.hold_unbegun(unbegun, nothing);
        tracing::info!(messaging.consumer.group.name = %self.engine.settings.group,
            assigned, partitions = self.partitions.len(), "partitions assigned");
        self.joined();
        let observed = Observed::Rebalanced { assigned, revoked: 0 };
        self.engine.observer.observe(self.engine.name(), &observed);
        self.next_rebalance();
    }

    pub(in crate::engine) fn add(&mut self, start: Start) -> u32 {
        let left = self.membership.known.take(&Arc::from(&*start.topic), start.partition);
        let before = left.as_ref().map_or(0, |left| left.committed);
        if start.committed.is_none() && start.lost.is_none() && before > start.offset {
            self.report_loss(&start.topic, start.partition, Loss::Recreated);
        }
        let partition = Partition::new(start, left, self.stop, Timestamp::now());
        let (offset, completed) = partition.progress();
        tracing::debug!(messaging.consumer.group.name = %self.engine.settings.group,
            messaging.destination.name = %partition.topic,
            messaging.destination.partition.id = partition.number,
            messaging.kafka.offset = offset, completed, "partition assigned");
        self.partitions.insert(partition)
    }

    fn begin_revoke(&mut self, names: &[Name]) {
        let ids = self.ids(names);
        let unbegun = self.membership.unbegun.of(names);
        self.mark_draining(&ids);
        // At once, so that a drain that fails repeats little.
        self.store(&ids, true);
        let deadline = Instant::now() + self.engine.settings.drain_deadline;
        self.membership.assignment.draining = Some(Draining { ids, unbegun, deadline });
        self.finish_revoke();
    }

    /// What waits in these partitions is dropped; what is in flight is asked to end.
    pub(in crate::engine) fn mark_draining(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.draining = true;
                partition.drain.cancel();
            }
        }
        let mut lanes = std::mem::take(&mut self.dispatch.lanes);
        lanes.retain(|job| {
            self.drop_revoked(job);
            !job.open_offsets.is_empty()
        });
        self.dispatch.lanes = lanes;
    }

    /// Gives revoked partitions up as soon as nothing of them is in flight.
    pub(in crate::engine) fn finish_revoke(&mut self) {
        let Some(Draining { ids, .. }) = &self.membership.assignment.draining else { return };
        let drained = ids
            .iter()
            .all(|id| self.partitions.get(id).is_none_or(|partition| partition.running == 0));
        if drained {
            self.release_partitions();
        }
    }

    /// Ends what is still in flight when a drain's time is up.
    pub(in crate::engine) fn expire_revoke(&mut self, now: Instant) {
        let Some(Draining { ids, deadline, .. }) = &self.membership.assignment.draining else {
            return;
        };
        if now < *deadline {
            return;
        }
        for id in ids {
            if let Some(partition) = self.partitions.get(id) {
                partition.kill.cancel();
            }
        }
        tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
            "revoked partitions not drained in time, their next owner repeats what was in flight");
        self.release_partitions();
    }

    fn release_partitions(&mut self) {
        let Some(Draining { ids, unbegun, .. }) = self.membership.assignment.draining.take() else {
            return;
        };
        self.store(&ids, false);
        self.commit_rewound(|p| p.draining);
        let result = {
            let mut list = list(ids.iter().filter_map(|id| self.partitions.get(id)));
            for (topic, partition) in &unbegun {
                list.add_partition(topic, *partition);
            }
            self.client.incremental_unassign(&list)
        };
        if let Err(error) = result {
            return self.distrust_client("give up", error);
        }
        self.log_given_up(&ids);
        self.remove_partitions(&ids);
        self.forget_unbegun(&unbegun);
        let revoked = ids.len() + unbegun.len();
        tracing::info!(messaging.consumer.group.name = %self.engine.settings.group,
            revoked, partitions = self.partitions.len(), "partitions given up");
        let observed = Observed::Rebalanced { assigned: 0, revoked };
        self.engine.observer.observe(self.engine.name(), &observed);
        self.next_rebalance();
    }

    /// Says how far each of these was done, to be compared with where its next owner starts.
    fn log_given_up(&self, ids: &[u32]) {
        for partition in ids.iter().filter_map(|id| self.partitions.get(id)) {
            let (offset, completed) = partition.progress();
            tracing::debug!(messaging.consumer.group.name = %self.engine.settings.group,
                messaging.destination.name = %partition.topic,
                messaging.destination.partition.id = partition.number,
                messaging.kafka.offset = offset, completed, "partition given up");
        }
    }

    pub(in crate::engine) fn remove_partitions(&mut self, ids: &[u32]) {
        // librdkafka keeps a pause beyond the assignment: a partition that comes back would be
        // silent for good.
        let paused = |id: &u32| self.partitions.get(id).is_some_and(|partition| partition.paused);
        let paused: Vec<u32> = ids.iter().copied().filter(paused).collect();
        self.pause(&paused, false);
        for id in ids {
            if let Some(partition) = self.partitions.remove(*id) {
                partition.kill.cancel();
                self.membership.known.keep(&partition);
                self.release_budget(&partition);
            }
        }
    }

    fn ids(&self, names: &[(String, i32)]) -> Vec<u32> {
        let find = |(topic, number): &(String, i32)| self.partitions.id_of(topic, *number);
        names.iter().filter_map(find).collect()
    }

    /// Stores what has moved, for librdkafka to commit, and commits what has outcomes only above
    /// its committable offset: the automatic commit passes over an offset that has not moved.
    pub(in crate::engine) fn commit_progress(&mut self) {
        let moved: Vec<u32> = self.ids_where(|p| !p.draining && p.has_moved());
        self.store(&moved, false);
        // A late commit of a partition that is on its way to another member would move it back.
        if self.membership.assignment.is_settled() {
            let standing = self.ids_where(Partition::has_uncommitted);
            let commits = self.commits(&standing);
            self.commit(&commits, CommitMode::Async);
            self.commit_rewound(|p| !p.draining);
        }
    }

    pub(in crate::engine) fn ids_where(&self, condition: impl Fn(&Partition) -> bool) -> Vec<u32> {
        let found = self.partitions.iter().filter(|(_, partition)| condition(partition));
        found.map(|(id, _)| *id).collect()
    }

    /// Stores the committable offsets of these partitions, and commits them right away if asked.
    pub(in crate::engine) fn store(&mut self, ids: &[u32], commit: bool) {
        let commits = self.commits(ids);
        if commits.is_empty() {
            return;
        }
        let result = {
            let list = commit_list(&commits);
            self.client.store_offsets(&list)
        };
        self.warn_on_error("store offsets", result);
        if commit {
            self.commit(&commits, CommitMode::Async);
        }
    }

    pub(in crate::engine) fn commits(&mut self, ids: &[u32]) -> Vec<Commit> {
        let mut commits = Vec::with_capacity(ids.len());
        for id in ids {
            commits.extend(self.partitions.get_mut(id).map(Partition::commit));
        }
        commits
    }

    pub(in crate::engine) fn commit(&self, commits: &[Commit], mode: CommitMode) {
        if !commits.is_empty() {
            let result = self.client.commit(&commit_list(commits), mode);
            self.warn_on_error("commit", result);
        }
    }

    /// The last commit of a session, waited for. It is repeated while the group rebalances, for as
    /// long as the stop may take. Otherwise members that stop together would repeat work.
    pub(in crate::engine) async fn commit_for_good(&mut self, signals: &Signals) {
        let ids: Vec<u32> = self.ids_where(|_| true);
        let commits = self.commits(&ids);
        let client = Arc::clone(&self.client);
        let mut deadline = Instant::now() + LAST_COMMIT;
        let away = signals.brokers.away().is_some();
        if let (Some(stop), false) = (self.times.stopping, away) {
            deadline = deadline.max(stop);
        }
        let commit = tokio::task::spawn_blocking(move || {
            if commits.is_empty() {
                return Ok(());
            }
            let list = commit_list(&commits);
            loop {
                // Refused once the partitions are lost: committing then would move their next
                // owner.
                client.store_offsets(&list)?;
                let committed = client.commit(&list, CommitMode::Sync);
                let passes = committed.as_ref().is_err_and(is_of_a_rebalance);
                if !passes || client.assignment_lost() || Instant::now() >= deadline {
                    return committed;
                }
                std::thread::sleep(COMMIT_AGAIN);
            }
        });
        let group = &self.engine.settings.group;
        match tokio::time::timeout_at(deadline.into(), commit).await {
            Ok(Ok(Ok(()))) => {
                self.log_given_up(&ids);
                tracing::info!(messaging.consumer.group.name = %group, "offsets committed");
            }
            Ok(Ok(Err(error))) => {
                tracing::warn!(messaging.consumer.group.name = %group, %error,
                    "last commit failed, what came since the one before is repeated");
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(messaging.consumer.group.name = %group,
                    "last commit not acknowledged, what came since the one before may be repeated");
            }
        }
    }
}

/// Whether a commit failed only because the group is rebalancing. A commit on its way to the broker
/// waits there behind the request to join, and comes with the generation before it.
fn is_of_a_rebalance(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{IllegalGeneration, RebalanceInProgress, StaleMemberEpoch};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        matches!(code, IllegalGeneration | RebalanceInProgress | StaleMemberEpoch)
    })
}
