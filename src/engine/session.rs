//! The loop: one task owns all state of one consumer and its client.
//!
//! It selects, in this order, over: the stop signal, rebalance events, finished work, the plan of
//! an assignment, recovered dependencies, timers, and new records. New records come last, so that
//! nothing that frees memory or answers the group ever waits for something that takes memory.
//! Backpressure is a pause of partitions, never of polling. Work runs in tasks of its own, and
//! nothing here blocks: what must block (reading committed offsets) runs on a blocking thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Message};
use smallvec::smallvec;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dispatch::backpressure::{Bounds, Load};
use super::dispatch::batch::Batch;
use super::dispatch::flood::Guard;
use super::dispatch::lanes::{LaneId, Lanes};
use super::dispatch::life::Life;
use super::dispatch::retry::Attempts;
use super::dispatch::task::{Finished, TaskContext};
use super::dispatch::work::{Context, Job, OpenOffset, Origin, SetAside, Shared, Waits, coalesce};
use super::group::assignment::{Assignment, list};
use super::group::beginnings::Sights;
use super::group::ends::Ends;
use super::group::known::Known;
use super::group::topics::Unreadable;
use super::group::unbegun::Unbegun;
use super::intake::{Intake, Lane, Route, intake};
use super::partition::offsets::Admission;
use super::partition::recognition::Recognition;
use super::partition::{Partition, Passed};
use super::settings::{Engine, EngineError};
use super::{Consumer, Outcome};
use crate::cdc::{Record, Remark};
use crate::kafka::{self, GroupConsumer, SavedRecord, Signals};

/// Bytes that a record takes besides its own while it is held: its job, lane and task.
const BOOKKEEPING: usize = 768;

/// Jobs in flight at a time. More would only wait for a permit or a batch, each in a task.
const MAX_RUNNING: usize = 2048;
/// Records taken in one go before anything else gets its turn.
const BURST: usize = 128;
/// How often the loop looks after itself.
const TICK: Duration = Duration::from_millis(250);
/// The same while there is nothing in hand: a daemon that waits should cost next to nothing.
const IDLE_TICK: Duration = Duration::from_secs(1);

/// How a session ended.
pub(crate) enum End {
    /// As asked: everything is committed.
    Stopped,
    /// This client is of no use any more, for this reason; another one may be.
    Anew(String),
}

pub(crate) struct Session<'a, C: Consumer> {
    pub(super) engine: &'a Engine<C>,
    pub(super) client: Arc<GroupConsumer>,
    pub(super) topics: Vec<String>,
    pub(super) partitions: HashMap<u32, Partition>,
    /// By topic and partition number.
    pub(super) index: HashMap<Arc<str>, HashMap<i32, u32>>,
    pub(super) lanes: Lanes<Box<Job<C::Work>>>,
    /// What is about to be started together, by partition; empty between two turns of the loop.
    batches: Vec<Batch<C::Work>>,
    /// Of the jobs in flight, by their lanes: where each comes from, and its life.
    pub(super) lives: HashMap<LaneId, (Origin, Arc<Life>)>,
    pub(super) assignment: Assignment,
    /// Partitions of topics that have not begun.
    pub(super) unbegun: Unbegun,
    pub(super) sights: Arc<Sights>,
    pub(super) stop: &'a CancellationToken,
    pub(super) next_id: u32,
    pub(super) shared: Arc<Shared>,
    tasks: Arc<TaskContext<C>>,
    pub(super) finished: mpsc::UnboundedReceiver<Finished<C::Work>>,
    bounds: Bounds,
    pub(super) total: Load,
    /// Whether to ask for records; off for a moment when too many are held.
    polling: bool,
    /// Whether any partition is paused.
    pausing: bool,
    pub(super) stopping: Option<Instant>,
    pub(super) began: Instant,
    pub(super) progress: Instant,
    commit_at: Instant,
    pub(super) snapshot: SnapshotCount,
    /// Where paused partitions end.
    pub(super) ends: Ends,
    /// What is known of topics beyond one assignment.
    pub(super) known: Known,
    /// When this member last joined again, to hear what it had missed.
    pub(super) rejoined_at: Option<Instant>,
    /// What was warned of, by topic.
    pub(super) warned_of: HashSet<(Arc<str>, Remark)>,
    /// Why the group does not take this member in, and what to do.
    pub(super) refused: Option<&'static str>,
    /// How the client came to have other partitions than is believed here.
    pub(super) distrusted: Option<String>,
    /// A topic may not be read, and whether that is still so is looked at now and then.
    pub(super) unreadable: Option<Unreadable>,
    /// Holds dead letters where there are too many of them.
    pub(super) floods: Guard,
}

/// Snapshot rows that were skipped for their age since the last report.
#[derive(Default)]
pub(super) struct SnapshotCount {
    pub(super) skipped: u64,
    pub(super) last: Option<Instant>,
}

