//! The registry: every consumer, and how one is run whatever its work is. A further consumer is one
//! line in [`CONSUMERS`].

use std::path::Path;
use std::sync::{Arc, LazyLock};

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::call::{Calls, Sender};
use super::{currency, marketplace, mission, reward, tier};
use crate::cdc::{Change, DecodeError, Record};
use crate::clients::redis::Cache;
use crate::config::{self, Declared, Environment, Loaded, Settings, Spec};
use crate::engine::{Consumer, Engine, EngineError, Route, intake};

/// Every consumer, in the order of behaviour.md.
pub static CONSUMERS: [Entry; 5] =
    [currency::ENTRY, tier::ENTRY, mission::ENTRY, reward::ENTRY, marketplace::ENTRY];

/// What they declare.
pub static DECLARED: LazyLock<Declared> = LazyLock::new(|| declared(&CONSUMERS));

/// A consumer: what it declares, and how it is built.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What it declares.
    pub spec: &'static Spec,
    /// Builds it.
    pub build: fn(&Dependencies<'_>) -> Arc<dyn AnyConsumer>,
}

/// What consumers are built from.
pub struct Dependencies<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Supabase.
    pub calls: Calls,
    /// Inngest.
    pub sender: Sender,
    /// The cache that is shared with the rest of the CRM.
    pub cache: Cache,
}

/// What the consumers of a list declare.
#[must_use]
pub fn declared(consumers: &[Entry]) -> Declared {
    Declared::new(consumers.iter().map(|entry| entry.spec))
}

/// Loads the configuration of [`CONSUMERS`]; see [`config::load`].
#[must_use]
pub fn load(environment: &Environment, local: &Path) -> Loaded {
    config::load(environment, local, &DECLARED)
}

/// A consumer whose work nobody needs to name.
pub trait AnyConsumer: Send + Sync {
    /// What it would do about a change, as `explain` prints it.
    fn explain_change(&self, change: &Change<'_>, now: Timestamp) -> Value;

    /// What it would do about a command, as `explain` prints it.
    fn explain_command(&self, record: &Record<'_>) -> Value;

    /// Runs it in `engine`.
    fn run(
        self: Arc<Self>,
        engine: Engine<()>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>>;

    /// Says what it would do, in the same engine; see [`Engine::shadow`].
    fn shadow(
        self: Arc<Self>,
        engine: Engine<()>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>>;
}

impl<C: Consumer> AnyConsumer for C {
    fn explain_change(&self, change: &Change<'_>, now: Timestamp) -> Value {
        decision(self, intake::route(self, change, now))
    }

    fn explain_command(&self, record: &Record<'_>) -> Value {
        decision(self, self.route_command(record))
    }

    fn run(
        self: Arc<Self>,
        engine: Engine<()>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>> {
        Box::pin(engine.with(self).run(stop))
    }

    fn shadow(
        self: Arc<Self>,
        engine: Engine<()>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>> {
        Box::pin(engine.with(self).shadow(stop))
    }
}

fn decision<C: Consumer>(consumer: &C, route: Result<Route<C::Work>, DecodeError>) -> Value {
    match route {
        Ok(Route::Skip(reason)) => skip(reason),
        Ok(Route::Process { work, .. }) => {
            let steps = consumer.steps(&work);
            let plan: Vec<String> = steps.requests().collect();
            json!({"decision": "process", "reason": null, "lane": steps.lane,
                "claim": steps.claims(), "plan": plan})
        }
        Err(error) => skip(&format!("dead letter: {error}")),
    }
}

/// A skip, as `explain` prints it.
#[must_use]
pub fn skip(reason: &str) -> Value {
    json!({"decision": "skip", "reason": reason})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cdc::Decoded;
    use crate::{cdc, supervisor};

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
        let breakers = supervisor::breakers(&settings);
        let parts = Dependencies {
            settings: &settings,
            calls: supervisor::calls(&settings, &breakers).expect("calls"),
            sender: supervisor::sender(&settings, &breakers).expect("a sender"),
            cache: Cache::none(),
        };
        let all: BTreeSet<&str> =
            CONSUMERS.iter().flat_map(|entry| entry.spec.tables).copied().collect();
        assert_eq!(all.len(), 6);
        for Entry { spec, build } in &CONSUMERS {
            let consumer = build(&parts);
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
