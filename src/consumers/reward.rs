//! Reward: redemptions that the app requests, and codes that were redeemed (behaviour section 6).

use std::sync::Arc;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::broadcast::Broadcasts;
use super::call::{Calls, outcome};
use super::entry::{Entry, NO_BRANCHES};
use super::sender::{Sender, unwritable};
use super::snapshot;
use super::words::is;
use crate::cdc::{self, Change, DecodeError, Record, Row};
use crate::clients::inngest::Events;
use crate::config::{Commands, Family, Service, Snapshot, Spec};
use crate::engine::{
    Batched, Consumer, Context, Failure, Lane, Outcome, Route, SNAPSHOT_SKIPPED, Sends, Step,
    Steps, Taken,
};

const REDEEMED: &str = "reward/redeemed";
const FAILED: &str = "reward/redemption-failed";
const CODE_REDEEMED: &str = "reward/code-redeemed";
const REDEEM: &str = "redeem_reward_with_points";
/// What a waiting screen is told.
const SCREEN: &str = "redemption_failed";
/// The table whose changes it takes.
const TABLE: &str = "codes";
/// The topic of redemption commands, in full (behaviour section 1).
pub const COMMANDS: &str = "reward_redemptions";

/// How many of a reward one command may redeem (behaviour section 6).
const QUANTITIES: std::ops::RangeInclusive<u32> = 1..=1000;

/// What it declares.
pub static SPEC: Spec = Spec {
    name: "reward",
    family: Family::Crm,
    by_default: true,
    tables: &[TABLE],
    changes: &[],
    commands: &[Commands::Topic(COMMANDS)],
    concurrency: "5",
    needs: &[Service::Redis, Service::Supabase, Service::Inngest],
    settings: &[],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        Ok(Arc::new(Reward {
            snapshot: parts.settings.snapshot.clone(),
            calls: parts.calls.clone(),
            sender: parts.sender.clone(),
            broadcasts: Broadcasts::new(parts.calls.clone()),
        }))
    },
    branches: NO_BRANCHES,
};

/// The reward consumer.
pub struct Reward {
    /// What happens to snapshot rows.
    pub snapshot: Snapshot,
    /// Supabase.
    pub calls: Calls,
    /// Inngest.
    pub sender: Sender,
    /// The app's waiting screens.
    pub broadcasts: Broadcasts,
}

/// What a command or a change calls for.
#[derive(Debug, Clone)]
pub enum Work {
    /// Redeem a reward.
    Redeem(Box<Redemption>),
    /// Tell that a code was redeemed.
    Code(Box<Code>),
}

/// A command: somebody wants a reward for points.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Redemption {
    /// Makes the redemption idempotent.
    pub event_id: String,
    /// Who pays and gets it.
    pub user_id: String,
    /// What.
    pub reward_id: String,
    /// Whose reward.
    pub merchant_id: String,
    /// How many.
    #[serde(default = "one", deserialize_with = "quantity")]
    pub quantity: u32,
    /// When it was asked for, as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Box<RawValue>>,
}

/// A code that was redeemed, as its event carries it.
#[derive(Debug, Clone, Serialize)]
pub struct Code {
    /// The code's id as text.
    #[serde(skip)]
    pub id: String,
    /// The same as its column holds it.
    pub code_id: Option<Box<RawValue>>,
    /// Whose code.
    pub merchant_id: Option<String>,
    /// Who redeemed it: `user_id`, else `assigned_to`.
    pub user_id: Option<String>,
    /// The code itself.
    pub code: Option<Box<RawValue>>,
    /// When.
    pub redeemed_at: Option<Box<RawValue>>,
}

impl Redemption {
    fn claim(&self) -> String {
        format!("reward:{}", self.event_id)
    }

    /// The id of its event of this name.
    fn id_of(&self, event: &str) -> String {
        format!("{event}:{}", self.event_id)
    }
}

impl Code {
    fn claim(&self) -> String {
        format!("code:{}", self.id)
    }

