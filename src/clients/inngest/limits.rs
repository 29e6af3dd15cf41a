//! How large requests become, and which events go alone. No I/O, no clock.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{Batch, Limits, Submission};

/// The request limits that the server was last found to accept.
#[derive(Debug)]
pub(super) struct Sizes {
    configured: Limits,
    now: Limits,
    /// Batches accepted since the limit was last changed.
    calm: u32,
}

/// How many batches are accepted before larger ones are tried again.
const CALM: u32 = 32;

impl Sizes {
    pub(super) fn new(configured: Limits) -> Self {
        Self { configured, now: configured, calm: 0 }
    }

    pub(super) fn limits(&self) -> Limits {
        self.now
    }

    /// A batch of several events was too large. Parts do not count: one large event alone may make
    /// them too large, which says nothing about the server's limit.
    pub(super) fn too_large(&mut self, batch: &Batch) {
        if batch.is_part {
            return;
        }
        self.calm = 0;
        self.now.bytes = self.now.bytes.min(batch.body().len() / 2);
        let bytes = self.now.bytes;
        tracing::warn!(bytes, "inngest takes smaller requests than configured");
    }

    /// A batch was accepted. After a while larger ones are tried again, since the limit may have
    /// gone.
    pub(super) fn accepted(&mut self) {
        if self.now.bytes >= self.configured.bytes {
            return;
        }
        self.calm += 1;
        if self.calm >= CALM {
            self.calm = 0;
            self.now.bytes = (self.now.bytes + self.now.bytes / 2 + 1).min(self.configured.bytes);
        }
    }
}

/// Events that were found to fail alone, known by their bytes. When they come again they go alone,
/// so that no neighbours are halved with them.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    hasher: RandomState,
    until: HashMap<u64, Instant>,
}

/// How long a suspect is remembered: longer than any pause between two attempts.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The most suspects that are remembered.
const MOST: usize = 1024;

impl Suspects {
    /// Notes the events of a batch that failed with one caller.
    pub(super) fn note(&mut self, batch: &Batch, now: Instant) {
        self.until.retain(|_, until| *until > now);
        for event in batch.each() {
            if self.until.len() < MOST {
                self.until.insert(self.hasher.hash_one(event), now + REMEMBERED);
            }
        }
    }

    /// Whether any of these events is a suspect.
    pub(super) fn has(&self, submission: &Submission, now: Instant) -> bool {
        let is = |event: &[u8]| {
            self.until.get(&self.hasher.hash_one(event)).is_some_and(|until| *until > now)
        };
        // Usually there are no suspects, and nothing is hashed.
        !self.until.is_empty() && submission.each(submission.events()).any(is)
    }
}
