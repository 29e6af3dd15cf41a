//! How jobs that are ready start: alone in a task, or many of them in one.

use std::sync::Arc;

use crate::engine::dispatch::batch::Batch;
use crate::engine::dispatch::job::Job;
use crate::engine::dispatch::lanes::LaneId;
use crate::engine::session::Session;
use crate::engine::{Consumer, Outcome};

/// Tasks at a time. More would only wait for a permit.
const MAX_TASKS: usize = 1024;
/// Jobs in flight at a time, where many share a task: two full requests to Inngest, so that one is
/// filled while the other is under way.
const MAX_RUNNING: usize = 10_000;

impl<C: Consumer> Session<'_, C> {
    /// Starts what is ready.
    pub(in crate::engine) fn start_ready(&mut self) {
        while self.times.stopping.is_none()
            && self.dispatch.lanes.running() < MAX_RUNNING
            && self.dispatch.in_flight.len() < MAX_TASKS
        {
            let Some((lane, job)) = self.dispatch.lanes.next_ready() else { break };
            // Its original may have finished while it waited behind it.
            if let (Some(logged), [open_offset]) = (&job.logged, job.open_offsets.as_slice())
                && job.attempts.failures == 0
                && self.partitions.get(&open_offset.partition).is_some_and(|p| p.is_replay(logged))
            {
                let open_offset = *open_offset;
                self.complete(&open_offset, Outcome::Replayed);
                self.dispatch.lanes.finish(lane);
                continue;
            }
            if job.may_be_batched()
                && job.work().is_some_and(|work| self.engine.consumer.batched(work).is_some())
            {
                self.batch(lane, job);
            } else {
                self.start(lane, job);
            }
        }
        for batch in std::mem::take(&mut self.dispatch.batches) {
            self.start_batch(batch);
        }
    }

    /// Puts a job into the batch of its partition.
    fn batch(&mut self, lane: LaneId, job: Box<Job<C::Work>>) {
        let Some(of) = job.open_offsets.first().map(|open_offset| open_offset.partition) else {
            return;
        };
        let known = self.dispatch.batches.iter().position(|batch| batch.partition == of);
        let at = known.unwrap_or_else(|| {
            self.dispatch.batches.push(Batch::new(of));
            self.dispatch.batches.len() - 1
        });
        if self.dispatch.batches[at].push(lane, job) {
            let full = self.dispatch.batches.swap_remove(at);
            self.start_batch(full);
        }
    }

    fn start_batch(&mut self, batch: Batch<C::Work>) {
        let partition = self.partitions.get_mut(&batch.partition);
        let (Some(partition), [(_, first), _, ..]) = (partition, batch.jobs.as_slice()) else {
            return batch.jobs.into_iter().for_each(|(lane, job)| self.start(lane, job));
        };
        partition.running += batch.jobs.len();
        let (kill, cx) = (partition.kill.clone(), first.cx.of_batch());
        let records = batch.jobs.iter().map(|(_, job)| (batch.partition, job.cx.origin().offset));
        let task = self.dispatch.begin(Arc::clone(cx.life()), records.collect());
        tokio::spawn(Arc::clone(&self.dispatch.tasks).run_batch(task, cx, batch, kill));
    }

    pub(in crate::engine) fn start(&mut self, lane: LaneId, job: Box<Job<C::Work>>) {
        let mut kill = None;
        let Some(mut job) = self.past_floods(lane, job) else { return };
        self.update_merged(&mut job);
        for open_offset in &job.open_offsets {
            if let Some(partition) = self.partitions.get_mut(&open_offset.partition) {
                partition.running += 1;
                kill.get_or_insert_with(|| partition.kill.clone());
            }
        }
        job.cx.life().begin();
        let records = job.open_offsets.iter().map(|open| (open.partition, open.offset)).collect();
        let task = self.dispatch.begin(Arc::clone(job.cx.life()), records);
        let kill = kill.unwrap_or_default();
        tokio::spawn(Arc::clone(&self.dispatch.tasks).run(task, lane, job, kill));
    }
}
