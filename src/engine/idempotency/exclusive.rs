//! Work that one record at a time may be at, in all processes (behaviour section 4): unlike a step
//! behind [`Context::once`] it is never done, and what comes next gets its turn.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::dedup::{LockReply, StoreUnavailable};
use crate::engine::dispatch::work::{Context, LockState};
use crate::engine::idempotency::once::claim_held;
use crate::engine::steps::Taken;
use crate::engine::{Failure, Outcome};
use crate::outage::Breaker;

/// The claim while it is held.
#[derive(Clone, Copy)]
pub struct LockGuard<'a>(&'a Context);

impl LockGuard<'_> {
    /// From when a settle time counts: an event of this claim was accepted then, or may have been
    /// (before a crash, by a send of unknown outcome, or before the partition's assignment where
    /// no claim can tell). `None` when there was none.
    #[must_use]
    pub fn accepted_at(&self) -> Option<Timestamp> {
        self.0.hold().as_ref().and_then(|hold| hold.accepted_at)
    }

    /// Sends what must settle before the next run of this work: notes when it was accepted, or
    /// may have been. While the dependency of `breaker` is away this is a mere wait, as in
    /// [`Context::with_client_retries`]; but `send` goes on when its record is given up, since it
    /// may be accepted all the same, and until it is known when, the claim stays held, also against
    /// the record's next owner.
    ///
    /// # Errors
    /// Those of `send`; [`Failure::GivenUp`] when the partition is being given up.
    pub async fn settling(
        &self,
        breaker: &Arc<Breaker>,
        send: impl Future<Output = Result<Timestamp, Failure>> + Send + 'static,
    ) -> Result<Timestamp, Failure> {
        self.still_held().await?;
        self.note(|hold| hold.sending = true);
        let (reply, answer) = oneshot::channel();
        if let Some(outlasting) = self.0.outlasting(send, reply) {
            tokio::spawn(outlasting);
        }
        let answer = self.0.with_client_retries(breaker, answer).await;
        let sent = answer.and_then(|sent| sent.unwrap_or(Err(Failure::GivenUp)));
        let at = *sent.as_ref().unwrap_or(&Timestamp::now());
        self.note(|hold| {
            hold.accepted_at = hold.accepted_at.max(Some(at));
            hold.sending = false;
        });
        sent
    }

    /// Looks whether the claim is still held, if it was not renewed in time: a process that stood
    /// still may have lost it, and its record to another. To be asked before anything that must not
    /// happen beside another's work.
    ///
    /// # Errors
    /// A wait, when another record has come to hold it or has held it since; or that claims cannot be
    /// reached.
    pub async fn still_held(&self) -> Result<(), Failure> {
        let held = self.0.hold().as_ref().map(|hold| (hold.name.clone(), hold.held_at));
        match held {
            Some((name, held_at)) if held_at.elapsed() > self.0.claims().lease() * 2 / 5 => {
                match self.0.ask_again(&name).await.map_err(|away| self.0.claims_away(&away))? {
                    true => Ok(()),
                    false => Err(claim_held()),
                }
            }
            _ => Ok(()),
        }
    }

    fn note(&self, change: impl FnOnce(&mut LockState)) {
        if let Some(hold) = self.0.hold().as_mut() {
            change(hold);
        }
    }
}

impl Context {
    /// Does `work` while this record alone holds the claim `name`, then gives it back with the
    /// time of the last acceptance. A claim that a crash left is known by its own record, also
    /// when that was merged into another; else it runs out with the lease.
    ///
    /// # Errors
    /// What `work` returned; or that claims cannot be reached; or a wait, when another record
    /// holds the claim or has come to hold it. Once `work` is done it fails no more.
    pub async fn exclusively<'a, F>(
        &'a self,
        name: &str,
        work: impl FnOnce(LockGuard<'a>) -> F + Send,
    ) -> Result<Outcome, Failure>
    where
        F: Future<Output = Result<Outcome, Failure>> + Send,
    {
        self.step(Taken::Lock(name));
        self.acquire(name).await?;
        let outcome = tokio::select! {
            biased;
            outcome = Box::pin(work(LockGuard(self))) => outcome?,
            lost = self.keep(name) => return Err(lost),
        };
        self.second_phase(|| self.free()).await;
        Ok(outcome)
    }

    /// Gives back the claim that is held alone, if any.
    pub(in crate::engine) async fn free(&self) -> Result<(), StoreUnavailable> {
        let held = self.hold().as_ref().map(|hold| {
            let accepted_ms = hold.accepted_at.map_or(0, Timestamp::as_millisecond);
            (self.key(&hold.name), Arc::clone(&hold.asker), accepted_ms)
        });
        match held {
            Some((key, asker, accepted_ms)) => self.claims().free(key, asker, accepted_ms).await,
            None => Ok(()),
        }
    }

    /// Takes the claim, or renews it.
    async fn acquire(&self, name: &str) -> Result<(), Failure> {
        let asker = self.hold().as_ref().map(|hold| Arc::clone(&hold.asker));
        let asker = asker.unwrap_or_else(|| self.lock_asker());
        match self.take_lock(name, &asker).await? {
            (LockReply::Acquired { accepted_ms, resumed }, taken_over) => {
                self.acquired(name, asker, accepted_ms, resumed, taken_over);
                Ok(())
            }
            _ => Err(claim_held()),
        }
    }

