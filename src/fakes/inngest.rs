//! Inngest's event API as an open source server of today behaves.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher as _, DefaultHasher, Hasher as _};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::connection::Cut;
use super::faults::Poison;
use super::log::{Post, Stored};
use super::{Shared, stable_hash};

/// Events of a request that are stored; more answer 400.
const MAX_EVENTS: usize = 5_000;
/// Bytes of an event.
const MAX_EVENT_BYTES: usize = 3 << 20;
const MAX_NAME_CHARS: usize = 256;
/// `ts` before this (1980, in milliseconds) is refused.
const EARLIEST_TS: i64 = 315_532_800_000;

/// What a request without a key or with the wrong method gets; `None` for one to be handled.
pub(super) fn turn_away(shared: &Shared, method: &Method, key: &str) -> Option<Response> {
    if key.is_empty() {
        // A real server sends such a client to its user interface.
        return Some((StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response());
    }
    if method != Method::POST {
        return Some(StatusCode::METHOD_NOT_ALLOWED.into_response());
    }
    let known = shared.options.event_key.as_deref().is_none_or(|known| known == key);
    (!known).then(|| reply(401, &[], Some("Event key not found")))
}

/// Takes the events of a body one after the other, up to the first that is not taken.
pub(super) fn take(
    shared: &Shared,
    key: &str,
    headers: &HeaderMap,
    body: &Bytes,
    cut: &Cut,
) -> Response {
    let seed = text(headers, "x-inngest-event-id-seed");
    let mut intake = Intake::new(shared, seed.as_deref());
    let outcome = intake.read(body);
    let Intake { stored, .. } = intake;
    let ids: Vec<String> =
        stored.iter().map(|event| format!("{:026X}", event.internal_id)).collect();
    let (status, answer) = match &outcome {
        Ok(()) => (200, reply(200, &ids, None)),
        Err(Stop::Refused(text)) => (400, reply(400, &ids, Some(text))),
        Err(Stop::Status(status)) => (*status, reply(*status, &[], Some("internal server error"))),
        Err(Stop::Reset) => {
            cut.cut();
            (0, Response::default())
        }
    };
    let mut log = shared.log();
    let post = u32::try_from(log.posts.len()).unwrap_or(u32::MAX);
    let at = shared.started.elapsed();
    log.posts.push(Post {
        key: key.to_owned(),
        seed,
        environment: text(headers, "x-inngest-env"),
        body_hash: body_hash(body),
        bytes: body.len(),
        stored: stored.len(),
        status,
        at,
    });
    log.events.extend(stored.into_iter().map(|event| Stored { post, at, ..event }));
    answer
}

/// Records a request that is answered without looking at its events.
pub(super) fn record(shared: &Shared, key: &str, headers: &HeaderMap, body: &Bytes, status: u16) {
    let post = Post {
        key: key.to_owned(),
        seed: text(headers, "x-inngest-event-id-seed"),
        environment: text(headers, "x-inngest-env"),
        body_hash: body_hash(body),
        bytes: body.len(),
        stored: 0,
        status,
        at: shared.started.elapsed(),
    };
    shared.log().posts.push(post);
}

fn body_hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// An answer as the server writes it: JSON that calls itself plain text, and `[""]` for no ids.
pub(super) fn reply(status: u16, ids: &[String], error: Option<&str>) -> Response {
    let ids = if ids.is_empty() { &[String::new()] } else { ids };
    let body = match (status, error) {
        (200, _) => serde_json::json!({ "ids": ids, "status": 200 }),
        (400, _) => serde_json::json!({ "ids": ids, "status": 400, "error": error }),
        _ => serde_json::json!({ "status": status, "error": error }),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, kind, body.to_string()).into_response()
}

/// Why a request was not read to its end.
enum Stop {
    Refused(String),
    Status(u16),
    Reset,
}

/// One request's events on their way into the store.
struct Intake<'a> {
    shared: &'a Shared,
    seed: u64,
    stored: Vec<Stored>,
    stop: Option<Stop>,
}

impl<'a> Intake<'a> {
    fn new(shared: &'a Shared, seed: Option<&str>) -> Self {
        // Without a usable seed the ids are random.
        let seed = seed.filter(|seed| seed.contains(',')).map_or_else(
            || RandomState::new().build_hasher().finish(),
            |seed| stable_hash(seed.as_bytes()),
        );
        Self { shared, seed, stored: Vec::new(), stop: None }
    }

