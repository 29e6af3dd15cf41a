//! A consumer's entry in the registry, and how to run it without naming its type of work.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::call::Calls;
use super::sender::Sender;
use crate::cdc::{Change, DecodeError, Record};
use crate::clients::SetupError;
use crate::clients::redis::Cache;
use crate::config::{Beginning, Settings, Spec};
use crate::engine::{Consumer, Engine, EngineError, Route, intake};
use crate::outage::Breakers;

/// A consumer: what it declares, and how it is built.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What it declares.
    pub spec: &'static Spec,
    /// Builds it, unless the settings cannot work.
    pub build: fn(&Dependencies<'_>) -> Result<Arc<dyn AnyConsumer>, SetupError>,
    /// Builds what it does in groups of their own; mostly [`NO_BRANCHES`].
    pub branches: Branches,
}

/// Builds the branches of a consumer.
pub type Branches = fn(&Dependencies<'_>) -> Result<Vec<Branch>, SetupError>;

/// All that the consumer does, it does in one group.
pub const NO_BRANCHES: Branches = |_| Ok(Vec::new());

/// What a consumer does with the same records in a group of its own, so that it holds up nobody.
pub struct Branch {
    /// Its name, added to the consumer's in group ids, metrics and logs.
    pub name: String,
    /// Where its group begins with topics in which it has committed nothing; `None` where the
    /// settings of all groups say.
    pub start: Option<Beginning>,
    /// It keeps state, and takes what is read again as it comes: to leave out those changes that are
    /// recognised as replays, and no others, would leave it with an older state.
    pub takes_replays: bool,
    /// What it does.
    pub consumer: Arc<dyn AnyConsumer>,
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
    /// The dependencies of the process.
    pub breakers: Arc<Breakers>,
}

/// A consumer whose type of work is hidden.
pub trait AnyConsumer: Send + Sync {
    /// What it would do about a change, as `explain` prints it.
    fn explain_change(&self, change: &Change<'_>, now: Timestamp) -> Value;

    /// What it would do about a command, as `explain` prints it.
    fn explain_command(&self, record: &Record<'_>) -> Value;

    /// Whether there is anything that it may ever do.
    fn has_work(&self) -> bool;

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

    fn has_work(&self) -> bool {
        Consumer::has_work(self)
    }

    fn run(
        self: Arc<Self>,
        engine: Engine<()>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), EngineError>> {
        Box::pin(async move {
            let beside = Arc::clone(&self);
            tokio::select! {
                ended = engine.with(self).run(stop) => ended,
                () = beside.beside() => Ok(()),
            }
        })
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
