//! The registry: every consumer. To add one, add a line to [`CONSUMERS`].

use std::path::Path;
use std::sync::LazyLock;

use super::entry::Entry;
use super::kessel::relationships;
use super::{currency, marketplace, mission, reward, tier};
use crate::config::{self, Declared, Environment, Loaded};

/// Every consumer, in the order of behaviour.md.
pub static CONSUMERS: [Entry; 6] = [
    currency::ENTRY,
    tier::ENTRY,
    mission::ENTRY,
    reward::ENTRY,
    marketplace::ENTRY,
    relationships::ENTRY,
];

/// The declarations of all consumers.
pub static DECLARED: LazyLock<Declared> = LazyLock::new(|| declared(&CONSUMERS));

/// The declarations of a list of consumers.
#[must_use]
pub fn declared(consumers: &[Entry]) -> Declared {
    Declared::new(consumers.iter().map(|entry| entry.spec))
}

/// Loads the configuration of [`CONSUMERS`]; see [`config::load`].
#[must_use]
pub fn load(environment: &Environment, local: &Path) -> Loaded {
    config::load(environment, local, &DECLARED)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::cdc::Decoded;
    use crate::config::Settings;
    use crate::{app, cdc};

    fn settings() -> Settings {
        let needed = [
            ("KAFKA_BOOTSTRAP_SERVERS", "kafka.invalid:9092"),
            ("REDIS_URL", "redis://redis.invalid"),
            ("SUPABASE_URL", "http://supabase.invalid"),
            ("SUPABASE_SERVICE_ROLE_KEY", "test"),
            ("INNGEST_EVENT_KEY", "test"),
        ];
        let named = needed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        *load(&named.into(), Path::new("")).settings.expect("settings")
    }

    #[tokio::test]
    async fn a_consumer_has_rules_for_the_tables_that_it_declares_and_for_no_others() {
        let settings = settings();
        let parts = app::unasked(&settings).expect("clients");
        let all: BTreeSet<&str> =
            CONSUMERS.iter().flat_map(|entry| entry.spec.tables).copied().collect();
        assert_eq!(all.len(), 6);
        for Entry { spec, build, .. } in &CONSUMERS {
            let consumer = build(&parts).expect("built");
            for table in &all {
                let topic = settings.kafka.topic_of(table);
                let value = json!({"op": "c", "before": null, "after": {"id": "1"},
                    "source": {"table": table, "ts_ms": 0}});
                let value = value.to_string();
                let record = crate::consumers::testing::record(&topic, value.as_bytes());
                let Ok(Decoded::Change(change)) = cdc::decode(&record, &settings.cdc) else {
                    panic!("a change of {table}");
                };
                let decision = consumer.explain_change(&change, Timestamp::UNIX_EPOCH);
                let known =
                    !matches!(decision["reason"].as_str(), Some("other_table" | "not_a_command"));
                assert_eq!(known, spec.tables.contains(table), "{} of {table}", spec.name);
            }
        }
    }
}
