//! One job in flight, in a task of its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::dispatch::TaskId;
use crate::engine::dispatch::job::{Job, SetAside, Todo};
use crate::engine::dispatch::lanes::LaneId;
use crate::engine::dispatch::retry::Failure;
use crate::engine::settings::Engine;
use crate::engine::{Consumer, Outcome};
use crate::kafka::{DeadLetter, DeadLetters};
use crate::outage::Breaker;

/// How long a lane waits for a dead letter topic that cannot be written.
const PAUSE: Duration = Duration::from_secs(5);

/// What a task hands back: jobs that have ended.
pub(crate) struct Finished<W> {
    pub(crate) task: TaskId,
    pub(crate) jobs: SmallVec<[Ended<W>; 1]>,
    /// Whether nothing else is left to the task.
    pub(crate) task_ends: bool,
}

/// A job, and what came of it.
pub(crate) struct Ended<W> {
    pub(crate) lane: LaneId,
    pub(crate) job: Box<Job<W>>,
    pub(crate) result: Result<Outcome, Failure>,
}

/// What the tasks of one session share.
pub(crate) struct TaskContext<C: Consumer> {
    name: &'static str,
    pub(in crate::engine) consumer: Arc<C>,
    dead_letters: Arc<DeadLetters>,
    breaker: Arc<Breaker>,
    finished: mpsc::UnboundedSender<Finished<C::Work>>,
}

impl<C: Consumer> TaskContext<C> {
    pub(crate) fn new(
        engine: &Engine<C>,
        finished: mpsc::UnboundedSender<Finished<C::Work>>,
    ) -> Self {
        Self {
            name: engine.name(),
            consumer: Arc::clone(&engine.consumer),
            dead_letters: Arc::clone(&engine.dead_letters),
            breaker: engine.breakers.get("dead_letter_topic"),
            finished,
        }
    }

    /// Works on `job` until it ends or `kill` is cancelled.
    pub(crate) async fn run(
        self: Arc<Self>,
        task: TaskId,
        lane: LaneId,
        job: Box<Job<C::Work>>,
        kill: CancellationToken,
    ) {
        let result = tokio::select! {
            biased;
            result = AssertUnwindSafe(self.work(&job)).catch_unwind() => {
                result.unwrap_or_else(|_| {
                    tracing::error!("processing a record panicked, setting it aside");
                    let message = "processing panicked; see the log".to_owned();
                    Err(Failure::Poison { kind: "panic", message })
                })
            }
            () = kill.cancelled() => Err(Failure::GivenUp),
        };
        job.cx.keep_nothing();
        self.finished(Finished {
            task,
            jobs: smallvec![Ended { lane, job, result }],
            task_ends: true,
        });
    }

    pub(in crate::engine) fn finished(&self, finished: Finished<C::Work>) {
        // The session may have ended meanwhile.
        drop(self.finished.send(finished));
    }

    async fn work(&self, job: &Job<C::Work>) -> Result<Outcome, Failure> {
        match &job.todo {
            Todo::SetAside(set_aside, _) => self.set_aside(job, set_aside).await,
            Todo::Process(work) => {
                #[cfg(debug_assertions)]
                job.cx.declare(self.consumer.steps(work));
                self.consumer.process(&job.cx, work).await
            }
        }
    }

    async fn set_aside(
        &self,
        job: &Job<C::Work>,
        set_aside: &SetAside,
    ) -> Result<Outcome, Failure> {
        let origins = std::iter::once(job.cx.origin()).chain(job.cx.merged());
        for (origin, record) in origins.zip(&job.records) {
            let letter = DeadLetter {
                topic: &origin.topic,
                partition: origin.partition,
                offset: origin.offset,
                record,
                consumer: self.name,
                kind: set_aside.kind,
                message: &set_aside.message,
                attempts: job.attempts.failures.max(1),
                first_at: job.failed_at.unwrap_or(set_aside.at),
                last_at: set_aside.at,
            };
            // While the topic cannot be written this merely waits, and does not hold up a stop.
            let written =
                job.cx.unless_given_up(&self.breaker, self.dead_letters.write(&letter)).await?;
            if let Err(error) = written {
                // Named as away from the first failure on: nothing else shows why its lanes wait.
                self.breaker.failed(Instant::now(), Some(PAUSE), &error.to_string());
                return Err(Failure::Outage {
                    breaker: Arc::clone(&self.breaker),
                    kind: "dead_letter_not_written",
                    message: error.to_string(),
                    retry_after: None,
                    attempted: true,
                });
            }
            tracing::error!(messaging.destination.name = %origin.topic,
                messaging.destination.partition.id = origin.partition,
                messaging.kafka.offset = origin.offset,
                error.type = set_aside.kind, reason = %set_aside.message,
                "record set aside in the dead letter topic");
        }
        self.breaker.succeeded();
        job.cx.release_claims().await;
        Ok(Outcome::DeadLettered(set_aside.kind))
    }
}
