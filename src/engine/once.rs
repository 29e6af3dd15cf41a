//! A step behind a claim: done at most once within the window (contract section 8.2).

use std::future::Future;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::retry::Failure;
use super::work::{Cx, Memo, Memos};
use crate::dedup::Reply;

/// How soon to look again at a claim that another record holds.
const HELD_PAUSE: Duration = Duration::from_millis(500);

/// How a step behind a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// The work ran (now, or in an earlier attempt at this record), and its event was accepted at
    /// this time; `None` when it found nothing to send.
    Ran(Option<Timestamp>),
    /// It was done before.
    Duplicate,
}

impl Cx {
    /// Does `work` under the claim `name`, at most once within the window (contract section 8.2):
    /// claims it, runs `work`, and marks it done with the time of acceptance that `work` returns.
    ///
    /// # Errors
    /// What `work` returned; or that claims cannot be reached, or that another record holds this
    /// one.
    pub async fn once<F>(
        &self,
        name: &str,
        work: impl FnOnce() -> F + Send,
    ) -> Result<Once, Failure>
    where
        F: Future<Output = Result<Option<Timestamp>, Failure>> + Send,
    {
        let accepted = match self.recall(name) {
            Some(Memo::Confirmed(accepted)) => return Ok(Once::Ran(accepted)),
            Some(Memo::Accepted(accepted)) => accepted,
            known => {
                let fresh = matches!(known, Some(Memo::Claimed(at))
                    if at.elapsed() < self.claims().window() / 3);
                if !fresh && !self.claim(name).await? {
                    return Ok(Once::Duplicate);
                }
                let accepted = tokio::select! {
                    biased;
                    // Boxed: what waits for its claim takes no memory for its work.
                    accepted = Box::pin(work()) => accepted?,
                    lost = self.renew(name) => return Err(lost),
                };
                self.remember(name, Memo::Accepted(accepted));
                accepted
            }
        };
        let accepted_ms = accepted.map_or(0, Timestamp::as_millisecond);
        let confirm = self.claims().confirm(self.key(name), accepted_ms);
        confirm.await.map_err(|away| self.claims_away(&away))?;
        self.remember(name, Memo::Confirmed(accepted));
        Ok(Once::Ran(accepted))
    }

    /// Claims `name`; `false` when it is done already.
    async fn claim(&self, name: &str) -> Result<bool, Failure> {
        if self.drained() {
            return Err(Failure::GivenUp);
        }
        let claim = self.claims().claim(self.key(name), self.owner());
        match claim.await.map_err(|away| self.claims_away(&away))? {
            Reply::Ours => {
                self.remember(name, Memo::Claimed(Instant::now()));
                Ok(true)
            }
            Reply::Done { .. } => Ok(false),
            _ => Err(claim_held()),
        }
    }

    /// Keeps the claim from running out while its work waits. Ends when another record has it all
    /// the same, or has done the work.
    async fn renew(&self, name: &str) -> Failure {
        loop {
            tokio::time::sleep(self.claims().window() / 3).await;
            // Claims that are away are no reason to break off.
            match self.claims().claim(self.key(name), self.owner()).await {
                Ok(Reply::Ours) => self.remember(name, Memo::Claimed(Instant::now())),
                Ok(_) => {
                    self.memo().retain(|(known, _)| known != name);
                    return claim_held();
                }
                Err(_) => {}
            }
        }
    }

    /// When the event behind the claim `name` was accepted: `Some(None)` when that needed no
    /// event, `None` when no claim can tell.
    ///
    /// # Errors
    /// A wait, while another record is at it.
    pub async fn accepted_at(&self, name: &str) -> Result<Option<Option<Timestamp>>, Failure> {
        match self.claims().read(self.key(name)).await {
            Some(Reply::Done { accepted_ms: 0 }) => Ok(Some(None)),
            Some(Reply::Done { accepted_ms }) => {
                Ok(Timestamp::from_millisecond(accepted_ms).ok().map(Some))
            }
            Some(Reply::Held) => Err(claim_held()),
            _ => Ok(None),
        }
    }

    /// Gives back every claim that was taken and not used, so that a later record need not wait
    /// for it to run out.
    pub(crate) async fn release_claims(&self) {
        let held: Vec<String> = self
            .memo()
            .iter()
            .filter(|(_, memo)| matches!(memo, Memo::Claimed(_)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in held {
            self.claims().release(self.key(&name), self.owner()).await;
        }
        if self.free().await.is_err() {
            tracing::debug!("claim not given back");
        }
    }

    fn recall(&self, name: &str) -> Option<Memo> {
        self.memo().iter().find(|(known, _)| known == name).map(|(_, memo)| *memo)
    }

    fn remember(&self, name: &str, memo: Memo) {
        let mut all = self.memo();
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = memo,
            None => all.push((name.to_owned(), memo)),
        }
    }

    fn memo(&self) -> MutexGuard<'_, Memos> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait for a claim that another record holds.
pub(super) fn claim_held() -> Failure {
    Failure::Wait { until: Instant::now() + HELD_PAUSE, reason: "claim_held" }
}
