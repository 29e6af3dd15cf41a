//! The state that the loop owns, for as long as one client lives: from joining its group to leaving
//! it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::Consumer;
use super::dispatch::Dispatch;
use super::dispatch::backpressure::{Bounds, Load};
use super::dispatch::work::Shared;
use super::group::Membership;
use super::group::beginnings::Sights;
use super::partition::assigned::Partitions;
use super::settings::Engine;
use crate::cdc::Remark;
use crate::kafka::GroupConsumer;

/// How a session ended.
pub(crate) enum End {
    /// As asked: everything is committed.
    Stopped,
    /// This client is of no use any more, for this reason; another one may be.
    Anew(String),
}

pub(crate) struct Session<'a, C: Consumer> {
    pub(super) engine: &'a Engine<C>,
    pub(super) client: Arc<GroupConsumer>,
    pub(super) stop: &'a CancellationToken,
    pub(super) partitions: Partitions,
    pub(super) dispatch: Dispatch<C>,
    pub(super) membership: Membership,
    pub(super) pressure: Pressure,
    pub(super) times: Times,
    pub(super) notices: Notices,
}

/// What is held, and whether more may be.
pub(super) struct Pressure {
    pub(super) bounds: Bounds,
    pub(super) total: Load,
    /// Whether to ask for records; off for a moment when too many are held.
    pub(super) polling: bool,
    /// Whether any partition is paused.
    pub(super) pausing: bool,
}

/// When something happened or is due.
pub(super) struct Times {
    pub(super) began: Instant,
    /// When this turn of the loop began: one look at the clock for all its records.
    pub(super) turn: Instant,
    pub(super) progress: Instant,
    pub(super) commit_at: Instant,
    /// When a stop that was asked for no longer waits.
    pub(super) stopping: Option<Instant>,
}

/// What is said rarely, however often it happens.
#[derive(Default)]
pub(super) struct Notices {
    pub(super) snapshot: SnapshotCount,
    /// What was warned of, by topic.
    pub(super) warned_of: HashSet<(Arc<str>, Remark)>,
}

/// Snapshot rows that were skipped for their age since the last report.
#[derive(Default)]
pub(super) struct SnapshotCount {
    pub(super) skipped: u64,
    pub(super) last: Option<Instant>,
}

impl<'a, C: Consumer> Session<'a, C> {
    pub(crate) fn new(
        engine: &'a Engine<C>,
        shared: Arc<Shared>,
        sights: Arc<Sights>,
        client: Arc<GroupConsumer>,
        stop: &'a CancellationToken,
    ) -> Self {
        let now = Instant::now();
        Self {
            engine,
            client,
            stop,
            partitions: Partitions::default(),
            dispatch: Dispatch::new(engine, shared),
            membership: Membership::new(sights),
            pressure: Pressure {
                bounds: engine.settings.bounds.of_records(),
                total: Load::default(),
                polling: true,
                pausing: false,
            },
            times: Times { began: now, turn: now, progress: now, commit_at: now, stopping: None },
            notices: Notices::default(),
        }
    }
}
