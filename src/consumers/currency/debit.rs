//! Partial refunds: debit rows, the purchase that each takes back, and its share of it (behaviour
//! section 3, "Refunds").

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::award::AWARD_STATE_UNKNOWN;
use super::decision::{Decision, Share, named};
use super::ledger::{self, Original, Purchase, came_at};
use super::refund::Decided;
use super::reverse::Cancel;
use super::work::{Debit, Source};
use super::{Currency, NOTHING, REVERSE};
use crate::consumers::award_time;
use crate::consumers::call::outcome;
use crate::engine::{ClaimState, Context, Failure, Locked, Outcome};

/// How soon to look again for an award that is not known (yet).
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long after its purchase was last touched an award may still come.
const LATE: SignedDuration = SignedDuration::from_hours(24);

impl Currency {
    /// A part of a purchase is taken back.
    pub(super) async fn debited(&self, cx: &Context, debit: &Debit) -> Result<Outcome, Failure> {
        let source = &debit.source;
        let name = source.claim("reverse");
        if matches!(cx.claim_state(&name).await?, ClaimState::Done(_)) {
            return Ok(Outcome::Duplicate);
        }
        if debit.check_wallet && self.ledger.wallet_has(cx, source.kind, &source.id).await? {
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
        // A debit of an earlier award must not cancel the present one.
        if share.is_all() && !share.earlier {
            self.cancel(cx, Cancel::of(&original_source, again.as_deref())).await?;
        }
        let id = source.claim(REVERSE);
        let reverse = || self.reverse(cx, source, &id, Some(&original.id), &share);
        Ok(outcome(&[cx.once(&name, reverse).await?], NOTHING))
    }

    async fn original(&self, cx: &Context, debit: &Debit) -> Result<Purchase, Failure> {
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
                message: "it is not clear which purchase the debit row refunds: several rows of its \
                          merchant have external_ref as transaction_number and the same created_at, \
                          or none; correct the rows, then produce the record again"
                    .to_owned(),
            }),
        }
    }

    async fn decide_debit(
        &self,
        cx: &Context,
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
        let mut decided = decision.debit(id).cloned();
        if let Some(share) = &mut decided {
            share.earlier = decision.is_earlier(id);
        }
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
        // A debit of an earlier award has waited long enough.
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

    /// The share of a debit that has no decision yet.
    fn undecided(
        &self,
        cx: &Context,
        decision: &mut Decision,
        remembered: bool,
        debit: &Debit,
        original: &Purchase,
    ) -> Result<Share, Failure> {
        let came_at = came_at(debit);
        if let Some(whole) = &decision.whole {
            let after_whole = whole.by.is_none_or(|by| came_at > Some(by.commit_time()));
            // The purchase counts once more, and the debit is of that award, which is still to
            // come.
            if !original.is_taken_back() && original.is_before(came_at) && after_whole {
                self.wait_for(cx, "again")?;
            }
            return Ok(Share::nothing());
        }
        // The decision about the whole is forgotten or still to come. In both cases it goes by the
        // same times.
        if !remembered && original.is_taken_back() && original.is_before(came_at) {
            return Ok(Share::nothing());
        }
        let share = decision.share(debit.amount.as_ref(), original.amount().as_ref());
        share.map_err(|error| Failure::Poison { kind: "no_percentage", message: error.to_string() })
    }

    /// A wait for an award that is still to come, until patience with it ends.
    fn wait_for(&self, cx: &Context, award: &str) -> Result<(), Failure> {
        let waited = cx.awaited(award);
        if waited >= self.original_patience {
            return Ok(());
        }
        let pause = LOOK_AGAIN.max(waited / 2).min(self.original_patience);
        Err(Failure::Wait { until: Instant::now() + pause, reason: "award_to_come" })
    }

    /// Without a decision, or after it was forgotten, the debits before this one are counted first.
    async fn count_earlier(
        &self,
        cx: &Context,
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

    /// A reverse must not run before its award. Waits for one that may still come: its partition
    /// lags behind, or no claim tells its delay.
    async fn await_award(
        &self,
        cx: &Context,
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
}
