//! Inngest's event API: micro-batches across all lanes and consumers of the process.
//!
//! [`Inngest::send`] hands events to one batcher task, which fills requests from all callers
//! (a bounded wait of a few milliseconds, 5,000 events, a byte limit) and keeps a few of them under
//! way. Each caller gets the outcome of its own events:
//!
//! - A request of unknown outcome (time-out, reset, 5xx, a 200 that does not name every event) is
//!   repeated for as long as it takes, with the same bytes and the same seed, so that Inngest gives
//!   the events the same ids and starts no second run.
//! - After a partial 400 the accepted events are done, the event where it stopped is tried alone,
//!   and the rest goes on.
//! - A batch that keeps failing with answers, or in any way while others are accepted, is halved
//!   until the caller at fault is alone. If no answer came, a settle time passes first, since
//!   halves come under other ids. If others were accepted meanwhile, that caller gets a
//!   [`SendError::Outage`] to count, and goes alone when it comes again. A gateway's answer (502,
//!   503, 504, 408), a rate limit and an answer in another shape never take a batch apart.
//!
//! For the caller of a pending `send` an outage is not an error but a longer wait. While the
//! breaker handed to [`Inngest::start`] is away, a pending `send` *waits* and is not in flight;
//! select it against [`Breaker::until_away`] to give up or to count the wait. `send` may be dropped
//! at any time: its events are left out of requests that are not sent yet, and a request whose
//! callers have all gone is not repeated. If it is dropped while its request is on the wire, the
//! outcome is unknown, as after a crash.

mod answer;
mod batch;
mod batcher;
mod event;
mod limits;
mod queue;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use event::{Events, InvalidEvent};
pub use reply::{Outcome, Replies};

use self::batch::Limits;
use self::batch::Submission;
use self::batcher::{Batcher, Wire};
use self::reply::Reply;
use super::http::{self, HttpConfig, SetupError};
use super::key_redaction::KeyRedaction;
use crate::outage::{Backoff, Breaker};
use crate::room::{Room, Turn};

const SERVICE: &str = "inngest";
const ENVIRONMENT: HeaderName = HeaderName::from_static("x-inngest-env");

/// Where Inngest is and how events are batched.
#[derive(Debug, Clone)]
pub struct InngestConfig {
    /// The base address, `/e/<key>` not included.
    pub base_url: String,
    /// `INNGEST_EVENT_KEY`; the dev server takes any that is not empty.
    pub event_key: SecretString,
    /// `INNGEST_ENV`, a branch environment.
    pub environment: Option<String>,
    /// How long an event waits at most for others while a request could be sent. Default 3 ms.
    pub max_wait: Duration,
    /// Events of a request, at most. Default 5,000, Inngest's own limit.
    pub max_events: usize,
    /// Bytes of a request, at most, unless one event alone is larger. Default 4 MiB.
    pub max_bytes: usize,
    /// Bytes of an event, at most; a larger one is refused without asking. Default 3 MiB, the most
    /// that Inngest takes on any plan.
    pub max_event_bytes: usize,
    /// Bytes of written events that are not accepted yet, at most, unless one send alone has more.
    /// Only callers that ask with [`Inngest::room`] are held to it. Default 16 MiB.
    pub max_written_bytes: usize,
    /// Requests under way at a time. Default 4.
    pub requests: usize,
    /// Pause before a request is repeated. Default 100 ms to 30 s.
    pub backoff: Backoff,
    /// How long the parts wait when a batch that got no answer is taken apart. Events that were
    /// taken all the same must settle before they come again under other ids. Default 30 s.
    pub settle: Duration,
    /// Time-outs.
    pub http: HttpConfig,
}

impl InngestConfig {
    /// The defaults for one base address and key.
    #[must_use]
    pub fn new(base_url: impl Into<String>, event_key: SecretString) -> Self {
        Self {
            base_url: base_url.into(),
            event_key,
            environment: None,
            max_wait: Duration::from_millis(3),
            max_events: 5_000,
            max_bytes: 4 << 20,
            max_event_bytes: 3 << 20,
            max_written_bytes: 16 << 20,
            requests: 4,
            backoff: Backoff { base: Duration::from_millis(100), max: Duration::from_secs(30) },
            settle: Duration::from_secs(30),
            http: HttpConfig::default(),
        }
    }
}

/// Events were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// When the answer for the last of them came. Inngest had taken them by then, so a settle time
    /// counted from here is long enough (behaviour section 3).
    pub at: jiff::Timestamp,
    /// Requests in which some of them were accepted. They show what Inngest did for this caller,
    /// and nothing about others.
    pub served: u32,
}

/// Events were not accepted. The ones before the event at fault may have been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// Inngest refused an event that was alone in its request.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
        /// Whether the event is at fault beyond doubt. If not, the server itself may have failed,
        /// and the engine counts attempts.
        certain: bool,
        /// As [`Accepted::served`].
        served: u32,
    },
    /// The request of these events alone keeps failing while others are accepted: an outage to
    /// count (behaviour section 8.4). What fails for everybody is retried inside `send`.
    #[error("{message}")]
    Outage {
        /// What Inngest said last.
        message: String,
        /// How long to wait at least.
        retry_after: Option<Duration>,
        /// As [`Accepted::served`].
        served: u32,
    },
    /// The batcher has ended, since the process is stopping.
    #[error("the inngest client has stopped")]
    Closed,
}

impl SendError {
    /// As [`Accepted::served`].
    #[must_use]
    pub fn served(&self) -> u32 {
        match self {
            Self::Refused { served, .. } | Self::Outage { served, .. } => *served,
            Self::Closed => 0,
        }
    }

