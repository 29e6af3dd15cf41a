//! Tier: evaluates members after purchases and earnings, and schedules or applies their upgrades
//! (behaviour section 4).

pub mod rules;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use self::rules::{AnswerOrRows, Member, Recommendation, Upgrade};
use super::call::{Calls, settled};
use super::entry::{Entry, NO_BRANCHES};
use super::sender::{Sender, unwritable};
use crate::cdc::{Change, DecodeError};
use crate::clients::inngest::{Events, InvalidEvent};
use crate::config::{Family, Service, Snapshot, Spec};
use crate::engine::{Consumer, Context, Failure, LockGuard, Outcome, Route, Step, Steps};

const CANCELLED: &str = "tier/upgrade-cancelled";
const UPGRADE: &str = "tier/upgrade";
const EVALUATE: &str = "evaluate_user_tier_status";
const APPLY: &str = "apply_tier_upgrade";

/// What it declares.
pub static SPEC: Spec = Spec {
    name: "tier",
    family: Family::Crm,
    by_default: true,
    tables: &["purchase_ledger", "wallet_ledger"],
    changes: &[],
    commands: &[],
    concurrency: "3",
    needs: &[Service::Redis, Service::Supabase, Service::Inngest],
    settings: &[],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        Ok(Arc::new(Tier {
            snapshot: parts.settings.snapshot.clone(),
            settle: parts.settings.inngest.cancel_settle,
            calls: parts.calls.clone(),
            sender: parts.sender.clone(),
        }))
    },
    branches: NO_BRANCHES,
};

/// The tier consumer.
pub struct Tier {
    /// What happens to snapshot rows.
    pub snapshot: Snapshot,
    /// How long a member's next cancel waits after an upgrade was accepted
    /// (`INNGEST_CANCEL_SETTLE`).
    pub settle: Duration,
    /// Supabase.
    pub calls: Calls,
    /// Inngest.
    pub sender: Sender,
}

impl Consumer for Tier {
    type Work = Member;

    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Member>, DecodeError> {
        rules::route(change, &self.snapshot, now)
    }

    fn steps(&self, member: &Member) -> Steps {
        Steps {
            lane: member.to_string(),
            steps: vec![
                Step::lock(member.claim()),
                Step::call(EVALUATE),
                Step::event(CANCELLED, None).when("on upgrade, maintain, downgrade"),
                Step::event(UPGRADE, None).when("on upgrade at a given time"),
                Step::call(APPLY).when("on upgrade otherwise"),
            ],
        }
    }

    async fn process(&self, cx: &Context, member: &Member) -> Result<Outcome, Failure> {
        cx.exclusively(&member.claim(), |held| self.evaluate(cx, member, held)).await
    }

    /// One evaluation after the newest of several waiting changes covers them all, since it reads
    /// the database's present state. Lanes are named by a hash, so two members can share one.
    fn coalesce(&self, waiting: &mut Member, newer: &Member) -> bool {
        waiting == newer
    }
}

/// The data of `tier/upgrade`.
#[derive(Serialize)]
struct Scheduled<'a> {
    #[serde(flatten)]
    member: &'a Member,
    #[serde(flatten)]
    upgrade: &'a Upgrade,
}

impl Tier {
    async fn evaluate(
        &self,
        cx: &Context,
        member: &Member,
        held: LockGuard<'_>,
    ) -> Result<Outcome, Failure> {
        // Before the evaluation, so that it is still fresh when its events go out.
        if let Some(accepted) = held.accepted_at() {
            settled(accepted, self.settle)?;
        }
        let arguments = json!({"p_user_id": member.user_id, "p_merchant_id": member.merchant_id});
        let AnswerOrRows(answer) = self.calls.rpc(cx, EVALUATE, &arguments).await?;
        held.still_held().await?;
        match answer.unwrap_or_default().recommendation() {
            Recommendation::Nothing(reason) => return Ok(Outcome::Skipped(reason)),
            Recommendation::NoTier => {
                return Err(Failure::Poison {
                    kind: "no_tier",
                    message: format!(
                        "{EVALUATE} recommends an upgrade without recommended_tier_id: correct the \
                         function, then produce the record again"
                    ),
                });
            }
            Recommendation::NoTime => {
                return Err(Failure::Poison {
                    kind: "no_effective_at",
                    message: format!(
                        "{EVALUATE} recommends an upgrade with an upgrade_timing and without \
                         effective_at: correct the function, then produce \
                         the record again"
                    ),
                });
            }
            Recommendation::Cancel => {
                self.sender.send_with(cx, || cancelled(member)).await?;
            }
            Recommendation::Schedule(upgrade) => {
                let mut events = cancelled(member).map_err(unwritable)?;
                let data = Scheduled { member, upgrade: &upgrade };
                // Without an id. After a crash in between, the repeat's cancel would stop the first
                // run, and Inngest would drop the second for its repeated id.
                events.push(UPGRADE, None, &data).map_err(unwritable)?;
                held.settling(self.sender.breaker(), self.sender.detached(cx, events)).await?;
            }
            Recommendation::Apply { to_tier_id } => {
                self.sender.send_with(cx, || cancelled(member)).await?;
                self.apply(cx, member, &to_tier_id).await?;
            }
        }
        Ok(Outcome::Sent)
    }

    async fn apply(&self, cx: &Context, member: &Member, tier: &RawValue) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            p_user_id: &'a str,
            p_merchant_id: &'a str,
            p_to_tier_id: &'a RawValue,
        }
        let arguments = Arguments {
            p_user_id: &member.user_id,
            p_merchant_id: &member.merchant_id,
            p_to_tier_id: tier,
        };
        let _: Option<Box<RawValue>> = self.calls.rpc(cx, APPLY, &arguments).await?;
        Ok(())
    }
}

fn cancelled(member: &Member) -> Result<Events, InvalidEvent> {
    Events::one(CANCELLED, None, member)
}
