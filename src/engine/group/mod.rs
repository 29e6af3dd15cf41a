//! The consumer group: joining, assigning and revoking partitions, where they start, and repair.

pub(super) mod assignment;
pub(super) mod beginnings;
pub(super) mod client_reset;
pub(super) mod committed;
pub(super) mod ends;
pub(super) mod held_topics;
pub(super) mod known;
pub(super) mod rebalance;
pub(super) mod repair;
pub(super) mod start;
pub(super) mod topics;
pub(super) mod unbegun;
