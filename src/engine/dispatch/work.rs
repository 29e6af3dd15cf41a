//! One piece of work: what the loop keeps of it, and what its consumer may ask for.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;

use crate::dedup::{Claims, StoreUnavailable};
use crate::engine::dispatch::life::Life;
use crate::engine::dispatch::permits::{Permit, Permits, Urgency};
use crate::engine::dispatch::retry::{Failure, Served};
#[cfg(debug_assertions)]
use crate::engine::steps::Steps;
use crate::outage::Breaker;
use crate::room::{Charge, Room};

/// Where a record came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// What the work of one consumer shares.
pub(crate) struct Shared {
    pub(crate) group: String,
    pub(crate) claim_prefix: String,
    pub(crate) claims: Claims,
    pub(crate) permits: Arc<Permits>,
    /// For answers that work keeps while it waits.
    pub(crate) answers: Arc<Room>,
    /// The dependency whose client repeats by itself while work in flight waits for it.
    pub(crate) client_retries: OnceLock<Arc<Breaker>>,
}

impl Shared {
    /// The dependencies that work in flight can be waiting for.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = &Arc<Breaker>> {
        self.client_retries.get().into_iter().chain([self.claims.breaker()])
    }
}

/// What a consumer may ask for while it works on a record.
pub struct Context {
    shared: Arc<Shared>,
    origin: Origin,
    merged: Vec<Origin>,
    assigned_at: Timestamp,
    drain: CancellationToken,
    life: OnceLock<Arc<Life>>,
    /// Made when first needed: of those that go through in a batch most need none.
    notes: OnceLock<Box<Notes>>,
    /// The steps that its consumer declared.
    #[cfg(debug_assertions)]
    steps: Mutex<Option<Arc<Steps>>>,
}

/// What is noted about one record while it is worked on.
#[derive(Default)]
pub(in crate::engine) struct Notes {
    /// Its claims, across attempts.
    memo: Mutex<Memos>,
    /// What it holds alone, across attempts.
    hold: Mutex<Option<LockState>>,
    /// Answers that it could use since it last failed.
    served: Mutex<Served>,
    /// What its answers take of the room for them, in this attempt.
    kept: Mutex<Option<Charge>>,
}

/// What became of the work of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepted {
    /// When its event was accepted; `None` when it found nothing to send.
    pub at: Option<Timestamp>,
    /// Until when that sleeps; its claim lives until a day after, and must: where it cannot be
    /// marked, the record comes again.
    pub due: Option<Timestamp>,
}

impl From<Option<Timestamp>> for Accepted {
    fn from(at: Option<Timestamp>) -> Self {
        Self { at, due: None }
    }
}

/// What is known of the claims of one record; mostly it has one.
pub(in crate::engine) type Memos = SmallVec<[(String, Memo); 1]>;

/// What is known of one claim of this record, across attempts.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) enum Memo {
    Claimed(Instant),
    Accepted(Accepted),
    Confirmed(Accepted),
    /// Not a claim: since when something has been waited for.
    Awaited(Instant),
    /// A claim of others, accepted at a time that lay ahead when this record learnt of it.
    Ahead {
        ms: i64,
        learnt: Timestamp,
    },
}

/// What is known of the claim that a record holds alone, across attempts at it.
#[derive(Debug)]
pub(in crate::engine) struct LockState {
    pub(in crate::engine) name: String,
    pub(in crate::engine) asker: Arc<str>,
    /// From when a settle time counts.
    pub(in crate::engine) accepted_at: Option<Timestamp>,
    /// A send was begun; set for good when it was dropped half-way.
    pub(in crate::engine) sending: bool,
    /// When it was last known to be held.
    pub(in crate::engine) held_at: Instant,
}

impl Context {
    pub(crate) fn new(
        shared: Arc<Shared>,
        origin: Origin,
        assigned_at: Timestamp,
        drain: CancellationToken,
    ) -> Self {
        Self {
            shared,
            origin,
            merged: Vec::new(),
            assigned_at,
            drain,
            life: OnceLock::new(),
            notes: OnceLock::new(),
            #[cfg(debug_assertions)]
            steps: Mutex::default(),
        }
    }

    /// What stands for the records of a batch, of which this is one.
    pub(in crate::engine) fn of_batch(&self) -> Self {
        let (shared, drain) = (Arc::clone(&self.shared), self.drain.clone());
        Self::new(shared, self.origin.clone(), self.assigned_at, drain)
    }

