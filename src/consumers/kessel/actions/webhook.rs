//! The action `webhook`: every change is posted to somebody's server, signed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use ipnet::IpNet;
use jiff::Timestamp;
use ring::digest;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Action, Applied, Group, Item, Kind, Repeats, Template, options};
use crate::clients::HttpConfig;
use crate::clients::webhook::{self, PostError, Webhook, WebhookConfig};
use crate::config::{Settings, value};
use crate::engine::Failure;
use crate::outage::Breaker;

/// Bytes of a body, unless `max_bytes` says otherwise.
const MAX_BYTES: usize = 1 << 20;

/// Requests at a time for rows that expire together. Changes of records come one by one.
const AT_ONCE: usize = 8;

/// What it declares.
pub static KIND: Kind = Kind {
    name: "webhook",
    group: Group::Own(None),
    repeats: Repeats::Alone,
    keeps_state: false,
    reads: false,
    expires: true,
    schemas: true,
    needs: &[&["kessel.webhook_secrets"]],
    check: |given| {
        let given: Options = options(given)?;
        if given.max_bytes == Some(0) {
            return Err("max_bytes must be more than 0".to_owned());
        }
        if let Some(timeout) = &given.timeout {
            value::positive_duration(timeout).map_err(|wrong| format!("timeout {wrong}"))?;
        }
        webhook::check(&given.url, &given.headers, &given.networks()?)
    },
    build: |configured, parts| {
        let given: Options = options(&configured.options).unwrap_or_default();
        Ok(Arc::new(Posts {
            webhook: Webhook::new(&given.config(&configured.name, parts.shared.settings))?,
            body: given.body.map(Arc::new),
            breaker: parts.shared.breakers.get(&format!("webhook/{}", configured.name)),
            retries: configured.retries,
        }))
    },
};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Options {
    url: String,
    body: Option<Body>,
    #[serde(default, deserialize_with = "texts")]
    headers: BTreeMap<String, String>,
    timeout: Option<String>,
    max_bytes: Option<usize>,
    #[serde(default)]
    allow_addresses: Vec<String>,
}

/// A table of texts. What is wrong with it is said in other words than serde's, which repeat the value: a
/// header may be a key.
fn texts<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    let wrong = |_| D::Error::custom("headers must be a table of texts");
    BTreeMap::deserialize(input).map_err(wrong)
}

impl Options {
    fn networks(&self) -> Result<Vec<IpNet>, String> {
        let network = |text: &String| {
            let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
            text.parse().ok().or_else(address).ok_or_else(|| {
                format!(
                    "allow_addresses: {text:?} is neither an address nor a network (10.0.0.0/8)"
                )
            })
        };
        self.allow_addresses.iter().map(network).collect()
    }

    /// Where the action of this name posts, and how.
    fn config(&self, name: &str, settings: &Settings) -> WebhookConfig {
        let all = &settings.kessel.webhook_secrets;
        let of = |name: Option<&str>| {
            let named = all.iter().filter(|(action, _)| action.as_deref() == name);
            named.map(|(_, secret)| secret.clone()).collect::<Vec<_>>()
        };
        let own = of(Some(name));
        let timeout = self.timeout.as_deref().and_then(|text| value::duration(text).ok());
        WebhookConfig {
            url: self.url.clone(),
            headers: self.headers.clone(),
            secrets: if own.is_empty() { of(None) } else { own },
            max_bytes: self.max_bytes.unwrap_or(MAX_BYTES),
            // Loading has already checked them.
            allowed: self.networks().unwrap_or_default(),
            http: HttpConfig {
                connect_timeout: settings.clients.connect_timeout,
                timeout: timeout.unwrap_or(settings.clients.request_timeout),
            },
        }
    }
}

/// A body in the shape of the receiver: JSON whose texts are templates.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
enum Body {
    Object(BTreeMap<String, Body>),
    Array(Vec<Body>),
    Text(Template),
    Other(Value),
}

