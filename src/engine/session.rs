//! The loop: one task owns all state of one consumer and its client.
//!
//! It selects, in this order, over: the stop signal, rebalance events, finished work, the plan of
//! an assignment, recovered dependencies, timers, and new records. New records come last, so that
//! nothing that frees memory or answers the group ever waits for something that takes memory.
//! Backpressure is a pause of partitions, never of polling. Work runs in tasks of its own, and
//! nothing here blocks: what must block (reading committed offsets) runs on a blocking thread.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::RDKafkaErrorCode;
use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::assignment::{Assignment, list};
use super::backpressure::{Backpressure, Load};
use super::intake::{Intake, Lane, Route, intake};
use super::lanes::{LaneId, Lanes};
use super::offsets::Admission;
use super::partition::Partition;
use super::parts::{Engine, EngineError};
use super::retry::{Attempts, Failure, Next};
use super::task::{Finished, TaskContext};
use super::vitals::{PartitionVitals, Vitals};
use super::work::{Cx, Job, SetAside, Shared, Ticket, Waits};
use super::{Consumer, Observed, Outcome};
use crate::cdc::{Header, Record};
use crate::kafka::{self, GroupConsumer, Loss, SavedRecord, Signals};
use crate::outage::Breaker;

/// Jobs in flight at a time. More would only wait for a permit or a batch, each in a task.
const MAX_RUNNING: usize = 4096;
/// Records taken in one go before anything else gets its turn.
const BURST: usize = 128;
/// How often the loop looks after itself.
const TICK: Duration = Duration::from_millis(250);

/// How a session ended.
pub(crate) enum End {
    /// As asked: everything is committed.
    Stopped,
    /// The broker does not accept this client for now.
    Anew(RDKafkaErrorCode),
}

pub(crate) struct Session<'a, C: Consumer> {
    pub(super) engine: &'a Engine<C>,
    pub(super) client: Arc<GroupConsumer>,
    pub(super) topics: Vec<String>,
    pub(super) partitions: HashMap<u32, Partition>,
    /// By topic and partition number.
    pub(super) index: HashMap<Arc<str>, HashMap<i32, u32>>,
    pub(super) lanes: Lanes<Box<Job<C::Work>>>,
    pub(super) assignment: Assignment,
    pub(super) stop: &'a CancellationToken,
    pub(super) next_id: u32,
    shared: Arc<Shared>,
    tasks: Arc<TaskContext<C>>,
    finished: mpsc::UnboundedReceiver<Finished<C::Work>>,
    backpressure: Backpressure,
    total: Load,
    /// Whether to ask for records; off for a moment when too many are held.
    polling: bool,
    stopping: Option<Instant>,
    progress: Instant,
    commit_at: Instant,
    snapshot: SnapshotCount,
    position_lost: bool,
}

/// Snapshot rows that were skipped for their age since the last report.
#[derive(Default)]
struct SnapshotCount {
    skipped: u64,
    last: Option<Instant>,
}

