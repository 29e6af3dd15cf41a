//! What is remembered beyond the window, and decided by one record at a time (behaviour section 3,
//! "Refunds"): texts under a lock, marks of what was taken back, and since when claims are kept.

use std::future::Future;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::dedup::{LockReply, TakenBack};
use crate::engine::Failure;
use crate::engine::dispatch::work::{Context, Memo};
use crate::engine::idempotency::once::claim_held;
use crate::engine::steps::Taken;

/// The key that holds since when this store has been used. It never expires.
const SINCE: &str = "claims:since";

/// A lock while it is held.
#[derive(Clone, Copy)]
pub struct Locked<'a> {
    cx: &'a Context,
    name: &'a str,
}

impl Locked<'_> {
    /// Keeps `text` under `name`, for as long as `keep`.
    ///
    /// # Errors
    /// That claims cannot be reached; or a wait, when another record has come to hold the lock.
    pub async fn keep(&self, name: &str, text: String, keep: Duration) -> Result<(), Failure> {
        let lock = (self.cx.key(self.name), self.cx.lock_asker());
        let kept = self.cx.claims().keep(self.cx.key(name), text, keep, lock).await;
        if kept.map_err(|away| self.cx.claims_away(&away))? { Ok(()) } else { Err(claim_held()) }
    }
}

impl Context {
    /// Does `work` while this record alone holds the lock `name`, across partitions and processes,
    /// and gives the lock back however it ends. A lock that a crash left is known by its own
    /// record, else it runs out with the lease.
    ///
    /// # Errors
    /// What `work` returned; or that claims cannot be reached; or a wait, when another record holds
    /// the lock or has come to hold it.
    pub async fn locked<'a, T, F>(
        &'a self,
        name: &'a str,
        work: impl FnOnce(Locked<'a>) -> F + Send,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        self.step(Taken::Lock(name));
        match self.take_lock(name, &self.lock_asker()).await? {
            (LockReply::Acquired { .. }, _) => {}
            _ => return Err(claim_held()),
        }
        let ended = tokio::select! {
            biased;
            ended = Box::pin(work(Locked { cx: self, name })) => ended,
            () = self.until_lock_is_lost(name) => Err(claim_held()),
        };
        // The decision is kept: a lock that cannot be released expires by itself.
        if let Err(error) = self.claims().free(self.key(name), self.lock_asker(), 0).await {
            tracing::debug!(%error, "lock not released");
        }
        ended
    }

    async fn until_lock_is_lost(&self, name: &str) {
        loop {
            tokio::time::sleep(self.claims().lease() / 3).await;
            // A store that is away is no reason to break off.
            let renewed = self.claims().acquire(self.key(name), self.lock_asker(), None).await;
            if matches!(renewed, Ok(LockReply::Taken { .. })) {
                return;
            }
        }
    }

    /// The text that is kept under `name`; `None` where there is none, or where claims are away and
    /// the consumer goes on without.
    ///
    /// # Errors
    /// That claims cannot be reached.
    pub async fn recall_text(&self, name: &str) -> Result<Option<String>, Failure> {
        let text = self.claims().recall(self.key(name)).await;
        text.map_err(|away| self.claims_away(&away))
    }

    /// Marks what was done under the claim `name` as taken back, for as long as `keep`.
    ///
    /// # Errors
    /// That claims cannot be reached.
    pub async fn take_back(
        &self,
        name: &str,
        by: TakenBack,
        keep: Duration,
    ) -> Result<(), Failure> {
        let marked = self.claims().take_back(self.key(name), by, keep).await;
        marked.map_err(|away| self.claims_away(&away))
    }

    /// Since when claims are kept: when this store was first used, or was emptied. `None` where
    /// nobody can tell.
    ///
    /// # Errors
    /// That claims cannot be reached.
    pub async fn claims_since(&self) -> Result<Option<Timestamp>, Failure> {
        let since = self.claims().since(self.key(SINCE)).await;
        let ms = since.map_err(|away| self.claims_away(&away))?;
        Ok(ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()))
    }

    /// How long what is called `name` has been waited for, since the first question in the life of
    /// this record here.
    pub fn awaited(&self, name: &str) -> Duration {
        match self.recall(name) {
            Some(Memo::Awaited(since)) => since.elapsed(),
            _ => {
                self.remember(name, Memo::Awaited(Instant::now()));
                Duration::ZERO
            }
        }
    }
}
