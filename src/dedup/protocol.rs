//! What is asked of a store, and what it answers: two protocols, of claims and of locks, whose
//! operations go through the same pipelines.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// One step of a protocol, as a store carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// About a claim.
    Claim(ClaimOp),
    /// About a lock, or what is kept under one.
    Lock(LockOp),
}

/// What is asked about a claim: an outcome that happens at most once within the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOp {
    /// Take `key` for `asker` if nobody has it; lives as long as the window.
    Take {
        /// What is about to happen.
        key: Arc<str>,
        /// The record that wants to do it: `group/topic/partition/offset`.
        asker: Arc<str>,
    },
    /// Mark `key` done.
    Confirm {
        /// What has happened.
        key: Arc<str>,
        /// When it was accepted, in milliseconds since 1970; 0 when nothing had to be sent.
        accepted_ms: i64,
        /// Until when it sleeps, in milliseconds since 1970; 0 when it does not.
        due_ms: i64,
        /// How long the mark lives, in whole seconds.
        keep: Duration,
    },
    /// Mark `key` done, which was taken a moment ago: the mark lives as long as the claim would have,
    /// or for the window where there is none any more. It takes the store half the time.
    ConfirmTaken {
        /// What has happened.
        key: Arc<str>,
        /// As of [`ClaimOp::Confirm`].
        accepted_ms: i64,
    },
    /// Mark what was done under `key` as taken back. When it was accepted and is due stays known.
    TakeBack {
        /// What has happened.
        key: Arc<str>,
        /// What took it back.
        by: TakenBack,
        /// How long the mark lives, in whole seconds.
        keep: Duration,
    },
    /// Give `key` back if `asker` still holds it.
    Release {
        /// What will not happen.
        key: Arc<str>,
        /// The record that held it.
        asker: Arc<str>,
    },
    /// Look without claiming.
    Look {
        /// What may have happened.
        key: Arc<str>,
        /// The record that asks: what it has claimed itself is its own. Without one, every claim is
        /// another's.
        asker: Option<Arc<str>>,
    },
}

/// What is asked about a lock: work that one record at a time may be at, and what it decided.
/// Unlike a claim it is never done: who comes next gets its turn (behaviour section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockOp {
    /// Take `key` for `asker` alone if nobody holds it, until [`LockOp::Free`] or for as long as
    /// `lease`.
    Acquire {
        /// What only one may be at.
        key: Arc<str>,
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
        key: Arc<str>,
        /// The record that held it.
        asker: Arc<str>,
        /// When its last event was accepted, in milliseconds since 1970; 0 when there was none.
        accepted_ms: i64,
    },
    /// Keep a text, if `asker` still holds `lock`.
    Keep {
        /// Where.
        key: Arc<str>,
        /// What.
        text: String,
        /// How long it lives, in whole seconds.
        keep: Duration,
        /// The key that was acquired before the text was read.
        lock: Arc<str>,
        /// The record that acquired it.
        asker: Arc<str>,
    },
    /// Answer the text that was kept.
    Recall {
        /// Where.
        key: Arc<str>,
    },
    /// Keep a time for good where there is none yet, and answer the one that is there.
    Since {
        /// Where.
        key: Arc<str>,
        /// Now, in milliseconds since 1970.
        now_ms: i64,
    },
}

impl Op {
    /// Whether it notes what has happened already, whoever still wants to know.
    pub(super) fn is_second_phase(&self) -> bool {
        matches!(
            self,
            Self::Claim(
                ClaimOp::Confirm { .. } | ClaimOp::ConfirmTaken { .. } | ClaimOp::TakeBack { .. }
            ) | Self::Lock(LockOp::Free { .. })
        )
    }
}

impl From<ClaimOp> for Op {
    fn from(op: ClaimOp) -> Self {
        Self::Claim(op)
    }
}

impl From<LockOp> for Op {
    fn from(op: LockOp) -> Self {
        Self::Lock(op)
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

/// What a store answers, in the protocol of what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// About a claim.
    Claim(ClaimReply),
    /// About a lock.
    Lock(LockReply),
}

/// What is known of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimReply {
    /// The claim is the asker's, now or from before a crash.
    Granted,
    /// Done before.
    Done {
        /// When it was accepted, in milliseconds since 1970; 0 when nothing had to be sent.
        accepted_ms: i64,
        /// Until when it sleeps, in milliseconds since 1970; 0 when it does not.
        due_ms: i64,
    },
    /// Done before, and taken back since.
    TakenBack {
        /// As of [`ClaimReply::Done`]; `None` when that was not known when it was taken back.
        accepted_ms: Option<i64>,
        /// As of [`ClaimReply::Done`].
        due_ms: i64,
        /// What took it back.
        by: TakenBack,
    },
    /// Another record is at it.
    Held,
    /// Nobody has claimed it ([`ClaimOp::Look`] only).
    Free,
    /// What was to be noted is noted ([`ClaimOp::Confirm`], [`ClaimOp::ConfirmTaken`],
    /// [`ClaimOp::TakeBack`] and [`ClaimOp::Release`]).
    Noted,
}

/// What is known of a lock, or of what is kept under one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockReply {
    /// The asker holds it alone ([`LockOp::Acquire`]).
    Acquired {
        /// When an event of it was last accepted, in milliseconds since 1970; 0 when there was
        /// none, `None` when nothing is known.
        accepted_ms: Option<i64>,
        /// The asker, or the one whose place it took, held it already.
        resumed: bool,
    },
    /// Another record holds it ([`LockOp::Acquire`]).
    Taken {
        /// Which.
        holder: Arc<str>,
    },
    /// What was to be noted is noted ([`LockOp::Free`] and [`LockOp::Keep`]).
    Noted,
    /// The asker does not hold the lock any more, and nothing was kept ([`LockOp::Keep`]).
    Lost,
    /// The text that was kept, if any ([`LockOp::Recall`]).
    Text(Option<String>),
    /// The time that is kept ([`LockOp::Since`]).
    Since {
        /// In milliseconds since 1970.
        ms: i64,
    },
}
