//! Consumers' calls to Supabase: requests under a permit, and failures in the engine's terms.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::clients::supabase::{Answer, CallError, CallFault, Supabase};
use crate::engine::dispatch::permits::{Sample, Urgency};
use crate::engine::{Context, Failure, Once, Outcome, Taken};
use crate::outage::{Breaker, Breakers};

/// What the names of functions' and tables' breakers begin with.
const FUNCTIONS: &str = "supabase/rpc";
const TABLES: &str = "supabase";

/// Rows per page. Supabase answers with no more at once unless a project says otherwise.
const PAGE: &str = "1000";

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

    /// Reads rows of a table and decodes them. The server silently cuts the answer at a thousand
    /// rows: use [`Calls::select_all`] for what may be more.
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

    /// Reads and decodes all rows that a query matches, however many, in the order of column `by`.
    /// The query selects `by` and sets neither order nor limit. Rows with the same `by` count as
    /// one: it must be unique, or the only column that counts.
    ///
    /// Rows added during the read may be among them; none that was there all the time is missing.
    /// The result is all of them or an error, never a part.
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
            // Not by an offset: if a row is deleted meanwhile, the next page would skip another.
            asked.extend(after.as_deref().map(|after| (by, after)));
            let request = || self.supabase.page_as(table, &asked, Answer::json::<Vec<T>>);
            let answered = under_permit(cx, urgency, request).await?;
            let (page, answer) = self.take(cx, (TABLES, table), answered)?;
            // A short page is not the end: the server's own limit may be lower.
            let whole = answer.total.is_some_and(|total| total <= page.len() as u64);
            let over = page.is_empty() || whole;
            rows.extend(page);
            if over {
                return Ok(rows);
            }
            let next = last(&answer, by).map(|last| format!("gt.{last}"));
            // A server that ignores the filter would answer with the same rows for ever.
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

    /// The answer if it could be used, noted as this record's own; else the engine's failure for
    /// the dependency of this kind and name.
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
    // Thousands may wait for a permit: boxed, so that only a request under way takes its memory.
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
