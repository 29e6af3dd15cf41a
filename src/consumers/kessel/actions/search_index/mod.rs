//! The action `search_index`: a document for each row in an OpenSearch or Elasticsearch, and an alias that
//! shows what lives.

mod document;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{Action, Applied, Group, Item, Kind, Repeats, options};
use crate::clients::HttpConfig;
use crate::clients::SetupError;
use crate::clients::search::{Cause, Fault, Search};
use crate::config::Beginning;
use crate::engine::Failure;
use crate::outage::Breaker;

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
/// Bytes of a request at most, but for a single change.
const MAX_BYTES: usize = 5 << 20;
/// How often dead rows are cleaned up.
const CLEAN_UP: Duration = Duration::from_secs(3_600);
/// What the server says of an index that somebody has removed.
const INDEX_MISSING: &str = "index_not_found_exception";

/// What it declares.
pub static KIND: Kind = Kind {
    name: "search_index",
    group: Group::Own(Some(Beginning::Earliest)),
    repeats: Repeats::Harmless,
    keeps_state: true,
    reads: true,
    // The alias hides what has expired.
    expires: false,
    schemas: false,
    needs: &[&["kessel.search_url"]],
    check: |given| {
        let given: Options = options(given)?;
        name(&given.index).and(name(&given.alias))?;
        if given.index == given.alias {
            return Err("index and alias must have different names".to_owned());
        }
        Ok(())
    },
    build: |configured, parts| {
        let given: Options = options(&configured.options).unwrap_or_default();
        let settings = parts.shared.settings;
        let missing = SetupError::Address { service: "the index", setting: "KESSEL_SEARCH_URL" };
        let url = settings.kessel.search_url.as_ref().ok_or(missing)?;
        let config = HttpConfig {
            connect_timeout: settings.clients.connect_timeout,
            timeout: settings.clients.request_timeout,
        };
        let breaker = parts.shared.breakers.get("kessel/search");
        Ok(Arc::new(Index(Arc::new(Shared {
            search: Search::new(url, breaker, &config)?,
            given,
            created: Mutex::new(false),
            retries: configured.retries,
            dead_rows: settings.kessel.dead_rows,
        }))))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    index: String,
    alias: String,
}

impl Default for Options {
    fn default() -> Self {
        let index = "kessel-relationships".to_owned();
        Self { alias: format!("{index}-live"), index }
    }
}

fn name(name: &str) -> Result<(), String> {
    let valid =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if first && name.len() <= 200 && name.bytes().all(valid) {
        return Ok(());
    }
    Err(format!("{name:?} is no name of an index: lower case letters, digits, dots and dashes"))
}

/// Documents in an index.
struct Index(Arc<Shared>);

struct Shared {
    search: Search,
    given: Options,
    created: Mutex<bool>,
    retries: u32,
    dead_rows: Duration,
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<HashMap<String, Answered>>,
}

#[derive(Deserialize)]
struct Answered {
    status: u16,
    error: Option<Cause>,
}

impl Action for Index {
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>> {
        let now = Timestamp::now();
        let mut requests: Vec<(Vec<u8>, usize)> = Vec::new();
        for item in items {
            let Item::Row(change) = item;
            match requests.last_mut() {
                Some((lines, count)) if lines.len() < MAX_BYTES => {
                    document::write(change, now, lines);
                    *count += 1;
                }
                _ => {
                    let mut lines = Vec::with_capacity(items.len().min(1_000) * 512);
                    document::write(change, now, &mut lines);
                    requests.push((lines, 1));
                }
            }
        }
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let mut all = Vec::new();
            for (lines, count) in requests {
                all.extend(shared.write(lines, count).await);
            }
            all
        })
    }

    fn breaker(&self) -> Option<&Arc<Breaker>> {
        Some(self.0.search.breaker())
    }

    fn upkeep(&self) -> Option<BoxFuture<'static, ()>> {
        let shared = Arc::clone(&self.0);
        Some(Box::pin(async move {
            loop {
                // Instances that were started together do not ask together.
                tokio::time::sleep(CLEAN_UP.mul_f64(0.5 + fastrand::f64())).await;
                if let Err(fault) = shared.clean_up().await {
                    tracing::warn!(%fault, "dead rows could not be cleaned up: tried again later");
                }
            }
        }))
    }
}

impl Shared {
    async fn write(&self, lines: Vec<u8>, count: usize) -> Vec<Applied> {
        match self.bulk(lines).await {
            Ok(answers) if answers.len() == count => {
                let mut all = Vec::with_capacity(count);
                for answered in answers {
                    all.push(self.judge(answered).await);
                }
                all
            }
            Ok(_) => {
                let message = "the search server did not answer for every change".to_owned();
                self.all(count, &Fault::Away { message, retry_after: None })
            }
            Err(fault) => self.all(count, &fault),
        }
    }

    async fn bulk(&self, lines: Vec<u8>) -> Result<Vec<Answered>, Fault> {
        self.create().await?;
        let path = format!(
            "{}/_bulk?require_alias=true&filter_path=items.*.status,items.*.error.type,items.*.error.reason",
            self.write_alias()
        );
        self.search.send(Method::POST, &path, LINES, lines, read).await
    }

