//! What the fake saw: requests counted, events kept lean.

use std::time::Duration;

use super::faults::Endpoint;

/// What came in on one kind of request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Requests that arrived.
    pub count: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The largest body, in bytes.
    pub largest: usize,
    /// Requests being handled or hanging now.
    pub under_way: usize,
    /// The most that there were at a time.
    pub most_under_way: usize,
    /// Requests that met a fault.
    pub faults: u64,
}

/// One POST of events as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The event key that it came with, which distinguishes senders.
    pub key: String,
    /// Its `x-inngest-event-id-seed`.
    pub seed: Option<String>,
    /// Its `x-inngest-env`.
    pub environment: Option<String>,
    /// A hash of its body, to compare repeats.
    pub body_hash: u64,
    /// Bytes of its body.
    pub bytes: usize,
    /// Events stored from it.
    pub stored: usize,
    /// The status that was, or was to be, answered; 0 for none.
    pub status: u16,
    /// When it arrived, counted from the fake's start.
    pub at: Duration,
}

/// One event that Inngest stored. Each copy is an entry of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: Box<str>,
    /// The sender's idempotency key.
    pub id: Option<Box<str>>,
    /// The server's own id: the same for the same seed and index.
    pub internal_id: u128,
    /// Its `ts` in milliseconds, if the sender set one.
    pub ts: Option<i64>,
    /// Which POST it came with, counted from 0.
    pub post: u32,
    /// Its data as it came, if the fake was set to keep it.
    pub data: Option<Box<str>>,
    /// When it was stored, counted from the fake's start.
    pub at: Duration,
}

/// Everything that the fake saw, in order of arrival.
#[derive(Debug, Default)]
pub struct Log {
    requests: [Requests; Endpoint::COUNT],
    /// Every POST.
    pub posts: Vec<Post>,
    /// Every stored event.
    pub events: Vec<Stored>,
    /// How often each function was called and each table read, by name.
    pub calls: std::collections::BTreeMap<String, u64>,
    /// The body of every broadcast that was taken.
    pub broadcasts: Vec<serde_json::Value>,
}

impl Log {
    /// The counts of one kind of request.
    #[must_use]
    pub fn requests(&self, endpoint: Endpoint) -> Requests {
        self.requests[endpoint.index()]
    }

    pub(super) fn requests_mut(&mut self, endpoint: Endpoint) -> &mut Requests {
        &mut self.requests[endpoint.index()]
    }

    /// The senders' ids of all stored events, in order, copies included.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.events.iter().filter_map(|event| event.id.as_deref())
    }
}
