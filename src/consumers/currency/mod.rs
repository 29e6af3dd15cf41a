//! Currency: awards for purchases, referrals and missions, cancels and reverses (behaviour section
//! 3).

mod award;
mod debit;
pub mod decision;
pub mod ledger;
mod refund;
mod reverse;
pub mod rules;
pub mod work;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use self::ledger::Ledger;
use self::reverse::Cancel;
use self::rules::Settings;
use self::work::{Source, Turn, Work, claim};
use super::call::{Calls, Sender, outcome};
use super::merchants::Merchants;
use crate::cdc::{Change, DecodeError};
use crate::dedup::TakenBack;
use crate::engine::dispatch::permits::Limits;
use crate::engine::{Consumer, Context, Failure, Outcome, Plan, Route};

const AWARD: &str = "currency/award";
const CANCELLED: &str = "currency/cancelled";
const REVERSE: &str = "currency/reverse";
/// Skip reason where the function names no currency to award.
const NOTHING: &str = "nothing_to_award";
const CALCULATE: &str = "calc_currency_for_source";

/// The currency consumer.
pub struct Currency {
    /// Its topics, in full.
    pub topics: Vec<String>,
    /// Bound on parallel requests.
    pub limits: Limits,
    /// Settings of its rules.
    pub rules: Settings,
    /// How long a cancel waits after its award was accepted (`INNGEST_CANCEL_SETTLE`).
    pub settle: Duration,
    /// How long a debit's original is looked for: it may be on its way
    /// (`CURRENCY_ORIGINAL_PATIENCE`).
    pub original_patience: Duration,
    /// How long it is remembered what was decided about refunds (`CURRENCY_REFUND_MEMORY`).
    pub refund_memory: Duration,
    /// Supabase.
    pub calls: Calls,
    /// Inngest.
    pub sender: Sender,
    /// Merchants' award settings.
    pub merchants: Merchants,
    /// The ledgers.
    pub ledger: Ledger,
    /// When claims were last asked since when they are kept.
    pub noted: Noted,
}

/// Sees to it that claims know since when they are kept, long before anybody needs that.
#[derive(Debug, Default)]
pub struct Noted(AtomicI64);

/// How often: often enough that claims which were emptied soon know it.
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

    fn name(&self) -> &'static str {
        NAME
    }

    fn topics(&self) -> Vec<String> {
        self.topics.clone()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Work>, DecodeError> {
        rules::route(change, &self.rules, now)
    }

    fn plan(&self, work: &Work) -> Plan {
        plan(work)
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

/// The consumer's name.
pub const NAME: &str = "currency";

/// What processing would do, for `explain`.
fn plan(work: &Work) -> Plan {
    let event = |name: &str, source: &Source| {
        format!("event {name} {}", claim(name, source.kind, &source.id))
    };
    let ask = |asked: bool| asked.then(|| "rest wallet_ledger".to_owned());
    match work {
        Work::Award { source, turn, .. } => Plan {
            lane: claim_lane(source.kind, &source.id),
            claim: source.claim("award"),
            steps: ask(matches!(turn, Turn::Unsure | Turn::Again))
                .into_iter()
                .chain([format!("rpc {CALCULATE}"), event(AWARD, source)])
                .collect(),
        },
        Work::Refund(refund) => {
            let source = &refund.source;
            let debits = refund.number.as_ref().map(|_| "rest purchase_ledger".to_owned());
            Plan {
                lane: claim_lane(source.kind, &source.id),
                claim: format!("{}, {}", source.claim("cancel"), source.claim("reverse")),
                steps: ask(refund.check_wallet)
                    .into_iter()
                    .chain(debits)
                    .chain([format!("event {CANCELLED}"), event(REVERSE, source)])
                    .collect(),
            }
        }
        Work::Debit(debit) => Plan {
            lane: claim_lane(debit.source.kind, &debit.source.id),
            claim: debit.source.claim("reverse"),
            steps: ask(debit.check_wallet)
                .into_iter()
                .chain([
                    "rest purchase_ledger".to_owned(),
                    format!("event {CANCELLED} (of the original, where all of it is refunded)"),
                    event(REVERSE, &debit.source),
                ])
                .collect(),
        },
        Work::Delete { kind, id, .. } => Plan {
            lane: claim_lane(kind, id),
            claim: claim("cancel", kind, id),
            steps: vec![format!("event {CANCELLED}")],
        },
    }
}

fn claim_lane(kind: &str, id: &str) -> String {
    format!("{kind}:{id}")
}

#[cfg(test)]
mod tests;