    /// What became of one change.
    async fn judge(&self, answered: Answered) -> Applied {
        let Some(error) = answered.error else {
            return Ok(());
        };
        let message = format!("the index: {error}");
        match answered.status {
            // The same row, the same or a later state of it: there is nothing to add.
            409 => Ok(()),
            status if is_outage(status, &error) => {
                if error.kind == INDEX_MISSING {
                    *self.created.lock().await = false;
                }
                Err(self.away(message, None))
            }
            _ => Err(Failure::Refused { kind: "index_refused", message, retries: self.retries }),
        }
    }

    /// What a fault of a request means for its changes.
    fn all(&self, count: usize, fault: &Fault) -> Vec<Applied> {
        let of_one = || match fault {
            // One of many may be the reason: each goes alone next.
            Fault::Refused { .. } | Fault::TooLarge if count > 1 => Failure::Alone,
            Fault::Refused { .. } | Fault::TooLarge => Failure::Refused {
                kind: "index_refused",
                message: fault.to_string(),
                retries: self.retries,
            },
            Fault::Away { message, retry_after } => self.away(message.clone(), *retry_after),
        };
        (0..count).map(|_| Err(of_one())).collect()
    }

    fn away(&self, message: String, retry_after: Option<Duration>) -> Failure {
        Failure::Outage {
            breaker: Arc::clone(self.search.breaker()),
            kind: "index_away",
            message,
            retry_after,
            attempted: false,
        }
    }

    /// Changes are written through an alias: without it a server would make an index of its own with
    /// whatever mapping it guesses.
    fn write_alias(&self) -> String {
        format!("{}-write", self.given.index)
    }

    async fn create(&self) -> Result<(), Fault> {
        let mut created = self.created.lock().await;
        if *created {
            return Ok(());
        }
        let Options { index, alias } = &self.given;
        let body = definition(alias, &self.write_alias()).to_string();
        match self.search.send(Method::PUT, index, JSON, body, |_| Ok(())).await {
            Ok(_) => {}
            Err(Fault::Refused { kind, .. }) if kind == "resource_already_exists_exception" => {}
            // Without it nothing can be written: that is no change's fault.
            Err(Fault::Refused { message, .. }) => {
                return Err(Fault::Away { message, retry_after: None });
            }
            Err(fault) => return Err(fault),
        }
        *created = true;
        Ok(())
    }

    async fn clean_up(&self) -> Result<(), Fault> {
        let before = format!("now-{}s", self.dead_rows.as_secs());
        let query = json!({"query": {"bool": {"filter": [
            {"term": {"alive": false}}, {"range": {"dead_since": {"lt": before}}}]}}});
        let path = format!("{}/_delete_by_query?conflicts=proceed", self.given.index);
        self.search.answer(Method::POST, &path, JSON, query.to_string()).await.map(drop)
    }
}

/// The answers to each change of a request.
///
/// # Errors
/// When none of them was taken, through no fault of theirs: the request failed, whatever its status says.
fn read(body: &[u8]) -> Result<Vec<Answered>, Fault> {
    let away = |message: String| Fault::Away { message, retry_after: None };
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| away("the search server's answer has no items".to_owned()))?;
    let items: Vec<_> = answer.items.into_iter().flat_map(HashMap::into_values).collect();
    let outage = |answered: &Answered| {
        let error = answered.error.as_ref()?;
        // An index that is missing is made again, and not waited for.
        let waits = is_outage(answered.status, error) && error.kind != INDEX_MISSING;
        waits.then(|| format!("the index: {error}"))
    };
    let outages: Option<Vec<String>> = items.iter().map(outage).collect();
    match outages.and_then(|mut outages| outages.pop()) {
        Some(message) => Err(away(message)),
        None => Ok(items),
    }
}

/// Whether an error of one change is none of its own: a full disk or a closed index refuses every change.
fn is_outage(status: u16, error: &Cause) -> bool {
    matches!(status, 401 | 403 | 429 | 500..)
        || error.kind == INDEX_MISSING
        || error.is_about_the_index()
}

/// The index: nothing is guessed, and the alias hides what is dead or has expired.
fn definition(alias: &str, write_alias: &str) -> Value {
    let (word, number, time) =
        (json!({"type": "keyword"}), json!({"type": "long"}), json!({"type": "date"}));
    let kept = json!({"type": "keyword", "index": false, "doc_values": false});
    let living = json!({"bool": {
        "filter": [{"term": {"alive": true}}],
        "should": [{"bool": {"must_not": {"exists": {"field": "expiration"}}}},
            {"range": {"expiration": {"gt": "now"}}}],
        "minimum_should_match": 1}});
    json!({
        "mappings": {"dynamic": false, "properties": {
            "namespace": word, "object_id": word, "resource": word, "relation": word,
            "subject_namespace": word, "subject_id": word, "subject_relation": word,
            "subject": word, "caveat": word, "caveat_context": kept, "created_xid": number,
            "deleted_xid": number, "expiration": time, "lsn": number,
            "alive": {"type": "boolean"}, "dead_since": time}},
        "aliases": {alias: {"filter": living}, write_alias: {"is_write_index": true}},
    })
}

#[cfg(test)]
mod tests;
