//! What can go wrong on demand.

use std::collections::VecDeque;
use std::time::Duration;

/// The kinds of requests that have faults, latency and counts of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Events posted to Inngest.
    Post,
    /// Functions called at Supabase.
    Rpc,
    /// Rows read at Supabase.
    Rest,
    /// Broadcasts through Supabase.
    Broadcast,
}

impl Endpoint {
    pub(super) const COUNT: usize = 4;

    pub(super) fn index(self) -> usize {
        match self {
            Self::Post => 0,
            Self::Rpc => 1,
            Self::Rest => 2,
            Self::Broadcast => 3,
        }
    }
}

/// What a request meets instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset before the request is handled.
    Reset,
    /// The request is handled, then the connection is reset: the caller cannot know.
    HandledThenReset,
    /// The request is handled, and half of its answer arrives.
    Truncated,
    /// No answer ever comes; the request is not handled.
    Hang,
    /// A 200 that takes nothing: for events `{"ids":[""],"status":200}`, else a web page.
    OddSuccess,
    /// Another status; the request is not handled.
    Status {
        /// The HTTP status.
        status: u16,
        /// Seconds of a `Retry-After` header.
        retry_after: Option<u32>,
        /// A page as gateways send it instead of the service's own error body.
        page: bool,
    },
}

impl Fault {
    /// An error status with the service's own body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None, page: false }
    }

    /// An error status with a page, as gateways send it.
    #[must_use]
    pub fn page(status: u16) -> Self {
        Self::Status { status, retry_after: None, page: true }
    }

    /// 429 with a `Retry-After` of so many seconds.
    #[must_use]
    pub fn too_many(retry_after: u32) -> Self {
        Self::Status { status: 429, retry_after: Some(retry_after), page: false }
    }
}

/// For how many requests a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// This many of the next requests.
    Next(u32),
    /// Until [`super::Fake::heal`].
    UntilHealed,
}

/// How Inngest treats one event that was marked with [`super::Fake::poison`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poison {
    /// A 400 with this text, which stops the request at this event.
    Refused(String),
    /// A status for every request that holds it: 500 takes nothing, 413 neither.
    Status(u16),
    /// Every request that holds it takes nothing, and its connection is reset.
    Reset,
}

/// The faults and the latency of one kind of request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) latency: Duration,
    faults: VecDeque<(Fault, Lasting)>,
}

impl Plan {
    pub(super) fn add(&mut self, fault: Fault, lasting: Lasting) {
        if lasting != Lasting::Next(0) {
            self.faults.push_back((fault, lasting));
        }
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    /// The fault that the next request meets.
    pub(super) fn take(&mut self) -> Option<Fault> {
        let (fault, lasting) = self.faults.front_mut()?;
        let fault = fault.clone();
        if let Lasting::Next(count) = lasting {
            *count -= 1;
            if *count == 0 {
                self.faults.pop_front();
            }
        }
        Some(fault)
    }
}
