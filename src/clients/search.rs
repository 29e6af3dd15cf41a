//! An OpenSearch or Elasticsearch: requests, and what its answers mean.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::http::{self, HttpConfig, SetupError};
use crate::outage::Breaker;

/// The most that is read of an answer: one to 5,000 changes that all failed has some 2 MiB.
const MAX_ANSWER: usize = 16 << 20;

/// A search server. Clones share its connections. It has no `Debug`: its address may hold a password.
#[derive(Clone)]
pub struct Search {
    client: Client,
    /// User and password in it go into a header, decoded, by the HTTP library's doing.
    base: Url,
    breaker: Arc<Breaker>,
}

/// Why a request was not answered as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The server is away, or takes nothing at present; or somebody must change something first.
    #[error("{message}")]
    Away {
        /// What it said.
        message: String,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The request is larger than the server takes.
    #[error("the search server takes no request of that size")]
    TooLarge,
    /// The server refuses what it was given.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
        /// The type of its error.
        kind: String,
    },
}

#[derive(Deserialize)]
struct Refusal {
    error: Cause,
}

/// An error, of a request or of one item.
#[derive(Debug, Deserialize)]
pub struct Cause {
    /// Its type.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What was wrong.
    #[serde(default)]
    pub reason: String,
}

impl Cause {
    /// Whether an error that looks like a refusal says that the index takes nothing at present, whatever it is
    /// given: a full disk, a closed index, an alias that somebody has made lead to two.
    #[must_use]
    pub fn is_about_the_index(&self) -> bool {
        matches!(&*self.kind, "cluster_block_exception" | "index_closed_exception")
            || self.reason.contains("no write index is defined")
    }
}

impl fmt::Display for Cause {
    /// Without what the server quotes of a document.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const QUOTES: [&str; 3] = [" in document with id", "Preview of field", "The prefix of"];
        let ends = QUOTES.into_iter().filter_map(|quote| self.reason.find(quote));
        let reason = ends.min().map_or(&*self.reason, |end| &self.reason[..end]);
        write!(f, "{}: {}", self.kind, http::one_line(reason))
    }
}

impl Search {
    /// The server at `url`, which may hold user and password; `breaker` stands for it.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn new(
        url: &SecretString,
        breaker: Arc<Breaker>,
        config: &HttpConfig,
    ) -> Result<Self, SetupError> {
        let wrong = SetupError::Address { service: "the index", setting: "KESSEL_SEARCH_URL" };
        let base = Url::parse(url.expose_secret()).map_err(|_| wrong)?;
        let client = http::client("the index", config, &base)?;
        Ok(Self { client, base, breaker })
    }

    /// The breaker that stands for it.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Sends a request. The query of `path` stands as it is sent. `read` looks into an answer that is a success
    /// by its status: it may hold failures.
    ///
    /// # Errors
    /// Why it was not answered as it should be.
    pub async fn send<T>(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: impl Into<reqwest::Body>,
        read: impl FnOnce(&[u8]) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let Ok(leave) = self.breaker.admit(Instant::now()) else {
            let message = "the search server is away".to_owned();
            return Err(Fault::Away { message, retry_after: None });
        };
        let answered = self.answer(method, path, content_type, body).await;
        let answered = answered.and_then(|body| read(&body));
        match &answered {
            Ok(_) => leave.succeeded(),
            Err(Fault::Away { message, retry_after }) => {
                leave.failed(Instant::now(), *retry_after, message);
            }
            Err(_) => leave.turned_down(),
        }
        answered
    }

    /// The same of what no change waits for: how it ends says nothing to those who wait for the server.
    ///
    /// # Errors
    /// As [`Search::send`].
    pub async fn answer(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Bytes, Fault> {
        let away = |message| Fault::Away { message, retry_after: None };
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let whole = format!("{}/{path}", url.path().trim_end_matches('/'));
        url.set_path(&whole);
        url.set_query((!query.is_empty()).then_some(query));
        let request = self.client.request(method, url);
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let sent = request.body(body).send().await;
        let response =
            sent.map_err(|error| away(format!("the search server: {}", http::describe(error))))?;
        let status = response.status().as_u16();
        let retry_after = http::retry_after(response.headers(), jiff::Timestamp::now());
        let body = match http::read(response, MAX_ANSWER).await {
            Ok(body) => body,
            Err(_) => return Err(away("the search server's answer broke off".to_owned())),
        };
        judge(status, body, retry_after)
    }
}

/// Judges an answer.
fn judge(status: u16, body: Bytes, retry_after: Option<Duration>) -> Result<Bytes, Fault> {
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let cause = serde_json::from_slice::<Refusal>(&body).ok().map(|refusal| refusal.error);
    let said = cause.as_ref().map_or(String::new(), |cause| format!(": {cause}"));
    let message = format!("the search server answered {status}{said}");
    let away = |advice: &str| Fault::Away { message: format!("{message}{advice}"), retry_after };
    Err(match (status, cause) {
        (413, _) => Fault::TooLarge,
        (401 | 403, _) => away(": check user, password and rights in KESSEL_SEARCH_URL"),
        (400 | 404, Some(cause)) if !cause.is_about_the_index() => {
            Fault::Refused { message, kind: cause.kind }
        }
        _ => away(""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_whether_to_wait_to_split_or_to_set_aside() {
        let refused = Bytes::from_static(br#"{"error":{"type":"x","reason":"y"},"status":400}"#);
        let verdict = |status, body: &Bytes| judge(status, body.clone(), None);
        assert!(matches!(verdict(400, &refused), Err(Fault::Refused { kind, .. }) if kind == "x"));
        // A page of something in between says nothing about what was sent.
        let page = Bytes::from_static(b"<html>");
        for status in [301, 400, 401, 403, 404, 408, 429, 500, 502, 503, 504] {
            assert!(matches!(verdict(status, &page), Err(Fault::Away { .. })), "{status}");
        }
        let closed = br#"{"error":{"type":"index_closed_exception","reason":"closed"}}"#;
        let closed = verdict(400, &Bytes::from_static(closed));
        assert!(matches!(closed, Err(Fault::Away { .. })), "no change's fault");
        assert_eq!(verdict(413, &page), Err(Fault::TooLarge));
        assert_eq!(verdict(201, &page), Ok(page.clone()));
    }
}
