//! The settings of the demo's daemon.

use std::path::Path;

use super::expectation::CHECKS;
use crate::config::{Environment, Log, Problems, Settings};
use crate::consumers::registry::{self, DECLARED};

/// Settings that the demo chooses itself, with the reason where a user would wonder.
const CHOSEN: [(&str, &str); 12] = [
    ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
    // The mock cluster gives a torn down member's partitions away only after this.
    ("KAFKA_SESSION_TIMEOUT", "3s"),
    // The mock cluster answers an empty fetch only when this is over.
    ("KAFKA_PROPERTIES", "fetch.wait.max.ms=20"),
    ("CONSUMER_GROUP_ID", GROUP),
    ("DLQ_TOPIC", DEAD_LETTER_TOPIC),
    ("REDIS_URL", "redis://in-memory.invalid"), // never connected to: claims are in memory
    ("SUPABASE_SERVICE_ROLE_KEY", "demo"),
    ("INNGEST_EVENT_KEY", "demo"),
    ("SNAPSHOT_POLICY", "skip"), // recorded snapshot rows get older every day
    ("INNGEST_CANCEL_SETTLE", "2s"),
    ("CURRENCY_ORIGINAL_PATIENCE", "3s"),
    ("BACKOFF_MAX", "1s"),
];

/// What a user may set, besides the consumers' bounds. These settings change the speed, never the
/// services or what is right.
const USERS: [&str; 15] = [
    "KAFKA_GROUP_PROTOCOL",
    "DEDUP_WINDOW",
    "INNGEST_CANCEL_SETTLE",
    "INNGEST_BATCH_WAIT",
    "INNGEST_BATCH_EVENTS",
    "INNGEST_REQUESTS",
    "CURRENCY_ORIGINAL_PATIENCE",
    "BUFFER_RECORDS",
    "BUFFER_BYTES",
    "BREAKER_THRESHOLD",
    "BACKOFF_BASE",
    "BACKOFF_MAX",
    "COMMIT_INTERVAL",
    "LOG_LEVEL",
    "LOG_FORMAT",
];

/// Hides logs of what the screen shows better itself.
const LOG_LEVEL: &str = "warn,librdkafka=error,crm_event_processors::engine::dispatch::task=off,\
                         crm_event_processors::consumers::merchants=error";

/// First part of the demo's group ids.
pub(super) const GROUP: &str = "demo";
/// The demo's dead letter topic.
pub(super) const DEAD_LETTER_TOPIC: &str = "demo.dlq";

/// Builds the settings: the demo's own, under those that a user may set.
///
/// # Errors
/// When one of the user's cannot be used.
pub(super) fn settings(
    user: &Environment,
    bootstrap: &str,
    services: &str,
) -> Result<Settings, Problems> {
    let consumers: Vec<&str> = CHECKS.iter().map(|judged| judged.spec.name).collect();
    let mut environment: Environment =
        CHOSEN.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    environment.extend([
        ("LOG_LEVEL".to_owned(), LOG_LEVEL.to_owned()),
        ("CONSUMERS".to_owned(), consumers.join(",")),
        ("KAFKA_BOOTSTRAP_SERVERS".to_owned(), bootstrap.to_owned()),
        ("SUPABASE_URL".to_owned(), services.to_owned()),
        ("INNGEST_EVENT_API_BASE_URL".to_owned(), services.to_owned()),
    ]);
    let bounds = DECLARED.variables().iter().filter(|it| it.path.ends_with(".concurrency"));
    for name in bounds.flat_map(|it| it.env).chain(&USERS).copied() {
        if let Some(value) = user.get(name).filter(|value| !value.is_empty()) {
            environment.insert(name.to_owned(), value.clone());
        }
    }
    // A file in the working directory must not count: this path does not exist.
    registry::load(&environment, Path::new("")).settings.map(|settings| *settings)
}

/// How the demo logs: warnings, unless the user asks for more.
///
/// # Errors
/// When one of the user's settings cannot be used.
pub fn log_settings(user: &Environment) -> Result<Log, Problems> {
    settings(user, "127.0.0.1:1", "http://127.0.0.1:1").map(|settings| settings.log)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_user_says_how_fast_and_not_where_to() {
        let user: Environment = [
            ("CURRENCY_CONCURRENCY", "7"),
            ("INNGEST_CANCEL_SETTLE", "9s"),
            ("SUPABASE_URL", "https://production.invalid"),
            ("INNGEST_EVENT_API_BASE_URL", "https://production.invalid"),
            ("KAFKA_BOOTSTRAP_SERVERS", "production.invalid:9092"),
            ("SNAPSHOT_POLICY", "all"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let settings =
            settings(&user, "127.0.0.1:1", "http://127.0.0.1:2").expect("sound settings");
        assert_eq!(settings.consumer(&crate::consumers::currency::SPEC).concurrency.max, 7);
        assert_eq!(settings.inngest.cancel_settle, Duration::from_secs(9));
        assert_eq!(settings.inngest.base_url, "http://127.0.0.1:2");
        assert_eq!(settings.kafka.bootstrap, "127.0.0.1:1");
        assert_eq!(settings.snapshot.policy, crate::config::SnapshotPolicy::Skip);
        assert_eq!(settings.supabase.expect("Supabase").url, "http://127.0.0.1:2");
    }
}
