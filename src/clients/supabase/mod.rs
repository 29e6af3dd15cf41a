//! Supabase over PostgREST: functions by RPC, rows by REST.
//!
//! One request per call and no retries of its own: the engine retries, so that a wait never holds a
//! permit (behaviour section 3). A call that fails is an outage or the record's fault, decided by
//! the answer's `code` ([`classify`]). Each function and each table has its own breaker, since a
//! function can be missing while the rest is well. While a breaker is open, calls fail at once and
//! say when to come back.
//!
//! Dropping a call does not stop the function: it still commits. So does one that timed out.
//! Every function called here must therefore tolerate a repeat.

pub mod classify;
mod error;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use reqwest::{Client, RequestBuilder, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use error::{CallError, CallFault};

use super::http::{self, HttpConfig, ReadError, SetupError};
use super::key_redaction::KeyRedaction;
use crate::metric_names;
use crate::outage::{Breaker, Breakers};

const SERVICE: &str = "supabase";
const API_KEY: HeaderName = HeaderName::from_static("apikey");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Where Supabase is and how to talk to it.
#[derive(Debug, Clone)]
pub struct SupabaseConfig {
    /// `SUPABASE_URL`: the project's address, `/rest/v1` not included.
    pub url: String,
    /// `SUPABASE_SERVICE_ROLE_KEY`: a legacy JWT, or a new key that starts with `sb_secret_`.
    pub key: SecretString,
    /// Time-outs.
    pub http: HttpConfig,
    /// The longest answer that is read, in bytes. Default 8 MiB.
    pub max_answer_bytes: usize,
}

impl SupabaseConfig {
    /// The defaults for one project.
    #[must_use]
    pub fn new(url: impl Into<String>, key: SecretString) -> Self {
        Self { url: url.into(), key, http: HttpConfig::default(), max_answer_bytes: 8 << 20 }
    }
}

/// A call's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    body: Bytes,
    what: Arc<str>,
    breaker: Arc<Breaker>,
    /// How long the request took, for adaptive bounds and metrics.
    pub latency: Duration,
    /// How many rows there are in all, where that was asked for ([`Supabase::page_as`]).
    pub total: Option<u64>,
}

impl Answer {
    /// The answer as JSON text; `null` for a void function.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The breaker of the function or table that was asked.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Decodes the answer. `Box<serde_json::value::RawValue>` keeps it as it came.
    ///
    /// # Errors
    /// When it has another shape than expected: an outage of kind `supabase_answer`, since such a
    /// function is a deploy that is half done.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(&self.body).map_err(|_| self.unexpected())
    }

    /// The error of an answer that has another shape than expected.
    #[must_use]
    pub fn unexpected(&self) -> CallError {
        let mut error = CallError::unexpected(&self.what);
        error.latency = Some(self.latency);
        error
    }
}

/// A Supabase project. Cheap to clone; clones share connections and breakers.
#[derive(Debug, Clone)]
pub struct Supabase {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    http: Client,
    base: String,
    /// The base as messages show it.
    address: String,
    headers: HeaderMap,
    redaction: KeyRedaction,
    max_answer_bytes: usize,
    breakers: Arc<Breakers>,
}

