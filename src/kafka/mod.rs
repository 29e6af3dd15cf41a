//! What is Kafka's alone: client configuration, rebalance events, where a partition starts, and
//! the dead letter topic.

mod client;
mod context;
mod dead_letters;
mod saved;
mod start;

pub use self::client::Kafka;
pub(crate) use self::client::{GroupConsumer, close};
pub(crate) use self::context::{Context, Rebalance, Signals};
pub use self::dead_letters::DeadLetters;
pub(crate) use self::dead_letters::Letter;
pub(crate) use self::saved::{SavedRecord, size};
pub use self::start::Loss;
pub use self::start::Start;
pub(crate) use self::start::{PlanError, plan};
