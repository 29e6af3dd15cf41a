//! The registry: every consumer, by name. A further consumer is one line in [`build`].

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::broadcast::Broadcasts;
use super::call::{Calls, Sender};
use super::currency::ledger::Ledger;
use super::currency::{self, Currency, Noted};
use super::marketplace::Marketplace;
use super::merchants::Merchants;
use super::mission::{Mission, Missions};
use super::reward::{self, Reward};
use super::tier::Tier;
use crate::cdc::{Change, DecodeError, Record};
use crate::clients::redis::Cache;
use crate::config::{ConsumerName, Settings};
use crate::engine::dispatch::permits::Limits;
use crate::engine::{Consumer, Engine, EngineError, Plan, Route, intake};

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

impl Dependencies<'_> {
    fn limits(&self, name: ConsumerName) -> Limits {
        let bound = self.settings.consumer(name).concurrency;
        Limits { min: bound.min, max: bound.max }
    }
}

/// Builds a consumer.
#[must_use]
pub fn build(name: ConsumerName, parts: &Dependencies<'_>) -> Arc<dyn AnyConsumer> {
    match name {
        ConsumerName::Currency => Arc::new(Currency {
            topics: parts.settings.topics_of(name),
            limits: parts.limits(name),
            rules: currency::rules::Settings {
                snapshot: parts.settings.snapshot.clone(),
                taken_back: parts.settings.currency_taken_back_statuses.clone(),
            },
            settle: parts.settings.inngest.cancel_settle,
            original_patience: parts.settings.currency_original_patience,
            refund_memory: parts.settings.currency_refund_memory,
            calls: parts.calls.clone(),
            sender: parts.sender.clone(),
            merchants: Merchants::new(parts.calls.clone(), parts.cache.clone()),
            ledger: Ledger::new(parts.calls.clone()),
            noted: Noted::default(),
        }),
        ConsumerName::Mission => Arc::new(Mission {
            topics: parts.settings.topics_of(name),
            limits: parts.limits(name),
            snapshot: parts.settings.snapshot.clone(),
            sender: parts.sender.clone(),
            missions: Missions::new(parts.calls.clone(), parts.cache.clone()),
        }),
        ConsumerName::Reward => Arc::new(Reward {
            codes: parts.settings.kafka.topic_of(reward::TABLE),
            limits: parts.limits(name),
            snapshot: parts.settings.snapshot.clone(),
            calls: parts.calls.clone(),
            sender: parts.sender.clone(),
            broadcasts: Broadcasts::new(parts.calls.clone()),
        }),
        ConsumerName::Marketplace => Arc::new(Marketplace {
            topic: parts.settings.marketplace_orders_topic.clone(),
            limits: parts.limits(name),
            sender: parts.sender.clone(),
        }),
        ConsumerName::Tier => Arc::new(Tier {
            topics: parts.settings.topics_of(name),
            limits: parts.limits(name),
            snapshot: parts.settings.snapshot.clone(),
            settle: parts.settings.inngest.cancel_settle,
            calls: parts.calls.clone(),
            sender: parts.sender.clone(),
        }),
    }
}

/// A consumer whose work nobody needs to name.
pub trait AnyConsumer: Send + Sync {
    /// [`Consumer::name`].
    fn name(&self) -> &'static str;

    /// [`Consumer::topics`].
    fn topics(&self) -> Vec<String>;

    /// [`Consumer::takes_commands`].
    fn takes_commands(&self, topic: &str) -> bool;

    /// What it would do about a change, as `explain` prints it.
    fn explain_change(&self, change: &Change<'_>, now: Timestamp) -> Value;

    /// What it would do about a command, as `explain` prints it.
    fn explain_command(&self, record: &Record<'_>) -> Value;

    /// Runs it in the engine that `launch` makes for it.
    fn run(
        self: Arc<Self>,
        launch: &dyn Launch,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>>;

    /// Says what it would do, in the same engine; see [`Engine::shadow`].
    fn shadow(
        self: Arc<Self>,
        launch: &dyn Launch,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>>;
}

/// Makes the engine of a consumer.
pub trait Launch {
    /// Everything but the consumer.
    fn engine(&self, name: &'static str) -> Engine<()>;
}

impl<C: Consumer> AnyConsumer for C {
    fn name(&self) -> &'static str {
        Consumer::name(self)
    }

    fn topics(&self) -> Vec<String> {
        Consumer::topics(self)
    }

    fn takes_commands(&self, topic: &str) -> bool {
        Consumer::takes_commands(self, topic)
    }

    fn explain_change(&self, change: &Change<'_>, now: Timestamp) -> Value {
        decision(self, intake::route(self, change, now))
    }

    fn explain_command(&self, record: &Record<'_>) -> Value {
        decision(self, self.route_command(record))
    }

    fn run(
        self: Arc<Self>,
        launch: &dyn Launch,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>> {
        let engine = launch.engine(Consumer::name(&*self)).with(self);
        Box::pin(engine.run(stop))
    }

    fn shadow(
        self: Arc<Self>,
        launch: &dyn Launch,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>> {
        let engine = launch.engine(Consumer::name(&*self)).with(self);
        Box::pin(engine.shadow(stop))
    }
}

fn decision<C: Consumer>(consumer: &C, route: Result<Route<C::Work>, DecodeError>) -> Value {
    match route {
        Ok(Route::Skip(reason)) => skip(reason),
        Ok(Route::Process { work, .. }) => {
            let Plan { lane, claim, steps } = consumer.plan(&work);
            json!({"decision": "process", "reason": null, "lane": lane, "claim": claim, "plan": steps})
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
    use super::*;
    use crate::{config, supervisor};

    #[tokio::test]
    async fn the_topics_that_are_told_are_those_of_the_consumers() {
        let needed = [
            ("KAFKA_BOOTSTRAP_SERVERS", "kafka.invalid:9092"),
            ("REDIS_URL", "redis://redis.invalid"),
            ("SUPABASE_URL", "http://supabase.invalid"),
            ("SUPABASE_SERVICE_ROLE_KEY", "test"),
            ("INNGEST_EVENT_KEY", "test"),
        ];
        let named = needed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let loaded = config::load(&named.into(), std::path::Path::new(""));
        let settings = loaded.settings.expect("settings");
        let breakers = supervisor::breakers(&settings);
        let parts = Dependencies {
            settings: &settings,
            calls: supervisor::calls(&settings, &breakers).expect("calls"),
            sender: supervisor::sender(&settings, &breakers).expect("a sender"),
            cache: Cache::none(),
        };
        for name in ConsumerName::ALL {
            assert_eq!(settings.topics_of(name), build(name, &parts).topics());
        }
    }
}