impl Supabase {
    /// A client whose outages are reported to `breakers`, as `supabase/rpc/<function>` and
    /// `supabase/<table>`.
    ///
    /// # Errors
    /// When the address or the key cannot be used, or TLS cannot be set up.
    pub fn new(config: &SupabaseConfig, breakers: Arc<Breakers>) -> Result<Self, SetupError> {
        let base = http::endpoint(&config.url, &[])
            .ok_or(SetupError::Address { service: SERVICE, setting: "SUPABASE_URL" })?;
        let shared = Shared {
            http: http::client(SERVICE, &config.http, &base)?,
            address: shown(&base),
            base: base.into(),
            headers: key_headers(&config.key)?,
            redaction: KeyRedaction::new(&config.key),
            max_answer_bytes: config.max_answer_bytes,
            breakers,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Calls a function with named arguments.
    ///
    /// # Errors
    /// An outage or the record's fault, see [`CallError`].
    pub async fn rpc(
        &self,
        function: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<Answer, CallError> {
        let answered = self.rpc_as(function, arguments, |_| Ok(())).await;
        answered.map(|((), answer)| answer)
    }

    /// As [`Supabase::rpc`], and decodes the answer. If that fails, it is an outage of this
    /// function, reported to its breaker.
    ///
    /// # Errors
    /// As [`Supabase::rpc`], and what `decode` says.
    pub async fn rpc_as<T>(
        &self,
        function: &str,
        arguments: &(impl Serialize + ?Sized),
        decode: impl FnOnce(&Answer) -> Result<T, CallError> + Send,
    ) -> Result<(T, Answer), CallError> {
        let what = format!("function {function}");
        let body = serde_json::to_vec(arguments)
            .map_err(|error| CallError::arguments(&what, &error.to_string()))?;
        let url = self.endpoint(&what, &["rest", "v1", "rpc", function])?;
        let request =
            self.shared.http.post(url).header(CONTENT_TYPE, "application/json").body(body);
        self.call(&format!("supabase/rpc/{function}"), what, request, decode).await
    }

    /// Reads rows of a table or view: an array. `query` is PostgREST's, such as
    /// `[("id", "eq.5"), ("select", "a,b")]`; values are encoded here. The server cuts after the
    /// first thousand rows without saying so. Use [`Supabase::page_as`] if there may be more.
    ///
    /// # Errors
    /// An outage or the record's fault, see [`CallError`].
    pub async fn select(&self, table: &str, query: &[(&str, &str)]) -> Result<Answer, CallError> {
        self.select_as(table, query, |_| Ok(())).await.map(|((), answer)| answer)
    }

    /// As [`Supabase::select`], and decodes the answer. If that fails, it is an outage of this
    /// table, reported to its breaker.
    ///
    /// # Errors
    /// As [`Supabase::select`], and what `decode` says.
    pub async fn select_as<T>(
        &self,
        table: &str,
        query: &[(&str, &str)],
        decode: impl FnOnce(&Answer) -> Result<T, CallError> + Send,
    ) -> Result<(T, Answer), CallError> {
        self.read(table, query, |request| request, decode).await
    }

    /// As [`Supabase::select_as`], and has the server count all rows ([`Answer::total`]), since a
    /// project may cut earlier than the caller knows.
    ///
    /// # Errors
    /// As [`Supabase::select_as`].
    pub async fn page_as<T>(
        &self,
        table: &str,
        query: &[(&str, &str)],
        decode: impl FnOnce(&Answer) -> Result<T, CallError> + Send,
    ) -> Result<(T, Answer), CallError> {
        let counted = |request: RequestBuilder| request.header(PREFER, "count=exact");
        self.read(table, query, counted, decode).await
    }

    async fn read<T>(
        &self,
        table: &str,
        query: &[(&str, &str)],
        more: impl FnOnce(RequestBuilder) -> RequestBuilder + Send,
        decode: impl FnOnce(&Answer) -> Result<T, CallError> + Send,
    ) -> Result<(T, Answer), CallError> {
        let what = format!("table {table}");
        let mut url = self.endpoint(&what, &["rest", "v1", table])?;
        url.query_pairs_mut().extend_pairs(query);
        let request = more(self.shared.http.get(url));
        self.call(&format!("supabase/{table}"), what, request, decode).await
    }

    /// Broadcasts to the listeners of realtime topics. One request without a breaker, since nothing
    /// waits for its return. `messages` has the endpoint's form,
    /// `{"messages": [{"topic", "event", "payload"}]}`.
    ///
    /// # Errors
    /// Whatever kept it from being taken, see [`CallError`].
    pub async fn broadcast(&self, messages: &(impl Serialize + ?Sized)) -> Result<(), CallError> {
        let what = "realtime broadcast";
        let url = self.endpoint(what, &["realtime", "v1", "api", "broadcast"])?;
        let request = self.shared.http.post(url).json(messages);
        let response =
            request.headers(self.shared.headers.clone()).send().await.map_err(|error| {
                let timeout = error.is_timeout();
                CallError::transport(what, timeout, &http::describe(error))
            })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let body = http::read(response, self.shared.max_answer_bytes).await.unwrap_or_default();
        let body = self.shared.redaction.redact(body);
        Err(CallError::answer(what, &self.shared.address, status.as_u16(), &body, None))
    }

    fn endpoint(&self, what: &str, segments: &[&str]) -> Result<Url, CallError> {
        http::endpoint(&self.shared.base, segments)
            .ok_or_else(|| CallError::arguments(what, "its name cannot be part of an address"))
    }

    async fn call<T>(
        &self,
        dependency: &str,
        what: String,
        request: RequestBuilder,
        decode: impl FnOnce(&Answer) -> Result<T, CallError> + Send,
    ) -> Result<(T, Answer), CallError> {
        let breaker = self.shared.breakers.get(dependency);
        let start = Instant::now();
        let leave = breaker.admit(start.into_std()).map_err(|until| {
            let wait = until.saturating_duration_since(start.into_std());
            CallError::away(&what, wait, breaker.away().map(|away| away.error.clone()).as_deref())
        })?;
        let outcome = self.exchange(&what, request).await;
        let latency = start.elapsed();
        // Decoded before success is reported: a function that answers in another shape is away for
        // all its callers.
        let outcome = outcome.and_then(|(body, total)| {
            let breaker = Arc::clone(&breaker);
            let answer = Answer { body, what: what.into(), breaker, latency, total };
            decode(&answer).map(|decoded| (decoded, answer))
        });
        metric_names::request(dependency, latency, outcome.is_ok());
        match outcome {
            Ok(answered) => {
                leave.succeeded();
                Ok(answered)
            }
            Err(mut error) => {
                error.latency = Some(latency);
                match error.fault {
                    CallFault::Record => leave.turned_down(),
                    CallFault::Outage { retry_after } => {
                        leave.failed(Instant::now().into_std(), retry_after, &error.to_string());
                    }
                }
                Err(error)
            }
        }
    }

    async fn exchange(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<(Bytes, Option<u64>), CallError> {
        let response = request.headers(self.shared.headers.clone()).send().await;
        let response = response.map_err(|error| {
            let (timeout, connecting) = (error.is_timeout(), error.is_connect());
            let mut failed = CallError::transport(what, timeout, &http::describe(error));
            failed.telling &= !connecting;
            failed
        })?;
        let status = response.status().as_u16();
        let wait = http::retry_after(response.headers(), jiff::Timestamp::now());
        let (total, address) = (total(response.headers()), &*self.shared.address);
        let body = http::read(response, self.shared.max_answer_bytes).await;
        let success = (200..300).contains(&status);
        match body {
            Ok(body) if !success => {
                let body = self.shared.redaction.redact(body);
                Err(CallError::answer(what, address, status, &body, wait))
            }
            // The status is enough if the body of an error cannot be read.
            Err(_) if !success => Err(CallError::answer(what, address, status, b"", wait)),
            Ok(body) if body.is_empty() && status == 204 => Ok((Bytes::from_static(b"null"), None)),
            Ok(body) if is_json(&body) => Ok((body, total)),
            Ok(_) => Err(CallError::not_json(what, address, status)),
            Err(ReadError::TooLarge) => {
                Err(CallError::too_large(what, self.shared.max_answer_bytes))
            }
            Err(ReadError::Broken { timeout, message }) => {
                Err(CallError::transport(what, timeout, &message))
            }
        }
    }
}

/// What `Content-Range: 0-999/1500` says of the number of rows; `*` in its place says nothing.
fn total(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.trim().parse().ok()
}

/// An address without what may be secret in it.
fn shown(url: &Url) -> String {
    let path = url.path().trim_end_matches('/');
    format!("{}{path}", url.origin().ascii_serialization())
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(body).is_ok()
}

/// New keys are not JWTs. As bearer tokens they are refused, so they go into `apikey` alone.
fn key_headers(key: &SecretString) -> Result<HeaderMap, SetupError> {
    let fault = SetupError::Key { service: SERVICE, setting: "SUPABASE_SERVICE_ROLE_KEY" };
    let key = key.expose_secret().trim();
    let secret = |text: &str| {
        HeaderValue::from_str(text).ok().map(|mut value| {
            value.set_sensitive(true);
            value
        })
    };
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if key.is_empty() {
        return Err(fault);
    }
    match (secret(key), secret(&format!("Bearer {key}"))) {
        (Some(plain), Some(bearer)) => {
            headers.insert(API_KEY, plain);
            if !key.starts_with("sb_secret_") {
                headers.insert(AUTHORIZATION, bearer);
            }
            Ok(headers)
        }
        _ => Err(fault),
    }
}
