//! What consumers send to Inngest: the events of one record or of many, and failures in the engine's
//! terms.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::clients::inngest::{self, Accepted, Events, Inngest, InvalidEvent, Replies, SendError};
use crate::engine::{Context, Failure, Sends, SentOfMany, Taken};
use crate::outage::Breaker;

/// Roughly the bytes of an event.
const EVENT_BYTES: usize = 320;
/// Bytes of events to write at a time for many records; the last record may go beyond it.
const WRITTEN_BYTES: usize = 1 << 20;

/// Inngest, as consumers send to it.
#[derive(Debug, Clone)]
pub struct Sender {
    inngest: Inngest,
    breaker: Arc<Breaker>,
}

impl Sender {
    /// Sends through `inngest`, which reports to `breaker`.
    #[must_use]
    pub fn new(inngest: Inngest, breaker: Arc<Breaker>) -> Self {
        Self { inngest, breaker }
    }

    /// Sends events in their order, which are written once there is room for them: while Inngest
    /// hangs only what they are made of is kept. Returns when they were accepted.
    ///
    /// # Errors
    /// The send's failure, as the engine's; an event that cannot be written is the record's fault.
    pub async fn send_with(
        &self,
        cx: &Context,
        write: impl FnOnce() -> Result<Events, InvalidEvent> + Send,
    ) -> Result<Timestamp, Failure> {
        // Most callers have just made a request for this record, and would have to repeat it.
        let turn = cx.with_client_retries(&self.breaker, self.inngest.room()).await?;
        let events = write().map_err(unwritable)?;
        take_steps(cx, &events);
        let sending = self.inngest.submit(events);
        drop(turn);
        self.sent(cx, sending).await
    }

    /// Sends what many records call for: `write` writes the events of record number `index`, none
    /// where there is nothing to send. Each is sent, and answered, for itself.
    ///
    /// # Errors
    /// [`Failure::GivenUp`] when the partition is being given up while Inngest is away.
    pub async fn send_all(
        &self,
        cx: &Context,
        count: usize,
        write: impl Fn(usize, &mut Events) -> Result<(), Failure> + Send,
    ) -> Result<Box<dyn Sends>, Failure> {
        let turn = cx.with_client_retries(&self.breaker, self.inngest.room()).await?;
        let mut events = Events::with_capacity((count * EVENT_BYTES).min(WRITTEN_BYTES));
        let (mut ends, mut of) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut known = Vec::new();
        for index in 0..count {
            // The others go alone, each when there is room for it.
            if events.bytes() >= WRITTEN_BYTES {
                known.push((index, Err(Failure::Alone)));
                continue;
            }
            let before = events.len();
            let written = write(index, &mut events).and_then(|()| {
                let size = self.inngest.check_size(events.largest_from(before));
                size.map_err(|error| failure(error, &self.breaker))
            });
            match written {
                Ok(()) if events.len() == before => known.push((index, Ok(None))),
                Ok(()) => {
                    ends.push(events.len());
                    of.push(index);
                }
                Err(failure) => {
                    events.truncate(before);
                    known.push((index, Err(failure)));
                }
            }
        }
        take_steps(cx, &events);
        events.shrink();
        let replies = self.inngest.submit_all(events, &ends);
        drop(turn);
        Ok(Box::new(Sending { replies, of, known, breaker: Arc::clone(&self.breaker) }))
    }

    /// Sends a few written events in their order. Returns when they were accepted.
    ///
    /// # Errors
    /// The send's failure, as the engine's.
    pub async fn send(&self, cx: &Context, events: Events) -> Result<Timestamp, Failure> {
        take_steps(cx, &events);
        self.sent(cx, self.inngest.submit(events)).await
    }

    async fn sent(
        &self,
        cx: &Context,
        sending: impl Future<Output = Result<Accepted, SendError>> + Send,
    ) -> Result<Timestamp, Failure> {
        let sent = cx.with_client_retries(&self.breaker, sending).await?;
        let served = sent.as_ref().map_or_else(SendError::served, |accepted| accepted.served);
        cx.served(&self.breaker, served.into());
        accepted(sent, &self.breaker)
    }

    /// Sends events in their order, whatever becomes of the record meanwhile: for
    /// [`LockGuard::settling`](crate::engine::LockGuard::settling).
    pub fn detached(
        &self,
        cx: &Context,
        events: Events,
    ) -> impl Future<Output = Result<Timestamp, Failure>> + Send + use<> {
        take_steps(cx, &events);
        let Self { inngest, breaker } = self.clone();
        async move { accepted(inngest.send(events).await, &breaker) }
    }

    #[cfg(test)]
    pub(crate) fn written_bytes(&self) -> usize {
        self.inngest.written_bytes()
    }

    /// The breaker that stands for Inngest.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }
}

/// What was sent for many records.
struct Sending {
    replies: Replies,
    /// The record behind each send.
    of: Vec<usize>,
    /// Results that were known before anything was sent.
    known: SentOfMany,
    breaker: Arc<Breaker>,
}

impl Sending {
    fn of_records(&self, answers: Vec<(usize, inngest::Outcome)>) -> SentOfMany {
        let sent = |outcome| accepted(outcome, &self.breaker).map(Some);
        let of = |index: usize| self.of.get(index).copied();
        answers.into_iter().filter_map(|(at, outcome)| Some((of(at)?, sent(outcome)))).collect()
    }
}

impl Sends for Sending {
    fn next<'s>(
        &'s mut self,
        cx: &'s Context,
    ) -> BoxFuture<'s, Result<Option<SentOfMany>, Failure>> {
        Box::pin(async move {
            if !self.known.is_empty() {
                return Ok(Some(std::mem::take(&mut self.known)));
            }
            let answers = cx.with_client_retries(&self.breaker, self.replies.next()).await?;
            Ok(answers.map(|answers| self.of_records(answers)))
        })
    }

    fn ready(&mut self) -> SentOfMany {
        let answers = self.replies.ready();
        self.of_records(answers)
    }

    fn abandon(&mut self, index: usize) {
        if let Ok(at) = self.of.binary_search(&index) {
            self.replies.abandon(at);
        }
    }
}

/// Each event is a step. Only builds with debug assertions look, see [`Context::step`].
fn take_steps(cx: &Context, events: &Events) {
    if cfg!(debug_assertions) {
        for name in events.names() {
            cx.step(Taken::Event(&name));
        }
    }
}

/// When events were accepted; or the send's failure, as the engine's.
fn accepted(
    sent: Result<Accepted, SendError>,
    breaker: &Arc<Breaker>,
) -> Result<Timestamp, Failure> {
    sent.map(|accepted| accepted.at).map_err(|error| failure(error, breaker))
}

fn failure(error: SendError, breaker: &Arc<Breaker>) -> Failure {
    let (kind, message, breaker) = (error.kind(), error.to_string(), Arc::clone(breaker));
    match error {
        SendError::Refused { certain: true, .. } => Failure::Poison { kind, message },
        SendError::Refused { certain: false, .. } => Failure::Suspect { breaker, kind, message },
        SendError::Outage { retry_after, .. } => {
            Failure::Outage { breaker, kind, message, retry_after, attempted: true }
        }
        SendError::Closed => Failure::GivenUp,
    }
}

/// An event that a consumer could not write is the record's fault.
pub(crate) fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::Poison { kind: "invalid_event", message: error.to_string() }
}
