//! The actions: what is done about every change that passes an action's filter (behaviour section 9,
//! "Actions").
//!
//! A further action is a file in this folder and a line in [`KINDS`]. The file holds its [`Kind`], its
//! options, and an [`Action`].

pub mod audit;
pub mod cache_invalidate;
pub mod configured;
mod filter;
pub mod item;
pub mod log;
pub mod replica;
pub mod search_index;
mod tables;
mod template;
pub mod webhook;

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use self::configured::{ActionList, Configured};
pub use self::filter::Filter;
pub use self::item::Item;
pub use self::template::Template;
use crate::clients::SetupError;
use crate::config::{Beginning, Spec};
use crate::consumers::entry::Dependencies;
use crate::engine::Failure;
use crate::outage::Breaker;

/// Every kind of action.
pub static KINDS: [&Kind; 6] = [
    &log::KIND,
    &cache_invalidate::KIND,
    &webhook::KIND,
    &audit::KIND,
    &replica::KIND,
    &search_index::KIND,
];

/// What became of one change: whatever takes it has it, or why not.
pub type Applied = Result<(), Failure>;

/// Carries out changes.
pub trait Action: Send + Sync + 'static {
    /// Carries out these changes, in their order, and answers each by its place. Nothing happens before it is
    /// awaited. What is returned holds all that it needs: the changes themselves may have gone by then.
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>>;

    /// Who is asked, for whoever waits while that is away. `None` for what cannot be away.
    fn breaker(&self) -> Option<&Arc<Breaker>>;

    /// What it does from time to time for as long as the consumer runs. It never ends.
    fn upkeep(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// A kind of action, as it declares itself.
pub struct Kind {
    /// Its name in the configuration.
    pub name: &'static str,
    /// In which group it runs.
    pub group: Group,
    /// How often a change may reach it.
    pub repeats: Repeats,
    /// Whether it keeps what lives, and so must take every record in its order.
    pub keeps_state: bool,
    /// Whether it takes what a snapshot has read where its filter does not name READ.
    pub reads: bool,
    /// Whether it acts when a row's time has come. Who does not hides what has expired.
    pub expires: bool,
    /// Whether changes of the schema are given to it too.
    pub schemas: bool,
    /// The settings that it cannot do without, each by the paths of which one must be set.
    pub needs: &'static [&'static [&'static str]],
    /// Checks its options.
    pub check: fn(&Options) -> Result<(), String>,
    /// Builds it.
    pub build: fn(&Configured, &Parts<'_>) -> Built,
}

/// An action, or why its settings cannot work.
pub type Built = Result<Arc<dyn Action>, SetupError>;

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// In which consumer group an action runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// In the consumer's, with all others that do.
    Consumers,
    /// In one of its own, where it holds up nobody. It begins here unless `start` says otherwise;
    /// where this is `None`, `start` must say.
    Own(Option<Beginning>),
}

/// How often a change may reach an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repeats {
    /// Any number of times: its receiver takes a repeat for what it is. Changes come by the hundreds.
    Harmless,
    /// Once within the claim window. Changes come by the hundreds.
    Claimed,
    /// Once within the claim window, and each for itself: as many at a time as the consumer's bound says.
    Alone,
}

/// What actions are built from.
pub struct Parts<'a> {
    /// The consumer that they are of.
    pub spec: &'static Spec,
    /// What every consumer is built from.
    pub shared: &'a Dependencies<'a>,
}

/// The options of an action: all of its keys but those that every action has.
pub type Options = Map<String, Value>;

/// Reads options as what their action calls for.
///
/// # Errors
/// Which of them is wrong, missing or not known.
pub fn options<T: DeserializeOwned>(options: &Options) -> Result<T, String> {
    serde_json::from_value(Value::Object(options.clone())).map_err(|error| error.to_string())
}
