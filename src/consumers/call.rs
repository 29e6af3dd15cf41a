//! What consumers ask of others: requests under a permit, events without one, and failures in the
//! engine's terms.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::clients::inngest::{self, Accepted, Events, Inngest, InvalidEvent, Replies, SendError};
use crate::clients::supabase::{Answer, CallError, CallFault, Supabase};
use crate::engine::dispatch::permits::{Sample, Urgency};
use crate::engine::{Context, Failure, Once, Outcome, Sends, SentOfMany, Taken};
use crate::outage::{Breaker, Breakers};

/// What the names of functions' and tables' breakers begin with.
const FUNCTIONS: &str = "supabase/rpc";
const TABLES: &str = "supabase";

/// Rows that are asked for at once: what Supabase answers with at most unless a project says
/// otherwise.
const PAGE: &str = "1000";

/// What an event takes, about.
const EVENT_BYTES: usize = 320;
/// Bytes of events that are written at a time for many records, and one record more.
const WRITTEN_BYTES: usize = 1 << 20;

/// The most rows that one question may have: a bound on memory.
const MAX_ROWS: usize = 100_000;

/// Supabase, as consumers call it.
#[derive(Debug, Clone)]
pub struct Calls {
    supabase: Supabase,
    breakers: Arc<Breakers>,
}

impl Calls {
    /// Calls through `supabase`; `breakers` are those that it reports to.
    #[must_use]
    pub fn new(supabase: Supabase, breakers: Arc<Breakers>) -> Self {
        Self { supabase, breakers }
    }

