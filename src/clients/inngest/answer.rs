//! What an answer to a batch says: a pure function of status and body.

use std::fmt;
use std::time::Duration;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::clients::http::one_line;

/// Error texts that are about the event and leave no doubt.
const ABOUT_THE_EVENT: [&str; 5] = [
    "event name is",
    "event is over the max size",
    "json: cannot unmarshal",
    "timestamp is before",
    "event name cannot",
];
const TOO_MANY: &str = "cannot have more than";

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BatchOutcome {
    /// Every event was taken.
    Accepted,
    /// A 400: the first `accepted` events were taken, the next one was not, the rest was not read.
    Stopped { accepted: usize, cause: Cause, message: String },
    /// 413: the request is too large, whatever is in it.
    TooLarge { message: String },
    /// The outcome is unknown, or the server takes nothing at present. The same request goes out
    /// again.
    Retry { evidence: Evidence, retry_after: Option<Duration>, message: String },
}

/// What a failure says about the events of the request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// A complete answer about this very request: a 500, an odd 400.
    Answered,
    /// No complete answer came. The events may be the cause only if others are accepted meanwhile.
    Silent,
    /// An answer that may not be Inngest's: a gateway's page or status, or another shape. It says
    /// nothing against the events, but they may have been taken.
    Unclear,
    /// Says nothing: every request would have been refused, or this one never arrived.
    Nothing,
}

/// Why a 400 stopped where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The error text blames the event.
    Event,
    /// It may be the server's own failure.
    Unsure,
    /// The request holds more events than the server takes.
    TooMany,
}

/// Judges an answer to a request of `events` events.
pub(super) fn judge(
    status: u16,
    body: &[u8],
    events: usize,
    retry_after: Option<Duration>,
) -> BatchOutcome {
    let reply = Reply::parse(body);
    let retry = |evidence, message| BatchOutcome::Retry { evidence, retry_after, message };
    match (status, reply) {
        (200, Some(reply)) if reply.took_all(events) => BatchOutcome::Accepted,
        (200, reply) => retry(
            evidence(200, reply.as_ref()),
            "inngest answered 200 without naming every event: \
             check the base url and what stands in between"
                .to_owned(),
        ),
        (400, Some(reply)) if reply.is_inngests(400) && reply.ids.named <= events => {
            let text = reply.error.unwrap_or_default();
            let cause = cause(&text);
            let message = format!("inngest answered 400: {}", one_line(&text));
            BatchOutcome::Stopped { accepted: reply.ids.named, cause, message }
        }
        (413, _) => BatchOutcome::TooLarge {
            message: "inngest answered 413: the request is too large".to_owned(),
        },
        (status, reply) => {
            let evidence = evidence(status, reply.as_ref());
            let text = reply.and_then(|reply| reply.error).unwrap_or_default();
            let mut message = format!("inngest answered {status}");
            for part in [one_line(&text).as_str(), advice(status)] {
                if !part.is_empty() {
                    message.push_str(": ");
                    message.push_str(part);
                }
            }
            retry(evidence, message)
        }
    }
}

/// What an answer that accepts nothing says about the events.
fn evidence(status: u16, reply: Option<&Reply>) -> Evidence {
    if about_everybody(status) {
        Evidence::Nothing
    } else if reply.is_some_and(|reply| reply.is_inngests(status)) && !about_the_way(status) {
        Evidence::Answered
    } else {
        Evidence::Unclear
    }
}

/// Statuses that say nothing about one request: faults of configuration, and rate limits.
fn about_everybody(status: u16) -> bool {
    matches!(status, 300..=399 | 401..=406 | 409 | 412 | 429)
}

/// Statuses of a gateway or of an overloaded server, whatever the body says. Also a 200 that does
/// not name every event: a deploy half done.
fn about_the_way(status: u16) -> bool {
    matches!(status, 200 | 408 | 502 | 503 | 504 | 520..=524)
}

fn advice(status: u16) -> &'static str {
    match status {
        300..=399 => "it redirects, which is not followed: check the base url and the event key",
        401 | 403 => "check INNGEST_EVENT_KEY and INNGEST_ENV",
        402 => "check the plan of the account",
        404 | 405 | 406 | 409 | 412 => "check the base url, INNGEST_EVENT_KEY and INNGEST_ENV",
        429 => "too many requests",
        _ => "",
    }
}

