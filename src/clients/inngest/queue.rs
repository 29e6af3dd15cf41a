//! What waits for a request that is not made yet.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::batch::{Batch, Limits, Part, Submission};

/// Events that wait for the next request, first come first served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Submission>,
    pub(super) events: usize,
    pub(super) bytes: usize,
    sweep_at: usize,
}

/// Below this many submissions the abandoned ones are not worth looking for.
pub(super) const SWEEP_FROM: usize = 1024;

impl Queue {
    pub(super) fn push(&mut self, submission: Submission) {
        self.count(&submission);
        self.waiting.push_back(submission);
        // Callers may come and go while nothing can be sent: what they leave must not pile up.
        if self.waiting.len() > self.sweep_at.max(SWEEP_FROM) {
            let all = std::mem::take(&mut self.waiting);
            (self.events, self.bytes) = (0, 0);
            for submission in all.into_iter().filter(|submission| !submission.is_abandoned()) {
                self.count(&submission);
                self.waiting.push_back(submission);
            }
            self.sweep_at = self.waiting.len() * 2;
        }
    }

    /// Puts submissions before all others, keeping their order.
    pub(super) fn push_front(&mut self, submissions: Vec<Submission>) {
        for submission in submissions.into_iter().rev() {
            self.count(&submission);
            self.waiting.push_front(submission);
        }
    }

    fn count(&mut self, submission: &Submission) {
        self.events += submission.events();
        self.bytes += submission.bytes() + 1;
    }

    /// When the submission that waits longest came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|submission| submission.arrived)
    }

    /// Whether a request is full.
    pub(super) fn is_full(&self, limits: Limits) -> bool {
        self.events >= limits.events || self.bytes >= limits.bytes
    }

    /// The next request, without those whose caller has gone; `None` when nobody is left.
    /// A caller's events stay together unless they exceed a whole request.
    pub(super) fn take(&mut self, limits: Limits) -> Option<Batch> {
        let mut parts = Vec::new();
        // A body is the opening bracket and, for each event, its bytes and a comma or bracket.
        let (mut events, mut bytes) = (0, 1);
        while let Some(first) = self.waiting.front() {
            let fits =
                events + first.events() <= limits.events && bytes + first.bytes() < limits.bytes;
            if !fits && !parts.is_empty() && !first.is_abandoned() {
                break;
            }
            let Some(submission) = self.waiting.pop_front() else { break };
            self.events -= submission.events();
            self.bytes -= submission.bytes() + 1;
            if submission.is_abandoned() {
                continue;
            }
            let part = Part::of(submission, limits);
            events += part.take;
            bytes += part.bytes() + 1;
            parts.push(part);
            if !fits {
                break;
            }
        }
        (!parts.is_empty()).then(|| Batch::new(parts))
    }
}