    /// A stable label, for metrics and `dlq.error.kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused { certain: true, .. } => "inngest_refused",
            Self::Refused { certain: false, .. } => "inngest_unsure",
            Self::Outage { .. } => "inngest_outage",
            Self::Closed => "inngest_closed",
        }
    }
}

impl From<InvalidEvent> for SendError {
    fn from(invalid: InvalidEvent) -> Self {
        Self::Refused { message: invalid.to_string(), certain: true, served: 0 }
    }
}

/// The process's way to Inngest. Cheap to clone; the batcher ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Inngest {
    // Unbounded: each caller has one submission here at most, and the room bounds their bytes.
    submissions: mpsc::UnboundedSender<Submission>,
    max_event_bytes: usize,
    room: Arc<Room>,
}

impl Inngest {
    /// Starts the batcher on the current runtime. Outages are reported to `breaker`, which also
    /// gives leave to every request.
    ///
    /// # Errors
    /// When the address or the key cannot be used, or TLS cannot be set up.
    pub fn start(config: &InngestConfig, breaker: Arc<Breaker>) -> Result<Self, SetupError> {
        let wire = Wire::new(config)?;
        let (submissions, incoming) = mpsc::unbounded_channel();
        let limits = Limits { events: config.max_events.max(1), bytes: config.max_bytes };
        let batcher = Batcher::new(config, limits, incoming);
        tokio::spawn(async move { batcher.run(&wire, &breaker).await });
        let room = Room::new(config.max_written_bytes);
        Ok(Self { submissions, max_event_bytes: config.max_event_bytes, room })
    }

    /// Sends events in their order, within one request unless they exceed a whole one. Resolves
    /// when all of them were accepted, at once if there are none.
    ///
    /// # Errors
    /// When Inngest refuses one of them; the rest is then not sent. An outage is waited out (see
    /// the module's documentation) and is an error only if it is the events' own.
    pub async fn send(&self, events: Events) -> Result<Accepted, SendError> {
        self.submit(events).await
    }

    /// As [`Inngest::send`], but hands the events over at once, before the future is awaited.
    pub fn submit(
        &self,
        events: Events,
    ) -> impl Future<Output = Result<Accepted, SendError>> + Send + use<> {
        let submitted = self.hand_over(events);
        async move {
            match submitted? {
                Some(outcome) => outcome.await.map_err(|_| SendError::Closed)?,
                None => Ok(Accepted { at: jiff::Timestamp::now(), served: 0 }),
            }
        }
    }

    /// Waits for room for more written events that are not accepted yet. A caller with many events
    /// writes them only then, and keeps their source until then.
    pub async fn room(&self) -> Turn<'_> {
        self.room.enter().await
    }

    /// Bytes of events that are written and not accepted yet.
    #[cfg(test)]
    pub(crate) fn written_bytes(&self) -> usize {
        self.room.held()
    }

    /// Checks whether an event of this many bytes may be sent.
    ///
    /// # Errors
    /// When it is over the limit.
    pub fn check_size(&self, bytes: usize) -> Result<(), SendError> {
        let most = self.max_event_bytes;
        if bytes <= most {
            return Ok(());
        }
        let message = format!("an event of {bytes} bytes is over the limit of {most} bytes");
        Err(SendError::Refused { message, certain: true, served: 0 })
    }

    /// `None` where there is nothing to send.
    fn hand_over(&self, events: Events) -> Result<Option<oneshot::Receiver<Outcome>>, SendError> {
        if events.is_empty() {
            return Ok(None);
        }
        self.check_size(events.largest())?;
        let (reply, outcome) = oneshot::channel();
        let charge = self.room.charge(events.bytes());
        let Events { json, ends } = events;
        let reply = Reply::One(reply);
        let submission = Submission::new(json.into(), ends, charge, reply, Instant::now());
        self.submissions.send(submission).map_err(|_| SendError::Closed)?;
        Ok(Some(outcome))
    }

    /// Hands over the events of many callers. Those of caller number `n` end before event number
    /// `ends[n]`, and every caller has at least one. Each caller gets its own answer.
    pub fn submit_all(&self, events: Events, ends: &[usize]) -> Replies {
        let (replies, places) = Replies::new(ends.len());
        let now = Instant::now();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let shares: Vec<_> = starts.zip(ends).map(|(from, to)| events.share(from, *to)).collect();
        let json = Bytes::from(events.json);
        for ((bytes, ends), reply) in shares.into_iter().zip(places) {
            let charge = self.room.charge(bytes.len());
            let submission = Submission::new(json.slice(bytes), ends, charge, reply, now);
            // The caller of a submission that is not taken gets the answer `Closed`.
            drop(self.submissions.send(submission));
        }
        replies
    }
}

impl Wire {
    fn new(config: &InngestConfig) -> Result<Self, SetupError> {
        let bad_key = SetupError::Key { service: SERVICE, setting: "INNGEST_EVENT_KEY" };
        let key = config.event_key.expose_secret().trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad_key);
        }
        let setting = "INNGEST_EVENT_API_BASE_URL";
        let url = http::endpoint(&config.base_url, &["e", key])
            .ok_or(SetupError::Address { service: SERVICE, setting })?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(environment) = config.environment.as_deref().filter(|name| !name.is_empty()) {
            let value = HeaderValue::from_str(environment)
                .map_err(|_| SetupError::Key { service: SERVICE, setting: "INNGEST_ENV" })?;
            headers.insert(ENVIRONMENT, value);
        }
        let redaction = KeyRedaction::new(&config.event_key);
        Ok(Self { http: http::client(SERVICE, &config.http, &url)?, url, headers, redaction })
    }
}
