//! How a session takes in what a job came to: outcomes, waits, and records to be set aside.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use crate::engine::dispatch::job::{Job, OpenOffset, SetAside, Todo, Waits, coalesce};
use crate::engine::dispatch::lanes::LaneId;
use crate::engine::dispatch::retry::{Failure, Next};
use crate::engine::dispatch::task::{Ended, Finished};
use crate::engine::dispatch::work::Context;
use crate::engine::session::Session;
use crate::engine::{Consumer, Observed, Outcome};

impl<C: Consumer> Session<'_, C> {
    /// Takes in what a task has done.
    pub(in crate::engine) fn finish(&mut self, finished: Finished<C::Work>) {
        if finished.task_ends {
            self.dispatch.in_flight.remove(&finished.task);
        } else if let Some(task) = self.dispatch.in_flight.get_mut(&finished.task) {
            // What has failed waits for its next attempt: it is not what hangs.
            let failed = finished.jobs.iter().filter(|ended| ended.result.is_err());
            for open in failed.flat_map(|ended| &ended.job.open_offsets) {
                task.records.retain(|record| *record != (open.partition, open.offset));
            }
        }
        finished.jobs.into_iter().for_each(|ended| self.ended(ended));
    }

    fn ended(&mut self, ended: Ended<C::Work>) {
        let Ended { lane, mut job, result } = ended;
        for open_offset in &job.open_offsets {
            if let Some(partition) = self.partitions.get_mut(&open_offset.partition) {
                partition.running -= 1;
            }
        }
        let failure = match result {
            Ok(outcome) => {
                self.times.progress = self.times.turn;
                self.handled(&job, outcome);
                for open_offset in &job.open_offsets {
                    self.complete(open_offset, outcome);
                }
                self.dispatch.lanes.finish(lane);
                return;
            }
            Err(failure) => failure,
        };
        job.attempts.served(&job.cx.take_served());
        self.drop_revoked(&mut job);
        if job.open_offsets.is_empty() || self.times.stopping.is_some() {
            self.dispatch.lanes.finish(lane);
            return;
        }
        self.failed(lane, job, failure);
    }

    /// Decides about work that did not end.
    pub(in crate::engine) fn failed(
        &mut self,
        lane: LaneId,
        mut job: Box<Job<C::Work>>,
        failure: Failure,
    ) {
        let now = Instant::now();
        let at = Timestamp::now();
        if !matches!(failure, Failure::Wait { .. } | Failure::GivenUp | Failure::Alone) {
            job.failed_at.get_or_insert(at);
        }
        let retry = &self.engine.settings.retry;
        match retry.next(job.attempts(), failure, now, fastrand::f64()) {
            Next::Retry { at, waits_for, reason } => {
                let origin = job.cx.origin();
                tracing::trace!(messaging.destination.name = %origin.topic,
                    messaging.destination.partition.id = origin.partition,
                    messaging.kafka.offset = origin.offset, %reason, "record waits");
                let observed = Observed::Retry { origin, reason: &reason };
                self.engine.observer.observe(self.engine.name(), &observed);
                job.waits_for = Waits { breaker: waits_for, reason };
                self.park(lane, job, at);
            }
            // The dead letter topic itself may be away for as long as it likes.
            Next::DeadLetter { .. } if matches!(job.todo, Todo::SetAside(..)) => {
                let at = now + retry.backoff.max;
                self.park(lane, job, at);
            }
            Next::DeadLetter { kind, message } => {
                let set_aside = SetAside::new(kind, message, at);
                self.start(lane, (*job).into_set_aside(set_aside));
            }
            // Only what its partition gave up; what was merged into it from others goes on.
            Next::GiveUp { at } => self.park(lane, job, at),
        }
    }

    /// Has a job wait. What came while it ran is merged into it: among it may be the record that
    /// holds the claim which it waits for, since a crash.
    pub(in crate::engine) fn park(&mut self, lane: LaneId, job: Box<Job<C::Work>>, until: Instant) {
        let consumer = &*self.engine.consumer;
        let merge = |waiting: &mut _, newer| coalesce(consumer, waiting, newer);
        self.dispatch.lanes.park(lane, job, until, merge);
    }

    /// Drops the open_offsets of partitions that are being or were given up, and moves the job to a
    /// partition that stays.
    pub(in crate::engine) fn drop_revoked(&mut self, job: &mut Job<C::Work>) {
        let Self { partitions, dispatch, .. } = self;
        let before = job.open_offsets.first().copied();
        let stays = |open_offset: &OpenOffset| {
            partitions.get(&open_offset.partition).is_some_and(|p| !p.draining)
        };
        let mut kept = job.open_offsets.iter().map(stays);
        job.records.retain(|_| kept.next().unwrap_or(false));
        job.open_offsets.retain(|open_offset| stays(open_offset));
        let Some(open_offset) = job.open_offsets.first() else { return };
        if before.as_ref() == Some(open_offset) {
            return;
        }
        if let Some(partition) = partitions.get(&open_offset.partition) {
            let origin = partition.origin(open_offset.offset);
            let drain = partition.drain.clone();
            // The place in the log is not that of the record that is first now.
            job.logged = None;
            job.cx =
                Context::new(Arc::clone(&dispatch.shared), origin, partition.assigned_at, drain);
        }
    }

    /// Gives an offset its outcome.
    pub(in crate::engine) fn complete(&mut self, open_offset: &OpenOffset, outcome: Outcome) {
        let Some(partition) = self.partitions.get_mut(&open_offset.partition) else { return };
        if !partition.complete(open_offset.offset, open_offset.bytes, self.times.turn) {
            return;
        }
        self.pressure.total.records -= 1;
        self.pressure.total.bytes -= open_offset.bytes;
        let origin = partition.origin(open_offset.offset);
        let observed =
            Observed::Outcome { origin: &origin, outcome, committed_at: open_offset.committed_at };
        self.engine.observer.observe(self.engine.name(), &observed);
    }

    /// Tells a job which records it stands for: since it last ran some may have been merged into
    /// it, and some given up.
    pub(in crate::engine) fn update_merged(&self, job: &mut Job<C::Work>) {
        if job.open_offsets.len() == 1 && job.cx.merged().is_empty() {
            return;
        }
        let known = |open_offset: &OpenOffset| {
            Some((self.partitions.get(&open_offset.partition)?, open_offset.offset))
        };
        let merged = job.open_offsets.iter().skip(1).filter_map(known);
        let merged = merged.map(|(partition, offset)| partition.origin(offset)).collect();
        let assigned =
            job.open_offsets.iter().filter_map(known).map(|(found, _)| found.assigned_at);
        let assigned_at = assigned.max().unwrap_or(job.cx.assigned_at());
        job.cx.set_merged(merged, assigned_at);
    }
}
