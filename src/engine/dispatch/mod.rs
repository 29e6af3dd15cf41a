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

use tokio::sync::mpsc;

use self::batch::Batch;
use self::flood::Guard;
use self::job::Job;
use self::lanes::{LaneId, Lanes};
use self::life::Life;
use self::task::{Finished, TaskContext};
use self::work::{Origin, Shared};
use super::{Consumer, Engine};

/// The jobs of one session.
pub(super) struct Dispatch<C: Consumer> {
    pub(super) shared: Arc<Shared>,
    pub(super) lanes: Lanes<Box<Job<C::Work>>>,
    /// Of the jobs in flight, by their lanes: where each comes from, and its life.
    pub(super) lives: HashMap<LaneId, (Origin, Arc<Life>), ahash::RandomState>,
    /// What is about to start together, by partition; empty between two turns of the loop.
    batches: Vec<Batch<C::Work>>,
    tasks: Arc<TaskContext<C>>,
    pub(super) tasks_running: usize,
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
            lives: HashMap::default(),
            batches: Vec::new(),
            tasks: Arc::new(TaskContext::new(engine, sender)),
            tasks_running: 0,
            finished,
            floods: Guard::new(engine.settings.dlq_flood, engine.settings.retry.backoff.max),
        }
    }
}
