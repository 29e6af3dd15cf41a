//! What refunds and deletes send: cancels of awards that may sleep, and reverses (behaviour section
//! 3).

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::decision::{Share, named};
use super::work::Source;
use super::{CANCELLED, Currency, REVERSE};
use crate::clients::inngest::Events;
use crate::consumers::call::settled;
use crate::consumers::sender::unwritable;
use crate::dedup::TakenBack;
use crate::engine::{Accepted, ClaimState, Context, Failure, Once};

/// The data of `currency/cancelled`, and which award it cancels.
pub(super) struct Cancel<'a> {
    pub(super) kind: &'static str,
    pub(super) id: &'a str,
    pub(super) user_id: Option<&'a str>,
    pub(super) merchant_id: Option<&'a str>,
    /// The end of the award's id.
    pub(super) again: Option<&'a str>,
    /// Set if this takes the award back as a whole: another one may follow.
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

impl<'a> Cancel<'a> {
    pub(super) fn of(source: &'a Source, again: Option<&'a str>) -> Self {
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

impl Currency {
    /// Cancels an award that may sleep.
    pub(super) async fn cancel(&self, cx: &Context, cancel: Cancel<'_>) -> Result<Once, Failure> {
        let Cancel { kind, id, again, mark, .. } = cancel;
        let award = named("award", kind, id, again);
        let data = Cancelled {
            source_type: kind,
            source_id: id,
            user_id: cancel.user_id,
            merchant_id: cancel.merchant_id,
        };
        let first = again.map(|_| named("award", kind, id, None));
        let work = || async {
            self.settle(cx, &award).await?;
            let write = || Events::one(CANCELLED, None, &data);
            self.sender.send_with(cx, write).await.map(Some)
        };
        let cancelled = cx.once(&named("cancel", kind, id, again), work).await?;
        // After the cancel, so that a failed mark does not repeat the cancel. It also runs if a
        // debit of the whole has cancelled the award already, since that marks nothing.
        if let Some(by) = mark {
            self.mark(cx, &award, first, by).await?;
        }
        Ok(cancelled)
    }

    /// Marks an award as taken back, and the source's first one, which look-ups start with.
    async fn mark(
        &self,
        cx: &Context,
        award: &str,
        first: Option<String>,
        by: TakenBack,
    ) -> Result<(), Failure> {
        // A clean-up of a ledger deletes rows by the million. Sources without a claim are long past
        // and need no mark.
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
    /// run that it should cancel has been created (behaviour section 3, "Cancel race").
    async fn settle(&self, cx: &Context, award: &str) -> Result<(), Failure> {
        let since = match cx.accepted_at(award).await? {
            Some(Some(accepted)) => accepted,
            Some(None) => return Ok(()),
            // No claim can tell: it may have been accepted just before this assignment.
            None => cx.assigned_at(),
        };
        settled(since, self.settle)
    }

    pub(super) async fn reverse(
        &self,
        cx: &Context,
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
        let write = || Events::one_at(REVERSE, Some(id), ts, &data);
        let accepted = self.sender.send_with(cx, write).await?;
        Ok(Accepted { at: Some(accepted), due: ts })
    }
}
