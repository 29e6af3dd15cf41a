//! A step behind a claim: done at most once within the window (behaviour section 8.2).

use std::future::Future;
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::dedup::{ClaimReply, StoreUnavailable, TakenBack};
use crate::engine::dispatch::retry::Failure;
use crate::engine::dispatch::work::{Accepted, Context, Memo};
use crate::engine::steps::Taken;

/// How soon to look again at a claim that another record holds.
const HELD_PAUSE: Duration = Duration::from_millis(500);

/// How long claims may take to answer about what is done, once its record is given up.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What claims tell about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimState {
    /// Nothing: it was not done within the life of its claim, or the store was emptied.
    Nothing,
    /// It was done.
    Done(Accepted),
    /// It was done, and taken back since.
    TakenBack(TakenBack, Accepted),
}

/// How a step behind a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// The work ran (now, or in an earlier attempt at this record), and its event was accepted at
    /// this time; `None` when it found nothing to send.
    Ran(Option<Timestamp>),
    /// It was done before.
    Duplicate,
    /// It was done before, and taken back since.
    TakenBack(TakenBack),
}

impl Context {
    /// Does `work` under the claim `name`, at most once within the window (behaviour section 8.2),
    /// and while what it sent sleeps: claims it, runs `work`, and marks it done with the times that
    /// `work` returns.
    ///
    /// # Errors
    /// What `work` returned; or that claims cannot be reached, or that another record holds this
    /// one. Once `work` is done it fails no more, but for what sleeps: see [`Accepted::due`].
    pub async fn once<F, A>(
        &self,
        name: &str,
        work: impl FnOnce() -> F + Send,
    ) -> Result<Once, Failure>
    where
        F: Future<Output = Result<A, Failure>> + Send,
        A: Into<Accepted> + Send,
    {
        self.step(Taken::Claim(name));
        let key = self.key(name);
        let accepted: Accepted = match self.recall(name) {
            Some(Memo::Confirmed(accepted)) => return Ok(Once::Ran(accepted.at)),
            Some(Memo::Accepted(accepted)) => accepted,
            known => {
                let asker = self.asker();
                let granted = match known {
                    Some(Memo::Claimed(at)) if at.elapsed() < self.claims().window() / 3 => at,
                    _ => match self.claim(name, &key, &asker).await? {
                        Continue(granted) => granted,
                        Break(done) => return Ok(done),
                    },
                };
                let mut renewal = self.claims().renewed(Arc::clone(&key), asker, granted);
                let ended = tokio::select! {
                    biased;
                    // Boxed: what waits for its claim takes no memory for its work.
                    ended = Box::pin(work()) => ended,
                    () = renewal.lost() => Err(claim_held()),
                };
                let accepted = match ended {
                    Ok(accepted) => accepted.into(),
                    Err(failure) => {
                        match renewal.granted() {
                            Some(granted) => self.remember(name, Memo::Claimed(granted)),
                            None => self.memo().retain(|(known, _)| known != name),
                        }
                        return Err(failure);
                    }
                };
                self.remember(name, Memo::Accepted(accepted));
                accepted
            }
        };
        self.confirm(&key, accepted).await?;
        self.remember(name, Memo::Confirmed(accepted));
        Ok(Once::Ran(accepted.at))
    }

    /// Marks `key` done. Of a record that is given up meanwhile only what sleeps must be marked:
    /// no id would know it as long as its claim does. It is sent once more under its id.
    async fn confirm(&self, key: &Arc<str>, accepted: Accepted) -> Result<(), Failure> {
        let [accepted_ms, due_ms] =
            [accepted.at, accepted.due].map(|at| at.map_or(0, Timestamp::as_millisecond));
        let confirm = || self.claims().confirm(Arc::clone(key), accepted_ms, due_ms);
        let confirmed = self.second_phase(confirm).await;
        if confirmed || accepted.due.is_none() { Ok(()) } else { Err(Failure::GivenUp) }
    }

    /// Carries out the second phase of a claim whose work is done, for as long as claims are away:
    /// what would begin again could only do the work twice. Answers whether claims know of it: a
    /// record that is given up ends without, and its claim runs out by itself.
    pub(in crate::engine) async fn second_phase<F>(&self, phase: impl Fn() -> F + Send) -> bool
    where
        F: Future<Output = Result<(), StoreUnavailable>> + Send,
    {
        let late = async {
            self.drain().cancelled().await;
            tokio::time::sleep(LAST_WORD).await;
        };
        tokio::pin!(late);
        let _waits = self.life().waits_for(self.claims().breaker());
        loop {
            let away = tokio::select! {
                biased;
                done = phase() => match done {
                    Ok(()) => return true,
                    Err(away) => away,
                },
                () = &mut late => StoreUnavailable::new("no answer"),
            };
            if self.drained() {
                tracing::warn!(error = %away, "done, but its claim could not be marked: it expires by itself");
                return false;
            }
            tokio::select! {
                () = self.drain().cancelled() => {}
                () = tokio::time::sleep(HELD_PAUSE) => {}
            }
        }
    }

