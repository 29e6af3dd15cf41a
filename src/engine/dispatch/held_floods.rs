//! Records that are held since they are part of a flood of dead letters.

use std::time::{Duration, Instant};

use crate::engine::dispatch::Dispatch;
use crate::engine::dispatch::flood::Judgement;
use crate::engine::dispatch::job::{Job, Stage, Todo, Waits};
use crate::engine::dispatch::lanes::LaneId;
use crate::engine::session::Session;
use crate::engine::{Consumer, Observed, Outcome};
use crate::metric_names;

/// What is held is woken, never by the time: this is merely later than anything else.
const HELD: Duration = Duration::from_secs(24 * 60 * 60);
/// What held records wait for, as a stable label.
const REASON: &str = "dead_letters_held";

impl<C: Consumer> Session<'_, C> {
    /// Lets a job pass that is not to be set aside, or may be; holds it where it is one of a flood.
    /// What was held and comes here again is tried, where there is anything to try.
    pub(in crate::engine) fn past_floods(
        &mut self,
        lane: LaneId,
        mut job: Box<Job<C::Work>>,
    ) -> Option<Box<Job<C::Work>>> {
        let Todo::SetAside(set_aside, work) = &mut job.todo else { return Some(job) };
        let cause = set_aside.kind;
        match set_aside.stage {
            Stage::Going => return Some(job),
            Stage::Held if let Some(work) = work.take() => {
                job.todo = Todo::Process(work);
                job.held_by = Some(cause);
                return Some(job);
            }
            Stage::Held | Stage::New => {}
        }
        let began = !self.dispatch.floods.holds(cause);
        let again = set_aside.stage == Stage::Held || job.held_by == Some(cause);
        let now = Instant::now();
        if self.dispatch.floods.judge(cause, again, now) == Judgement::SetAside {
            set_aside.stage = Stage::Going;
            return Some(job);
        }
        if began {
            let reason = self.dispatch.floods.reasons().last().unwrap_or_default();
            tracing::error!(messaging.consumer.group.name = %self.engine.settings.group,
                error.type = cause, example = %set_aside.message, "{reason}");
        }
        set_aside.stage = Stage::Held;
        let observed = Observed::Retry { origin: job.cx.origin(), reason: REASON };
        self.engine.observer.observe(self.engine.name(), &observed);
        job.waits_for = Waits { breaker: None, reason: REASON.into() };
        self.park(lane, job, now + HELD);
        None
    }

    /// Counts what a job came to, and lets go what is held where that is no flood any more.
    pub(in crate::engine) fn handled(&mut self, job: &Job<C::Work>, outcome: Outcome) {
        let over = match (outcome, job.held_by) {
            (Outcome::DeadLettered(_), _) => false,
            (_, Some(cause)) => {
                let held = self.dispatch.floods.holds(cause);
                self.dispatch.floods.passed(cause);
                held
            }
            (Outcome::Sent | Outcome::Duplicate, None) => self.dispatch.floods.done(Instant::now()),
            (Outcome::Skipped(_) | Outcome::Replayed, None) => false,
        };
        if over {
            let Dispatch { lanes, floods, .. } = &mut self.dispatch;
            tracing::info!(messaging.consumer.group.name = %self.engine.settings.group,
                "the flood of dead letters is over, handling the held records");
            lanes.wake_where(|job| job.held().is_some_and(|cause| !floods.holds(cause)));
        }
    }

    /// Tries one record of each flood, the one that has waited longest, and tells how many are
    /// held.
    pub(in crate::engine) fn try_held(&mut self, now: Instant) {
        for cause in self.dispatch.floods.due(now) {
            let mut first = true;
            self.dispatch.lanes.wake_where(|job| {
                job.held() == Some(cause) && std::mem::replace(&mut first, false)
            });
        }
        let held = self.dispatch.lanes.parked().filter(|job| job.held().is_some());
        let held: usize = held.map(|job| job.open_offsets.len()).sum();
        let consumer = self.engine.name();
        metrics::gauge!(metric_names::HELD, "consumer" => consumer).set(held as f64);
    }
}
