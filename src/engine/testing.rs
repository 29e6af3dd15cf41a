//! What tests of claims stand on: a store that is watched, processes that share it, and their
//! records.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Outcome;
use super::dispatch::permits::{Limits, Permits};
use super::dispatch::work::{Context, Origin, Shared};
use crate::dedup::{
    ClaimOp, Claims, LockOp, MemoryStore, OnOutage, Op, Reply, Store, StoreUnavailable,
};
use crate::outage::{Backoff, Breaker};

/// What the work of tests comes to.
pub(super) const SENT: Outcome = Outcome::Sent;

/// A store that counts its requests, and answers those that end a claim as the test says.
#[derive(Default)]
pub(super) struct Watched {
    pub(super) taken: Mutex<usize>,
    pub(super) asked: Notify,
    pub(super) second_phase: Mutex<SecondPhase>,
    pub(super) ended: Notify,
}

/// What becomes of a request that says what was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecondPhase {
    #[default]
    Answered,
    Refused,
    Silent,
}

#[derive(Clone)]
pub(super) struct WatchedStore(pub(super) Arc<MemoryStore>, pub(super) Arc<Watched>);

impl Store for WatchedStore {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        let watched = &self.1;
        for op in ops {
            match op {
                Op::Lock(LockOp::Acquire { .. }) | Op::Claim(ClaimOp::Take { .. }) => {
                    *watched.taken.lock().expect("not poisoned") += 1;
                    watched.asked.notify_one();
                }
                Op::Lock(LockOp::Free { .. }) | Op::Claim(ClaimOp::Confirm { .. }) => {
                    watched.ended.notify_one();
                    match *watched.second_phase.lock().expect("not poisoned") {
                        SecondPhase::Answered => {}
                        SecondPhase::Refused => {
                            return Box::pin(async {
                                Err(StoreUnavailable::new("connection refused"))
                            });
                        }
                        SecondPhase::Silent => return Box::pin(std::future::pending()),
                    }
                }
                _ => {}
            }
        }
        self.0.execute(ops)
    }
}

/// The processes of a group that share a store.
pub(super) struct Scene {
    pub(super) store: WatchedStore,
    window: Duration,
}

impl Scene {
    pub(super) fn new(window: Duration) -> Self {
        let store = WatchedStore(Arc::new(MemoryStore::new(window)), Arc::default());
        Self { store, window }
    }

    /// Waits until claims were asked for so many times.
    pub(super) async fn until_taken(&self, times: usize) {
        while *self.store.1.taken.lock().expect("not poisoned") < times {
            self.store.1.asked.notified().await;
        }
    }

    pub(super) fn second_phase(&self, becomes: SecondPhase) {
        *self.store.1.second_phase.lock().expect("not poisoned") = becomes;
    }

    /// One process.
    pub(super) fn process(&self) -> Arc<Shared> {
        let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
        let breaker = Arc::new(Breaker::new("redis", 1_000, backoff));
        let settle = Duration::from_secs(30);
        let claims =
            Claims::start(self.store.clone(), breaker, OnOutage::Wait, self.window, settle);
        let permits = Permits::new(Limits { min: 1, max: 1 });
        Arc::new(Shared {
            group: "g".to_owned(),
            claim_prefix: "g:".to_owned(),
            claims,
            permits,
            answers: crate::room::Room::new(usize::MAX),
            client_retries: Default::default(),
        })
    }
}

pub(super) fn origin(offset: i64) -> Origin {
    Origin { topic: "t".into(), partition: 0, offset }
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// A record whose partition was assigned at that second.
pub(super) fn record(process: &Arc<Shared>, offset: i64, assigned_at: i64) -> Context {
    let drain = CancellationToken::new();
    Context::new(Arc::clone(process), origin(offset), at(assigned_at), drain)
}
