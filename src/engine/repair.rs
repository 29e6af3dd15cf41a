//! What the group or the log has lost is looked for: positions that retention has passed, and
//! partitions that no member has.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::Consumer;
use super::session::Session;
use super::start::Loss;
use crate::kafka;

impl<C: Consumer> Session<'_, C> {
    /// The group has told this member what it has. Where it may have been told something else
    /// before, and have forgotten it, the group may wait for its answer for good.
    pub(super) fn joined(&mut self) {
        let joined_before = std::mem::replace(&mut self.assignment.joined, true);
        if !joined_before && self.engine.kafka.returns_unnoticed() {
            self.seek_orphans();
        }
    }

    fn seek_orphans(&mut self) {
        let client = Arc::clone(&self.client);
        let (group, topics) = (self.engine.settings.group.clone(), self.topics.clone());
        let search = move || kafka::orphans(&client, &group, &topics);
        self.assignment.orphans = Some(tokio::task::spawn_blocking(search));
    }

    /// Has the group share out what nobody has: this member leaves and joins again.
    pub(super) fn adopt_orphans(&mut self) {
        let Some(search) = &mut self.assignment.orphans else { return };
        let Some(found) = search.now_or_never() else { return };
        self.assignment.orphans = None;
        let settled = self.assignment.is_idle() && self.assignment.waiting.is_empty();
        match found {
            Ok(Ok(Some(0))) | Err(_) => {}
            // A rebalance is under way.
            Ok(Ok(None)) => self.seek_orphans(),
            Ok(Ok(Some(_))) if !settled => self.seek_orphans(),
            Ok(Ok(Some(orphans))) => {
                tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, orphans,
                    "partitions without an owner, joining the group anew so that they are shared out");
                let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
                self.client.unsubscribe();
                let joined = self.client.subscribe(&topics);
                self.warn_on_error("join anew", joined);
            }
            // A broker is away, which is said elsewhere.
            Ok(Err(error)) => {
                tracing::debug!(messaging.consumer.group.name = %self.engine.settings.group, %error,
                    "owners of partitions not told, asking again");
                self.seek_orphans();
            }
        }
    }

    /// A position that retention has passed must be looked for again.
    pub(super) fn must_repair(&mut self) {
        self.position_lost = true;
    }

    /// Reports what repairs have found.
    pub(super) fn finish_repairs(&mut self) {
        let mut repairs = std::mem::take(&mut self.assignment.repairs);
        repairs.retain_mut(|(id, repair)| match repair.now_or_never() {
            None => true,
            Some(Ok(Ok(low))) => {
                self.go_on_at(*id, low);
                false
            }
            Some(Ok(Err(error))) => {
                self.warn_on_error("repair", Err(error));
                self.must_repair();
                false
            }
            Some(Err(_)) => false,
        });
        self.assignment.repairs.append(&mut repairs);
    }

    /// Goes on at `low`, the earliest record there is, if the position lies before it. librdkafka
    /// has ended such a fetch, and refuses a seek then: the partition is given up and taken again.
    fn go_on_at(&mut self, id: u32, low: i64) {
        let Some(partition) = self.partitions.get_mut(&id).filter(|p| !p.draining) else { return };
        let lost = low - partition.next_offset();
        if lost <= 0 {
            return;
        }
        if !self.assignment.is_idle() || !self.assignment.waiting.is_empty() {
            // The group waits for another answer.
            return self.must_repair();
        }
        partition.paused = false;
        let (topic, number) = (Arc::clone(&partition.topic), partition.number);
        let again = || {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, number, Offset::Offset(low))?;
            self.client.incremental_unassign(&list)?;
            self.client.resume(&list)?;
            self.client.incremental_assign(&list)
        };
        match again() {
            Ok(()) => self.report_loss(&topic, number, Loss::Expired(lost)),
            Err(error) => {
                self.warn_on_error("go on behind a loss", Err(error));
                self.must_repair();
            }
        }
    }

    /// Retention has passed a position: finds which.
    pub(super) fn plan_repair(&mut self) {
        for id in self.ids_where(|partition| !partition.draining) {
            let Some(partition) = self.partitions.get(&id) else { continue };
            let (topic, number) = (Arc::clone(&partition.topic), partition.number);
            let client = Arc::clone(&self.client);
            let repair = tokio::task::spawn_blocking(move || {
                let (low, _) = client.fetch_watermarks(&topic, number, Duration::from_secs(10))?;
                Ok(low)
            });
            self.assignment.repairs.push((id, repair));
        }
    }
}