impl<'a, C: Consumer> Session<'a, C> {
    pub(crate) fn new(
        engine: &'a Engine<C>,
        shared: Arc<Shared>,
        client: Arc<GroupConsumer>,
        topics: Vec<String>,
        stop: &'a CancellationToken,
    ) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        let now = Instant::now();
        Self {
            tasks: Arc::new(TaskContext::new(engine, sender)),
            engine,
            client,
            topics,
            partitions: HashMap::new(),
            index: HashMap::new(),
            lanes: Lanes::default(),
            assignment: Assignment::default(),
            stop,
            next_id: 0,
            shared,
            finished,
            backpressure: Backpressure::new(engine.settings.bounds),
            total: Load::default(),
            polling: true,
            stopping: None,
            progress: now,
            commit_at: now,
            snapshot: SnapshotCount::default(),
            position_lost: false,
        }
    }

    pub(crate) async fn run(mut self, mut signals: Signals) -> Result<End, EngineError> {
        let client = Arc::clone(&self.client);
        let mut stream = client.stream();
        let mut recovered = self.engine.breakers.recoveries();
        let mut batch = Vec::new();
        let mut tick_at = Instant::now();
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            let wake_at = self.lanes.next_wake().map_or(tick_at, |wake| wake.min(tick_at)).into();
            if sleep.deadline() != wake_at {
                sleep.as_mut().reset(wake_at);
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if self.stopping.is_none() => self.begin_stop(),
                Some(rebalance) = signals.rebalances.recv() => self.rebalanced(rebalance),
                _ = self.finished.recv_many(&mut batch, BURST) => {
                    for finished in batch.drain(..) {
                        self.finish(finished);
                    }
                }
                planned = self.assignment.planned() => self.assign(planned)?,
                _ = recovered.changed() => {
                    self.lanes.wake_where(|job| {
                        let breaker = job.waits_for.breaker.as_ref();
                        breaker.is_some_and(|breaker| breaker.away().is_none())
                    });
                }
                () = &mut sleep => {
                    let now = Instant::now();
                    self.lanes.wake(now);
                    if now >= tick_at {
                        tick_at = now + TICK;
                        self.tick(now, &signals);
                        if let Some((code, _)) = self.client.client().fatal_error() {
                            return self.fatal(code);
                        }
                    }
                }
                Some(message) = stream.next(), if self.polling && self.stopping.is_none() => {
                    let mut message = message;
                    let mut taken = 0;
                    loop {
                        match message {
                            Ok(message) => self.take(&message),
                            Err(error) => {
                                if let Some(end) = self.client_error(&error) {
                                    return end;
                                }
                            }
                        }
                        taken += 1;
                        // What is fetched here must be taken: it does not come again.
                        if taken == BURST || !self.polling {
                            break;
                        }
                        match stream.next().now_or_never().flatten() {
                            Some(next) => message = next,
                            None => break,
                        }
                    }
                }
            }
            self.dispatch();
            self.finish_revoke();
            if !self.polling {
                self.relieve();
            }
            if self.may_end() {
                self.commit_for_good().await;
                return Ok(End::Stopped);
            }
        }
    }

    /// Takes in one record.
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        self.progress = Instant::now();
        let (topic, number, offset) = (message.topic(), message.partition(), message.offset());
        let Some(id) = self.index.get(topic).and_then(|found| found.get(&number)).copied() else {
            return;
        };
        let mut headers: SmallVec<[Header<'_>; 8]> = SmallVec::new();
        if let Some(found) = message.headers() {
            headers.extend(found.iter().map(|h| Header { name: h.key, value: h.value }));
        }
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
        let decode = &self.engine.settings.decode;
        let Intake { stamp, committed_at, snapshot, route } =
            intake(consumer, &record, decode, Timestamp::now());

        let bytes = kafka::size(message);
        let ticket = Ticket { partition: id, offset, bytes, committed_at };
        let count = self.partitions.len();
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if partition.draining {
            return;
        }
        if partition.admit(offset, stamp, bytes) != Admission::Fresh {
            return;
        }
        let load = partition.load();
        let replayed = stamp.is_some_and(|stamp| partition.is_replay(&stamp));
        self.total.records += 1;
        self.total.bytes += bytes;
        if !self.backpressure.admits(self.total, load, count) {
            self.polling = false;
        }
        let (lane, work, set_aside) = match route {
            Ok(Route::Skip(reason)) => {
                if snapshot {
                    self.count_snapshot(reason);
                }
                return self.complete(&ticket, Outcome::Skipped(reason));
            }
            Ok(Route::Process { .. }) if replayed => {
                return self.complete(&ticket, Outcome::Replayed);
            }
            Ok(Route::Process { work, lane }) => (lane, Some(work), None),
            Err(error) => {
                let set_aside = SetAside {
                    kind: error.kind(),
                    message: error.to_string(),
                    at: Timestamp::now(),
                    attempts: Attempts::default(),
                };
                (Lane::in_partition(record.key), None, Some(set_aside))
            }
        };
        let Some(partition) = self.partitions.get(&id) else { return };
        let origin = partition.origin(offset);
        let cx = Cx::new(
            Arc::clone(&self.shared),
            origin,
            partition.assigned_at,
            partition.drain.clone(),
        );
        let job = Box::new(Job {
            work,
            records: smallvec![SavedRecord::copy(message)],
            cx,
            tickets: smallvec![ticket],
            stamp,
            attempts: Attempts::default(),
            failed_at: None,
            set_aside,
            waits_for: Waits::default(),
        });
        self.lanes.push(lane.id(id), job, |waiting, newer| coalesce(consumer, waiting, newer));
    }

    /// Starts what is ready.
    fn dispatch(&mut self) {
        while self.lanes.running() < MAX_RUNNING && self.stopping.is_none() {
            let Some((lane, job)) = self.lanes.next_ready() else { return };
            // Its original may have finished while it waited behind it.
            if let (Some(stamp), [ticket]) = (&job.stamp, job.tickets.as_slice())
                && job.attempts.failures == 0
                && job.set_aside.is_none()
                && self.partitions.get(&ticket.partition).is_some_and(|p| p.is_replay(stamp))
            {
                let ticket = *ticket;
                self.complete(&ticket, Outcome::Replayed);
                self.lanes.finish(lane);
                continue;
            }
            self.start(lane, job);
        }
    }

    fn start(&mut self, lane: LaneId, mut job: Box<Job<C::Work>>) {
        let mut kill = None;
        self.tell_merged(&mut job);
        for ticket in &job.tickets {
            if let Some(partition) = self.partitions.get_mut(&ticket.partition) {
                partition.running += 1;
                kill.get_or_insert_with(|| partition.kill.clone());
            }
        }
        tokio::spawn(Arc::clone(&self.tasks).run(lane, job, kill.unwrap_or_default()));
    }

    /// Tells a job which records it stands for: since it last ran some may have been merged into
    /// it, and some given up.
    fn tell_merged(&self, job: &mut Job<C::Work>) {
        let known =
            |ticket: &Ticket| Some((self.partitions.get(&ticket.partition)?, ticket.offset));
        let merged = job.tickets.iter().skip(1).filter_map(known);
        let merged = merged.map(|(partition, offset)| partition.origin(offset)).collect();
        let assigned = job.tickets.iter().filter_map(known).map(|(found, _)| found.assigned_at);
        let assigned_at = assigned.max().unwrap_or(job.cx.assigned_at());
        job.cx.covers(merged, assigned_at);
    }

    /// Takes in what a task has done.
    fn finish(&mut self, finished: Finished<C::Work>) {
        let Finished { lane, mut job, result } = finished;
        for ticket in &job.tickets {
            if let Some(partition) = self.partitions.get_mut(&ticket.partition) {
                partition.running -= 1;
            }
        }
        let failure = match result {
            Ok(outcome) => {
                self.progress = Instant::now();
                for ticket in &job.tickets {
                    self.complete(ticket, outcome);
                }
                self.lanes.finish(lane);
                return;
            }
            Err(failure) => failure,
        };
        self.keep_live(&mut job);
        if job.tickets.is_empty() || self.stopping.is_some() {
            self.lanes.finish(lane);
            return;
        }
        self.failed(lane, job, failure);
    }

    /// Decides about work that did not end.
    fn failed(&mut self, lane: LaneId, mut job: Box<Job<C::Work>>, failure: Failure) {
        let now = Instant::now();
        let at = Timestamp::now();
        if !matches!(failure, Failure::Wait { .. } | Failure::GivenUp) {
            job.failed_at.get_or_insert(at);
        }
        let retry = &self.engine.settings.retry;
        let attempts = match &mut job.set_aside {
            Some(set_aside) => &mut set_aside.attempts,
            None => &mut job.attempts,
        };
        match retry.next(attempts, failure, now, fastrand::f64()) {
            Next::Retry { at, waits_for, reason } => {
                let origin = job.cx.origin();
                tracing::trace!(messaging.destination.name = %origin.topic,
                    messaging.destination.partition.id = origin.partition,
                    messaging.kafka.offset = origin.offset, %reason, "record waits");
                let observed = Observed::Retry { origin, reason: &reason };
                self.engine.observer.observe(self.engine.consumer.name(), &observed);
                job.waits_for = Waits { breaker: waits_for, reason };
                self.park(lane, job, at);
            }
            // The dead letter topic itself may be away for as long as it likes.
            Next::DeadLetter { .. } if job.set_aside.is_some() => {
                let at = now + retry.backoff.max;
                self.park(lane, job, at);
            }
            Next::DeadLetter { kind, message } => {
                job.set_aside = Some(SetAside { kind, message, at, attempts: Attempts::default() });
                self.start(lane, job);
            }
            // Only what its partition gave up; what was merged into it from others goes on.
            Next::GiveUp => self.park(lane, job, now),
        }
    }

    /// Has a job wait. What came while it ran is merged into it: among it may be the record that
    /// holds the claim which it waits for, since a crash.
    fn park(&mut self, lane: LaneId, job: Box<Job<C::Work>>, until: Instant) {
        let consumer = &*self.engine.consumer;
        let merge = |waiting: &mut _, newer| coalesce(consumer, waiting, newer);
        self.lanes.park(lane, job, until, merge);
    }

    /// Drops the tickets of partitions that are being or were given up, and moves the job to a
    /// partition that stays.
    pub(super) fn keep_live(&mut self, job: &mut Job<C::Work>) {
        let Self { partitions, shared, .. } = self;
        let before = job.tickets.first().copied();
        let stays =
            |ticket: &Ticket| partitions.get(&ticket.partition).is_some_and(|p| !p.draining);
        let mut kept = job.tickets.iter().map(stays);
        job.records.retain(|_| kept.next().unwrap_or(false));
        job.tickets.retain(|ticket| stays(ticket));
        let Some(ticket) = job.tickets.first() else { return };
        if before.as_ref() == Some(ticket) {
            return;
        }
        if let Some(partition) = partitions.get(&ticket.partition) {
            let origin = partition.origin(ticket.offset);
            let drain = partition.drain.clone();
            // The place in the log is not that of the record that is first now.
            job.stamp = None;
            job.cx = Cx::new(Arc::clone(shared), origin, partition.assigned_at, drain);
        }
    }

    /// Gives an offset its outcome.
    fn complete(&mut self, ticket: &Ticket, outcome: Outcome) {
        let Some(partition) = self.partitions.get_mut(&ticket.partition) else { return };
        if !partition.complete(ticket.offset, ticket.bytes) {
            return;
        }
        self.total.records -= 1;
        self.total.bytes -= ticket.bytes;
        let origin = partition.origin(ticket.offset);
        let observed =
            Observed::Outcome { origin: &origin, outcome, committed_at: ticket.committed_at };
        self.engine.observer.observe(self.engine.consumer.name(), &observed);
    }

    /// Looks whether records may be asked for again, and pauses or resumes partitions.
    fn relieve(&mut self) {
        let loads = self.partitions.iter().map(|(id, p)| (*id, p.load(), p.paused));
        let decision = self.backpressure.decide(Instant::now(), loads);
        self.polling = decision.poll;
        self.pause(&decision.pause, true);
        self.pause(&decision.resume, false);
    }

    fn pause(&mut self, ids: &[u32], pause: bool) {
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
                partition.paused = pause;
            }
        }
    }

    /// What is due now and then.
    fn tick(&mut self, now: Instant, signals: &Signals) {
        self.relieve();
        self.expire_revoke(now);
        self.report_snapshot(now);
        self.finish_repairs();
        if std::mem::take(&mut self.position_lost) {
            self.plan_repair();
        }
        if now >= self.commit_at {
            self.commit_at = now + self.engine.settings.commit_interval;
            self.commit_progress();
        }
        self.update_vitals(now, signals);
    }

    fn update_vitals(&mut self, now: Instant, signals: &Signals) {
        let open: usize = self.partitions.values().map(|p| p.load().records).sum();
        let partitions = self.partition_vitals(now, signals);
        let lag = partitions.iter().map(|partition| partition.lag).sum();
        if open == 0 && lag <= 0 {
            self.progress = now;
        }
        let waits_for = self.waits_for(signals);
        self.engine.pulse.update(Vitals {
            beat: now,
            progress: self.progress,
            partitions,
            open,
            lag,
            waits_for,
        });
    }

    /// What explains that records do not end: only what this consumer's own work waits for, or
    /// another's outage would hide a stall.
    fn waits_for(&self, signals: &Signals) -> Vec<String> {
        let mut names: BTreeSet<&str> = BTreeSet::new();
        let mut breakers: BTreeMap<&str, &Breaker> = BTreeMap::new();
        for Waits { breaker, reason } in self.lanes.parked().map(|job| &job.waits_for) {
            match breaker {
                Some(breaker) => drop(breakers.insert(breaker.name(), breaker)),
                None => drop(names.insert(reason)),
            }
        }
        if self.lanes.running() > 0 {
            let awaited = self.shared.awaited().filter(|breaker| breaker.away().is_some());
            breakers.extend(awaited.map(|breaker| (breaker.name(), &**breaker)));
        }
        let mut waits_for: Vec<String> = names.into_iter().map(str::to_owned).collect();
        waits_for.extend(breakers.into_iter().map(|(name, breaker)| match breaker.away() {
            Some(away) => format!("{name}: {}", away.error),
            None => name.to_owned(),
        }));
        let brokers = signals.brokers_away.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits_for.extend(brokers.map(|reason| format!("kafka: {reason}")));
        if self.assignment.is_planning() {
            waits_for.push("kafka: reading committed offsets".to_owned());
        }
        waits_for
    }

    fn partition_vitals(&self, now: Instant, signals: &Signals) -> Vec<PartitionVitals> {
        let lags = signals.lag.lock().unwrap_or_else(PoisonError::into_inner);
        let vitals = self.partitions.values().map(|partition| PartitionVitals {
            topic: Arc::clone(&partition.topic),
            number: partition.number,
            lag: lags
                .get(&*partition.topic)
                .and_then(|l| l.get(&partition.number))
                .map_or(0, |l| *l),
            waiting: partition.waiting(now),
        });
        vitals.collect()
    }

    fn count_snapshot(&mut self, reason: &'static str) {
        if reason == super::SNAPSHOT_SKIPPED {
            self.snapshot.skipped += 1;
        }
        self.snapshot.last = Some(Instant::now());
    }

    /// Says once, at the end of a snapshot, how many of its rows were skipped.
    fn report_snapshot(&mut self, now: Instant) {
        const QUIET: Duration = Duration::from_secs(10);
        let over = self.snapshot.last.is_some_and(|last| now - last > QUIET);
        if over && self.snapshot.skipped > 0 {
            tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
                rows = self.snapshot.skipped,
                "snapshot rows skipped by SNAPSHOT_POLICY; run reconcile if rows were written while the connector was down");
        }
        if over {
            self.snapshot = SnapshotCount::default();
        }
    }

    /// The stop signal: what merely waits is given up at once, what is in flight may finish.
    fn begin_stop(&mut self) {
        self.stopping = Some(Instant::now() + self.engine.settings.stop_deadline);
        self.lanes.retain(|_| false);
        tracing::info!(messaging.consumer.group.name = %self.engine.settings.group,
            in_flight = self.lanes.running(), "stopping, finishing what is in flight");
    }

    fn may_end(&self) -> bool {
        self.stopping
            .is_some_and(|deadline| self.lanes.running() == 0 || Instant::now() >= deadline)
    }

    /// What a poll returned instead of a record.
    fn client_error(&mut self, error: &KafkaError) -> Option<Result<End, EngineError>> {
        let group = &self.engine.settings.group;
        match error {
            KafkaError::MessageConsumptionFatal(code) => return Some(self.fatal(*code)),
            KafkaError::MessageConsumption(code) => match code {
                RDKafkaErrorCode::AutoOffsetReset => self.position_lost = true,
                // Said once at the start; librdkafka repeats it with every refresh.
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {}
                RDKafkaErrorCode::InconsistentGroupProtocol => {
                    tracing::error!(messaging.consumer.group.name = %group,
                        "another member of this group uses another assignor: stop the old service, this one joins when it is gone");
                }
                code => {
                    tracing::warn!(messaging.consumer.group.name = %group, error.type = %code,
                        "kafka client reports an error, going on");
                }
            },
            error => {
                tracing::warn!(messaging.consumer.group.name = %group, %error,
                    "kafka client reports an error, going on");
            }
        }
        None
    }

    fn fatal(&self, code: RDKafkaErrorCode) -> Result<End, EngineError> {
        if code == RDKafkaErrorCode::UnreleasedInstanceId {
            return Ok(End::Anew(code));
        }
        let advice = match code {
            RDKafkaErrorCode::FencedInstanceId => {
                "another process uses the same KAFKA_INSTANCE_ID; give each running process its own"
            }
            _ => "see the log above; the platform should start it again",
        };
        Err(EngineError::Fatal { group: self.engine.settings.group.clone(), code, advice })
    }

    pub(super) fn report_loss(&self, topic: &str, partition: i32, loss: Loss) {
        let group = &self.engine.settings.group;
        let records = match loss {
            Loss::Expired(records) => {
                tracing::error!(messaging.consumer.group.name = %group,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition, records,
                    "records lost: retention removed them before they were read; run reconcile");
                Some(records)
            }
            Loss::Recreated => {
                tracing::error!(messaging.consumer.group.name = %group,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition,
                    "topic ends before the committed offset: it was made anew, reading it from its beginning");
                None
            }
        };
        let observed = Observed::Lost { topic, partition, records };
        self.engine.observer.observe(self.engine.consumer.name(), &observed);
    }

    /// A position that retention has passed must be looked for again.
    pub(super) fn must_repair(&mut self) {
        self.position_lost = true;
    }

    pub(super) fn total_without(&mut self, partition: &Partition) {
        let load = partition.load();
        self.total.records -= load.records;
        self.total.bytes -= load.bytes;
    }

    /// Whether the client's answer to a call is worth a warning.
    pub(super) fn warn_on_error(&self, what: &'static str, result: KafkaResult<()>) {
        if let Err(error) = result {
            tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, %error, what,
                "kafka client refused a call");
        }
    }
}

/// Merges `newer` into `waiting` where the consumer can, offsets included.
fn coalesce<C: Consumer>(
    consumer: &C,
    waiting: &mut Box<Job<C::Work>>,
    mut newer: Box<Job<C::Work>>,
) -> Option<Box<Job<C::Work>>> {
    if waiting.set_aside.is_some() {
        return Some(newer);
    }
    let (Some(work), Some(other)) = (&mut waiting.work, newer.work.take()) else {
        return Some(newer);
    };
    match consumer.coalesce(work, other) {
        None => {
            waiting.tickets.extend(newer.tickets);
            waiting.records.extend(newer.records);
            None
        }
        Some(other) => {
            newer.work = Some(other);
            Some(newer)
        }
    }
}
