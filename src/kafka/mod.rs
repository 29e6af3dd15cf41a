//! What is Kafka's alone: client configuration, rebalance events, and the dead letter topic.

mod brokers;
mod callbacks;
mod client;
mod dead_letter_topic;
mod dead_letters;
mod groups;
mod raw;
mod saved;
mod topic_ids;

pub(crate) use self::callbacks::{Callbacks, Rebalance, Signals};
pub(crate) use self::client::GroupConsumer;
pub use self::client::Kafka;
pub(crate) use self::dead_letters::DeadLetter;
pub use self::dead_letters::DeadLetters;
pub(crate) use self::groups::{unowned_partitions, uses_our_assignor};
pub(crate) use self::raw::{headers, metadata, text_headers};
pub(crate) use self::saved::{SavedRecord, size};
pub use self::topic_ids::TopicId;