impl TryFrom<Value> for Body {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        Ok(match value {
            Value::Object(members) => {
                let member = |(name, value)| Ok((name, Self::try_from(value)?));
                Self::Object(members.into_iter().map(member).collect::<Result<_, String>>()?)
            }
            Value::Array(values) => {
                Self::Array(values.into_iter().map(Self::try_from).collect::<Result<_, _>>()?)
            }
            Value::String(text) => Self::Text(Template::parse(&text)?),
            other => Self::Other(other),
        })
    }
}

impl Body {
    fn fill(&self, item: &Item) -> Value {
        match self {
            Self::Object(members) => {
                members.iter().map(|(name, body)| (name.clone(), body.fill(item))).collect()
            }
            Self::Array(bodies) => bodies.iter().map(|body| body.fill(item)).collect(),
            Self::Text(template) => template.fill(item).into(),
            Self::Other(value) => value.clone(),
        }
    }
}

/// Posts changes.
struct Posts {
    webhook: Webhook,
    body: Option<Arc<Body>>,
    breaker: Arc<Breaker>,
    retries: u32,
}

impl Action for Posts {
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>> {
        let post = |item: &&Item| {
            let body = self.body.as_ref().map_or_else(|| item.json(), |body| body.fill(item));
            (id(item), body.to_string().into_bytes())
        };
        let posts: Vec<_> = items.iter().map(post).collect();
        let (webhook, breaker, retries) =
            (self.webhook.clone(), Arc::clone(&self.breaker), self.retries);
        Box::pin(async move {
            let (webhook, breaker) = (&webhook, &breaker);
            let posts = posts.into_iter().map(|(id, body)| async move {
                post_one(webhook, breaker, retries, &id, body).await
            });
            futures::stream::iter(posts).buffered(AT_ONCE).collect().await
        })
    }

    fn breaker(&self) -> Option<&Arc<Breaker>> {
        Some(&self.breaker)
    }
}

/// The same for every attempt, and after every restart. The key itself may hold anything.
fn id(item: &Item) -> String {
    let hash = digest::digest(&digest::SHA256, item.idempotency_key().as_bytes());
    let mut id = "msg_".to_owned();
    for byte in &hash.as_ref()[..16] {
        id.push_str(&format!("{byte:02x}"));
    }
    id
}

async fn post_one(
    webhook: &Webhook,
    breaker: &Arc<Breaker>,
    retries: u32,
    id: &str,
    body: Vec<u8>,
) -> Applied {
    let outage = |message: String, retry_after, attempted| Failure::Outage {
        breaker: Arc::clone(breaker),
        kind: "webhook_away",
        message,
        retry_after,
        attempted,
    };
    let Ok(leave) = breaker.admit(Instant::now()) else {
        return Err(outage("the receiver is away".to_owned(), None, false));
    };
    let error = match webhook.post(id, body, Timestamp::now()).await {
        Ok(()) => {
            leave.succeeded();
            return Ok(());
        }
        Err(error) => error,
    };
    // The receiver's own log says more, under this id.
    let message = format!("{error} (webhook-id {id})");
    match error {
        PostError::TooLarge { .. } => Err(Failure::Poison { kind: "webhook_too_large", message }),
        PostError::Refused(_) => {
            leave.turned_down();
            Err(Failure::Refused { kind: "webhook_refused", message, retries })
        }
        PostError::Held(_) => {
            // At once: no answer to another request would differ.
            leave.failed(Instant::now(), Some(Duration::ZERO), &message);
            Err(outage(message, None, false))
        }
        PostError::Away { retry_after, .. } => {
            leave.failed(Instant::now(), retry_after, &message);
            Err(outage(message, retry_after, false))
        }
        PostError::Failed(_) => {
            leave.failed(Instant::now(), None, &message);
            Err(outage(message, None, true))
        }
    }
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