    /// Sets which steps may be taken from now on.
    #[cfg(debug_assertions)]
    pub(crate) fn declare(&self, steps: Steps) {
        *locked(&self.steps) = Some(Arc::new(steps));
    }

    /// The same for work of several records, which it stands for.
    #[cfg(debug_assertions)]
    pub(in crate::engine) fn declare_all(&self, all: impl Iterator<Item = Steps>) {
        let steps = all.flat_map(|steps| steps.steps).collect();
        self.declare(Steps { lane: String::new(), steps });
    }

    #[cfg(debug_assertions)]
    pub(in crate::engine) fn declared(&self) -> Option<Arc<Steps>> {
        locked(&self.steps).clone()
    }

    /// Tells that this record got an answer that it could use: it says nothing about others.
    pub(crate) fn served(&self, breaker: &Arc<Breaker>, times: u64) {
        locked(&self.notes().served).add(breaker, times);
    }

    /// What was noted since the last call.
    pub(in crate::engine) fn take_served(&self) -> Served {
        self.notes
            .get()
            .map(|notes| std::mem::take(&mut *locked(&notes.served)))
            .unwrap_or_default()
    }

    /// Sets which records have been coalesced into this one, and when the partition of any of
    /// them was assigned last.
    pub(crate) fn set_merged(&mut self, merged: Vec<Origin>, assigned_at: Timestamp) {
        self.merged = merged;
        self.assigned_at = assigned_at;
    }

    /// What it is at while it is in flight.
    pub(in crate::engine) fn life(&self) -> &Arc<Life> {
        self.life.get_or_init(Arc::default)
    }

    /// The records that were coalesced into this one.
    pub(crate) fn merged(&self) -> &[Origin] {
        &self.merged
    }

    /// What a consumer's `process` gets, without an engine around it.
    #[cfg(test)]
    pub(crate) fn in_test(
        claims: Claims,
        limits: crate::engine::dispatch::permits::Limits,
        offset: i64,
    ) -> Self {
        let shared = Shared {
            group: "test".to_owned(),
            claim_prefix: "crm:test".to_owned(),
            claims,
            permits: Permits::new(limits),
            answers: Room::new(usize::MAX),
            client_retries: OnceLock::new(),
        };
        let origin = Origin { topic: "topic".into(), partition: 0, offset };
        Self::new(Arc::new(shared), origin, Timestamp::now(), CancellationToken::new())
    }

    /// The record that is worked on.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// When its partition, or the last one of a record coalesced into it, was assigned to this
    /// process. What was accepted before is known only from claims.
    #[must_use]
    pub fn assigned_at(&self) -> Timestamp {
        self.assigned_at
    }

    /// Waits for one of the consumer's permits, held during one request. A record that keeps no
    /// answer yet waits for room for one too; one that does goes on, so that it ends and makes
    /// room. What many records wait for goes before all.
    ///
    /// # Errors
    /// [`Failure::GivenUp`] when the partition is being given up: what merely waits is not in
    /// flight.
    pub async fn permit(&self, urgency: Urgency) -> Result<Permit, Failure> {
        let Shared { permits, answers, .. } = &*self.shared;
        self.unless_drained(async {
            let begins = urgency == Urgency::One && self.kept().is_none();
            let turn = if begins { Some(answers.enter().await) } else { None };
            let permit = permits.acquire(urgency).await;
            drop(turn);
            permit
        })
        .await
    }

    /// Notes that an answer of so many bytes is kept until this attempt ends.
    pub fn produced(&self, bytes: usize) {
        match &mut *self.kept() {
            Some(kept) => kept.grow(bytes),
            kept => *kept = Some(self.shared.answers.charge(bytes)),
        }
    }

    /// The attempt has ended, and what it produced is gone.
    pub(in crate::engine) fn keep_nothing(&self) {
        if let Some(notes) = self.notes.get() {
            *locked(&notes.kept) = None;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Charge>> {
        locked(&self.notes().kept)
    }

    /// What is known of its claims, across attempts.
    pub(in crate::engine) fn memo(&self) -> MutexGuard<'_, Memos> {
        locked(&self.notes().memo)
    }

    /// What it holds alone, across attempts.
    pub(in crate::engine) fn hold(&self) -> MutexGuard<'_, Option<LockState>> {
        locked(&self.notes().hold)
    }

