//! Refunds: whole and partial ones, decided one at a time for each source, and what they send
//! (contract section 3, "Refunds").

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;

use super::award::AWARD_STATE_UNKNOWN;
use super::decision::{Decision, Share, again, named};
use super::ledger::{self, Original, Purchase, came_at};
use super::rules::{Debit, Refund, Source};
use super::{CANCELLED, Currency, NOTHING, REVERSE};
use crate::clients::inngest::Events;
use crate::consumers::award_time;
use crate::consumers::call::{outcome, settled, unwritable};
use crate::dedup::{Moment, TakenBack};
use crate::engine::{Accepted, ClaimState, Cx, Failure, Locked, Once, Outcome};

/// How soon to look again for an award that is not known (yet).
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// An award that comes so much later than its purchase was touched does not come any more.
const LATE: SignedDuration = SignedDuration::from_hours(24);

/// The data of `currency/cancelled`, and which award it cancels.
pub(super) struct Cancel<'a> {
    pub(super) kind: &'static str,
    pub(super) id: &'a str,
    pub(super) user_id: Option<&'a str>,
    pub(super) merchant_id: Option<&'a str>,
    /// The end of the award's id.
    pub(super) again: Option<&'a str>,
    /// The award is taken back with it: another one may follow.
    pub(super) mark: Option<TakenBack>,
}

#[derive(Serialize)]
struct Cancelled<'a> {
    source_type: &'a str,
    source_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merchant_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Reverse<'a> {
    source_type: &'a str,
    source_id: &'a str,
    user_id: &'a str,
    merchant_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_source_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refund_percentage: Option<Box<RawValue>>,
}

/// What was decided about one refund.
enum Decided {
    /// It sends nothing.
    Over(Outcome),
    /// It takes this share of the award whose id ends so.
    Share(Share, Option<String>),
}

impl Currency {
    /// A source is taken back as a whole.
    pub(super) async fn refunded(&self, cx: &Cx, refund: &Refund) -> Result<Outcome, Failure> {
        let source = &refund.source;
        let lock = source.lock();
        let (share, again) =
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
        let reverse = || self.reverse(cx, source, &id, None, &share);
        let reversed = cx.once(&name, reverse).await?;
        Ok(outcome(&[cancelled, reversed], NOTHING))
    }