    /// Claims `name`, and answers when that was granted; how it ended, when it is done already.
    async fn claim(
        &self,
        name: &str,
        key: &Arc<str>,
        asker: &Arc<str>,
    ) -> Result<ControlFlow<Once, Instant>, Failure> {
        if self.drained() {
            return Err(Failure::GivenUp);
        }
        let claim = self.claims().claim(Arc::clone(key), Arc::clone(asker));
        match claim.await.map_err(|away| self.claims_away(&away))? {
            ClaimReply::Granted => {
                let now = Instant::now();
                self.remember(name, Memo::Claimed(now));
                Ok(Continue(now))
            }
            ClaimReply::Done { .. } => Ok(Break(Once::Duplicate)),
            ClaimReply::TakenBack { by, .. } => Ok(Break(Once::TakenBack(by))),
            _ => Err(claim_held()),
        }
    }

    /// When the event behind the claim `name` was accepted, never later than now: `Some(None)` when
    /// that needed no event, `None` when no claim can tell.
    ///
    /// # Errors
    /// A wait, while another record is at it.
    pub async fn accepted_at(&self, name: &str) -> Result<Option<Option<Timestamp>>, Failure> {
        let accepted_ms = match self.claims().read(self.key(name)).await {
            Some(ClaimReply::Done { accepted_ms, .. }) => Some(accepted_ms),
            Some(ClaimReply::TakenBack { accepted_ms, .. }) => accepted_ms,
            Some(ClaimReply::Held) => return Err(claim_held()),
            _ => None,
        };
        Ok(accepted_ms.map(|ms| self.accepted_by_now(name, ms)))
    }

    /// What claims tell about the step `name`.
    ///
    /// # Errors
    /// That claims cannot be reached, or a wait, while another record is at it.
    pub async fn claim_state(&self, name: &str) -> Result<ClaimState, Failure> {
        let state = self.claims().look(self.key(name), self.asker()).await;
        match state.map_err(|away| self.claims_away(&away))? {
            ClaimReply::Done { accepted_ms, due_ms } => {
                let at = self.accepted_by_now(name, accepted_ms);
                Ok(ClaimState::Done(Accepted { at, due: time(due_ms) }))
            }
            ClaimReply::TakenBack { accepted_ms, due_ms, by } => {
                let at = accepted_ms.and_then(|ms| self.accepted_by_now(name, ms));
                Ok(ClaimState::TakenBack(by, Accepted { at, due: time(due_ms) }))
            }
            ClaimReply::Held => Err(claim_held()),
            _ => Ok(ClaimState::Nothing),
        }
    }

    /// A time of acceptance that stands with the claim `name`. Another instance's clock may be
    /// ahead: what was accepted was so before this record learnt of it, however often it asks.
    pub(in crate::engine) fn accepted_by_now(&self, name: &str, ms: i64) -> Option<Timestamp> {
        let (told, now) = (time(ms)?, Timestamp::now());
        match self.recall(name) {
            Some(Memo::Ahead { ms: known, learnt }) if known == ms => Some(learnt),
            // What this record knows of its own claim is worth more.
            Some(Memo::Claimed(_) | Memo::Accepted(_) | Memo::Confirmed(_)) => Some(told.min(now)),
            _ => {
                if told > now {
                    self.remember(name, Memo::Ahead { ms, learnt: now });
                }
                Some(told.min(now))
            }
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
            self.claims().release(self.key(&name), self.asker()).await;
        }
        if let Err(error) = self.free().await {
            tracing::debug!(%error, "claim not released");
        }
    }

    pub(in crate::engine) fn recall(&self, name: &str) -> Option<Memo> {
        self.memo().iter().find(|(known, _)| known == name).map(|(_, memo)| *memo)
    }

    pub(in crate::engine) fn remember(&self, name: &str, memo: Memo) {
        let mut all = self.memo();
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = memo,
            None => all.push((name.to_owned(), memo)),
        }
    }
}

/// A time that a claim keeps; 0 stands for none.
fn time(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok().filter(|_| ms > 0)
}

/// A wait for a claim that another record holds.
pub(in crate::engine) fn claim_held() -> Failure {
    Failure::Wait { until: Instant::now() + HELD_PAUSE, reason: "claim_held" }
}

#[cfg(test)]
mod tests;