fn cause(text: &str) -> Cause {
    let text = text.to_ascii_lowercase();
    if text.contains(TOO_MANY) {
        Cause::TooMany
    } else if ABOUT_THE_EVENT.iter().any(|known| text.contains(known)) {
        Cause::Event
    } else {
        Cause::Unsure
    }
}

/// Inngest's answer. Its content type is ignored, since Inngest sends text/plain.
#[derive(Debug, Deserialize)]
struct Reply {
    #[serde(default)]
    ids: Ids,
    #[serde(default)]
    status: u16,
    #[serde(default, deserialize_with = "error_text")]
    error: Option<String>,
}

impl Reply {
    fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Whether it has the form of Inngest's own answers, and not of a gateway's.
    fn is_inngests(&self, status: u16) -> bool {
        self.ids.given || (self.status == status && (self.error.is_some() || status == 200))
    }

    fn took_all(&self, events: usize) -> bool {
        self.status == 200
            && self.error.is_none()
            && self.ids.named == events
            && self.ids.total == events
    }
}

/// Any error but an absent, null or empty one counts, whatever its type.
fn error_text<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(input)?;
    Ok(value.and_then(|value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => (!text.is_empty()).then_some(text),
        other => Some(other.to_string()),
    }))
}

/// The ids of an answer, counted without keeping them.
#[derive(Debug, Default)]
struct Ids {
    /// Whether there is such a list, or null in its place.
    given: bool,
    /// How many are there.
    total: usize,
    /// How many are not empty before the first empty one: these events were stored.
    named: usize,
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Ids;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list of ids or null")
            }

            fn visit_unit<E>(self) -> Result<Ids, E> {
                Ok(Ids { given: true, ..Ids::default() })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ids, A::Error> {
                let mut ids = Ids { given: true, ..Ids::default() };
                while let Some(id) = list.next_element::<Id>()? {
                    if id.is_named && ids.named == ids.total {
                        ids.named += 1;
                    }
                    ids.total += 1;
                }
                Ok(ids)
            }
        }
        input.deserialize_any(Count)
    }
}