    fn notes(&self) -> &Notes {
        self.notes.get_or_init(Box::default)
    }

    /// A mere wait behind other records.
    ///
    /// # Errors
    /// [`Failure::GivenUp`] when the partition is being given up.
    pub async fn unless_drained<T>(
        &self,
        wait: impl Future<Output = T> + Send,
    ) -> Result<T, Failure> {
        let _turn = self.life().in_turn();
        tokio::select! {
            biased;
            waited = wait => Ok(waited),
            () = self.drain.cancelled() => Err(Failure::GivenUp),
        }
    }

    /// Awaits what another record may be asking for already: a mere wait for that one. The record
    /// that asks for all of them does so in [`Context::for_all`].
    pub async fn in_turn<T>(&self, shared: impl Future<Output = T> + Send) -> T {
        let _turn = self.life().in_turn();
        shared.await
    }

    /// Asks for what others wait for in [`Context::in_turn`].
    pub async fn for_all<T>(&self, asked: impl Future<Output = T> + Send) -> T {
        let _works = self.life().works();
        asked.await
    }

    /// Awaits a request that its client repeats by itself while the dependency of `breaker` is
    /// away: in flight while that answers, a mere wait while it does not.
    ///
    /// # Errors
    /// [`Failure::GivenUp`] when the partition is being given up while the dependency is away.
    pub async fn with_client_retries<T>(
        &self,
        breaker: &Arc<Breaker>,
        request: impl Future<Output = T> + Send,
    ) -> Result<T, Failure> {
        self.shared.client_retries.get_or_init(|| Arc::clone(breaker));
        self.unless_given_up(breaker, request).await
    }

    /// As [`Context::with_client_retries`], for a request that ends by itself while the dependency
    /// is away.
    ///
    /// # Errors
    /// As [`Context::with_client_retries`].
    pub async fn unless_given_up<T>(
        &self,
        breaker: &Arc<Breaker>,
        request: impl Future<Output = T> + Send,
    ) -> Result<T, Failure> {
        let _waits = self.life().waits_for(breaker);
        tokio::select! {
            biased;
            answer = request => Ok(answer),
            () = async { self.drain.cancelled().await; breaker.until_away().await } => {
                Err(Failure::GivenUp)
            }
        }
    }

    pub(in crate::engine) fn claims(&self) -> &Claims {
        &self.shared.claims
    }

    pub(in crate::engine) fn drained(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Cancelled when the record is given up: what merely waits ends.
    pub(in crate::engine) fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    pub(in crate::engine) fn claims_away(&self, away: &StoreUnavailable) -> Failure {
        Failure::Outage {
            breaker: Arc::clone(self.shared.claims.breaker()),
            kind: "claims_away",
            message: away.to_string(),
            retry_after: None,
            attempted: false,
        }
    }

    /// The claim's key in the store.
    pub(in crate::engine) fn key(&self, name: &str) -> Arc<str> {
        let prefix = &self.shared.claim_prefix;
        let mut key = String::with_capacity(prefix.len() + name.len());
        key.push_str(prefix);
        key.push_str(name);
        key.into()
    }

    /// The name of a claim, by its key in the store.
    pub(in crate::engine) fn name_of_key<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(&*self.shared.claim_prefix).unwrap_or(key)
    }

    pub(in crate::engine) fn asker(&self) -> Arc<str> {
        self.name_of(&self.origin)
    }

    /// This record's name as the holder of a lock: with the assignment that it came by, since a
    /// member that stood still may go on with a record that another one has by then.
    pub(in crate::engine) fn lock_asker(&self) -> Arc<str> {
        format!("{}@{}", self.name_of(&self.origin), self.assigned_at.as_millisecond()).into()
    }

    /// A record's name as the holder of a claim.
    pub(in crate::engine) fn name_of(&self, origin: &Origin) -> Arc<str> {
        let Origin { topic, partition, offset } = origin;
        let mut name = String::with_capacity(self.shared.group.len() + topic.len() + 32);
        name.push_str(&self.shared.group);
        name.push('/');
        name.push_str(topic);
        // One for each claim: Display takes four times as long.
        let mut digits = itoa::Buffer::new();
        name.push('/');
        name.push_str(digits.format(*partition));
        name.push('/');
        name.push_str(digits.format(*offset));
        name.into()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
