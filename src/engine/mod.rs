//! The engine: one loop per consumer, knowing neither a consumer nor a client.
//!
//! ```text
//! librdkafka -> record -> decode -> route -> lane -> claim -> process -> confirm -> outcome
//!   -> committable offset -> commit
//! ```
//!
//! [`Consumer`] is what a consumer brings; [`Engine`] is the loop. Everything that can be decided
//! without I/O is a pure part with its own tests. `docs/architecture.md` says what lies where.

pub mod admin;
mod consumer_loop;
pub mod dispatch;
mod group;
mod idempotency;
pub mod intake;
pub mod partition;
mod report;
mod run;
mod session;
mod settings;
mod shadow;
pub mod steps;
#[cfg(test)]
pub(crate) mod testing;
pub mod vitals;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;

pub use self::dispatch::batch::{Sends, Sent, SentOfMany};
pub use self::dispatch::retry::Failure;
pub use self::dispatch::work::{Accepted, Context, Origin};
pub use self::idempotency::exclusive::LockGuard;
pub use self::idempotency::once::{ClaimState, Once};
pub use self::idempotency::remember::Locked;
pub use self::intake::{Lane, Route};
pub use self::settings::{Engine, EngineError, Settings, Subscription};
pub use self::steps::{Step, Steps, Taken};
use crate::cdc::{Change, DecodeError, Record, Remark};

/// Skip reason of snapshot rows that `SNAPSHOT_POLICY` leaves out (behaviour section 2).
pub const SNAPSHOT_SKIPPED: &str = "snapshot_policy";

/// Skip reason of the halves of a changed primary key (behaviour section 2).
const KEY_CHANGE: &str = "key_change";

/// Skip reason of a dead letter without its value that another consumer set aside.
const DEAD_LETTER_OF_ANOTHER: &str = "dead_letter_of_another";

/// What a consumer brings to the engine.
///
/// `route` and `steps` are pure; `process` does the I/O of one piece of work and may be called
/// again for the same work after a failure, a crash or a move to another process.
pub trait Consumer: Send + Sync + 'static {
    /// What is kept of a record between routing and processing.
    type Work: Send + Sync + 'static;

    /// What to do about a change. `now` is the wall clock, for the snapshot policy.
    ///
    /// # Errors
    /// When a column that a rule needs cannot be decoded: the record goes to the dead letter topic.
    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Self::Work>, DecodeError>;

    /// Whether it wants the halves of a changed primary key. To others they are neither a deletion nor
    /// a new row (behaviour section 2).
    fn reads_key_changes(&self) -> bool {
        false
    }

    /// What to do about a command.
    ///
    /// # Errors
    /// When the record is not a valid command: it goes to the dead letter topic.
    fn route_command(&self, record: &Record<'_>) -> Result<Route<Self::Work>, DecodeError> {
        let _ = record;
        Ok(Route::Skip("not_a_command"))
    }

    /// What `process` may do: it takes these steps and no others.
    fn steps(&self, work: &Self::Work) -> Steps;

    /// Bytes that a piece of work keeps besides its record, a few short strings apart.
    fn kept(&self, work: &Self::Work) -> usize {
        let _ = work;
        0
    }

    /// Does the work.
    ///
    /// # Errors
    /// [`Failure`] says whether to try again, to wait, or to set the record aside.
    fn process(
        &self,
        cx: &Context,
        work: &Self::Work,
    ) -> impl Future<Output = Result<Outcome, Failure>> + Send;

    /// How work goes through by the hundreds, with [`Consumer::send_all`]: work that is one send, and
    /// nothing else. `None` for all other work.
    fn batched<'w>(&self, work: &'w Self::Work) -> Option<Batched<'w>> {
        let _ = work;
        None
    }

    /// Sends what these pieces of work call for, all of them [`Consumer::batched`]; each is numbered
    /// by its place.
    ///
    /// # Errors
    /// What failed for all of them before anything was sent.
    fn send_all(
        &self,
        cx: &Context,
        works: &[&Self::Work],
    ) -> impl Future<Output = Result<Box<dyn Sends>, Failure>> + Send {
        let _ = (cx, works);
        async { Err(Failure::Alone) }
    }

    /// What the outcome is called where [`Consumer::send_all`] found nothing to send.
    fn nothing_to_send(&self) -> &'static str {
        "nothing_to_send"
    }

    /// Whether there is anything that it may ever do. Who has nothing to do reads nothing.
    fn has_work(&self) -> bool {
        true
    }

    /// What goes on beside the records for as long as the consumer runs. It never ends.
    fn beside(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Whether `waiting`, work of the same lane that has not begun, takes in `newer`, which then
    /// completes together with it.
    fn coalesce(&self, waiting: &mut Self::Work, newer: &Self::Work) -> bool {
        let _ = (waiting, newer);
        false
    }
}

/// Work that goes through by the hundreds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batched<'w> {
    /// At most once under this claim.
    Claimed(Cow<'w, str>),
    /// Without any: its receiver takes a repeat for what it is.
    Repeatable,
}

impl<'w> Batched<'w> {
    /// Under this claim.
    pub fn claimed(claim: impl Into<Cow<'w, str>>) -> Self {
        Self::Claimed(claim.into())
    }
}

/// How a record ended. Every outcome completes its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What it called for was sent and accepted.
    Sent,
    /// A rule said that there is nothing to do; a stable label.
    Skipped(&'static str),
    /// The same outcome was done within the claim window.
    Duplicate,
    /// This group finished the change before.
    Replayed,
    /// Acknowledged by the dead letter topic; the error's stable label.
    DeadLettered(&'static str),
}

impl Outcome {
    /// Stable label for metrics and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Skipped(_) => "skipped",
            Self::Duplicate => "duplicate",
            Self::Replayed => "replayed",
            Self::DeadLettered(_) => "dead_lettered",
        }
    }
}

/// What happens in the engine, for those who watch: metrics, and the demo's screen.
#[derive(Debug)]
pub enum Observed<'a> {
    /// A record has its outcome.
    Outcome {
        /// Where it came from.
        origin: &'a Origin,
        /// How it ended.
        outcome: Outcome,
        /// When its change was committed in the database, where known.
        committed_at: Option<Timestamp>,
    },
    /// A record must wait or be tried again.
    Retry {
        /// Where it came from.
        origin: &'a Origin,
        /// Why, as a stable label.
        reason: &'a str,
    },
    /// Records are gone: retention passed the committed offset, or the log was cut back or
    /// recreated.
    Lost {
        /// Topic.
        topic: &'a str,
        /// Partition.
        partition: i32,
        /// How many; unknown where the log was cut back or recreated.
        records: Option<i64>,
    },
    /// Something is unusual about a change, which is handled all the same.
    Remarked {
        /// Topic.
        topic: &'a Arc<str>,
        /// What.
        remark: Remark,
    },
    /// Partitions came or went.
    Rebalanced {
        /// Partitions gained.
        assigned: usize,
        /// Partitions given up.
        revoked: usize,
    },
}

/// Sees what happens in the engine. Called on the loop: must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened to `consumer`.
    fn observe(&self, consumer: &'static str, observed: &Observed<'_>);
}

impl<T: Observer> Observer for Arc<T> {
    fn observe(&self, consumer: &'static str, observed: &Observed<'_>) {
        T::observe(self, consumer, observed);
    }
}
