//! Currency: awards for purchases, referrals and missions, cancels and reverses (contract section 3).

pub mod rules;

use std::time::Duration;

use bigdecimal::BigDecimal;
use jiff::Timestamp;
use metrics::counter;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use self::rules::{Source, Work, claim};
use super::award_time::{self, MerchantSettings};
use super::call::{Calls, Sender, outcome, settled, unwritable};
use super::merchants::Merchants;
use super::refund::refund_percentage;
use crate::cdc::{Change, DecodeError};
use crate::clients::inngest::Events;
use crate::config::Snapshot;
use crate::engine::permits::Limits;
use crate::engine::{Consumer, Cx, Failure, Once, Outcome, Plan, Route};
use crate::measures;

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
    /// What happens to snapshot rows.
    pub snapshot: Snapshot,
    /// How long a cancel waits after its award was accepted (`INNGEST_CANCEL_SETTLE`).
    pub settle: Duration,
    /// How long a debit's original is looked for: it may be on its way
    /// (`CURRENCY_ORIGINAL_PATIENCE`).
    pub original_patience: Duration,
    /// Supabase.
    pub calls: Calls,
    /// Inngest.
    pub sender: Sender,
    /// Merchants' award settings.
    pub merchants: Merchants,
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
        rules::route(change, &self.snapshot, now)
    }

    fn plan(&self, work: &Work) -> Plan {
        plan(work)
    }

    async fn process(&self, cx: &Cx, work: &Work) -> Result<Outcome, Failure> {
        match work {
            Work::Award { source, committed_at, ask_wallet } => {
                if *ask_wallet && self.wallet_has(cx, source, None).await? {
                    return Ok(Outcome::Skipped("awarded_before"));
                }
                let award = || self.award(cx, source, *committed_at);
                Ok(outcome(&[cx.once(&source.claim("award"), award).await?], NOTHING))
            }
            Work::Refund { source, ask_wallet } => {
                if *ask_wallet && self.wallet_has(cx, source, Some("reversal")).await? {
                    return Ok(Outcome::Skipped("reversed_before"));
                }
                let cancelled = self.cancel(cx, source.kind, &source.id, Some(source)).await?;
                let reverse = || self.reverse(cx, source, None);
                let reversed = cx.once(&source.claim("reverse"), reverse).await?;
                Ok(outcome(&[cancelled, reversed], NOTHING))
            }
            Work::Debit { source, original, amount, ask_wallet } => {
                if *ask_wallet && self.wallet_has(cx, source, None).await? {
                    return Ok(Outcome::Skipped("reversed_before"));
                }
                let debit = || self.debit(cx, source, original.as_deref(), amount.as_ref());
                match cx.once(&source.claim("reverse"), debit).await? {
                    // The only debit without an event is one whose original reverses the whole.
                    Once::Ran(None) => Ok(Outcome::Skipped("original_reversed")),
                    ran => Ok(outcome(&[ran], NOTHING)),
                }
            }
            Work::Delete { kind, id, user_id, merchant_id } => {
                let data = Cancelled {
                    source_type: kind,
                    source_id: id,
                    user_id: user_id.as_deref(),
                    merchant_id: merchant_id.as_deref(),
                };
                Ok(outcome(&[self.cancel_with(cx, &data).await?], NOTHING))
            }
        }
    }
}

/// The consumer's name.
pub const NAME: &str = "currency";

/// The tables whose changes it takes.
pub const TABLES: [&str; 3] = ["purchase_ledger", "referral_ledger", "mission_claims"];

#[derive(Serialize)]
struct Award<'a> {
    source_type: &'a str,
    source_id: &'a str,
    user_id: &'a str,
    merchant_id: &'a str,
    currency_rows: &'a [Box<RawValue>],
    award_datetime: String,
    is_delayed: bool,
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
    #[serde(flatten)]
    part: Option<Part<'a>>,
}

/// The share of another purchase that a debit row takes back.
#[derive(Serialize, Clone, Copy)]
struct Part<'a> {
    original_source_id: &'a str,
    refund_percentage: &'a RawValue,
}

#[derive(Deserialize)]
struct Original {
    id: String,
    status: Option<String>,
    record_type: Option<String>,
    final_amount: Option<Box<RawValue>>,
}

impl Original {
    /// A slip of a refund may repeat the number of the receipt that it refunds.
    fn is_debit(&self) -> bool {
        self.record_type.as_deref() == Some("debit")
    }

    /// A JSON number or a string, exactly: never through a double.
    fn amount(&self) -> Option<BigDecimal> {
        self.final_amount.as_ref()?.get().trim_matches('"').parse().ok()
    }
}

impl Currency {
    async fn award(
        &self,
        cx: &Cx,
        source: &Source,
        committed_at: Timestamp,
    ) -> Result<Option<Timestamp>, Failure> {
        let arguments = json!({
            "p_source_type": source.kind,
            "p_source_id": source.id,
            "p_merchant_id": source.merchant_id,
            "p_user_id": source.user_id,
            "p_metadata": {},
        });
        let rows: Option<Vec<Box<RawValue>>> = self.calls.rpc(cx, CALCULATE, &arguments).await?;
        let rows = rows.unwrap_or_default();
        if rows.is_empty() {
            return Ok(None);
        }
        let settings = self.merchants.settings(cx, &source.merchant_id).await?;
        let due = due(settings.as_deref(), committed_at);
        let data = Award {
            source_type: source.kind,
            source_id: &source.id,
            user_id: &source.user_id,
            merchant_id: &source.merchant_id,
            currency_rows: &rows,
            award_datetime: award_time::rfc3339(due),
            is_delayed: due > Timestamp::now(),
        };
        let id = claim(AWARD, source.kind, &source.id);
        let events = Events::one(AWARD, Some(&id), &data).map_err(unwritable)?;
        self.sender.send(cx, events).await.map(Some)
    }