    async fn decide_whole(
        &self,
        cx: &Cx,
        lock: Locked<'_>,
        refund: &Refund,
    ) -> Result<Decided, Failure> {
        let source = &refund.source;
        let known = self.decision(cx, source.kind, &source.id).await?;
        let forgotten = match &known {
            Some(_) => false,
            None => {
                let wallet = self.ledger.wallet(cx, source).await?;
                if refund.ask_wallet && wallet.is_reversed() {
                    return Ok(Decided::Over(Outcome::Skipped("reversed_before")));
                }
                wallet.holds_award_after_reversal()
            }
        };
        let mut decision = known.unwrap_or_default();
        // Memory was emptied since it was awarded again: the ids of the first award were used.
        if forgotten {
            decision.begin(again(refund.at));
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

    /// An award that wakes at about the time of its cancel may escape it, and is found by a reverse
    /// only once it has been credited.
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

    /// A part of a purchase is taken back.
    pub(super) async fn debited(&self, cx: &Cx, debit: &Debit) -> Result<Outcome, Failure> {
        let source = &debit.source;
        let name = source.claim("reverse");
        if matches!(cx.claim_state(&name).await?, ClaimState::Done(_)) {
            return Ok(Outcome::Duplicate);
        }
        if debit.ask_wallet && self.ledger.wallet_has(cx, source.kind, &source.id).await? {
            return Ok(Outcome::Skipped("reversed_before"));
        }
        let original = self.original(cx, debit).await?;
        let original_source = Source { id: original.id.clone(), ..source.clone() };
        let lock = original_source.lock();
        let (share, again) =
            match cx.locked(&lock, |lock| self.decide_debit(cx, lock, debit, &original)).await? {
                Decided::Over(outcome) => return Ok(outcome),
                Decided::Share(share, again) => (share, again),
            };
        if share.is_nothing() {
            return Ok(Outcome::Skipped("original_reversed"));
        }
        if share.is_all() {
            self.cancel(cx, Cancel::of(&original_source, again.as_deref())).await?;
        }
        let id = source.claim(REVERSE);
        let reverse = || self.reverse(cx, source, &id, Some(&original.id), &share);
        Ok(outcome(&[cx.once(&name, reverse).await?], NOTHING))
    }

    async fn original(&self, cx: &Cx, debit: &Debit) -> Result<Purchase, Failure> {
        let Some(number) = &debit.original else {
            let message = "the debit row names no original: external_ref is empty".to_owned();
            return Err(Failure::Poison { kind: "no_original", message });
        };
        let not_yet = |kind, message: &str| Failure::NotYet {
            kind,
            message: message.to_owned(),
            patience: self.original_patience,
        };
        let found = self.ledger.numbered(cx, &debit.source.merchant_id, number).await?;
        match ledger::original(&debit.source.id, debit.created_at, &found) {
            Original::Is(original) if original.is_pending() => Err(not_yet(
                "original_open",
                "the purchase that the debit row refunds is still pending",
            )),
            Original::Is(original) => Ok(original.clone()),
            Original::Missing => Err(not_yet(
                "original_not_found",
                "the purchase that the debit row refunds is not there: no row of its merchant that \
                 was created before it has external_ref as transaction_number",
            )),
            Original::Ambiguous => Err(Failure::Poison {
                kind: "original_ambiguous",
                message: "which purchase the debit row refunds cannot be told: several rows of its \
                          merchant have external_ref as transaction_number and the same created_at, \
                          or none; correct the rows, then produce the record again"
                    .to_owned(),
            }),
        }
    }

    async fn decide_debit(
        &self,
        cx: &Cx,
        lock: Locked<'_>,
        debit: &Debit,
        original: &Purchase,
    ) -> Result<Decided, Failure> {
        let (kind, id) = (debit.source.kind, &*debit.source.id);
        let known = self.decision(cx, kind, &original.id).await?;
        let remembered = known.is_some();
        let mut decision = known.unwrap_or_default();
        if !remembered {
            self.count_earlier(cx, &mut decision, debit, original).await?;
        }
        let decided = decision.debit(id).cloned();
        match &decided {
            Some(share) if share.by == Some(debit.at) => {
                return Ok(Decided::Share(share.clone(), decision.again));
            }
            Some(share) if share.by.is_some() => return Ok(Decided::Over(Outcome::Duplicate)),
            Some(_) | None => {}
        }
        let mut share = match decided {
            Some(share) => share,
            None => self.undecided(cx, &mut decision, remembered, debit, original)?,
        };
        // One of an award that is over has waited long enough.
        if !share.is_nothing() && !decision.is_earlier(id) {
            let name = named("award", kind, &original.id, decision.again.as_deref());
            let ready = match cx.claim_state(&name).await? {
                ClaimState::Done(award) | ClaimState::TakenBack(_, award) => {
                    award.at.max(award.due)
                }
                ClaimState::Nothing => {
                    self.await_award(cx, debit, original).await?;
                    None
                }
            };
            let ready = ready.map(|at| self.settled_at(at)).filter(|at| *at > Timestamp::now());
            share.ts = ready.map(Timestamp::as_millisecond);
        }
        share.by = Some(debit.at);
        decision.decided(&share);
        decision.set_debit(id, share.clone());
        self.keep(lock, kind, &original.id, &decision).await?;
        Ok(Decided::Share(share, decision.again))
    }

    /// The share of a debit about which nothing was decided.
    fn undecided(
        &self,
        cx: &Cx,
        decision: &mut Decision,
        remembered: bool,
        debit: &Debit,
        original: &Purchase,
    ) -> Result<Share, Failure> {
        let came_at = came_at(debit);
        if let Some(whole) = &decision.whole {
            let after_whole = whole.by.is_none_or(|by| came_at > committed(by));
            // The purchase counts once more, and the debit is of that award, which is still to come.
            if !original.is_taken_back() && original.is_before(came_at) && after_whole {
                self.wait_for(cx, "again")?;
            }
            return Ok(Share::nothing());
        }
        // The memory of the whole is gone, or the whole is still to come: it decides by the same times.
        if !remembered && original.is_taken_back() && original.is_before(came_at) {
            return Ok(Share::nothing());
        }
        let share = decision.share(debit.amount.as_ref(), original.amount().as_ref());
        share.map_err(|error| Failure::Poison { kind: "no_percentage", message: error.to_string() })
    }

    /// A wait for an award that is still to come, until patience with it ends.
    fn wait_for(&self, cx: &Cx, award: &str) -> Result<(), Failure> {
        let waited = cx.awaited(award);
        if waited >= self.original_patience {
            return Ok(());
        }
        let pause = LOOK_AGAIN.max(waited / 2).min(self.original_patience);
        Err(Failure::Wait { until: Instant::now() + pause, reason: "award_to_come" })
    }

    /// Where nothing was decided yet, or that was forgotten, the debits before this one come first.
    async fn count_earlier(
        &self,
        cx: &Cx,
        decision: &mut Decision,
        debit: &Debit,
        original: &Purchase,
    ) -> Result<(), Failure> {
        let Some(number) = &debit.original else { return Ok(()) };
        let purchase = Source { id: original.id.clone(), ..debit.source.clone() };
        let own = (debit.created_at, &*debit.source.id);
        let late =
            |row: &Purchase| original.is_taken_back() && row.came_after(original.updated_at());
        let early = |row: &Purchase| row.order() < own && !late(row);
        let itself = |id: &str| id == own.1;
        let debits = self.ledger.debits_of(cx, &purchase, number, itself, early).await?;
        decision.count(&debits, original.amount().as_ref());
        Ok(())
    }

    /// A reverse must not run before its award: waits for one that may still come, from a partition
    /// that lags behind or after a delay that no claim tells.
    async fn await_award(
        &self,
        cx: &Cx,
        debit: &Debit,
        original: &Purchase,
    ) -> Result<(), Failure> {
        let source = &debit.source;
        let Some(buyer) = original.user_id.clone().filter(|_| !original.earns_nothing()) else {
            return Ok(());
        };
        let settings = self.merchants.settings(cx, &source.merchant_id).await?;
        let delay = settings.as_deref().map_or(SignedDuration::ZERO, award_time::longest_delay);
        let last = original.touched_at().and_then(|at| at.checked_add(delay + LATE).ok());
        if last.is_none_or(|last| last < Timestamp::now())
            || self.ledger.wallet_has(cx, source.kind, &original.id).await?
        {
            return Ok(());
        }
        let awarded = Source { id: original.id.clone(), user_id: buyer, ..source.clone() };
        if self.calculated(cx, &awarded).await?.is_empty() {
            return Ok(());
        }
        if !delay.is_zero() {
            return Err(Failure::NotYet {
                kind: AWARD_STATE_UNKNOWN,
                message:
                    "no claim tells when the award of the purchase that the debit row refunds \
                          is due: claims were emptied, or the award was set aside; produce the \
                          record again when the award has been credited"
                        .to_owned(),
                patience: self.original_patience,
            });
        }
        self.wait_for(cx, "award")
    }

    /// Cancels an award that may sleep.
    pub(super) async fn cancel(&self, cx: &Cx, cancel: Cancel<'_>) -> Result<Once, Failure> {
        let Cancel { kind, id, again, mark, .. } = cancel;
        let award = named("award", kind, id, again);
        let data = Cancelled {
            source_type: kind,
            source_id: id,
            user_id: cancel.user_id,
            merchant_id: cancel.merchant_id,
        };
        let work = || async {
            self.settle(cx, &award).await?;
            let events = Events::one(CANCELLED, None, &data).map_err(unwritable)?;
            let accepted = self.sender.send(cx, events).await?;
            if let Some(by) = mark {
                self.mark(cx, &award, again.map(|_| named("award", kind, id, None)), by).await?;
            }
            Ok(Some(accepted))
        };
        cx.once(&named("cancel", kind, id, again), work).await
    }

    /// Marks an award as taken back, and the first one of its source, which is asked for first.
    async fn mark(
        &self,
        cx: &Cx,
        award: &str,
        first: Option<String>,
        by: TakenBack,
    ) -> Result<(), Failure> {
        // Rows are deleted by the million when a ledger is cleaned up: what is long past needs no mark.
        if by.deleted && cx.claim_state(award).await? == ClaimState::Nothing {
            return Ok(());
        }
        cx.take_back(award, by, self.refund_memory).await?;
        match first {
            Some(first) => cx.take_back(&first, by, self.refund_memory).await,
            None => Ok(()),
        }
    }

    /// Waits until a cancel can reach its award: Inngest ignores one that it takes in before the
    /// run that it should cancel has been created (contract section 3, "Cancel race").
    async fn settle(&self, cx: &Cx, award: &str) -> Result<(), Failure> {
        let since = match cx.accepted_at(award).await? {
            Some(Some(accepted)) => accepted,
            Some(None) => return Ok(()),
            // No claim can tell: it may have been accepted just before the partition came here.
            None => cx.assigned_at(),
        };
        settled(since, self.settle)
    }

    async fn reverse(
        &self,
        cx: &Cx,
        source: &Source,
        id: &str,
        original: Option<&str>,
        share: &Share,
    ) -> Result<Accepted, Failure> {
        let part = original.is_some() || !share.is_all();
        let percent = part.then(|| RawValue::from_string(share.percent.clone())).transpose();
        let data = Reverse {
            source_type: source.kind,
            source_id: &source.id,
            user_id: &source.user_id,
            merchant_id: &source.merchant_id,
            original_source_id: original,
            refund_percentage: percent.map_err(unwritable)?,
        };
        let ts = share.ts.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let events = Events::one_at(REVERSE, Some(id), ts, &data).map_err(unwritable)?;
        let accepted = self.sender.send(cx, events).await?;
        Ok(Accepted { at: Some(accepted), due: ts })
    }

    /// What was decided about the refunds of a source.
    pub(super) async fn decision(
        &self,
        cx: &Cx,
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

    /// Keeps what was decided, before anything is sent.
    pub(super) async fn keep(
        &self,
        lock: Locked<'_>,
        kind: &str,
        id: &str,
        decision: &Decision,
    ) -> Result<(), Failure> {
        lock.keep(&memory(kind, id), decision.written(), self.refund_memory).await
    }

    /// When what was accepted, or is due, at a time has settled.
    pub(super) fn settled_at(&self, at: Timestamp) -> Timestamp {
        let settle = SignedDuration::try_from(self.settle).unwrap_or(SignedDuration::MAX);
        at.saturating_add(settle).unwrap_or(Timestamp::MAX)
    }
}

impl<'a> Cancel<'a> {
    fn of(source: &'a Source, again: Option<&'a str>) -> Self {
        Self {
            kind: source.kind,
            id: &source.id,
            user_id: Some(&source.user_id),
            merchant_id: Some(&source.merchant_id),
            again,
            mark: None,
        }
    }
}

/// When a change was committed.
fn committed(at: Moment) -> Option<Timestamp> {
    Timestamp::from_millisecond(at.commit_ms).ok()
}

/// Where what was decided about refunds of a source is kept.
fn memory(kind: &str, id: &str) -> String {
    super::rules::claim("refunds", kind, id)
}
