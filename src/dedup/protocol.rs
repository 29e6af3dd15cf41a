//! What is asked of a store, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// One step of the protocol, as a store carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Take `key` for `asker` if nobody has it; lives as long as the window.
    Claim {
        /// What is about to happen.
        key: String,
        /// The record that wants to do it: `group/topic/partition/offset`.
        asker: Arc<str>,
    },
    /// Mark `key` done.
    Confirm {
        /// What has happened.
        key: String,
        /// When it was accepted, in milliseconds since 1970; 0 when nothing had to be sent.
        accepted_ms: i64,
        /// Until when it sleeps, in milliseconds since 1970; 0 when it does not.
        due_ms: i64,
        /// How long the mark lives, in whole seconds.
        keep: Duration,
    },
    /// Mark what was done under `key` as taken back. When it was accepted and is due stays known.
    TakeBack {
        /// What has happened.
        key: String,
        /// What took it back.
        by: TakenBack,
        /// How long the mark lives, in whole seconds.
        keep: Duration,
    },
    /// Keep a text, if `asker` still holds `lock`.
    Keep {
        /// Where.
        key: String,
        /// What.
        text: String,
        /// How long it lives, in whole seconds.
        keep: Duration,
        /// The key that was acquired before the text was read.
        lock: String,
        /// The record that acquired it.
        asker: Arc<str>,
    },
    /// Answer the text that was kept.
    Recall {
        /// Where.
        key: String,
    },
    /// Keep a time for good where there is none yet, and answer the one that is there.
    Since {
        /// Where.
        key: String,
        /// Now, in milliseconds since 1970.
        now_ms: i64,
    },
    /// Give `key` back if `asker` still holds it.
    Release {
        /// What will not happen.
        key: String,
        /// The record that held it.
        asker: Arc<str>,
    },
    /// Take `key` for `asker` alone if nobody holds it, until [`Op::Free`] or for as long as
    /// `lease`. Unlike a claim it is never done: who comes next gets its turn (behaviour section
    /// 4).
    Acquire {
        /// What only one may be at.
        key: String,
        /// The record that wants to be at it.
        asker: Arc<str>,
        /// A holder whose record the asker works on too, and whose place it takes.
        left_by: Option<Arc<str>>,
        /// How long it stays taken unless it is taken again, in whole seconds.
        lease: Duration,
    },
    /// Gives back what was acquired, unless somebody else holds it; when an event of it was last
    /// accepted stays known for as long as the window.
    Free {
        /// What others may be at now.
        key: String,
        /// The record that held it.
        asker: Arc<str>,
        /// When its last event was accepted, in milliseconds since 1970; 0 when there was none.
        accepted_ms: i64,
    },
    /// As [`Op::Read`]; what `asker` itself has claimed is its own.
    Look {
        /// What may have happened.
        key: String,
        /// The record that asks.
        asker: Arc<str>,
    },
    /// Look without claiming.
    Read {
        /// What may have happened.
        key: String,
    },
}

impl Op {
    /// Whether it notes what has happened already, whoever still wants to know.
    pub(super) fn is_second_phase(&self) -> bool {
        matches!(self, Self::Confirm { .. } | Self::TakeBack { .. } | Self::Free { .. })
    }
}

/// When a change was committed. The log position distinguishes changes of one transaction.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Moment {
    /// Commit time in milliseconds since 1970.
    pub commit_ms: i64,
    /// LSN of the change; `None` where it is not known.
    pub lsn: Option<u64>,
}

impl Moment {
    /// The commit time.
    #[must_use]
    pub fn commit_time(self) -> Timestamp {
        Timestamp::from_millisecond(self.commit_ms).unwrap_or_default()
    }

    /// So long before the commit; the beginning of time where that lies before it.
    #[must_use]
    pub fn before(self, by: SignedDuration) -> Timestamp {
        self.commit_time().saturating_sub(by).unwrap_or(Timestamp::MIN)
    }
}

/// What took back that which was done under a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenBack {
    /// The change that asked for it.
    pub at: Moment,
    /// The row was deleted: what was credited by then stays.
    pub deleted: bool,
}

/// What a store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The claim is the asker's, now or from before a crash. Also the answer to what cannot fail.
    Granted,
    /// The asker holds it alone (`Acquire` only).
    Acquired {
        /// When an event of it was last accepted, in milliseconds since 1970; 0 when there was
        /// none, `None` when nothing is known.
        accepted_ms: Option<i64>,
        /// The asker, or the one whose place it took, held it already.
        resumed: bool,
    },
    /// Another record holds it (`Acquire` only).
    Taken {
        /// Which.
        holder: Arc<str>,
    },
    /// Done before.
    Done {
        /// When it was accepted, in milliseconds since 1970; 0 when nothing had to be sent.
        accepted_ms: i64,
        /// Until when it sleeps, in milliseconds since 1970; 0 when it does not.
        due_ms: i64,
    },
    /// Done before, and taken back since.
    TakenBack {
        /// As of [`Reply::Done`]; `None` when that was not known when it was taken back.
        accepted_ms: Option<i64>,
        /// As of [`Reply::Done`].
        due_ms: i64,
        /// What took it back.
        by: TakenBack,
    },
    /// Another record is at it, or has the lock (`Keep`).
    Held,
    /// Nobody has claimed it (`Read` and `Look` only).
    Free,
    /// The text that was kept, if any (`Recall` only).
    Kept(Option<String>),
    /// The time that is kept (`Since` only).
    Since {
        /// In milliseconds since 1970.
        ms: i64,
    },
}
