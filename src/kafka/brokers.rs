//! Whether any broker can be reached, and if not, why and what to do: librdkafka itself only says
//! that all are down, and gives the reasons apart, many times a second.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often failures of single connections are shown at most.
const QUIET: Duration = Duration::from_secs(30);

/// What one client knows about its brokers.
#[derive(Debug)]
pub(crate) struct Brokers {
    group: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the last connection failed.
    failure: Option<String>,
    /// When such a failure was shown.
    shown: Option<Instant>,
    /// Why no broker can be reached, while none can.
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    error: String,
    advice: &'static str,
}

impl Brokers {
    pub(super) fn new(group: &str) -> Self {
        Self { group: group.to_owned(), state: Mutex::default() }
    }

    /// Why no broker can be reached and what to do about it, in one line; `None` while one can.
    pub(crate) fn away(&self) -> Option<String> {
        self.lock().away.as_ref().map(|away| format!("{}: {}", away.error, away.advice))
    }

    /// A connection failed, by librdkafka's log. Answers whether that is to be shown.
    pub(super) fn failed(&self, message: &str, now: Instant) -> bool {
        let mut state = self.lock();
        state.failure = Some(reason(message).to_owned());
        let show = state.shown.is_none_or(|shown| now.duration_since(shown) >= QUIET);
        if show {
            state.shown = Some(now);
        }
        show
    }

    /// No connection is left.
    pub(super) fn all_down(&self, message: &str) {
        let error = self.lock().failure.clone();
        self.lost(error.unwrap_or_else(|| message.to_owned()));
    }

    /// The connection that matters is not up: if one has failed, that is why.
    pub(super) fn not_up(&self) {
        let error = self.lock().failure.clone();
        if let Some(error) = error {
            self.lost(error);
        }
    }

    fn lost(&self, error: String) {
        let mut state = self.lock();
        let advice = advice(&error);
        // Texts alternate while the cause stays the same.
        if state.away.as_ref().is_none_or(|away| away.advice != advice) {
            tracing::warn!(messaging.consumer.group.name = %self.group, dependency = "kafka",
                error, advice, "dependency is away");
        }
        state.away = Some(Away { error, advice });
    }

    /// The connection that matters is up.
    pub(super) fn up(&self) {
        let mut state = self.lock();
        state.failure = None;
        if state.away.take().is_some() {
            tracing::info!(messaging.consumer.group.name = %self.group, dependency = "kafka",
                "dependency answers again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message without the thread and connection before it and the state of the connection behind.
fn reason(message: &str) -> &str {
    let told = message.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: "));
    let message = told.map_or(message, |(_, rest)| rest);
    message.rsplit_once(" (after ").map_or(message, |(reason, _)| reason)
}

fn advice(error: &str) -> &'static str {
    let says = |text| error.contains(text);
    if says("uthentication") {
        "check KAFKA_API_KEY and KAFKA_API_SECRET"
    } else if says("certificate verify failed") {
        "the certificate must be for the name in KAFKA_BOOTSTRAP_SERVERS, and SSL_CERT_FILE must \
         name its authority if the system does not know it"
    } else if says("SSL") {
        "is this a port for TLS? KAFKA_API_KEY and KAFKA_API_SECRET turn TLS on"
    } else if says("Disconnected") {
        "is this a port for TLS? Then set KAFKA_API_KEY and KAFKA_API_SECRET"
    } else {
        "check KAFKA_BOOTSTRAP_SERVERS and the network"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_is_told_with_what_to_do_until_a_broker_is_up() {
        let brokers = Brokers::new("g");
        let now = Instant::now();
        assert_eq!(brokers.away(), None);
        brokers.failed("[thrd:sasl_ssl://b:1/bootstrap]: sasl_ssl://b:1/bootstrap: SASL authentication error: Authentication failed: Invalid username or password (after 336ms in state AUTH_REQ)", now);
        assert_eq!(brokers.away(), None, "another broker may be up");
        brokers.all_down("1/1 brokers are down");
        let told = "sasl_ssl://b:1/bootstrap: SASL authentication error: Authentication failed: \
                    Invalid username or password: check KAFKA_API_KEY and KAFKA_API_SECRET";
        assert_eq!(brokers.away().as_deref(), Some(told));
        brokers.up();
        assert_eq!(brokers.away(), None);
        brokers.not_up();
        assert_eq!(brokers.away(), None, "nothing has failed since");
        brokers.failed("b:1: Connect failed: Connection refused (after 0ms in state CONNECT)", now);
        brokers.not_up();
        let told = brokers.away().expect("one has failed since");
        assert!(
            told.starts_with("b:1: Connect failed: Connection refused: check KAFKA_"),
            "{told}"
        );
    }

    #[test]
    fn failures_that_repeat_are_shown_now_and_then() {
        let brokers = Brokers::new("g");
        let now = Instant::now();
        let shown =
            [0, 1, 29, 30, 59, 60].map(|s| brokers.failed("x", now + Duration::from_secs(s)));
        assert_eq!(shown, [true, false, false, true, false, true]);
    }
}