    /// Asks for a lock, and takes it over from a holder that worked on the same record by an earlier
    /// assignment: it is gone, or its partition is. Answers whether it was taken over.
    pub(in crate::engine) async fn take_lock(
        &self,
        name: &str,
        asker: &Arc<str>,
    ) -> Result<(LockReply, bool), Failure> {
        if self.drained() {
            return Err(Failure::GivenUp);
        }
        let mut left_by = None;
        loop {
            let ask = self.claims().acquire(self.key(name), Arc::clone(asker), left_by.clone());
            match ask.await.map_err(|away| self.claims_away(&away))? {
                LockReply::Taken { holder } if left_by.is_none() && self.comes_after(&holder) => {
                    left_by = Some(holder);
                }
                reply => return Ok((reply, left_by.is_some())),
            }
        }
    }

    fn acquired(
        &self,
        name: &str,
        asker: Arc<str>,
        accepted_ms: Option<i64>,
        resumed: bool,
        taken_over: bool,
    ) {
        let told = accepted_ms.and_then(|ms| self.accepted_by_now(name, ms));
        let mut guard = self.hold();
        // Where nothing is known anybody may have sent something.
        let unknown = guard.is_none() && (resumed || accepted_ms.is_none());
        let hold = guard.get_or_insert_with(|| LockState {
            name: name.to_owned(),
            asker,
            accepted_at: None,
            sending: false,
            held_at: Instant::now(),
        });
        hold.held_at = Instant::now();
        let assigned = unknown.then(|| self.assigned_at());
        // A holder that is not gone, but stood still, may have sent something just now.
        let taken_over = taken_over.then(Timestamp::now);
        let cut_off = std::mem::take(&mut hold.sending).then(Timestamp::now);
        hold.accepted_at = hold.accepted_at.max(told).max(assigned).max(taken_over).max(cut_off);
    }

    /// Keeps the claim from running out while its work takes long. Ends when another record has
    /// it all the same: the work must then start again after that one.
    async fn keep(&self, name: &str) -> Failure {
        loop {
            tokio::time::sleep(self.claims().lease() / 3).await;
            // Claims that are away are no reason to break off.
            if let Ok(false) = self.ask_again(name).await {
                return claim_held();
            }
        }
    }

    /// Asks for the claim once more, and answers whether it is still held. It is lost where the
    /// work runs elsewhere, or has run there since. A claim that was merely forgotten is not lost.
    async fn ask_again(&self, name: &str) -> Result<bool, StoreUnavailable> {
        let asker = self.hold().as_ref().map(|hold| Arc::clone(&hold.asker));
        let Some(asker) = asker else { return Ok(true) };
        let asked_at = Instant::now();
        let reply = self.claims().renew(self.key(name), asker).await?;
        let lost = matches!(
            reply,
            Some(
                LockReply::Taken { .. }
                    | LockReply::Acquired { resumed: false, accepted_ms: Some(_) }
            )
        );
        if let Some(hold) = self.hold().as_mut().filter(|_| !lost) {
            hold.held_at = asked_at;
        }
        Ok(!lost)
    }

    /// Carries out `send` to its end and answers `reply`; where nobody waits for that any more,
    /// holds the claim until then, under a name that the record's next owner does not take for its
    /// own.
    fn outlasting(
        &self,
        send: impl Future<Output = Result<Timestamp, Failure>> + Send + 'static,
        mut reply: oneshot::Sender<Result<Timestamp, Failure>>,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let hold = self.hold();
        let hold = hold.as_ref()?;
        let (key, asker) = (self.key(&hold.name), Arc::clone(&hold.asker));
        let claims = self.claims().clone();
        Some(async move {
            let mut send = Box::pin(send);
            let mut sent = tokio::select! {
                biased;
                sent = &mut send => match reply.send(sent) {
                    Ok(()) => return,
                    Err(sent) => Some(sent),
                },
                () = reply.closed() => None,
            };
            let keeper: Arc<str> = format!("{asker}/sending").into();
            let sent = loop {
                let taken =
                    claims.acquire(key.clone(), Arc::clone(&keeper), Some(Arc::clone(&asker)));
                if let Err(error) = taken.await {
                    tracing::debug!(%error, "could not hold the claim of an event that is still being sent");
                }
                if let Some(sent) = sent.take() {
                    break sent;
                }
                tokio::select! {
                    ended = &mut send => break ended,
                    () = tokio::time::sleep(claims.lease() / 3) => {}
                }
            };
            let at = sent.unwrap_or_else(|_| Timestamp::now());
            if let Err(error) = claims.free(key, keeper, at.as_millisecond()).await {
                tracing::debug!(%error, "could not release the claim of an event that was sent");
            }
        })
    }

    /// Whether the holder of a lock works on this record, or on one that was merged into it, by an
    /// assignment that is not later than this one's.
    fn comes_after(&self, holder: &str) -> bool {
        let Some((record, assigned_ms)) = holder.rsplit_once('@') else { return false };
        let Ok(assigned_ms) = assigned_ms.parse::<i64>() else { return false };
        let mut mine = std::iter::once(self.origin()).chain(self.merged());
        assigned_ms <= self.assigned_at().as_millisecond()
            && mine.any(|origin| *self.name_of(origin) == *record)
    }
}

#[cfg(test)]
mod tests;