    /// Calls a function and decodes its answer.
    ///
    /// # Errors
    /// The call's failure, as the engine's.
    pub async fn rpc<T: DeserializeOwned>(
        &self,
        cx: &Context,
        function: &str,
        arguments: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, Failure> {
        cx.step(Taken::Call(function));
        let request = || self.supabase.rpc_as(function, arguments, Answer::json::<T>);
        let answered = under_permit(cx, Urgency::One, request).await?;
        self.take(cx, (FUNCTIONS, function), answered).map(|(value, _)| value)
    }

    /// Reads the one row, or the few, that many records wait for at once; goes before the requests
    /// of single ones. As [`Calls::select`], not for what may be more than a thousand rows.
    ///
    /// # Errors
    /// As [`Calls::select`].
    pub async fn look_up<T: DeserializeOwned>(
        &self,
        cx: &Context,
        table: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Failure> {
        self.read(cx, Urgency::Many, table, query).await
    }

    /// Reads rows of a table and decodes them: as many as the server answers with at once, which
    /// cuts at a thousand without a word. What may be more is for [`Calls::select_all`].
    ///
    /// # Errors
    /// The call's failure, as the engine's.
    pub async fn select<T: DeserializeOwned>(
        &self,
        cx: &Context,
        table: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Failure> {
        self.read(cx, Urgency::One, table, query).await
    }

    /// Reads all rows of a table that a query asks for, however many there are, and decodes them;
    /// in the order of column `by`. The query selects `by` and says neither order nor limit. Rows
    /// that are equal in `by` are one: it is a unique column, or the only one that counts.
    ///
    /// Rows that come while this reads may be among them; none that was there all the time is
    /// missing. Either all of them or an error: never a part.
    ///
    /// # Errors
    /// As [`Calls::select`]; more rows than fit into memory are an outage.
    pub async fn select_all<T: DeserializeOwned>(
        &self,
        cx: &Context,
        table: &str,
        query: &[(&str, &str)],
        by: &str,
    ) -> Result<Vec<T>, Failure> {
        self.read_all(cx, Urgency::One, table, query, by).await
    }

    /// As [`Calls::select_all`], for what many records wait for at once.
    ///
    /// # Errors
    /// As [`Calls::select_all`].
    pub async fn look_up_all<T: DeserializeOwned>(
        &self,
        cx: &Context,
        table: &str,
        query: &[(&str, &str)],
        by: &str,
    ) -> Result<Vec<T>, Failure> {
        self.read_all(cx, Urgency::Many, table, query, by).await
    }

    async fn read_all<T: DeserializeOwned>(
        &self,
        cx: &Context,
        urgency: Urgency,
        table: &str,
        query: &[(&str, &str)],
        by: &str,
    ) -> Result<Vec<T>, Failure> {
        cx.step(Taken::Read(table));
        let failure = |error| self.failure(&format!("{TABLES}/{table}"), error);
        let (mut rows, mut after) = (Vec::new(), None::<String>);
        while rows.len() < MAX_ROWS {
            let mut asked = query.to_vec();
            asked.extend([("order", by), ("limit", PAGE)]);
            // Not by an offset: a row that goes while this reads would take another with it.
            asked.extend(after.as_deref().map(|after| (by, after)));
            let request = || self.supabase.page_as(table, &asked, Answer::json::<Vec<T>>);
            let answered = under_permit(cx, urgency, request).await?;
            let (page, answer) = self.take(cx, (TABLES, table), answered)?;
            // A short page is no end: the server may cut earlier than was asked for.
            let whole = answer.total.is_some_and(|total| total <= page.len() as u64);
            let over = page.is_empty() || whole;
            rows.extend(page);
            if over {
                return Ok(rows);
            }
            let next = last(&answer, by).map(|last| format!("gt.{last}"));
            // One that answers with the same rows again would do so for ever.
            if next.is_none() || next == after {
                return Err(failure(answer.unexpected()));
            }
            after = next;
        }
        Err(failure(CallError::too_many_rows(table, MAX_ROWS)))
    }

    async fn read<T: DeserializeOwned>(
        &self,
        cx: &Context,
        urgency: Urgency,
        table: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Failure> {
        cx.step(Taken::Read(table));
        let request = || self.supabase.select_as(table, query, Answer::json::<Vec<T>>);
        let answered = under_permit(cx, urgency, request).await?;
        self.take(cx, (TABLES, table), answered).map(|(rows, _)| rows)
    }

    /// An answer that could be used, noted as this record's own; or the failure, as the engine's,
    /// of the dependency of this kind and name.
    fn take<T>(
        &self,
        cx: &Context,
        (kind, name): (&str, &str),
        answered: Result<(T, Answer), CallError>,
    ) -> Result<(T, Answer), Failure> {
        match answered {
            Ok((value, answer)) => {
                cx.served(answer.breaker(), 1);
                cx.produced(answer.body().len());
                Ok((value, answer))
            }
            Err(error) => Err(self.failure(&format!("{kind}/{name}"), error)),
        }
    }

    /// The breaker that stands for what is called `name`.
    #[must_use]
    pub fn breaker(&self, name: &str) -> Arc<Breaker> {
        self.breakers.get(name)
    }

    /// Tells the listeners of a realtime topic, best effort: this consumer's requests neither wait
    /// for it nor count it.
    ///
    /// # Errors
    /// Whatever kept it from being delivered.
    pub(crate) async fn broadcast(
        &self,
        messages: &(impl Serialize + Sync + ?Sized),
    ) -> Result<(), CallError> {
        self.supabase.broadcast(messages).await
    }

    fn failure(&self, dependency: &str, error: CallError) -> Failure {
        let (kind, message) = (error.kind(), error.to_string());
        match error.fault {
            CallFault::Record => Failure::Poison { kind, message },
            CallFault::Outage { retry_after } => Failure::Outage {
                breaker: self.breakers.get(dependency),
                kind,
                message,
                retry_after,
                // Without a latency no request was sent: the breaker is open.
                attempted: error.latency.is_some() && error.telling,
            },
        }
    }
}

/// What the last row of an answer has in a column.
fn last(answer: &Answer, column: &str) -> Option<String> {
    let rows: Vec<&RawValue> = serde_json::from_slice(answer.body()).ok()?;
    let row: serde_json::Map<String, Value> = serde_json::from_str(rows.last()?.get()).ok()?;
    match row.get(column)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

/// One request under one permit, which learns what the request met.
async fn under_permit<T, F>(
    cx: &Context,
    urgency: Urgency,
    request: impl FnOnce() -> F,
) -> Result<Result<(T, Answer), CallError>, Failure>
where
    F: Future<Output = Result<(T, Answer), CallError>> + Send,
{
    let permit = cx.permit(urgency).await?;
    // Thousands may wait for a permit: only a request that is under way takes a request's memory.
    let answered = Box::pin(request()).await;
    if let Some(sample) = sample(answered.as_ref().map(|(_, answer)| answer.latency)) {
        permit.report(sample);
    }
    Ok(answered)
}

/// What a request says about the load. A refusal or a missing function is answered in no time and
/// says nothing about how long the work takes.
fn sample(answered: Result<Duration, &CallError>) -> Option<Sample> {
    match answered {
        Ok(latency) => Some(Sample::Answered(latency)),
        Err(error) => error.overload.then_some(Sample::Overloaded),
    }
}

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
        // Whoever is here has mostly asked already, and would ask again.
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

    /// Sends a few events in their order that are written already. Returns when they were accepted.
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

/// What many records have sent.
struct Sending {
    replies: Replies,
    /// The record of each caller.
    of: Vec<usize>,
    /// What was known before anything was sent.
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

/// One outcome of several steps: sent if any was. `nothing` is the reason where what ran found
/// nothing to send.
pub(crate) fn outcome(steps: &[Once], nothing: &'static str) -> Outcome {
    if steps.iter().any(|step| matches!(step, Once::Ran(Some(_)))) {
        Outcome::Sent
    } else if steps.iter().any(|step| matches!(step, Once::Ran(None))) {
        Outcome::Skipped(nothing)
    } else {
        Outcome::Duplicate
    }
}

/// An event that a consumer could not write is the record's fault.
pub(crate) fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::Poison { kind: "invalid_event", message: error.to_string() }
}

/// A wait, until `settle` has passed since an event was accepted: Inngest ignores a cancel that it
/// takes in before the run that it should cancel has been created (behaviour section 3).
pub(crate) fn settled(accepted: Timestamp, settle: Duration) -> Result<(), Failure> {
    let settle = SignedDuration::try_from(settle).unwrap_or(SignedDuration::MAX);
    match Duration::try_from(settle - Timestamp::now().duration_since(accepted)) {
        Ok(left) if !left.is_zero() => {
            Err(Failure::Wait { until: Instant::now() + left, reason: "cancel_settle" })
        }
        _ => Ok(()),
    }
}
