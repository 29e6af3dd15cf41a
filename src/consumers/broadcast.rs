//! What the app's screens listen to, sent best effort (behaviour section 6).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;

use super::call::Calls;
use crate::metric_names::BROADCASTS_LOST;

/// Broadcasts under way at a time. Any more are dropped: a late one would not help the screen.
const MOST: usize = 32;

/// Sends broadcasts beside the records that cause them. Nothing waits for one, none is repeated,
/// and a record does not fail with one.
#[derive(Debug, Clone)]
pub struct Broadcasts {
    calls: Calls,
    slots: Arc<Semaphore>,
    lost: Arc<AtomicU64>,
}

impl Broadcasts {
    /// Sends through `calls`, without its permits.
    #[must_use]
    pub fn new(calls: Calls) -> Self {
        Self { calls, slots: Arc::new(Semaphore::new(MOST)), lost: Arc::default() }
    }

    /// Tells the listeners of `topic`. Must be called inside a tokio runtime.
    pub fn send(&self, topic: &str, event: &str, payload: &impl Serialize) {
        let message = json!({"messages": [{"topic": topic, "event": event, "payload": payload}]});
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return self.lose("too many are under way");
        };
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.calls.broadcast(&message).await {
                this.lose(&error.to_string());
            }
            drop(slot);
        });
    }

    /// How many were not delivered since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn lose(&self, reason: &str) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(BROADCASTS_LOST).increment(1);
        tracing::debug!(reason, "broadcast not sent");
    }
}
