//! What a call to Supabase can fail with.

use std::time::Duration;

use super::classify::{self, Fault};
use crate::clients::http::one_line;

/// What a failed call means for the record that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    /// Not the record's fault: retry for as long as it takes, but not before `retry_after` if it is
    /// known (the server's `Retry-After`, or the time until the open breaker lets a request
    /// through).
    Outage {
        /// How long to wait at least.
        retry_after: Option<Duration>,
    },
    /// The record's fault: retrying changes nothing.
    Record,
}

/// A call that was not answered with success.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// Whose fault it is.
    pub fault: CallFault,
    /// 429, 503, 504, a statement or request time-out: an adaptive bound shrinks on it.
    pub overload: bool,
    /// PostgREST's `code` (an SQLSTATE or its own), where it gave one.
    pub code: Option<String>,
    /// How long the request took; `None` when none was sent.
    pub latency: Option<Duration>,
    /// Whether the record may be the cause after all, if this goes on while others are answered: a
    /// time-out of a request that was sent, a 5xx with a code. A refused or broken connection, a
    /// gateway's answer, a rate limit, a refused key or an answer in another shape never counts
    /// (behaviour section 8.4).
    pub telling: bool,
    kind: &'static str,
    message: String,
}

impl CallError {
    /// A stable label, for metrics and `dlq.error.kind`: `supabase_away` (the breaker is open),
    /// `supabase_unreachable`, `supabase_timeout`, `supabase_overload`, `supabase_transient`,
    /// `supabase_setup`, `supabase_answer` (no JSON), `supabase_too_large`, `supabase_arguments`
    /// or `supabase_refused`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whether this is an outage, which is retried without end.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self.fault, CallFault::Outage { .. })
    }

    fn new(kind: &'static str, fault: CallFault, message: String) -> Self {
        Self { fault, overload: false, code: None, latency: None, telling: false, kind, message }
    }

    fn outage(kind: &'static str, message: String) -> Self {
        Self::new(kind, CallFault::Outage { retry_after: None }, message)
    }

    pub(super) fn away(what: &str, wait: Duration, cause: Option<&str>) -> Self {
        let cause = cause.unwrap_or("another request is finding out whether it is back");
        let message = format!("supabase {what} is away, no request was sent: {cause}");
        Self::new("supabase_away", CallFault::Outage { retry_after: Some(wait) }, message)
    }

    pub(super) fn transport(what: &str, timeout: bool, reason: &str) -> Self {
        let (kind, advice) = if timeout {
            ("supabase_timeout", "it may have been done all the same")
        } else {
            ("supabase_unreachable", "check SUPABASE_URL and the network")
        };
        let mut error =
            Self::outage(kind, format!("supabase {what} did not answer ({reason}): {advice}"));
        error.overload = timeout;
        error.telling = timeout;
        error
    }

    pub(super) fn arguments(what: &str, reason: &str) -> Self {
        let message =
            format!("the arguments of supabase {what} are not json: {}", one_line(reason));
        Self::new("supabase_arguments", CallFault::Record, message)
    }

    pub(super) fn not_json(what: &str, address: &str, status: u16) -> Self {
        let message = format!(
            "supabase {what} answered {status} with something that is not json: \
             check SUPABASE_URL and what stands in between (asked at {address})"
        );
        Self::outage("supabase_answer", message)
    }

    pub(super) fn unexpected(what: &str) -> Self {
        let message = format!(
            "supabase {what} answered in another shape than expected: \
             is the version that belongs to this release deployed?"
        );
        Self::outage("supabase_answer", message)
    }

    pub(super) fn too_large(what: &str, limit: usize) -> Self {
        let message = format!(
            "supabase {what} answered with more than {limit} bytes: it should answer with less"
        );
        // A server that answers nonsense to everybody must not have every record set aside.
        Self::outage("supabase_too_large", message)
    }

    pub(crate) fn too_many_rows(table: &str, limit: usize) -> Self {
        let message = format!(
            "supabase table {table} has more than {limit} rows for one question: \
             is one of its columns filled with a value that means nothing?"
        );
        Self::outage("supabase_too_large", message)
    }

    /// An answer with an error status from the server at `address`.
    pub(super) fn answer(
        what: &str,
        address: &str,
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
    ) -> Self {
        let body = ErrorBody::parse(body);
        let code = body.code.as_deref();
        let fault = classify::classify(status, code, &body.message);
        let overload = classify::is_overload(status, code);
        let kind = match fault {
            Fault::Transient if overload => "supabase_overload",
            Fault::Transient => "supabase_transient",
            Fault::Setup => "supabase_setup",
            Fault::Record => "supabase_refused",
        };
        let mut message = format!("supabase {what} answered {status}");
        for (separator, text) in [
            (" ", code.unwrap_or_default()),
            (": ", &*body.message),
            (": ", classify::advice(status, code, &body.message)),
        ] {
            if !text.is_empty() {
                message.push_str(separator);
                message.push_str(text);
            }
        }
        if classify::is_about_the_address(code) {
            message.push_str(" (asked at ");
            message.push_str(address);
            message.push(')');
        }
        let telling = classify::may_be_the_records(status, code);
        let fault = match fault {
            Fault::Record => CallFault::Record,
            Fault::Transient | Fault::Setup => CallFault::Outage { retry_after },
        };
        Self { fault, overload, code: body.code, latency: None, telling, kind, message }
    }
}

/// PostgREST's error body, or what a gateway's answer has in common with it.
#[derive(Default)]
struct ErrorBody {
    code: Option<String>,
    message: String,
}

