//! What becomes of a record in hand: lanes, tasks, outcomes, retries, and the bounds on all of it.

pub(super) mod admission;
pub mod backpressure;
pub(super) mod batch;
pub(super) mod flood;
pub(super) mod held_floods;
pub(super) mod job;
pub mod lanes;
pub(super) mod life;
pub(super) mod outcomes;
pub mod permits;
pub mod retry;
pub(super) mod start;
pub(super) mod task;
pub(super) mod work;

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::mpsc;

use self::batch::Batch;
use self::flood::Guard;
use self::job::Job;
use self::lanes::Lanes;
use self::life::Life;
use self::task::{Finished, TaskContext};
use self::work::Shared;
use super::{Consumer, Engine};

/// Numbers the tasks of one session.
pub(super) type TaskId = u64;

/// A task in flight.
pub(super) struct InFlight {
    /// What it is at.
    pub(super) life: Arc<Life>,
    /// The open offsets that it works on, by the ids of their partitions.
    pub(super) records: SmallVec<[(u32, i64); 1]>,
}

/// The jobs of one session.
pub(super) struct Dispatch<C: Consumer> {
    pub(super) shared: Arc<Shared>,
    pub(super) lanes: Lanes<Box<Job<C::Work>>>,
    /// The tasks in flight, by their numbers.
    pub(super) in_flight: HashMap<TaskId, InFlight, ahash::RandomState>,
    last_task: TaskId,
    /// What is about to start together, by partition; empty between two turns of the loop.
    batches: Vec<Batch<C::Work>>,
    tasks: Arc<TaskContext<C>>,
    pub(super) finished: mpsc::UnboundedReceiver<Finished<C::Work>>,
    /// Holds dead letters where there are too many of them.
    pub(super) floods: Guard,
}

impl<C: Consumer> Dispatch<C> {
    pub(super) fn new(engine: &Engine<C>, shared: Arc<Shared>) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        Self {
            shared,
            lanes: Lanes::default(),
            in_flight: HashMap::default(),
            last_task: 0,
            batches: Vec::new(),
            tasks: Arc::new(TaskContext::new(engine, sender)),
            finished,
            floods: Guard::new(engine.settings.dlq_flood, engine.settings.retry.backoff.max),
        }
    }

    /// A task begins to work on `records`.
    fn begin(&mut self, life: Arc<Life>, records: SmallVec<[(u32, i64); 1]>) -> TaskId {
        self.last_task += 1;
        self.in_flight.insert(self.last_task, InFlight { life, records });
        self.last_task
    }
}
