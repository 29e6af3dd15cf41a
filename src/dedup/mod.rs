//! Claims: an outcome is claimed before work and marked done after it, in Redis.
//!
//! Two phases (behaviour section 8.2). A claim holds the name of the record that took it, so that a
//! record redelivered after a crash knows its own claim and is no duplicate; what another record
//! holds is in flight, not done. `done` keeps the time of acceptance, which a cancel needs to know.
//!
//! Redis is an aid, not the boundary of correctness: behind the claims stand deterministic event
//! ids and replay recognition.

mod generations;
mod memory;
mod pipeline;
mod protocol;
mod recent;
mod redis;
mod renewals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

pub use self::memory::MemoryStore;
use self::pipeline::{QUEUE, Request, run};
pub use self::protocol::{ClaimOp, ClaimReply, LockOp, LockReply, Moment, Op, Reply, TakenBack};
use self::recent::Recent;
pub use self::redis::{RedisStore, warn_of_eviction};
pub use self::renewals::Renewal;
use self::renewals::Renewals;
use crate::outage::Breaker;

/// Why a store could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("claims cannot be reached: {message}; check REDIS_URL and the server behind it")]
pub struct StoreUnavailable {
    message: String,
}

impl StoreUnavailable {
    /// A store that could not answer, with the reason in one line.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Where claims are kept. Operations of one call are independent and answered in order.
pub trait Store: Send + Sync + 'static {
    /// Carries out `ops` in one round trip where it can.
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>>;
}

impl Store for Box<dyn Store> {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        (**self).execute(ops)
    }
}

/// A claim's key, and the record that asks for it.
pub type KeyAndAsker = (Arc<str>, Arc<str>);

/// What to do while claims cannot be reached (`DEDUP_ON_OUTAGE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOutage {
    /// Wait for them.
    Wait,
    /// Go on without: ids and replay recognition stand alone.
    Proceed,
}

/// The claims of the whole process: every operation of every lane goes through one queue and
/// leaves in pipelines.
#[derive(Clone)]
pub struct Claims {
    queue: mpsc::Sender<Request>,
    breaker: Arc<Breaker>,
    on_outage: OnOutage,
    window: Duration,
    lease: Duration,
    recent: Arc<Recent>,
    renewals: Arc<Renewals>,
}

/// What sleeps is remembered so much longer than it sleeps: as long as Inngest knows its id.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What was done within this part of the window after it was claimed need not have the whole window
/// once more.
const A_MOMENT: u32 = 60;

/// Shortest lease of what is held alone: longer than a slow request.
const LEASE_MIN: Duration = Duration::from_secs(15);