impl ErrorBody {
    /// `details` and `hint` are left out on purpose: they repeat values of the row. So do messages
    /// about values that are wrong (class 22), in quotes.
    fn parse(body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Wire {
            code: Option<serde_json::Value>,
            message: Option<serde_json::Value>,
        }
        let Ok(Wire { code, message }) = serde_json::from_slice(body) else {
            return Self::default();
        };
        let message = message.as_ref().and_then(|message| message.as_str());
        // Gateways send a `code` too, as a number or a word and without a message. Only PostgREST's
        // codes are classified.
        let code = code.as_ref().and_then(|code| code.as_str()).filter(|code| {
            let is_of_a_state = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase();
            let state = code.len() == 5 && code.bytes().all(is_of_a_state) && *code != "ERROR";
            message.is_some() && (code.starts_with("PGRST") || state)
        });
        let message = message.unwrap_or_default();
        let quoted = message.find('"').zip(message.rfind('"'));
        let message = match quoted {
            Some((from, to)) if code.is_some_and(|code| code.starts_with("22")) => {
                &format!("{}\"...{}", &message[..from], &message[to..])
            }
            _ => message,
        };
        Self { code: code.map(|code| code.chars().take(16).collect()), message: one_line(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_function_the_code_and_what_to_do() {
        let body = br#"{"code":"PGRST202","details":"Searched for x","hint":null,
            "message":"Could not find the function public.f(p_a)\nin the schema cache"}"#;
        let error = CallError::answer("function f", "https://h", 404, body, None);
        assert_eq!(
            error.to_string(),
            "supabase function f answered 404 PGRST202: Could not find the function public.f(p_a) \
             in the schema cache: is the migration that defines it deployed?"
        );
        assert_eq!(error.kind(), "supabase_setup");
        assert!(error.is_outage());
    }

    #[test]
    fn details_and_hints_which_repeat_values_stay_out_of_the_message() {
        let body = br#"{"code":"23505","details":"Key (email)=(a@b.c) already exists.",
            "hint":"a@b.c","message":"duplicate key value violates unique constraint \"u\""}"#;
        let error = CallError::answer("function f", "https://h", 409, body, None);
        assert_eq!(error.fault, CallFault::Record);
        assert_eq!(error.code.as_deref(), Some("23505"));
        assert!(!error.to_string().contains("a@b.c"), "{error}");
    }

    #[test]
    fn a_value_that_is_wrong_is_not_quoted() {
        for (message, shown) in [
            ("invalid input syntax for type uuid: \"a@\"b.c\"", "type uuid: \"...\""),
            ("value \"a@b.c\" is out of range for type integer", "value \"...\" is out of range"),
        ] {
            let body = serde_json::json!({ "code": "22P02", "message": message }).to_string();
            let error = CallError::answer("function f", "https://h", 400, body.as_bytes(), None)
                .to_string();
            assert!(error.contains(shown) && !error.contains("b.c"), "{error}");
        }
    }

    #[test]
    fn a_gateways_page_is_an_outage_and_is_not_printed() {
        let wait = Some(Duration::from_secs(9));
        let error =
            CallError::answer("function f", "https://h", 503, b"<html>Service down</html>", wait);
        assert_eq!(error.to_string(), "supabase function f answered 503 (asked at https://h)");
        assert_eq!(error.fault, CallFault::Outage { retry_after: wait });
        assert!(error.overload);
        let numeric = CallError::answer(
            "function f",
            "https://h",
            500,
            br#"{"code":500,"message":"x"}"#,
            None,
        );
        assert!(numeric.is_outage() && numeric.code.is_none());
    }

    #[test]
    fn an_answer_of_a_gateway_or_to_a_wrong_address_names_the_address() {
        for (status, body) in [
            (400, ""),
            (407, "<html>proxy</html>"),
            (421, r#"{"message":"no Route matched with those values"}"#),
            (422, r#"{"code":"22P02"}"#),
            (400, r#"{"code":"ERROR","message":"bad"}"#),
            (404, r#"{"code":"PGRST125","message":"Invalid path specified in request URL"}"#),
            (406, r#"{"code":"PGRST106","message":"Invalid schema: x"}"#),
        ] {
            let error = CallError::answer("table t", "https://h/x", status, body.as_bytes(), None);
            assert!(error.is_outage() && !error.telling, "{status} {body}");
            assert!(error.to_string().ends_with(" (asked at https://h/x)"), "{error}");
        }
    }

    #[test]
    fn only_a_5xx_with_a_code_may_tell_something_of_the_record() {
        let body = |code: &str| format!(r#"{{"code":"{code}","message":"m"}}"#);
        let telling = |status, body: &str| {
            CallError::answer("table t", "https://h", status, body.as_bytes(), None).telling
        };
        assert!(telling(500, &body("57014")) && telling(500, &body("XX000")));
        assert!(!telling(400, &body("0A000")) && !telling(401, &body("PGRST301")));
        assert!(!telling(429, &body("PGRST000")) && !telling(502, "<html>"));
        for busy in ["PGRST000", "PGRST003", "53300", "08006", "57P01"] {
            assert!(!telling(500, &body(busy)), "{busy} is nobody's doing");
        }
        for gateways in [502, 504, 520, 544] {
            assert!(!telling(gateways, &body("XX000")), "{gateways}");
        }
        assert!(CallError::transport("table t", true, "r").telling, "a time-out");
        assert!(!CallError::transport("table t", false, "r").telling, "nobody there");
    }
}