    fn event_id(&self) -> String {
        format!("{CODE_REDEEMED}:{}", self.id)
    }
}

/// What both events of a redemption carry.
#[derive(Serialize)]
struct Redeemed<'a> {
    #[serde(flatten)]
    redemption: &'a Redemption,
    result: &'a RawValue,
}

/// The function's answer, and the parts of it that are used.
struct Answer {
    raw: Box<RawValue>,
    result: RedemptionResult,
}

#[derive(Deserialize)]
struct RedemptionResult {
    success: bool,
    error_code: Option<Box<RawValue>>,
    error_message: Option<Box<RawValue>>,
    title: Option<Box<RawValue>>,
    description: Option<Box<RawValue>>,
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let result = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        Ok(Self { raw, result })
    }
}

impl Consumer for Reward {
    type Work = Work;

    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Work>, DecodeError> {
        route_code(change, &self.snapshot, now)
    }

    fn route_command(&self, record: &Record<'_>) -> Result<Route<Work>, DecodeError> {
        route_redemption(record)
    }

    fn steps(&self, work: &Work) -> Steps {
        match work {
            Work::Redeem(redemption) => Steps {
                lane: format!("user:{}", redemption.user_id),
                steps: vec![
                    Step::claim(redemption.claim()),
                    Step::call(REDEEM),
                    Step::event(REDEEMED, Some(redemption.id_of(REDEEMED))).when("on success"),
                    Step::event(FAILED, Some(redemption.id_of(FAILED))).when("on refusal"),
                    Step::broadcast(SCREEN).when("on refusal"),
                ],
            },
            Work::Code(code) => Steps {
                lane: code.claim(),
                steps: vec![
                    Step::claim(code.claim()),
                    Step::event(CODE_REDEEMED, Some(code.event_id())),
                ],
            },
        }
    }

    async fn process(&self, cx: &Context, work: &Work) -> Result<Outcome, Failure> {
        let step = match work {
            Work::Redeem(redemption) => {
                cx.once(&redemption.claim(), || self.redeem(cx, redemption)).await?
            }
            Work::Code(code) => {
                let send = || async {
                    let write = || Events::one(CODE_REDEEMED, Some(&code.event_id()), code);
                    self.sender.send_with(cx, write).await.map(Some)
                };
                cx.once(&code.claim(), send).await?
            }
        };
        Ok(outcome(&[step], "nothing_to_send"))
    }

    /// Only codes are batched: a redemption calls a function first.
    fn batched<'w>(&self, work: &'w Work) -> Option<Batched<'w>> {
        match work {
            Work::Code(code) => Some(Batched::claimed(code.claim())),
            Work::Redeem(_) => None,
        }
    }

    async fn send_all(&self, cx: &Context, works: &[&Work]) -> Result<Box<dyn Sends>, Failure> {
        let write = |index: usize, events: &mut Events| match works[index] {
            Work::Code(code) => {
                events.push(CODE_REDEEMED, Some(&code.event_id()), code).map_err(unwritable)
            }
            Work::Redeem(_) => Err(Failure::Alone),
        };
        self.sender.send_all(cx, works.len(), write).await
    }
}

impl Reward {
    async fn redeem(
        &self,
        cx: &Context,
        redemption: &Redemption,
    ) -> Result<Option<Timestamp>, Failure> {
        let arguments = json!({
            "p_reward_id": redemption.reward_id,
            "p_quantity": redemption.quantity,
            "p_user_id": redemption.user_id,
            "p_merchant_id": redemption.merchant_id,
            "p_event_id": redemption.event_id,
        });
        let Answer { raw, result } = self.calls.rpc(cx, REDEEM, &arguments).await?;
        let name = if result.success { REDEEMED } else { FAILED };
        let id = redemption.id_of(name);
        let data = Redeemed { redemption, result: &raw };
        let write = || Events::one(name, Some(&id), &data);
        let accepted = self.sender.send_with(cx, write).await?;
        // After the event, so that a repeated attempt does not tell the screen twice.
        if !result.success {
            cx.step(Taken::Broadcast(SCREEN));
            self.tell_screen(redemption, &result);
        }
        Ok(Some(accepted))
    }

