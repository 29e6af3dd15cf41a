//! Whole refunds, and the decisions about a source's refunds (behaviour section 3, "Refunds").

use jiff::{SignedDuration, Timestamp};

use super::decision::{Decision, Share, named};
use super::ledger::Purchase;
use super::reverse::Cancel;
use super::work::{Refund, claim};
use super::{Currency, NOTHING, REVERSE};
use crate::consumers::call::outcome;
use crate::dedup::TakenBack;
use crate::engine::{Accepted, ClaimState, Context, Failure, Locked, Outcome};

/// The decision about one refund.
pub(super) enum Decided {
    /// It sends nothing.
    Over(Outcome),
    /// It takes this share of the award whose id ends so.
    Share(Share, Option<String>),
}

impl Currency {
    /// A source is taken back as a whole.
    pub(super) async fn refunded(&self, cx: &Context, refund: &Refund) -> Result<Outcome, Failure> {
        let source = &refund.source;
        let lock = source.lock();
        let (mut share, again) =
            match cx.locked(&lock, |lock| self.decide_whole(cx, lock, refund)).await? {
                Decided::Over(outcome) => return Ok(outcome),
                Decided::Share(share, again) => (share, again),
            };
        let again = again.as_deref();
        let mark = Some(TakenBack { at: refund.at, deleted: false });
        let cancelled = self.cancel(cx, Cancel { mark, ..Cancel::of(source, again) }).await?;
        if share.is_nothing() {
            return Ok(outcome(&[cancelled], NOTHING));
        }
        let name = named("reverse", source.kind, &source.id, again);
        let id = named(REVERSE, source.kind, &source.id, again);
        // The award may have woken while the cancel waited.
        if share.ts.is_none()
            && let ClaimState::TakenBack(_, award) =
                cx.claim_state(&named("award", source.kind, &source.id, again)).await?
            && let Some(due) = award.due
            && due <= self.settled_at(Timestamp::now())
            && Timestamp::now() <= self.settled_at(due)
        {
            share.ts = Some(self.settled_at(due).as_millisecond());
        }
        let reverse = || self.reverse(cx, source, &id, None, &share);
        let reversed = cx.once(&name, reverse).await?;
        Ok(outcome(&[cancelled, reversed], NOTHING))
    }

    async fn decide_whole(
        &self,
        cx: &Context,
        lock: Locked<'_>,
        refund: &Refund,
    ) -> Result<Decided, Failure> {
        let source = &refund.source;
        let known = self.decision(cx, source.kind, &source.id).await?;
        let forgotten = match &known {
            Some(_) => false,
            None => {
                let wallet = self.ledger.wallet(cx, source).await?;
                if refund.check_wallet && wallet.is_reversed() {
                    return Ok(Decided::Over(Outcome::Skipped("reversed_before")));
                }
                wallet.holds_award_after_reversal()
            }
        };
        let mut decision = known.unwrap_or_default();
        // Claims were emptied since it was awarded again: the first award's ids are used up.
        if forgotten {
            decision.begin(refund.at);
        }
        if !forgotten && decision.is_over(refund.at) {
            return Ok(Decided::Over(Outcome::Duplicate));
        }
        if let Some(share) = &decision.whole {
            let same = share.by == Some(refund.at);
            return Ok(if same {
                Decided::Share(share.clone(), decision.again)
            } else {
                Decided::Over(Outcome::Duplicate)
            });
        }
        if let Some(number) = &refund.number {
            let known = |id: &str| decision.knows(id);
            let early = |row: &Purchase| !row.came_after(refund.updated_at);
            let debits = self.ledger.debits_of(cx, source, number, known, early).await?;
            decision.count(&debits, refund.amount.as_ref());
        }
        let mut share = decision.rest();
        share.by = Some(refund.at);
        let name = named("award", source.kind, &source.id, decision.again.as_deref());
        if let ClaimState::Done(award) = cx.claim_state(&name).await? {
            share.ts = self.after_wake(award).map(Timestamp::as_millisecond);
            let cancelled = self.settled_at(self.cancelled_at(award));
            decision.asleep = award.due.is_some_and(|due| due > cancelled);
        }
        decision.decided(&share);
        decision.whole = Some(share.clone());
        self.keep(lock, source.kind, &source.id, &decision).await?;
        Ok(Decided::Share(share, decision.again))
    }

    /// An award that wakes at about the time of its cancel may escape it. A reverse finds such an
    /// award only once it has been credited.
    fn after_wake(&self, award: Accepted) -> Option<Timestamp> {
        let (due, cancelled) = (award.due?, self.cancelled_at(award));
        let near = cancelled <= self.settled_at(due) && due <= self.settled_at(cancelled);
        near.then(|| self.settled_at(due))
    }

    /// When a cancel that is decided now goes out.
    fn cancelled_at(&self, award: Accepted) -> Timestamp {
        let now = Timestamp::now();
        award.at.map_or(now, |at| self.settled_at(at).max(now))
    }

    /// What was decided about the refunds of a source.
    pub(super) async fn decision(
        &self,
        cx: &Context,
        kind: &str,
        id: &str,
    ) -> Result<Option<Decision>, Failure> {
        let Some(text) = cx.recall_text(&memory(kind, id)).await? else { return Ok(None) };
        let decision = Decision::read(&text).map_err(|error| Failure::Poison {
            kind: "refunds_unreadable",
            message: format!(
                "what was decided about refunds of {kind} {id} cannot be read in Redis ({error}): \
                 delete that key, then produce the record again"
            ),
        })?;
        Ok(Some(decision))
    }

    /// Keeps the decision before anything is sent.
    pub(super) async fn keep(
        &self,
        lock: Locked<'_>,
        kind: &str,
        id: &str,
        decision: &Decision,
    ) -> Result<(), Failure> {
        lock.keep(&memory(kind, id), decision.written(), self.refund_memory).await
    }

    /// When an event accepted or due at this time has settled.
    pub(super) fn settled_at(&self, at: Timestamp) -> Timestamp {
        let settle = SignedDuration::try_from(self.settle).unwrap_or(SignedDuration::MAX);
        at.saturating_add(settle).unwrap_or(Timestamp::MAX)
    }
}

/// The key of the decisions about a source's refunds.
fn memory(kind: &str, id: &str) -> String {
    claim("refunds", kind, id)
}
