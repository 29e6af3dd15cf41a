//! Currency: awards for purchases, referrals and missions, cancels and reverses (behaviour section
//! 3).

mod award;
mod debit;
pub mod decision;
pub mod ledger;
mod refund;
mod reverse;
pub mod rules;
mod steps;
pub mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use self::ledger::Ledger;
use self::reverse::Cancel;
use self::rules::Settings;
use self::work::Work;
use super::call::{Calls, outcome};
use super::entry::{Entry, NO_BRANCHES};
use super::merchants::Merchants;
use super::sender::Sender;
use crate::cdc::{Change, DecodeError};
use crate::config::{Family, Service, Setting, Spec, value};
use crate::dedup::TakenBack;
use crate::engine::{Consumer, Context, Failure, Outcome, Route, Steps};

const AWARD: &str = "currency/award";
const CANCELLED: &str = "currency/cancelled";
const REVERSE: &str = "currency/reverse";
/// Skip reason where the function names no currency to award.
const NOTHING: &str = "nothing_to_award";
const CALCULATE: &str = "calc_currency_for_source";

/// How long a debit's original is looked for before the debit becomes a dead letter (behaviour
/// section 3).
pub static ORIGINAL_PATIENCE: Setting<Duration> = Setting {
    key: "original_patience",
    variable: "CURRENCY_ORIGINAL_PATIENCE",
    default: "60s",
    about: "a duration such as 60s",
    parse: value::duration,
};

/// How long decisions about the refunds of a source are kept (behaviour section 3).
static REFUND_MEMORY: Setting<Duration> = Setting {
    key: "refund_memory",
    variable: "CURRENCY_REFUND_MEMORY",
    default: "90d",
    about: "a duration such as 90d",
    parse: value::positive_duration,
};

/// Statuses in which a referral or a mission's claim is taken back, in lower case (behaviour section
/// 3).
static TAKEN_BACK_STATUSES: Setting<Vec<String>> = Setting {
    key: "taken_back_statuses",
    variable: "CURRENCY_TAKEN_BACK_STATUSES",
    default: "revoked,rejected,cancelled,refunded,void",
    about: "words separated by commas, such as revoked,rejected",
    parse: rules::statuses,
};

/// The consumer's declaration.
pub static SPEC: Spec = Spec {
    name: "currency",
    family: Family::Crm,
    by_default: true,
    tables: &["purchase_ledger", "referral_ledger", "mission_claims"],
    changes: &[],
    commands: &[],
    concurrency: "5",
    needs: &[Service::Redis, Service::Supabase, Service::Inngest],
    settings: &[&ORIGINAL_PATIENCE, &REFUND_MEMORY, &TAKEN_BACK_STATUSES],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        let settings = parts.settings;
        Ok(Arc::new(Currency {
            rules: Settings {
                snapshot: settings.snapshot.clone(),
                taken_back: settings.of(&SPEC, &TAKEN_BACK_STATUSES),
            },
            settle: settings.inngest.cancel_settle,
            original_patience: settings.of(&SPEC, &ORIGINAL_PATIENCE),
            refund_memory: settings.of(&SPEC, &REFUND_MEMORY),
            calls: parts.calls.clone(),
            sender: parts.sender.clone(),
            merchants: Merchants::new(parts.calls.clone(), parts.cache.clone()),
            ledger: Ledger::new(parts.calls.clone()),
            noted: Noted::default(),
        }))
    },
    branches: NO_BRANCHES,
};

/// The currency consumer.
pub struct Currency {
    /// Settings of its rules.
    pub rules: Settings,
    /// How long a cancel waits after its award was accepted (`INNGEST_CANCEL_SETTLE`).
    pub settle: Duration,
    /// How long a debit's original is looked for: it may be on its way
    /// (`CURRENCY_ORIGINAL_PATIENCE`).
    pub original_patience: Duration,
    /// How long decisions about refunds are kept (`CURRENCY_REFUND_MEMORY`).
    pub refund_memory: Duration,
    /// Supabase.
    pub calls: Calls,
    /// Inngest.
    pub sender: Sender,
    /// Merchants' award settings.
    pub merchants: Merchants,
    /// The ledgers.
    pub ledger: Ledger,
    /// When claims were last asked how long they have been kept.
    pub noted: Noted,
}

/// Asks claims regularly how long they have been kept, so that they note it long before it matters.
#[derive(Debug, Default)]
pub struct Noted(AtomicI64);

/// How often. Claims that were emptied must soon note their new start.
const NOTED_EVERY_MS: i64 = 60_000;

impl Noted {
    async fn note(&self, cx: &Context) -> Result<(), Failure> {
        let now = Timestamp::now().as_millisecond();
        if now - self.0.load(Ordering::Relaxed) >= NOTED_EVERY_MS {
            self.0.store(now, Ordering::Relaxed);
            cx.claims_since().await?;
        }
        Ok(())
    }
}

impl Consumer for Currency {
    type Work = Work;

    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Work>, DecodeError> {
        rules::route(change, &self.rules, now)
    }

    fn steps(&self, work: &Work) -> Steps {
        steps::of(work)
    }

    async fn process(&self, cx: &Context, work: &Work) -> Result<Outcome, Failure> {
        match work {
            Work::Award { source, at, turn } => self.awarded(cx, source, *at, *turn).await,
            // Boxed: most of what is under way is awards, which need less memory.
            Work::Refund(refund) => Box::pin(self.refunded(cx, refund)).await,
            Work::Debit(debit) => Box::pin(self.debited(cx, debit)).await,
            Work::Delete { kind, id, user_id, merchant_id, at } => {
                let decision = self.decision(cx, kind, id).await?;
                if decision.as_ref().is_some_and(|decision| decision.is_over(*at)) {
                    return Ok(Outcome::Duplicate);
                }
                let again = decision.and_then(|decision| decision.again);
                let cancel = Cancel {
                    kind,
                    id,
                    user_id: user_id.as_deref(),
                    merchant_id: merchant_id.as_deref(),
                    again: again.as_deref(),
                    mark: Some(TakenBack { at: *at, deleted: true }),
                };
                Ok(outcome(&[self.cancel(cx, cancel).await?], NOTHING))
            }
        }
    }
}

#[cfg(test)]
mod tests;
