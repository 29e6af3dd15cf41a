//! What the group or the log has lost is looked for: partitions that nobody fetches, since their
//! position is not in the log any more, and partitions that no member has.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use super::Consumer;
use super::offsets::OffsetMap;
use super::session::Session;
use super::start::{Loss, Start};
use crate::kafka::{self, GroupConsumer, Signals};

/// How long a broker may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a log that seems to end before the position is looked into again, and how soon.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
        let settled = self.assignment.is_settled();
        match found {
            Ok(Ok(Some(0))) | Err(_) => {}
            // A rebalance is under way.
            Ok(Ok(None)) => self.seek_orphans(),
            Ok(Ok(Some(_))) if !settled => self.seek_orphans(),
            Ok(Ok(Some(orphans))) => {
                tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, orphans,
                    "partitions without an owner, joining the group anew so that they are shared out");
                self.client.unsubscribe();
                let joined = self.subscribe();
                if let Err(error) = joined {
                    tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, %error,
                        "group not joined anew");
                }
            }
            // A broker is away, which is said elsewhere.
            Ok(Err(error)) => {
                tracing::debug!(messaging.consumer.group.name = %self.engine.settings.group, %error,
                    "owners of partitions not told, asking again");
                self.seek_orphans();
            }
        }
    }

    pub(super) fn look_at_topics(&mut self, now: Instant) {
        let Some(unreadable) = &mut self.unreadable else { return };
        if unreadable.is_over(now, &self.client, &self.topics) {
            self.unreadable = None;
        }
    }

    /// Looks into the logs of partitions that nobody fetches: librdkafka stops where the position is
    /// not in the log any more, and its word about it does not name the partition and may get lost.
    pub(super) fn plan_repairs(&mut self, signals: &Signals) {
        let mut readings = signals.readings.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, partition) in &self.partitions {
            let reading = readings.get_mut(&*partition.topic);
            let Some(reading) = reading.and_then(|found| found.get_mut(&partition.number)) else {
                continue;
            };
            // Once may be a partition that was assigned just now.
            if reading.stopped < 2 || partition.draining {
                continue;
            }
            // What comes of it is seen in later statistics.
            reading.stopped = 0;
            let (topic, number) = (Arc::clone(&partition.topic), partition.number);
            let (client, next) = (Arc::clone(&self.client), partition.next_offset());
            let look = move || log(&client, &topic, number, next);
            self.assignment.repairs.push((*id, tokio::task::spawn_blocking(look)));
        }
    }

    /// Has partitions read on of which it is known by now what their logs hold.
    pub(super) fn finish_repairs(&mut self) {
        let mut repairs = std::mem::take(&mut self.assignment.repairs);
        repairs.retain_mut(|(id, look)| match look.now_or_never() {
            None => true,
            Some(found) => {
                match found {
                    Ok(Ok((low, high))) => self.read_on(*id, low, high),
                    Ok(Err(error)) => self.warn_on_error("look into a log", Err(error)),
                    Err(_) => {}
                }
                false
            }
        });
        self.assignment.repairs.append(&mut repairs);
    }

    /// Reads on in a log that holds `low..high`. librdkafka has ended the fetch, and refuses a seek
    /// then: the partition is given up and taken again.
    fn read_on(&mut self, id: u32, low: i64, high: i64) {
        let Some(partition) = self.partitions.get_mut(&id).filter(|p| !p.draining) else { return };
        if !self.assignment.is_settled() {
            // The group waits for another answer.
            return;
        }
        let next = partition.next_offset();
        let recreated = next > high;
        let offset = if recreated { low } else { next.max(low) };
        let (topic, number) = (Arc::clone(&partition.topic), partition.number);
        let again = || {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, number, Offset::Offset(offset))?;
            self.client.incremental_unassign(&list)?;
            self.client.resume(&list)?;
            self.client.incremental_assign(&list)
        };
        if let Err(error) = again() {
            return self.warn_on_error("read on", Err(error));
        }
        partition.paused = false;
        if recreated {
            return self.begin_anew(id, low);
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

    /// The log is another one than before: what is known of the old one's offsets holds no longer.
    fn begin_anew(&mut self, id: u32, low: i64) {
        let Some(partition) = self.partitions.get(&id) else { return };
        let start = Start {
            topic: partition.topic.to_string(),
            partition: partition.number,
            offset: low,
            frontier: partition.frontier().clone(),
            completed: OffsetMap::default(),
            lost: Some(Loss::Recreated),
        };
        self.report_loss(&start.topic, start.partition, Loss::Recreated);
        self.mark_draining(&[id]);
        self.forget(&[id]);
        let id = self.add(start);
        // The automatic commit never goes back by itself.
        let commits = self.commits(&[id]);
        self.commit(&commits, CommitMode::Async);
    }
}

/// What the log of a partition holds whose next offset should be `next`. Blocks.
fn log(client: &GroupConsumer, topic: &str, number: i32, next: i64) -> KafkaResult<(i64, i64)> {
    let mut found = client.fetch_watermarks(topic, number, TIMEOUT)?;
    for _ in 0..LOOKS {
        if next <= found.1 {
            break;
        }
        // A leader that has just become one may not know the log's end yet.
        std::thread::sleep(LOOK_AGAIN);
        found = client.fetch_watermarks(topic, number, TIMEOUT)?;
    }
    Ok(found)
}