    fn tell_screen(&self, redemption: &Redemption, result: &RedemptionResult) {
        let payload = json!({
            "event_id": redemption.event_id,
            "reward_id": redemption.reward_id,
            "title": result.title.as_ref().or(result.error_code.as_ref()),
            "description": result.description.as_ref().or(result.error_message.as_ref()),
        });
        let topic = format!("redemption:{}", redemption.user_id);
        self.broadcasts.send(&topic, SCREEN, &payload);
    }
}

/// What to do about a redemption command.
///
/// # Errors
/// When the record is not a valid command.
pub fn route_redemption(record: &Record<'_>) -> Result<Route<Work>, DecodeError> {
    let Some(redemption): Option<Redemption> = cdc::command(record)? else {
        return Ok(Route::Skip("tombstone"));
    };
    let malformed = |problem: String| Err(DecodeError::Command { problem });
    for (field, value) in [
        ("event_id", &redemption.event_id),
        ("user_id", &redemption.user_id),
        ("reward_id", &redemption.reward_id),
        ("merchant_id", &redemption.merchant_id),
    ] {
        if value.is_empty() {
            return malformed(format!("{field} is empty"));
        }
    }
    if !QUANTITIES.contains(&redemption.quantity) {
        let (least, most) = (QUANTITIES.start(), QUANTITIES.end());
        return malformed(format!("quantity is not within {least} to {most}"));
    }
    // One member's redemptions run in their order, since they spend the same points and the first
    // one asked for comes first. Members do not wait for each other.
    let lane = Lane::in_partition(("user", &redemption.user_id));
    Ok(Route::Process { work: Work::Redeem(Box::new(redemption)), lane })
}

fn one() -> u32 {
    1
}

/// A null is not a quantity either. A number out of range is refused later with its own message.
fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number: Option<i64> = Option::deserialize(deserializer)?;
    Ok(number.map_or_else(one, |number| u32::try_from(number).unwrap_or(0)))
}

/// What to do about a change of a code.
///
/// # Errors
/// When a column that the rule needs cannot be decoded.
pub fn route_code(
    change: &Change<'_>,
    policy: &Snapshot,
    now: Timestamp,
) -> Result<Route<Work>, DecodeError> {
    if change.table != TABLE {
        return Ok(Route::Skip("other_table"));
    }
    let Some(row) = &change.after else { return Ok(Route::Skip("deleted")) };
    if !snapshot::admits(policy, change, now)? {
        return Ok(Route::Skip(SNAPSHOT_SKIPPED));
    }
    row.needed("status")?;
    if !is_redeemed(row)? {
        return Ok(Route::Skip("does_not_count"));
    }
    match change.before.as_ref().filter(|before| before.field("status").is_known()) {
        Some(before) if is_redeemed(before)? => return Ok(Route::Skip("counted_before")),
        None if !snapshot::tells_turn(policy, change, row, "redeemed_at")? => {
            return Ok(Route::Skip("turned_long_ago"));
        }
        Some(_) | None => {}
    }
    let Some(id) = row.needed_filled("id")? else { return Ok(Route::Skip("no_id")) };
    let user_id = match row.filled("user_id")? {
        Some(user) => Some(user),
        None => row.filled("assigned_to")?,
    };
    let lane = Lane::in_partition(("code", &id));
    let code = Code {
        code_id: row.event_value("id"),
        merchant_id: row.filled("merchant_id")?,
        user_id,
        code: row.event_value("code"),
        redeemed_at: row.event_value("redeemed_at"),
        id,
    };
    Ok(Route::Process { work: Work::Code(Box::new(code)), lane })
}

fn is_redeemed(row: &Row<'_>) -> Result<bool, DecodeError> {
    is(row, "status", &["redeemed", "used"])
}

#[cfg(test)]
mod tests;
