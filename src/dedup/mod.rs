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
mod protocol;
mod redis;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

pub use self::memory::MemoryStore;
pub use self::protocol::{Moment, Op, Reply, TakenBack};
pub use self::redis::{RedisStore, warn_of_eviction};
use crate::metric_names;
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

/// Operations of one caller, and where its answer goes.
enum Request {
    One(Op, oneshot::Sender<Answer<Reply>>),
    Many(Vec<Op>, oneshot::Sender<Answer<Vec<Reply>>>),
}

type Answer<T> = Result<T, StoreUnavailable>;

impl Request {
    fn ops(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Many(ops, _) => ops.len(),
        }
    }

    /// A caller that has gone needs no claim; one that must be kept is claimed again. What he has
    /// done is noted all the same.
    fn is_wanted(&self) -> bool {
        let second_phase = |ops: &[Op]| ops.iter().any(Op::is_second_phase);
        match self {
            Self::One(op, reply) => op.is_second_phase() || !reply.is_closed(),
            Self::Many(ops, reply) => second_phase(ops) || !reply.is_closed(),
        }
    }
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

/// Operations in one pipeline. Larger ones gain nothing and delay the first of them.
const PIPELINE: usize = 512;
/// Pipelines under way at once: one is answered while the next is filled and sent.
const UNDER_WAY: usize = 2;
/// Operations that may wait for a pipeline; more simply wait to get in.
const QUEUE: usize = 4096;

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
        tokio::spawn(pipeline(store, requests, Arc::clone(&breaker)));
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

/// Answers `requests` in pipelines. Those under way at once are independent: whoever asks for a key
/// waits for its answer before asking again, or has no use for it any more.
async fn pipeline(store: impl Store, requests: mpsc::Receiver<Request>, breaker: Arc<Breaker>) {
    let batches = stream::unfold(requests, |mut requests| async {
        let first = requests.recv().await?;
        let mut ops = first.ops();
        let mut batch = vec![first];
        while ops < PIPELINE
            && let Ok(next) = requests.try_recv()
        {
            ops += next.ops();
            batch.push(next);
        }
        Some((batch, requests))
    });
    batches.for_each_concurrent(UNDER_WAY, |batch| answer(&store, batch, &breaker)).await;
}

async fn answer(store: &impl Store, batch: Vec<Request>, breaker: &Breaker) {
    let mut ops = Vec::with_capacity(batch.iter().map(Request::ops).sum());
    let mut callers = Vec::with_capacity(batch.len());
    for request in batch.into_iter().filter(Request::is_wanted) {
        match request {
            Request::One(op, reply) => {
                ops.push(op);
                callers.push(Caller::One(reply));
            }
            Request::Many(all, reply) => {
                callers.push(Caller::Many(all.len(), reply));
                ops.extend(all);
            }
        }
    }
    if ops.is_empty() {
        return;
    }
    let short = || StoreUnavailable::new("short answer");
    let mut answer = execute(store, &ops, breaker).await.map(Vec::into_iter);
    // A caller that stopped waiting does not need its answer.
    for caller in callers {
        match caller {
            Caller::One(reply) => {
                let one = answer.as_mut().map_err(|error| error.clone());
                drop(reply.send(one.and_then(|all| all.next().ok_or_else(short))));
            }
            Caller::Many(count, reply) => {
                let many = answer.as_mut().map_err(|error| error.clone());
                let many = many.map(|all| all.by_ref().take(count).collect::<Vec<_>>());
                let whole =
                    many.and_then(|many| if many.len() == count { Ok(many) } else { Err(short()) });
                drop(reply.send(whole));
            }
        }
    }
}

/// Where a caller's answer goes.
enum Caller {
    One(oneshot::Sender<Answer<Reply>>),
    Many(usize, oneshot::Sender<Answer<Vec<Reply>>>),
}

async fn execute(
    store: &impl Store,
    ops: &[Op],
    breaker: &Breaker,
) -> Result<Vec<Reply>, StoreUnavailable> {
    let Ok(leave) = breaker.admit(Instant::now()) else {
        let error = breaker.away().map_or_else(String::new, |away| away.error.clone());
        return Err(StoreUnavailable::new(error));
    };
    metrics::histogram!(metric_names::PIPELINE).record(ops.len() as f64);
    let start = Instant::now();
    let answer = store.execute(ops).await;
    metric_names::request(breaker.name(), start.elapsed(), answer.is_ok());
    match &answer {
        Ok(_) => leave.succeeded(),
        Err(error) => leave.failed(Instant::now(), None, &error.message),
    }
    answer
}

/// Acceptances of the last while in this process. Redis may be emptied at any time, and a cancel
/// must still know that its award was accepted a moment ago (behaviour section 3).
struct Recent {
    remember_ms: i64,
    hasher: ahash::RandomState,
    known: Mutex<Remembered>,
}

/// Times by hash of the key, and the same in order of time.
type Remembered = (HashMap<u64, i64, ahash::RandomState>, VecDeque<(i64, u64)>);

/// Bounds the memory of [`Recent`] at about 4 MiB.
const RECENT_MAX: usize = 100_000;

impl Recent {
    fn new(remember: Duration) -> Self {
        Self {
            remember_ms: i64::try_from(remember.as_millis()).unwrap_or(i64::MAX),
            hasher: ahash::RandomState::new(),
            known: Mutex::default(),
        }
    }

    fn note(&self, key: &str, accepted_ms: i64) {
        let hash = self.hasher.hash_one(key);
        let mut guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, order) = &mut *guard;
        // A repeat of it must push out no other.
        if known.insert(hash, accepted_ms) == Some(accepted_ms) {
            return;
        }
        order.push_back((accepted_ms, hash));
        while order.len() > RECENT_MAX
            || order.front().is_some_and(|(at, _)| *at < accepted_ms - self.remember_ms)
        {
            if let Some((at, old)) = order.pop_front()
                && known.get(&old) == Some(&at)
            {
                known.remove(&old);
            }
        }
    }

    fn find(&self, key: &str) -> Option<i64> {
        let hash = self.hasher.hash_one(key);
        let guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.get(&hash).copied()
    }
}

#[cfg(test)]
mod tests;
