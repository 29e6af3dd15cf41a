//! How a record comes in, and when no more may.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Message};
use smallvec::smallvec;

use crate::cdc::Record;
use crate::engine::dispatch::job::{Job, OpenOffset, SetAside, Todo, Waits, coalesce};
use crate::engine::dispatch::retry::Attempts;
use crate::engine::dispatch::work::Context;
use crate::engine::group::assignment::list;
use crate::engine::intake::{Intake, Lane, Route, intake};
use crate::engine::partition::offsets::Admission;
use crate::engine::partition::recognition::Recognition;
use crate::engine::partition::{Partition, Passed};
use crate::engine::session::Session;
use crate::engine::{Consumer, Outcome};
use crate::kafka::{self, SavedRecord};

/// Bytes that a record takes besides its own while it is held: its job, lane and task.
const BOOKKEEPING: usize = 768;

impl<C: Consumer> Session<'_, C> {
    /// Takes in one record, which came at `now`.
    pub(in crate::engine) fn on_record(&mut self, message: &BorrowedMessage<'_>, now: Timestamp) {
        let (topic, number, offset) = (message.topic(), message.partition(), message.offset());
        let Some(id) = self.partitions.id_of_record(topic, number) else {
            return;
        };
        let raw_headers = kafka::headers(message);
        let headers = kafka::text_headers(&raw_headers);
        let record = Record {
            topic,
            partition: number,
            offset,
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        };
        let consumer = &*self.engine.consumer;
        let Intake { logged, committed_at, snapshot, remarks, route } =
            intake(consumer, &self.engine.settings, &record, now);
        let of = self.engine.settings.replay_recognition;
        let Recognition { compared, counted } =
            Recognition::new(logged, record.headers, self.engine.name(), of);

        let kept = match &route {
            Ok(Route::Process { work, .. }) => consumer.kept(work),
            _ => 0,
        };
        let bytes = kafka::size(message, &raw_headers) + BOOKKEEPING + kept;
        let open_offset = OpenOffset { partition: id, offset, bytes, committed_at };
        let count = self.partitions.len();
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if partition.draining {
            return;
        }
        let written = record.timestamp_ms.map(|ms| (ms.min(now.as_millisecond()), offset));
        let passed = Passed { logged: counted, written };
        if partition.admit(offset, passed, bytes, self.times.turn) != Admission::Fresh {
            return;
        }
        let view = partition.view(id);
        let topic = Arc::clone(&partition.topic);
        let replayed = compared.is_some_and(|logged| partition.is_replay(&logged));
        self.pressure.total.records += 1;
        self.pressure.total.bytes += bytes;
        if !remarks.is_empty() {
            self.note(&remarks, &topic, number, offset);
        }
        if !self.pressure.bounds.admit(self.pressure.total, &view, count) {
            self.pressure.polling = false;
        }
        let (lane, todo) = match route {
            Ok(Route::Skip(reason)) => {
                if snapshot {
                    self.count_snapshot(reason);
                }
                return self.complete(&open_offset, Outcome::Skipped(reason));
            }
            // Also what cannot be routed: it was set aside when it came for the first time.
            Ok(Route::Process { .. }) | Err(_) if replayed => {
                return self.complete(&open_offset, Outcome::Replayed);
            }
            Ok(Route::Process { work, lane }) => (lane, Todo::Process(work)),
            Err(error) => {
                let set_aside = SetAside::new(error.kind(), error.to_string(), now);
                (Lane::in_partition(record.key), Todo::SetAside(Box::new(set_aside), None))
            }
        };
        let Some(partition) = self.partitions.get(&id) else { return };
        let origin = partition.origin(offset);
        let cx = Context::new(
            Arc::clone(&self.dispatch.shared),
            origin,
            partition.assigned_at,
            partition.drain.clone(),
        );
        let job = Box::new(Job {
            todo,
            records: smallvec![SavedRecord::copy(message, &raw_headers)],
            cx,
            open_offsets: smallvec![open_offset],
            logged: compared,
            attempts: Attempts::default(),
            failed_at: None,
            held_by: None,
            waits_for: Waits::default(),
        });
        self.dispatch
            .lanes
            .push(lane.id(id), job, |waiting, newer| coalesce(consumer, waiting, newer));
    }

    /// Looks whether records may be asked for again, and pauses or resumes partitions.
    pub(in crate::engine) fn apply_backpressure(&mut self) {
        let now = Instant::now();
        for partition in self.partitions.values_mut() {
            let open = partition.load().records;
            partition.pace.look(now, open);
        }
        let views = self.partitions.iter().map(|(id, partition)| partition.view(*id));
        let decision = self.pressure.bounds.decide(views);
        self.pressure.polling = decision.poll;
        self.pause(&decision.pause, true);
        self.pause(&decision.resume, false);
        self.pressure.pausing = self.partitions.values().any(|partition| partition.paused);
    }

    pub(in crate::engine) fn pause(&mut self, ids: &[u32], pause: bool) {
        if ids.is_empty() {
            return;
        }
        let list = list(ids.iter().filter_map(|id| self.partitions.get(id)));
        let done = if pause { self.client.pause(&list) } else { self.client.resume(&list) };
        if let Err(error) = done {
            tracing::warn!(%error, pause, "partitions not paused or resumed");
            return;
        }
        for id in ids {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.set_paused(pause);
            }
        }
    }

    pub(in crate::engine) fn release_budget(&mut self, partition: &Partition) {
        let load = partition.load();
        self.pressure.total.records -= load.records;
        self.pressure.total.bytes -= load.bytes;
    }
}
