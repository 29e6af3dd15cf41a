//! Awards: what is calculated, when it is due, and whether it was awarded before.

use jiff::{SignedDuration, Timestamp};
use metrics::counter;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::decision::{again, named};
use super::work::{Source, Turn};
use super::{AWARD, CALCULATE, Currency, NOTHING};
use crate::clients::inngest::Events;
use crate::consumers::award_time::{self, MerchantSettings};
use crate::consumers::call::outcome;
use crate::consumers::snapshot::RECENT;
use crate::dedup::{Moment, TakenBack};
use crate::engine::{Accepted, ClaimState, Context, Failure, Locked, Once, Outcome};
use crate::metric_names;

/// How long Inngest remembers an event id.
const IDS_KNOWN: SignedDuration = SignedDuration::from_hours(24);

/// The data of `currency/award`.
#[derive(Serialize)]
struct Data<'a> {
    source_type: &'a str,
    source_id: &'a str,
    user_id: &'a str,
    merchant_id: &'a str,
    currency_rows: &'a [Box<RawValue>],
    award_datetime: String,
    is_delayed: bool,
}

/// One award.
#[derive(Clone, Copy)]
struct Award<'a> {
    source: &'a Source,
    at: Moment,
    /// The suffix of its id, if an award before it was taken back.
    again: Option<&'a str>,
    /// Before then a reverse may still be taking back the award before it.
    not_before: Option<Timestamp>,
    /// It may already be asleep, and only claims can tell.
    unsure: bool,
}

/// What becomes of a source that may count once more.
enum Next {
    /// Nothing is awarded.
    Over(Outcome),
    /// It is awarded under this end of its id, not before that time.
    Award(Option<String>, Option<Timestamp>),
}

impl Currency {
    /// A source counts.
    pub(super) async fn awarded(
        &self,
        cx: &Context,
        source: &Source,
        at: Moment,
        turn: Turn,
    ) -> Result<Outcome, Failure> {
        self.noted.note(cx).await?;
        let name = source.claim("award");
        let believed = match turn {
            Turn::Here => true,
            Turn::Recent => !is_late(at) && self.claims_tell(cx, at).await?,
            Turn::Again | Turn::Unsure => false,
        };
        if !believed {
            match cx.claim_state(&name).await? {
                ClaimState::Done(_) => return Ok(Outcome::Duplicate),
                ClaimState::TakenBack(by, _) => {
                    return self.awarded_again(cx, source, at, turn, Some(by)).await;
                }
                ClaimState::Nothing if turn == Turn::Again => {
                    return self.awarded_again(cx, source, at, turn, None).await;
                }
                ClaimState::Nothing => {}
            }
            let wallet = self.ledger.wallet(cx, source).await?;
            if wallet.holds_award() {
                return Ok(Outcome::Skipped("awarded_before"));
            }
            if wallet.is_reversed() {
                return self.awarded_again(cx, source, at, turn, None).await;
            }
        }
        let unsure = turn == Turn::Unsure;
        let award = Award { source, at, again: None, not_before: None, unsure };
        match cx.once(&name, || self.award(cx, award)).await? {
            Once::TakenBack(by) => self.awarded_again(cx, source, at, turn, Some(by)).await,
            step => Ok(outcome(&[step], NOTHING)),
        }
    }

    /// Whether claims have been kept for longer than a recent row can have existed. Then they know
    /// every award of the row, and whether it was taken back.
    async fn claims_tell(&self, cx: &Context, at: Moment) -> Result<bool, Failure> {
        let created = at.before(SignedDuration::try_from(RECENT).unwrap_or(IDS_KNOWN));
        Ok(cx.claims_since().await?.is_some_and(|since| since <= created))
    }

    /// Awards a source again whose award was taken back, by its claims or by the row itself.
    async fn awarded_again(
        &self,
        cx: &Context,
        source: &Source,
        at: Moment,
        turn: Turn,
        by: Option<TakenBack>,
    ) -> Result<Outcome, Failure> {
        let lock = source.lock();
        let next = cx.locked(&lock, |lock| self.next_award(cx, lock, source, at, turn, by));
        let (again, not_before) = match next.await? {
            Next::Over(outcome) => return Ok(outcome),
            Next::Award(again, not_before) => (again, not_before),
        };
        let again = again.as_deref();
        let award = Award { source, at, again, not_before, unsure: false };
        let name = named("award", source.kind, &source.id, again);
        let step = cx.once(&name, || self.award(cx, award)).await?;
        Ok(outcome(&[step], NOTHING))
    }

    /// Decides under the source's lock whether it is awarded again.
    async fn next_award(
        &self,
        cx: &Context,
        lock: Locked<'_>,
        source: &Source,
        at: Moment,
        turn: Turn,
        by: Option<TakenBack>,
    ) -> Result<Next, Failure> {
        let mut decision = self.decision(cx, source.kind, &source.id).await?.unwrap_or_default();
        let by = match &decision.again {
            None => by,
            Some(present) => {
                let name = named("award", source.kind, &source.id, Some(present));
                match cx.claim_state(&name).await? {
                    ClaimState::TakenBack(by, _) => Some(by),
                    // The process crashed after the decision and before its event.
                    ClaimState::Nothing if *present == again(at) => {
                        let not_before = self.after_reverse(cx, source, decision.reversed_ms, None);
                        return Ok(Next::Award(Some(present.clone()), not_before.await?));
                    }
                    ClaimState::Nothing | ClaimState::Done(_) => {
                        return Ok(Next::Over(Outcome::Duplicate));
                    }
                }
            }
        };
        if let Some(by) = by {
            let same = turn == Turn::Again && at.commit_ms == by.at.commit_ms;
            if at <= by.at && !same {
                return Ok(Next::Over(Outcome::Duplicate));
            }
            // A delete cancels a sleeping award, but takes back nothing that was credited.
            let kept = by.deleted && self.ledger.wallet(cx, source).await?.holds_award();
            if kept {
                return Ok(Next::Over(Outcome::Skipped("awarded_before")));
            }
        } else if !self.may_be_forgotten(cx, source, at).await? {
            return Ok(Next::Award(None, None));
        }
        let before = decision.again.clone();
        let not_before = self.after_reverse(cx, source, decision.reversed_ms, before.as_deref());
        let not_before = not_before.await?;
        decision.begin(at);
        self.keep(lock, source.kind, &source.id, &decision).await?;
        Ok(Next::Award(decision.again, not_before))
    }