impl Claims {
    /// Starts the tasks that pipeline operations to `store` and renew claims. Claims live for `window`;
    /// acceptances are also remembered in the process for `remember`, for the case that the
    /// store forgets. Must be called inside a tokio runtime.
    pub fn start(
        store: impl Store,
        breaker: Arc<Breaker>,
        on_outage: OnOutage,
        window: Duration,
        remember: Duration,
    ) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        tokio::spawn(run(store, requests, Arc::clone(&breaker)));
        let recent = Arc::new(Recent::new(remember));
        // A holder that is gone, and whose record was finished elsewhere meanwhile, is known by
        // nobody. What it may have sent has settled by the time that it is forgotten.
        let lease = (remember * 2).max(LEASE_MIN).min(window);
        let renewals = Arc::default();
        let claims = Self { queue, breaker, on_outage, window, lease, recent, renewals };
        // It must not keep alive what it looks after.
        let asks = Self { renewals: Arc::default(), ..claims.clone() };
        tokio::spawn(renewals::run(Arc::downgrade(&claims.renewals), window, asks));
        claims
    }

    /// How long a claim lives. A record that has waited longer than a third of it claims again.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// How long what is held alone stays taken without a sign of its holder: twice the settle
    /// time, at least 15 s, at most the window.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// The breaker that stands for the store.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Claims `key` for `asker`.
    ///
    /// # Errors
    /// When the store cannot be reached and `DEDUP_ON_OUTAGE` is `wait`.
    pub async fn claim(
        &self,
        key: impl Into<Arc<str>> + Send,
        asker: Arc<str>,
    ) -> Result<ClaimReply, StoreUnavailable> {
        match self.ask_claim(ClaimOp::Take { key: key.into(), asker }).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(ClaimReply::Granted),
            answer => answer,
        }
    }

    /// Keeps a claim of `asker`, granted at `granted`, from running out while what is answered lives.
    #[must_use]
    pub fn renewed(&self, key: Arc<str>, asker: Arc<str>, granted: Instant) -> Renewal {
        self.renewals.keep(key, asker, granted)
    }

    /// Claims each of `keys` for its asker, in one request; the answers are in the same order. `None`
    /// where claims are away and the consumer goes on without.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn claim_all(
        &self,
        keys: Vec<KeyAndAsker>,
    ) -> Result<Option<Vec<ClaimReply>>, StoreUnavailable> {
        let take = |(key, asker)| ClaimOp::Take { key, asker }.into();
        match self.ask_all(keys.into_iter().map(take).collect()).await {
            Ok(replies) => replies.into_iter().map(of_claim).collect::<Result<_, _>>().map(Some),
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(None),
            Err(away) => Err(away),
        }
    }

    /// Marks `keys` done, each with its time of acceptance in milliseconds since 1970 and when its
    /// claim was granted, if it is known to be held, in one request. Not for what may be cancelled: these times are not
    /// remembered in the process.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn confirm_all(
        &self,
        keys: &[(Arc<str>, i64, Option<Instant>)],
    ) -> Result<(), StoreUnavailable> {
        let confirm = |(key, accepted_ms, granted): &(Arc<str>, i64, Option<Instant>)| {
            let (key, accepted_ms) = (Arc::clone(key), *accepted_ms);
            let fresh = granted.is_some_and(|at| at.elapsed() < self.window / A_MOMENT);
            Op::Claim(if fresh {
                ClaimOp::ConfirmTaken { key, accepted_ms }
            } else {
                ClaimOp::Confirm { key, accepted_ms, due_ms: 0, keep: self.window }
            })
        };
        match self.ask_all(keys.iter().map(confirm).collect()).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// Marks `key` done. What sleeps until `due_ms` (0: nothing) stays marked until a day after it.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn confirm(
        &self,
        key: impl Into<Arc<str>> + Send,
        accepted_ms: i64,
        due_ms: i64,
    ) -> Result<(), StoreUnavailable> {
        let key = key.into();
        if accepted_ms > 0 {
            self.recent.note(&key, accepted_ms);
        }
        let sleeps = u64::try_from(due_ms - Timestamp::now().as_millisecond()).ok();
        let keep = match sleeps {
            Some(left) => (Duration::from_millis(left) + A_DAY).max(self.window),
            None => self.window,
        };
        self.tell(ClaimOp::Confirm { key, accepted_ms, due_ms, keep }).await
    }

    /// Marks what was done under `key` as taken back, for as long as `keep`.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn take_back(
        &self,
        key: impl Into<Arc<str>> + Send,
        by: TakenBack,
        keep: Duration,
    ) -> Result<(), StoreUnavailable> {
        self.tell(ClaimOp::TakeBack { key: key.into(), by, keep }).await
    }

    /// Keeps a text under `key` for as long as `keep`; `false` when another record than `asker` has
    /// come to hold `lock`, and nothing was kept.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn keep(
        &self,
        key: impl Into<Arc<str>> + Send,
        text: String,
        keep: Duration,
        (lock, asker): (Arc<str>, Arc<str>),
    ) -> Result<bool, StoreUnavailable> {
        match self.ask_lock(LockOp::Keep { key: key.into(), text, keep, lock, asker }).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(true),
            answer => answer.map(|reply| reply == LockReply::Noted),
        }
    }

    /// The text that is kept under `key`.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn recall(
        &self,
        key: impl Into<Arc<str>> + Send,
    ) -> Result<Option<String>, StoreUnavailable> {
        match self.ask_lock(LockOp::Recall { key: key.into() }).await {
            Ok(LockReply::Text(text)) => Ok(text),
            Err(away) if self.on_outage == OnOutage::Wait => Err(away),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// When this store was first asked so under `key`, in milliseconds since 1970: now, if it never
    /// was, or has been emptied since. `None` where nobody can tell.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn since(
        &self,
        key: impl Into<Arc<str>> + Send,
    ) -> Result<Option<i64>, StoreUnavailable> {
        let now_ms = Timestamp::now().as_millisecond();
        match self.ask_lock(LockOp::Since { key: key.into(), now_ms }).await {
            Ok(LockReply::Since { ms }) => Ok(Some(ms)),
            Err(away) if self.on_outage == OnOutage::Wait => Err(away),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    async fn tell(&self, op: impl Into<Op>) -> Result<(), StoreUnavailable> {
        match self.ask(op.into()).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// Gives a claim back, best effort: left behind it runs out by itself.
    pub async fn release(&self, key: impl Into<Arc<str>> + Send, asker: Arc<str>) {
        if let Err(error) = self.ask_claim(ClaimOp::Release { key: key.into(), asker }).await {
            tracing::debug!(%error, "claim not released");
        }
    }

    /// Takes `key` for `asker` alone, in place of `left_by` where that one holds it.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn acquire(
        &self,
        key: impl Into<Arc<str>> + Send,
        asker: Arc<str>,
        left_by: Option<Arc<str>>,
    ) -> Result<LockReply, StoreUnavailable> {
        let key = key.into();
        let remembered = self.recent.find(&key);
        let lease = self.lease;
        match self.ask_lock(LockOp::Acquire { key, asker, left_by, lease }).await {
            Ok(LockReply::Acquired { accepted_ms, resumed }) => {
                Ok(LockReply::Acquired { accepted_ms: accepted_ms.max(remembered), resumed })
            }
            Err(_) if self.on_outage == OnOutage::Proceed => {
                Ok(LockReply::Acquired { accepted_ms: remembered, resumed: false })
            }
            answer => answer,
        }
    }

    /// Takes `key` for `asker` once more. What the process itself remembers has no say; nothing is
    /// answered where claims are away and it goes on without.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn renew(
        &self,
        key: impl Into<Arc<str>> + Send,
        asker: Arc<str>,
    ) -> Result<Option<LockReply>, StoreUnavailable> {
        let lease = self.lease;
        match self.ask_lock(LockOp::Acquire { key: key.into(), asker, left_by: None, lease }).await
        {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Gives back what was acquired, with the time of its last acceptance (0 for none).
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn free(
        &self,
        key: impl Into<Arc<str>> + Send,
        asker: Arc<str>,
        accepted_ms: i64,
    ) -> Result<(), StoreUnavailable> {
        let key = key.into();
        if accepted_ms > 0 {
            self.recent.note(&key, accepted_ms);
        }
        self.tell(LockOp::Free { key, asker, accepted_ms }).await
    }

    /// What the store knows of `key` to `asker`: [`ClaimReply::Free`] where that is nothing, or where
    /// it is away and the consumer goes on without.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn look(
        &self,
        key: impl Into<Arc<str>> + Send,
        asker: Arc<str>,
    ) -> Result<ClaimReply, StoreUnavailable> {
        match self.ask_claim(ClaimOp::Look { key: key.into(), asker: Some(asker) }).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(ClaimReply::Free),
            answer => answer,
        }
    }

    /// What is known of `key`, here too; `None` where no claim can tell (the store is away or
    /// empty).
    pub async fn read(&self, key: impl Into<Arc<str>> + Send) -> Option<ClaimReply> {
        let key = key.into();
        let remembered = self.recent.find(&key);
        let remembered = remembered.map(|accepted_ms| ClaimReply::Done { accepted_ms, due_ms: 0 });
        match self.ask_claim(ClaimOp::Look { key, asker: None }).await.ok() {
            Some(done @ (ClaimReply::Done { .. } | ClaimReply::TakenBack { .. })) => Some(done),
            known => remembered.or(known.filter(|reply| *reply != ClaimReply::Free)),
        }
    }

    async fn ask_claim(&self, op: ClaimOp) -> Result<ClaimReply, StoreUnavailable> {
        self.ask(op.into()).await.and_then(of_claim)
    }

    async fn ask_lock(&self, op: LockOp) -> Result<LockReply, StoreUnavailable> {
        match self.ask(op.into()).await? {
            Reply::Lock(reply) => Ok(reply),
            Reply::Claim(_) => Err(other_protocol()),
        }
    }

    async fn ask(&self, op: Op) -> Result<Reply, StoreUnavailable> {
        let (reply, answer) = oneshot::channel();
        let stopped = || StoreUnavailable::new("the process is stopping");
        self.queue.send(Request::One(op, reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    async fn ask_all(&self, ops: Vec<Op>) -> Result<Vec<Reply>, StoreUnavailable> {
        let (reply, answer) = oneshot::channel();
        let stopped = || StoreUnavailable::new("the process is stopping");
        self.queue.send(Request::Many(ops, reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn of_claim(reply: Reply) -> Result<ClaimReply, StoreUnavailable> {
    match reply {
        Reply::Claim(reply) => Ok(reply),
        Reply::Lock(_) => Err(other_protocol()),
    }
}

fn other_protocol() -> StoreUnavailable {
    StoreUnavailable::new("it answered in another protocol than it was asked in")
}

#[cfg(test)]
mod tests;