struct Id {
    is_named: bool,
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Id;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an id")
            }

            fn visit_str<E>(self, id: &str) -> Result<Id, E> {
                Ok(Id { is_named: !id.is_empty() })
            }

            fn visit_unit<E>(self) -> Result<Id, E> {
                Ok(Id { is_named: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Id, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Id { is_named: false })
            }
        }
        input.deserialize_any(Look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(body: &str, events: usize) -> (usize, Cause) {
        match judge(400, body.as_bytes(), events, None) {
            BatchOutcome::Stopped { accepted, cause, .. } => (accepted, cause),
            other => panic!("not a partial answer: {other:?}"),
        }
    }

    fn is(expected: Evidence, outcome: &BatchOutcome) -> bool {
        matches!(outcome, BatchOutcome::Retry { evidence, .. } if *evidence == expected)
    }

    #[test]
    fn accepted_means_status_200_twice_no_error_and_an_id_for_every_event() {
        let accepted = |body: &str| judge(200, body.as_bytes(), 2, None) == BatchOutcome::Accepted;
        assert!(accepted(r#"{"ids":["a","b"],"status":200}"#));
        assert!(accepted(r#"{"ids":["a","b"],"status":200,"error":null,"more":[{}]}"#));
        for odd in [
            "",
            "<html>",
            "null",
            "[]",
            r#"{"ids":["a","b"]}"#,
            r#"{"ids":["a","b"],"status":201}"#,
            r#"{"ids":["a","b"],"status":200,"error":"x"}"#,
            r#"{"ids":["a","b"],"status":200,"error":{"code":1}}"#,
            r#"{"ids":["a"],"status":200}"#,
            r#"{"ids":["a",""],"status":200}"#,
            r#"{"ids":["a","b","c"],"status":200}"#,
            r#"{"ids":["a","b",""],"status":200}"#,
            r#"{"ids":[""],"status":200}"#,
            r#"{"ids":null,"status":200}"#,
            r#"{"ids":["a","b"],"status":200"#,
        ] {
            let outcome = judge(200, odd.as_bytes(), 2, None);
            assert!(is(Evidence::Unclear, &outcome), "{odd}");
        }
    }

    #[test]
    fn a_400_names_what_was_accepted_and_why_it_stopped() {
        let known = [
            "event name is empty",
            "event name is reserved for internal use: inngest/x",
            "Event is over the max size: Max 3145728 bytes / Size 3145729 bytes",
            "json: cannot unmarshal string into Go struct field raw.data of type map",
            "timestamp is before Jan 1, 1980",
        ];
        for text in known {
            let body = format!(r#"{{"ids":["a","b"],"status":400,"error":"{text}"}}"#);
            assert_eq!(stopped(&body, 5), (2, Cause::Event), "{text}");
        }
        let unknown = r#"{"ids":["a"],"status":400,"error":"queue is not there"}"#;
        assert_eq!(stopped(unknown, 5), (1, Cause::Unsure));
        assert_eq!(stopped(r#"{"ids":[""],"status":400}"#, 5), (0, Cause::Unsure));
        assert_eq!(stopped(r#"{"ids":null,"status":400}"#, 5), (0, Cause::Unsure));
        assert_eq!(stopped(r#"{"error":"x","status":400}"#, 5), (0, Cause::Unsure));
        assert_eq!(stopped(r#"{"ids":["a","","c"],"status":400}"#, 5), (1, Cause::Unsure));
        let cap = r#"{"ids":["a"],"error":"Cannot have more than 5000 events in a batch"}"#;
        assert_eq!(stopped(cap, 2), (1, Cause::TooMany));
    }

    #[test]
    fn a_400_that_makes_no_sense_is_of_unknown_outcome() {
        let too_many = r#"{"ids":["a","b","c"],"status":400}"#;
        assert!(is(Evidence::Answered, &judge(400, too_many.as_bytes(), 2, None)));
    }

    #[test]
    fn what_is_not_inngests_own_answer_says_nothing_against_an_event() {
        for status in [400, 407, 408, 410, 414, 421, 422, 431, 451, 500, 502, 503, 504, 520] {
            for body in ["", "<html>", "{}", r#"{"message":"no Route matched with those values"}"#]
            {
                let outcome = judge(status, body.as_bytes(), 2, None);
                assert!(is(Evidence::Unclear, &outcome), "{status} {body}: {outcome:?}");
            }
        }
        assert!(is(Evidence::Nothing, &judge(404, b"<html>", 2, None)), "a wrong address");
    }

    #[test]
    fn what_is_about_everybody_is_told_from_what_may_be_about_the_request() {
        let everybody = [301, 303, 401, 402, 403, 404, 405, 406, 409, 412, 429];
        let the_way = [408, 502, 503, 504, 520, 524];
        let the_request = [500, 501, 422];
        let all = everybody.map(|status| (status, Evidence::Nothing)).into_iter();
        let all = all.chain(the_way.map(|status| (status, Evidence::Unclear)));
        for (status, expected) in all.chain(the_request.map(|status| (status, Evidence::Answered)))
        {
            let wait = Some(Duration::from_secs(3));
            let body = format!(r#"{{"ids":[""],"status":{status},"error":"x"}}"#);
            let outcome = judge(status, body.as_bytes(), 1, wait);
            let BatchOutcome::Retry { evidence, retry_after, .. } = outcome else {
                panic!("{status}: {outcome:?}");
            };
            assert_eq!((evidence, retry_after), (expected, wait), "{status}");
        }
        assert!(matches!(judge(413, b"", 1, None), BatchOutcome::TooLarge { .. }));
    }

    #[test]
    fn a_fault_of_configuration_says_what_to_check() {
        let body = br#"{"status":401,"error":"Event key not found"}"#;
        let BatchOutcome::Retry { message, .. } = judge(401, body, 1, None) else {
            panic!("an outage");
        };
        assert_eq!(
            message,
            "inngest answered 401: Event key not found: check INNGEST_EVENT_KEY and INNGEST_ENV"
        );
    }
}
