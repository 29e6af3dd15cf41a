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

use std::sync::Arc;
use std::time::Instant;

use self::assignment::Assignment;
use self::beginnings::Sights;
use self::ends::Ends;
use self::known::Known;
use self::topics::Unreadable;
use self::unbegun::Unbegun;

/// What a session has of the group, and knows of its topics.
pub(super) struct Membership {
    pub(super) assignment: Assignment,
    /// Partitions of topics that have not begun.
    pub(super) unbegun: Unbegun,
    sights: Arc<Sights>,
    /// Where paused partitions end.
    pub(super) ends: Ends,
    /// What is known of topics beyond one assignment.
    pub(super) known: Known,
    /// When this member last joined again, to hear what it had missed.
    rejoined_at: Option<Instant>,
    /// Why the group does not take this member in, and what to do.
    pub(super) refused: Option<&'static str>,
    /// How the client came to have other partitions than is believed here.
    pub(super) distrusted: Option<String>,
    /// A topic may not be read, and whether that is still so is looked at now and then.
    pub(super) unreadable: Option<Unreadable>,
}

impl Membership {
    pub(super) fn new(sights: Arc<Sights>) -> Self {
        Self {
            assignment: Assignment::default(),
            unbegun: Unbegun::default(),
            sights,
            ends: Ends::default(),
            known: Known::default(),
            rejoined_at: None,
            refused: None,
            distrusted: None,
            unreadable: None,
        }
    }
}
