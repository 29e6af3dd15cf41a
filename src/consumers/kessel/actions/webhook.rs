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
use serde::Deserialize;
use serde_json::Value;

use super::{Action, Applied, Configured, Group, Item, Kind, Parts, Repeats, Template, options};
use crate::clients::HttpConfig;
use crate::clients::webhook::{self, PostError, Webhook, WebhookConfig};
use crate::config::value;
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
        if let Some(timeout) = &given.timeout {
            value::positive_duration(timeout).map_err(|wrong| format!("timeout {wrong}"))?;
        }
        webhook::check(&given.url, &given.headers, &given.networks()?)
    },
    build: |configured, parts| {
        let given: Options = options(&configured.options).unwrap_or_default();
        Ok(Arc::new(Posts {
            webhook: Webhook::new(&given.config(configured, parts))?,
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
    #[serde(default)]
    headers: BTreeMap<String, String>,
    timeout: Option<String>,
    max_bytes: Option<usize>,
    #[serde(default)]
    allow_addresses: Vec<String>,
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

    fn config(&self, configured: &Configured, parts: &Parts<'_>) -> WebhookConfig {
        let settings = parts.shared.settings;
        let all = &settings.kessel.webhook_secrets;
        let of = |name: Option<&str>| {
            let named = all.iter().filter(|(action, _)| action.as_deref() == name);
            named.map(|(_, secret)| secret.clone()).collect::<Vec<_>>()
        };
        let own = of(Some(&configured.name));
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
    let message = error.to_string();
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::consumers::kessel::actions::item::testing::created;
    use crate::consumers::kessel::row::{Operation, RowChange};

    fn body(value: Value) -> Result<Body, String> {
        Body::try_from(value)
    }

    #[test]
    fn a_body_has_the_receivers_shape_and_escapes_what_it_is_filled_with() {
        let Item::Row(change) = created();
        let mut change = change;
        change.relationship.object_id = "a\"b\n".into();
        let shape =
            json!({"text": "{resource} {operation}", "parts": ["{relation}", 7], "on": true});
        let filled = body(shape).expect("a body").fill(&Item::Row(change)).to_string();
        let read: Value = serde_json::from_str(&filled).expect("JSON");
        assert_eq!(read["text"], "document:a\"b\n CREATE");
        assert_eq!((&read["parts"], &read["on"]), (&json!(["viewer", 7]), &json!(true)));
    }

    #[test]
    fn a_field_that_is_not_known_is_found_wherever_it_stands() {
        let wrong = body(json!({"a": [{"b": "{relatoin}"}]})).expect_err("not known");
        assert!(wrong.contains("did you mean {relation}?"), "{wrong}");
        let table = json!({"url": "https://a.example", "body": {"a": "{relatoin}"}});
        let wrong = (KIND.check)(table.as_object().expect("a table")).expect_err("not known");
        assert!(wrong.contains("did you mean {relation}?"), "{wrong}");
    }

    #[test]
    fn an_id_is_the_same_for_a_repeat_and_no_other_change() {
        let Item::Row(change) = created();
        let repeat = Item::Row(RowChange { at: (5, 9_000), ..change.clone() });
        let deleted = Item::Row(RowChange { operation: Operation::Delete, ..change });
        assert_eq!(id(&created()), id(&repeat));
        assert_ne!(id(&created()), id(&deleted));
        // In every build: receivers remember it.
        assert_eq!(id(&created()), "msg_41248e2e10694713a014260fb2a1914b");
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        for (table, said) in [
            (json!({}), "missing field `url`"),
            (json!({"url": "https://a.example", "urll": 1}), "unknown field `urll`"),
            (json!({"url": "https://a.example", "timeout": "5"}), "timeout is not a duration"),
            (json!({"url": "https://a.example", "allow_addresses": ["here"]}), "allow_addresses"),
            (json!({"url": "http://10.0.0.1"}), "not a public address"),
        ] {
            let wrong = (KIND.check)(table.as_object().expect("a table")).expect_err(said);
            assert!(wrong.contains(said), "{table}: {wrong}");
        }
        let allowed = json!({"url": "http://10.0.0.1", "allow_addresses": ["10.0.0.1"]});
        assert_eq!((KIND.check)(allowed.as_object().expect("a table")), Ok(()));
    }
}