    async fn cancel(
        &self,
        cx: &Cx,
        kind: &str,
        id: &str,
        owner: Option<&Source>,
    ) -> Result<Once, Failure> {
        let data = Cancelled {
            source_type: kind,
            source_id: id,
            user_id: owner.map(|source| &*source.user_id),
            merchant_id: owner.map(|source| &*source.merchant_id),
        };
        self.cancel_with(cx, &data).await
    }

    async fn cancel_with(&self, cx: &Cx, data: &Cancelled<'_>) -> Result<Once, Failure> {
        let cancel = || async {
            self.settle(cx, &claim("award", data.source_type, data.source_id)).await?;
            let events = Events::one(CANCELLED, None, data).map_err(unwritable)?;
            self.sender.send(cx, events).await.map(Some)
        };
        cx.once(&claim("cancel", data.source_type, data.source_id), cancel).await
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
        part: Option<Part<'_>>,
    ) -> Result<Option<Timestamp>, Failure> {
        let data = Reverse {
            source_type: source.kind,
            source_id: &source.id,
            user_id: &source.user_id,
            merchant_id: &source.merchant_id,
            part,
        };
        let id = claim(REVERSE, source.kind, &source.id);
        let events = Events::one(REVERSE, Some(&id), &data).map_err(unwritable)?;
        self.sender.send(cx, events).await.map(Some)
    }

    async fn debit(
        &self,
        cx: &Cx,
        source: &Source,
        number: Option<&str>,
        amount: Option<&BigDecimal>,
    ) -> Result<Option<Timestamp>, Failure> {
        let poison = |kind, message: String| Failure::Poison { kind, message };
        let Some(number) = number else {
            let message = "the debit row names no original: external_ref is empty".to_owned();
            return Err(poison("no_original", message));
        };
        let (number_is, merchant_is) =
            (format!("eq.{number}"), format!("eq.{}", source.merchant_id));
        let query = [
            ("transaction_number", &*number_is),
            ("merchant_id", &*merchant_is),
            ("select", "id,status,record_type,final_amount"),
        ];
        let found: Vec<Original> = self.calls.select(cx, "purchase_ledger", &query).await?;
        let original = found.iter().find(|row| row.id != source.id && !row.is_debit());
        let Some(original) = original else {
            return Err(Failure::NotYet {
                kind: "original_not_found",
                message: "the purchase that the debit row refunds is not there: no row of its \
                          merchant has external_ref as transaction_number"
                    .to_owned(),
                patience: self.original_patience,
            });
        };
        if matches!(original.status.as_deref(), Some("refunded" | "cancelled")) {
            return Ok(None);
        }
        let percentage = refund_percentage(amount, original.amount().as_ref())
            .map_err(|error| poison("no_percentage", error.to_string()))?;
        if percentage == "100" {
            self.cancel(cx, source.kind, &original.id, Some(source)).await?;
        }
        let percentage = RawValue::from_string(percentage).map_err(unwritable)?;
        let part = Part { original_source_id: &original.id, refund_percentage: &percentage };
        self.reverse(cx, source, Some(part)).await
    }

    /// Whether the wallet already holds an entry for this source.
    async fn wallet_has(
        &self,
        cx: &Cx,
        source: &Source,
        component: Option<&str>,
    ) -> Result<bool, Failure> {
        let (kind, id) = (format!("eq.{}", source.kind), format!("eq.{}", source.id));
        let component = component.map(|component| format!("eq.{component}"));
        let mut query = vec![("source_type", &*kind), ("source_id", &*id)];
        query.extend(component.as_deref().map(|component| ("component", component)));
        query.extend([("select", "id"), ("limit", "1")]);
        let rows: Vec<Box<RawValue>> = self.calls.select(cx, "wallet_ledger", &query).await?;
        Ok(!rows.is_empty())
    }
}

/// When the award is due, by its merchant's settings. An unknown zone was logged when they were read.
fn due(settings: Option<&MerchantSettings>, now: Timestamp) -> Timestamp {
    let Some(settings) = settings else { return now };
    let due = award_time::award_time(settings, now);
    if due.zone_unknown {
        counter!(measures::UNKNOWN_ZONES).increment(1);
    }
    due.at
}

/// What processing would do, for `explain`.
fn plan(work: &Work) -> Plan {
    let event = |name: &str, source: &Source| {
        format!("event {name} {}", claim(name, source.kind, &source.id))
    };
    let ask = |asked: &bool| asked.then(|| "rest wallet_ledger".to_owned());
    match work {
        Work::Award { source, ask_wallet, .. } => Plan {
            lane: claim_lane(source.kind, &source.id),
            claim: source.claim("award"),
            steps: ask(ask_wallet)
                .into_iter()
                .chain([format!("rpc {CALCULATE}"), event(AWARD, source)])
                .collect(),
        },
        Work::Refund { source, ask_wallet } => Plan {
            lane: claim_lane(source.kind, &source.id),
            claim: format!("{}, {}", source.claim("cancel"), source.claim("reverse")),
            steps: ask(ask_wallet)
                .into_iter()
                .chain([format!("event {CANCELLED}"), event(REVERSE, source)])
                .collect(),
        },
        Work::Debit { source, ask_wallet, .. } => Plan {
            lane: claim_lane(source.kind, &source.id),
            claim: source.claim("reverse"),
            steps: ask(ask_wallet)
                .into_iter()
                .chain([
                    "rest purchase_ledger".to_owned(),
                    format!("event {CANCELLED} (of the original, where all of it is refunded)"),
                    event(REVERSE, source),
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