    fn read(&mut self, body: &[u8]) -> Result<(), Stop> {
        let start = body.iter().find(|byte| !byte.is_ascii_whitespace());
        let parsed = match start {
            None => return Ok(()),
            Some(b'[') => {
                let mut events = serde_json::Deserializer::from_slice(body);
                (&mut *self).deserialize(&mut events).and_then(|()| events.end())
            }
            Some(_) => serde_json::from_slice::<&RawValue>(body).map(|event| {
                self.event(event);
            }),
        };
        match (self.stop.take(), parsed) {
            (Some(stop @ Stop::Refused(_)), _) => Err(stop),
            (Some(stop), _) => {
                self.stored.clear();
                Err(stop)
            }
            (None, Err(error)) => Err(Stop::Refused(format!("invalid json: {error}"))),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Takes one event; false when the request is not read any further.
    fn event(&mut self, event: &RawValue) -> bool {
        match self.check(event.get()) {
            Ok(stored) => {
                self.stored.push(stored);
                true
            }
            Err(stop) => {
                self.stop = Some(stop);
                false
            }
        }
    }

    fn check(&self, event: &str) -> Result<Stored, Stop> {
        let refuse = |text: String| Err(Stop::Refused(text));
        if self.stored.len() == MAX_EVENTS {
            return refuse(format!("Cannot have more than {MAX_EVENTS} events in a batch"));
        }
        if event.len() > MAX_EVENT_BYTES {
            let size = event.len();
            return refuse(format!(
                "Event is over the max size: Max {MAX_EVENT_BYTES} bytes / Size {size} bytes"
            ));
        }
        let wire: WireEvent<'_> = match serde_json::from_str(event) {
            Ok(wire) => wire,
            Err(error) => return refuse(format!("json: cannot unmarshal event: {error}")),
        };
        let data = wire.data.map_or("{}", RawValue::get);
        if !data.starts_with('{') && data != "null" {
            let kind = kind_of(data);
            return refuse(format!(
                "json: cannot unmarshal {kind} into Go struct field raw.data \
                 of type map[string]interface {{}}"
            ));
        }
        // A number beyond the range of a double is an error here, as it is there.
        if serde_json::from_str::<serde_json::Value>(data).is_err() {
            return refuse(
                "json: cannot unmarshal number into Go value of type float64".to_owned(),
            );
        }
        let name = wire.name.unwrap_or_default();
        if name.get(..8).is_some_and(|prefix| prefix.eq_ignore_ascii_case("inngest/")) {
            return refuse(format!("event name is reserved for internal use: {name}"));
        }
        if name.is_empty() {
            return refuse("event name is empty".to_owned());
        }
        if name.chars().count() > MAX_NAME_CHARS {
            return refuse(format!("event name is longer than {MAX_NAME_CHARS} characters"));
        }
        if wire.ts.is_some_and(|ts| ts != 0 && ts < EARLIEST_TS) {
            return refuse("timestamp is before Jan 1, 1980".to_owned());
        }
        let poison = self.shared.poison(&name, wire.id.as_deref());
        match poison {
            Some(Poison::Refused(text)) => return refuse(text),
            Some(Poison::Status(status)) => return Err(Stop::Status(status)),
            Some(Poison::Reset) => return Err(Stop::Reset),
            None => {}
        }
        let index = self.stored.len() as u128;
        Ok(Stored {
            name: name.into(),
            id: wire.id.filter(|id| !id.is_empty()).map(Into::into),
            internal_id: (u128::from(self.seed) << 32) | index,
            ts: wire.ts,
            post: 0,
            data: self.shared.options.keep_data.then(|| data.into()),
            at: std::time::Duration::ZERO,
        })
    }
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    name: Option<String>,
    id: Option<String>,
    ts: Option<i64>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

fn kind_of(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'"') => "string",
        Some(b'[') => "array",
        Some(b't' | b'f') => "bool",
        _ => "number",
    }
}

impl<'de> DeserializeSeed<'de> for &mut Intake<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Intake<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        while let Some(event) = events.next_element::<&RawValue>()? {
            if !self.event(event) {
                // This error only ends the reading; `stop` holds the real one.
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
