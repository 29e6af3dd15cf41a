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

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

pub use self::memory::MemoryStore;
use self::pipeline::{QUEUE, Request, run};
pub use self::protocol::{Moment, Op, Reply, TakenBack};
use self::recent::Recent;
pub use self::redis::{RedisStore, warn_of_eviction};
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
}

/// What sleeps is remembered so much longer than it sleeps: as long as Inngest knows its id.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Shortest lease of what is held alone: longer than a slow request.
const LEASE_MIN: Duration = Duration::from_secs(15);

impl Claims {
    /// Starts the task that pipelines operations to `store`. Claims live for `window`;
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
        Self { queue, breaker, on_outage, window, lease, recent }
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
    pub async fn claim(&self, key: String, asker: Arc<str>) -> Result<Reply, StoreUnavailable> {
        match self.ask(Op::Claim { key, asker }).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(Reply::Granted),
            answer => answer,
        }
    }

    /// Claims each of `keys` for its asker, in one request; the answers are in the same order.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn claim_all(
        &self,
        keys: Vec<(String, Arc<str>)>,
    ) -> Result<Vec<Reply>, StoreUnavailable> {
        let count = keys.len();
        let ops = keys.into_iter().map(|(key, asker)| Op::Claim { key, asker }).collect();
        match self.ask_all(ops).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(vec![Reply::Granted; count]),
            answer => answer,
        }
    }

    /// Marks `keys` done, each with its time of acceptance in milliseconds since 1970, in one
    /// request. Not for what may be cancelled: these times are not remembered in the process.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn confirm_all(&self, keys: &[(String, i64)]) -> Result<(), StoreUnavailable> {
        let confirm = |(key, accepted_ms): &(String, i64)| Op::Confirm {
            key: key.clone(),
            accepted_ms: *accepted_ms,
            due_ms: 0,
            keep: self.window,
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
        key: String,
        accepted_ms: i64,
        due_ms: i64,
    ) -> Result<(), StoreUnavailable> {
        if accepted_ms > 0 {
            self.recent.note(&key, accepted_ms);
        }
        let sleeps = u64::try_from(due_ms - Timestamp::now().as_millisecond()).ok();
        let keep = match sleeps {
            Some(left) => (Duration::from_millis(left) + A_DAY).max(self.window),
            None => self.window,
        };
        self.tell(Op::Confirm { key, accepted_ms, due_ms, keep }).await
    }

    /// Marks what was done under `key` as taken back, for as long as `keep`.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn take_back(
        &self,
        key: String,
        by: TakenBack,
        keep: Duration,
    ) -> Result<(), StoreUnavailable> {
        self.tell(Op::TakeBack { key, by, keep }).await
    }

    /// Keeps a text under `key` for as long as `keep`; `false` when another record than `asker` has
    /// come to hold `lock`, and nothing was kept.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn keep(
        &self,
        key: String,
        text: String,
        keep: Duration,
        (lock, asker): (String, Arc<str>),
    ) -> Result<bool, StoreUnavailable> {
        match self.ask(Op::Keep { key, text, keep, lock, asker }).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(true),
            answer => answer.map(|reply| reply == Reply::Granted),
        }
    }

    /// The text that is kept under `key`.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn recall(&self, key: String) -> Result<Option<String>, StoreUnavailable> {
        match self.ask(Op::Recall { key }).await {
            Ok(Reply::Kept(text)) => Ok(text),
            Err(away) if self.on_outage == OnOutage::Wait => Err(away),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// When this store was first asked so under `key`, in milliseconds since 1970: now, if it never
    /// was, or has been emptied since. `None` where nobody can tell.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn since(&self, key: String) -> Result<Option<i64>, StoreUnavailable> {
        let now_ms = Timestamp::now().as_millisecond();
        match self.ask(Op::Since { key, now_ms }).await {
            Ok(Reply::Since { ms }) => Ok(Some(ms)),
            Err(away) if self.on_outage == OnOutage::Wait => Err(away),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    async fn tell(&self, op: Op) -> Result<(), StoreUnavailable> {
        match self.ask(op).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// Gives a claim back, best effort: left behind it runs out by itself.
    pub async fn release(&self, key: String, asker: Arc<str>) {
        if let Err(error) = self.ask(Op::Release { key, asker }).await {
            tracing::debug!(%error, "claim not released");
        }
    }

    /// Takes `key` for `asker` alone, in place of `left_by` where that one holds it.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn acquire(
        &self,
        key: String,
        asker: Arc<str>,
        left_by: Option<Arc<str>>,
    ) -> Result<Reply, StoreUnavailable> {
        let remembered = self.recent.find(&key);
        let lease = self.lease;
        match self.ask(Op::Acquire { key, asker, left_by, lease }).await {
            Ok(Reply::Acquired { accepted_ms, resumed }) => {
                Ok(Reply::Acquired { accepted_ms: accepted_ms.max(remembered), resumed })
            }
            Err(_) if self.on_outage == OnOutage::Proceed => {
                Ok(Reply::Acquired { accepted_ms: remembered, resumed: false })
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
        key: String,
        asker: Arc<str>,
    ) -> Result<Option<Reply>, StoreUnavailable> {
        let lease = self.lease;
        match self.ask(Op::Acquire { key, asker, left_by: None, lease }).await {
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
        key: String,
        asker: Arc<str>,
        accepted_ms: i64,
    ) -> Result<(), StoreUnavailable> {
        if accepted_ms > 0 {
            self.recent.note(&key, accepted_ms);
        }
        self.tell(Op::Free { key, asker, accepted_ms }).await
    }

    /// What the store knows of `key` to `asker`: [`Reply::Free`] where that is nothing, or where it
    /// is away and the consumer goes on without.
    ///
    /// # Errors
    /// As [`Claims::claim`].
    pub async fn look(&self, key: String, asker: Arc<str>) -> Result<Reply, StoreUnavailable> {
        match self.ask(Op::Look { key, asker }).await {
            Err(_) if self.on_outage == OnOutage::Proceed => Ok(Reply::Free),
            answer => answer,
        }
    }

    /// What is known of `key`, here too; `None` where no claim can tell (the store is away or
    /// empty).
    pub async fn read(&self, key: String) -> Option<Reply> {
        let remembered = self.recent.find(&key);
        let remembered = remembered.map(|accepted_ms| Reply::Done { accepted_ms, due_ms: 0 });
        match self.ask(Op::Read { key }).await.ok() {
            Some(done @ (Reply::Done { .. } | Reply::TakenBack { .. })) => Some(done),
            known => remembered.or(known.filter(|reply| *reply != Reply::Free)),
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

#[cfg(test)]
mod tests;
