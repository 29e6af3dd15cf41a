//! What the group or the log has lost is looked for: partitions that nobody fetches, since their
//! position is not in the log any more, and partitions that no member has.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::engine::Consumer;
use crate::engine::group::assignment::Repair;
use crate::engine::group::start::{Bounds, Loss, Start, bounds};
use crate::engine::partition::Partition;
use crate::engine::partition::metadata::Log;
use crate::engine::partition::offsets::OffsetMap;
use crate::engine::partition::replay_index::ReplayIndex;
use crate::engine::session::Session;
use crate::kafka::{self, Signals, TopicId};

/// How long a broker may take for one answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long heartbeats must have been answered after one that was not.
const HEARTBEATS_ARE_BACK: Duration = Duration::from_secs(5);
/// How often a member joins again for that at most, since its partitions move each time.
const REJOIN_PAUSE: Duration = Duration::from_secs(60);

impl<C: Consumer> Session<'_, C> {
    /// The group has given this member an assignment. If it was given another one before and has
    /// forgotten it, the group may wait for its answer for good.
    pub(in crate::engine) fn joined(&mut self) {
        let joined_before = std::mem::replace(&mut self.membership.assignment.joined, true);
        if !joined_before && self.engine.kafka.is_static_classic() {
            self.search_unowned();
        }
    }

    /// Reads partitions from their beginning when their topic has been replaced.
    pub(in crate::engine) fn compare_topics(&mut self, ids: &HashMap<String, TopicId>) {
        for (id, partition) in self.partitions.iter_mut() {
            let Some(found) = ids.get(&*partition.topic) else { continue };
            if !partition.draining && partition.is_of_another(*found) {
                let under_way =
                    self.membership.assignment.repairs.iter().any(|repair| repair.id == *id);
                if under_way {
                    continue;
                }
                let (topic, number) = (Arc::clone(&partition.topic), partition.number);
                let client = Arc::clone(&self.client);
                let look = tokio::task::spawn_blocking(move || {
                    Ok((bounds(&client, (&topic, number), 0, None, false, BROKER_TIMEOUT)?, None))
                });
                let next = partition.next_offset();
                self.membership.assignment.repairs.push(Repair {
                    id: *id,
                    next,
                    new_topic: true,
                    log: look,
                });
            }
        }
    }

    /// Commits what the automatic commit passes over: committable offsets of logs that begin again,
    /// below what the client remembers as committed. Several times, because nobody knows which commit
    /// was lost.
    pub(in crate::engine) fn commit_rewound(&mut self, condition: impl Fn(&Partition) -> bool) {
        let mut ids = Vec::new();
        for (id, partition) in self.partitions.iter_mut() {
            if condition(partition) && partition.commits_itself() {
                ids.push(*id);
            }
        }
        let commits = self.commits(&ids);
        self.commit(&commits, CommitMode::Async);
    }

    fn search_unowned(&mut self) {
        let client = Arc::clone(&self.client);
        let (group, topics) =
            (self.engine.settings.group.clone(), self.engine.settings.subscription.topics.clone());
        let search = move || kafka::unowned_partitions(&client, &group, &topics);
        self.membership.assignment.unowned = Some(tokio::task::spawn_blocking(search));
    }

    /// An answer to a heartbeat got lost, and maybe an assignment with it. The broker takes the
    /// assignment for delivered, and librdkafka asks for its whole assignment only when it joins.
    pub(in crate::engine) fn rejoin_after_lost_heartbeat(
        &mut self,
        now: Instant,
        signals: &Signals,
    ) {
        let mut heartbeat_lost =
            signals.heartbeat_lost.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = heartbeat_lost
            .is_some_and(|at| now.saturating_duration_since(at) >= HEARTBEATS_ARE_BACK);
        let again = self
            .membership
            .rejoined_at
            .is_none_or(|at| now.saturating_duration_since(at) >= REJOIN_PAUSE);
        if !quiet
            || !again
            || !self.membership.assignment.is_settled()
            || signals.brokers.away().is_some()
        {
            return;
        }
        *heartbeat_lost = None;
        drop(heartbeat_lost);
        self.membership.rejoined_at = Some(now);
        tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
            "answers to heartbeats were lost, joining the group again in case they assigned partitions");
        self.rejoin();
    }

    fn rejoin(&self) {
        self.client.unsubscribe();
        if let Err(error) = self.subscribe() {
            tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, %error,
                "could not join the group again");
        }
    }

    /// Makes the group share out what nobody has: this member leaves and joins again.
    pub(in crate::engine) fn rejoin_for_unowned(&mut self) {
        let Some(search) = &mut self.membership.assignment.unowned else { return };
        let Some(found) = search.now_or_never() else { return };
        self.membership.assignment.unowned = None;
        let settled = self.membership.assignment.is_settled();
        match found {
            Ok(Ok(Some(0))) | Err(_) => {}
            // A rebalance is under way.
            Ok(Ok(None)) => self.search_unowned(),
            Ok(Ok(Some(_))) if !settled => self.search_unowned(),
            Ok(Ok(Some(unowned))) => {
                tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, unowned,
                    "partitions have no owner, joining the group again so that they are assigned");
                self.rejoin();
            }
            // A broker is away, which is said elsewhere.
            Ok(Err(error)) => {
                tracing::debug!(messaging.consumer.group.name = %self.engine.settings.group, %error,
                    "could not read who owns the partitions, asking again");
                self.search_unowned();
            }
        }
    }

    pub(in crate::engine) fn recheck_topics(&mut self, now: Instant) {
        let Some(unreadable) = &mut self.membership.unreadable else { return };
        if unreadable.is_over(now, &self.client, &self.engine.settings.subscription.topics) {
            self.membership.unreadable = None;
        }
    }

    /// Looks into the logs of partitions that nobody fetches: librdkafka stops where the position
    /// is no longer in the log. What it reports of that does not name the partition, and may get
    /// lost.
    pub(in crate::engine) fn plan_repairs(&mut self, signals: &Signals) {
        let fetch_states = signals.fetch_states.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, partition) in self.partitions.iter_mut() {
            let fetch = fetch_states.of(&partition.topic, partition.number);
            let stopped = fetch.is_some_and(|fetch| fetch.stopped) && !partition.draining;
            if !partition.fetch_has_stopped(fetch_states.number, stopped) {
                continue;
            }
            let (topic, number) = (Arc::clone(&partition.topic), partition.number);
            let (client, next) = (Arc::clone(&self.client), partition.next_offset());
            let newest_ms = partition.log().newest_ms;
            let kafka = self.engine.kafka.clone();
            let look = tokio::task::spawn_blocking(move || {
                let found =
                    bounds(&client, (&topic, number), next, newest_ms, true, BROKER_TIMEOUT)?;
                // Where the broker does not say, the next comparison of topics finds it.
                let ids = kafka.topic_ids(&[topic.to_string()], BROKER_TIMEOUT).unwrap_or_default();
                Ok((found, ids.get(&*topic).copied()))
            });
            self.membership.assignment.repairs.push(Repair {
                id: *id,
                next,
                new_topic: false,
                log: look,
            });
        }
    }

    /// Resumes partitions whose logs have been looked at.
    pub(in crate::engine) fn finish_repairs(&mut self) {
        let mut repairs = std::mem::take(&mut self.membership.assignment.repairs);
        repairs.retain_mut(|Repair { id, next, new_topic, log }| match log.now_or_never() {
            None => true,
            Some(found) => {
                match found {
                    Ok(Ok((bounds, topic))) => {
                        let partition = self.partitions.get(id);
                        let replaced =
                            partition.zip(topic).is_some_and(|(p, t)| p.is_replaced_by(t));
                        self.resume_fetch(*id, *next, *new_topic || replaced, bounds);
                    }
                    Ok(Err(error)) => self.warn_on_error("look into a log", Err(error)),
                    Err(_) => {}
                }
                false
            }
        });
        self.membership.assignment.repairs.append(&mut repairs);
    }

    /// Reads on at `next` in a log that holds `low..high`. librdkafka has ended the fetch, and
    /// refuses a seek then: the partition is given up and taken again.
    fn resume_fetch(&mut self, id: u32, next: i64, new_topic: bool, bounds: Bounds) {
        // Something has come since: it is being fetched, and the log holds more by now.
        let stands = |p: &&mut Partition| !p.draining && (new_topic || p.next_offset() == next);
        let Some(partition) = self.partitions.get_mut(&id).filter(stands) else { return };
        if !self.membership.assignment.is_settled() {
            // The group waits for another answer.
            return;
        }
        let Bounds { low, high, resume } = bounds;
        let resume = resume.filter(|resume| partition.was_cut_back(high, *resume));
        let cut_back = !new_topic && low <= next && resume.is_some();
        if cut_back && partition.load().records > 0 {
            // They cannot be read again. It is looked at again when they are done.
            return;
        }
        let recreated = new_topic || cut_back || next > high;
        let offset = match resume {
            Some(resume) if cut_back => resume,
            _ if recreated => low,
            _ => next.max(low),
        };
        let (topic, number) = (Arc::clone(&partition.topic), partition.number);
        let again = || {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, number, Offset::Offset(offset))?;
            self.client.incremental_unassign(&list)?;
            self.client.resume(&list)?;
            self.client.incremental_assign(&list)
        };
        if let Err(error) = again() {
            return self.distrust_client("give up and take again", error);
        }
        partition.set_paused(false);
        if recreated {
            let end = if next > high { high } else { offset };
            let loss = if cut_back { Loss::CutBack(next - end) } else { Loss::Recreated };
            return self.restart_partition(id, offset, new_topic, loss);
        }
        match partition.skip_to(offset) {
            0 => {
                tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
                    messaging.destination.name = %topic, messaging.destination.partition.id = number,
                    messaging.kafka.offset = offset, "partition was not fetched any more, reading on");
            }
            gone => self.report_loss(&topic, number, Loss::Expired(gone)),
        }
    }

    /// The log is another one or was cut back, and is read from `offset` on. What was known of its
    /// offsets no longer holds. Of positions, only what was finished for sure does: some records of
    /// a new topic may have been read behind others that were not.
    fn restart_partition(&mut self, id: u32, offset: i64, some_was_read: bool, loss: Loss) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let left = if some_was_read { partition.left_of_old_topic() } else { partition.left() };
        let log = match loss {
            Loss::CutBack(_) => partition.log(),
            Loss::Recreated | Loss::Expired(_) => Log::default(),
        };
        let start = Start {
            topic: partition.topic.to_string(),
            partition: partition.number,
            offset,
            replay_index: ReplayIndex::default(),
            log,
            completed: OffsetMap::default(),
            lost: Some(loss),
            committed: None,
            unknown: false,
            metadata_of: None,
        };
        self.report_loss(&start.topic, start.partition, loss);
        self.mark_draining(&[id]);
        self.remove_partitions(&[id]);
        self.membership.known.keep_as(&start.topic, start.partition, left);
        let id = self.add(start);
        // The automatic commit never goes back by itself.
        let commits = self.commits(&[id]);
        self.commit(&commits, CommitMode::Async);
    }
}