impl<'a, C: Consumer> Session<'a, C> {
    pub(crate) fn new(
        engine: &'a Engine<C>,
        shared: Arc<Shared>,
        sights: Arc<Sights>,
        client: Arc<GroupConsumer>,
        stop: &'a CancellationToken,
    ) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        let now = Instant::now();
        Self {
            tasks: Arc::new(TaskContext::new(engine, sender)),
            engine,
            client,
            topics: engine.settings.subscription.topics.clone(),
            partitions: HashMap::new(),
            index: HashMap::new(),
            lanes: Lanes::default(),
            batches: Vec::new(),
            lives: HashMap::new(),
            assignment: Assignment::default(),
            unbegun: Unbegun::default(),
            sights,
            stop,
            next_id: 0,
            shared,
            finished,
            bounds: engine.settings.bounds.of_records(),
            total: Load::default(),
            polling: true,
            pausing: false,
            stopping: None,
            began: now,
            progress: now,
            commit_at: now,
            snapshot: SnapshotCount::default(),
            ends: Ends::default(),
            known: Known::default(),
            rejoined_at: None,
            warned_of: HashSet::new(),
            refused: None,
            distrusted: None,
            unreadable: None,
            floods: Guard::new(engine.settings.dlq_flood, engine.settings.retry.backoff.max),
        }
    }

    pub(crate) async fn run(mut self, mut signals: Signals) -> Result<End, EngineError> {
        self.join_group()?;
        let client = Arc::clone(&self.client);
        let mut stream = client.stream();
        let mut recovered = self.engine.breakers.recoveries();
        let mut batch = Vec::new();
        let mut ticked = Instant::now();
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            let tick_at = ticked + if self.is_idle() { IDLE_TICK } else { TICK };
            let wake_at = self.lanes.next_wake().map_or(tick_at, |wake| wake.min(tick_at)).into();
            if sleep.deadline() != wake_at {
                sleep.as_mut().reset(wake_at);
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if self.stopping.is_none() => self.begin_stop(),
                Some(rebalance) = signals.rebalances.recv() => self.rebalanced(rebalance, &signals),
                _ = self.finished.recv_many(&mut batch, BURST) => {
                    for finished in batch.drain(..) {
                        self.finish(finished);
                    }
                }
                planned = self.assignment.planned() => self.assign(planned),
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
                        ticked = now;
                        self.tick(now, &signals);
                        self.finish_joining()?;
                        if let Some((code, _)) = self.client.client().fatal_error() {
                            self.kill_tasks().await;
                            return self.fatal(code);
                        }
                    }
                }
                Some(message) = stream.next(), if self.polling && self.stopping.is_none() => {
                    let mut message = message;
                    let mut taken = 0;
                    loop {
                        match message {
                            Ok(message) => self.on_record(&message),
                            Err(error) => {
                                if let Some(end) = self.client_error(&error) {
                                    self.kill_tasks().await;
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
            if !self.polling || self.pausing {
                self.apply_backpressure();
            }
            if let Some(how) = self.distrusted.take() {
                self.drain_before_reset().await;
                return Ok(End::Anew(how));
            }
            if self.may_end() {
                self.commit_for_good(&signals).await;
                return Ok(End::Stopped);
            }
        }
    }

    /// Takes in one record.
    fn on_record(&mut self, message: &BorrowedMessage<'_>) {
        self.progress = Instant::now();
        let (topic, number, offset) = (message.topic(), message.partition(), message.offset());
        let Some(id) = self.index.get(topic).and_then(|found| found.get(&number)).copied() else {
            return;
        };
        let headers = kafka::text_headers(message);
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
        let now = Timestamp::now();
        let Intake { logged, committed_at, snapshot, remarks, route } =
            intake(consumer, &self.engine.settings, &record, now);
        let of = self.engine.settings.replay_recognition;
        let Recognition { compared, counted } =
            Recognition::new(logged, record.headers, self.engine.name(), of);

        let kept = match &route {
            Ok(Route::Process { work, .. }) => consumer.kept(work),
            _ => 0,
        };
        let bytes = kafka::size(message) + BOOKKEEPING + kept;
        let open_offset = OpenOffset { partition: id, offset, bytes, committed_at };
        let count = self.partitions.len();
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if partition.draining {
            return;
        }
        let written = record.timestamp_ms.map(|ms| (ms.min(now.as_millisecond()), offset));
        let passed = Passed { logged: counted, written };
        if partition.admit(offset, passed, bytes) != Admission::Fresh {
            return;
        }
        let view = partition.view(id);
        let topic = Arc::clone(&partition.topic);
        let replayed = compared.is_some_and(|logged| partition.is_replay(&logged));
        self.total.records += 1;
        self.total.bytes += bytes;
        if !remarks.is_empty() {
            self.note(&remarks, &topic, number, offset);
        }
        if !self.bounds.admit(self.total, &view, count) {
            self.polling = false;
        }
        let (lane, work, set_aside) = match route {
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
            Ok(Route::Process { work, lane }) => (lane, Some(work), None),
            Err(error) => {
                let set_aside = SetAside::new(error.kind(), error.to_string(), now);
                (Lane::in_partition(record.key), None, Some(set_aside))
            }
        };
        let Some(partition) = self.partitions.get(&id) else { return };
        let origin = partition.origin(offset);
        let cx = Context::new(
            Arc::clone(&self.shared),
            origin,
            partition.assigned_at,
            partition.drain.clone(),
        );
        let job = Box::new(Job {
            work,
            records: smallvec![SavedRecord::copy(message)],
            cx,
            open_offsets: smallvec![open_offset],
            logged: compared,
            attempts: Attempts::default(),
            failed_at: None,
            set_aside,
            held_by: None,
            waits_for: Waits::default(),
        });
        self.lanes.push(lane.id(id), job, |waiting, newer| coalesce(consumer, waiting, newer));
    }

    /// Starts what is ready.
    fn dispatch(&mut self) {
        while self.lanes.running() < MAX_RUNNING && self.stopping.is_none() {
            let Some((lane, job)) = self.lanes.next_ready() else { break };
            // Its original may have finished while it waited behind it.
            if let (Some(logged), [open_offset]) = (&job.logged, job.open_offsets.as_slice())
                && job.attempts.failures == 0
                && self.partitions.get(&open_offset.partition).is_some_and(|p| p.is_replay(logged))
            {
                let open_offset = *open_offset;
                self.complete(&open_offset, Outcome::Replayed);
                self.lanes.finish(lane);
                continue;
            }
            if job.may_be_batched()
                && job
                    .work
                    .as_ref()
                    .is_some_and(|work| self.engine.consumer.batched(work).is_some())
            {
                self.batch(lane, job);
            } else {
                self.start(lane, job);
            }
        }
        for batch in std::mem::take(&mut self.batches) {
            self.start_batch(batch);
        }
    }

    /// Puts a job into the batch of its partition.
    fn batch(&mut self, lane: LaneId, job: Box<Job<C::Work>>) {
        let Some(of) = job.open_offsets.first().map(|open_offset| open_offset.partition) else {
            return;
        };
        let known = self.batches.iter().position(|batch| batch.partition == of);
        let at = known.unwrap_or_else(|| {
            self.batches.push(Batch::new(of));
            self.batches.len() - 1
        });
        if self.batches[at].push(lane, job) {
            let full = self.batches.swap_remove(at);
            self.start_batch(full);
        }
    }

    fn start_batch(&mut self, batch: Batch<C::Work>) {
        let partition = self.partitions.get_mut(&batch.partition);
        let (Some(partition), [(_, first), _, ..]) = (partition, batch.jobs.as_slice()) else {
            return batch.jobs.into_iter().for_each(|(lane, job)| self.start(lane, job));
        };
        partition.running += batch.jobs.len();
        let (kill, life) = (partition.kill.clone(), Arc::clone(first.cx.life()));
        life.begin();
        for (lane, job) in &batch.jobs {
            self.lives.insert(*lane, (job.cx.origin().clone(), Arc::clone(&life)));
        }
        tokio::spawn(Arc::clone(&self.tasks).run_batch(batch, kill));
    }

    pub(super) fn start(&mut self, lane: LaneId, job: Box<Job<C::Work>>) {
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
        self.lives.insert(lane, (job.cx.origin().clone(), Arc::clone(job.cx.life())));
        tokio::spawn(Arc::clone(&self.tasks).run(lane, job, kill.unwrap_or_default()));
    }

    /// Looks whether records may be asked for again, and pauses or resumes partitions.
    fn apply_backpressure(&mut self) {
        let now = Instant::now();
        for partition in self.partitions.values_mut() {
            let open = partition.load().records;
            partition.pace.look(now, open);
        }
        let views = self.partitions.iter().map(|(id, partition)| partition.view(*id));
        let decision = self.bounds.decide(views);
        self.polling = decision.poll;
        self.pause(&decision.pause, true);
        self.pause(&decision.resume, false);
        self.pausing = self.partitions.values().any(|partition| partition.paused);
    }

    pub(super) fn pause(&mut self, ids: &[u32], pause: bool) {
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

    fn is_idle(&self) -> bool {
        self.total.records == 0 && self.polling && self.assignment.is_idle()
    }

    /// What is due now and then.
    fn tick(&mut self, now: Instant, signals: &Signals) {
        self.apply_backpressure();
        self.expire_revoke(now);
        self.report_snapshot(now);
        if self.stopping.is_none() {
            self.finish_repairs();
            self.plan_repairs(signals);
            let kafka = &self.engine.kafka;
            if let Some(ids) = self.known.look(now, self.next_id, &mut self.partitions, kafka) {
                self.compare_topics(&ids);
            }
            self.ends.look(now, &mut self.partitions, &self.client);
            self.rejoin_for_unowned();
            self.rejoin_after_lost_heartbeat(now, signals);
            self.recheck_topics(now);
            self.look_at_unbegun(now);
            self.try_held(now);
        }
        if now >= self.commit_at {
            self.commit_at = now + self.engine.settings.commit_interval;
            self.commit_progress();
        }
        self.update_vitals(now, signals);
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

    pub(super) fn release_budget(&mut self, partition: &Partition) {
        let load = partition.load();
        self.total.records -= load.records;
        self.total.bytes -= load.bytes;
    }
}