    /// Whether a source without claims may have been awarded and taken back before claims were
    /// emptied. If not, it never counted, and its first award needs no other id.
    async fn may_be_forgotten(
        &self,
        cx: &Context,
        source: &Source,
        at: Moment,
    ) -> Result<bool, Failure> {
        let day_before = at.before(IDS_KNOWN);
        let known = cx.claims_since().await?.is_some_and(|since| since <= day_before);
        Ok(!known || self.ledger.wallet_has(cx, source.kind, &source.id).await?)
    }

    /// When the reverse of the award before has run; none if nothing is known of it.
    async fn after_reverse(
        &self,
        cx: &Context,
        source: &Source,
        reversed_ms: i64,
        again: Option<&str>,
    ) -> Result<Option<Timestamp>, Failure> {
        let decided = Timestamp::from_millisecond(reversed_ms).ok().filter(|_| reversed_ms > 0);
        let name = named("reverse", source.kind, &source.id, again);
        let accepted = cx.accepted_at(&name).await?.flatten();
        Ok(decided.max(accepted).map(|at| self.settled_at(at)))
    }

    async fn award(&self, cx: &Context, award: Award<'_>) -> Result<Accepted, Failure> {
        let Award { source, again, .. } = award;
        let rows = self.calculated(cx, source).await?;
        if rows.is_empty() {
            return Ok(Accepted::default());
        }
        let settings = self.merchants.settings(cx, &source.merchant_id).await?;
        if award.unsure {
            self.check_never_awarded(cx, &award, settings.as_deref()).await?;
        }
        let committed_at = award.at.commit_time();
        let due = due(settings.as_deref(), committed_at);
        let due = award.not_before.map_or(due, |not_before| due.max(not_before));
        let data = Data {
            source_type: source.kind,
            source_id: &source.id,
            user_id: &source.user_id,
            merchant_id: &source.merchant_id,
            currency_rows: &rows,
            award_datetime: award_time::rfc3339(due),
            is_delayed: due > committed_at,
        };
        let id = named(AWARD, source.kind, &source.id, again);
        let write = || Events::one(AWARD, Some(&id), &data);
        let accepted = self.sender.send_with(cx, write).await?;
        Ok(Accepted { at: Some(accepted), due: Some(due).filter(|due| *due > accepted) })
    }

    /// What there is to award for a source.
    pub(super) async fn calculated(
        &self,
        cx: &Context,
        source: &Source,
    ) -> Result<Vec<Box<RawValue>>, Failure> {
        let arguments = json!({
            "p_source_type": source.kind,
            "p_source_id": source.id,
            "p_merchant_id": source.merchant_id,
            "p_user_id": source.user_id,
            "p_metadata": {},
        });
        let rows: Option<Vec<Box<RawValue>>> = self.calls.rpc(cx, CALCULATE, &arguments).await?;
        Ok(rows.unwrap_or_default())
    }

    /// No wallet shows a sleeping award. Only claims that were never emptied can tell that there is
    /// none (behaviour section 3).
    async fn check_never_awarded(
        &self,
        cx: &Context,
        award: &Award<'_>,
        settings: Option<&MerchantSettings>,
    ) -> Result<(), Failure> {
        let delay = settings.map_or(SignedDuration::ZERO, award_time::longest_delay);
        if delay.is_zero() {
            return Ok(());
        }
        let before = award.at.before(delay);
        let since = cx.claims_since().await?;
        if since.is_some_and(|since| since <= before) {
            return Ok(());
        }
        let since = since.map_or_else(|| "not at all".to_owned(), |at| format!("only since {at}"));
        Err(Failure::Poison {
            kind: AWARD_STATE_UNKNOWN,
            message: format!(
                "it may have been awarded already: the merchant delays awards, the row was changed \
                 long after it was created, and claims are kept {since}; look for its award in \
                 Inngest or, when the delay is over, in wallet_ledger, and produce the record again \
                 if there is none"
            ),
        })
    }
}

/// Nobody can tell whether an award sleeps. Its record becomes a dead letter instead of a guess.
pub(super) const AWARD_STATE_UNKNOWN: &str = "award_state_unknown";

/// Whether a change is handled so late that Inngest may have forgotten the event id of its row's
/// award.
fn is_late(at: Moment) -> bool {
    let recent = SignedDuration::try_from(RECENT).unwrap_or(IDS_KNOWN);
    Timestamp::now().duration_since(at.commit_time()) > IDS_KNOWN - recent
}

/// When the award is due, by its merchant's settings. An unknown zone was logged when they were
/// read.
fn due(settings: Option<&MerchantSettings>, now: Timestamp) -> Timestamp {
    let Some(settings) = settings else { return now };
    let due = award_time::award_time(settings, now);
    if due.zone_unknown {
        counter!(metric_names::UNKNOWN_ZONES).increment(1);
    }
    due.at
}
