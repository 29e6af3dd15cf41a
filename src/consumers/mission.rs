//! Mission: which missions a change may advance, for Inngest to evaluate (behaviour section 5).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::call::{Calls, outcome};
use super::entry::{Entry, NO_BRANCHES};
use super::lookup_cache::LookupCache;
use super::sender::{Sender, unwritable};
use super::snapshot;
use super::tenant::{tenant, was_anonymous};
use super::words::{self, is};
use crate::cdc::{Change, DecodeError, Field, Op, Remark, Row};
use crate::clients::inngest::{Events, InvalidEvent};
use crate::clients::redis::Cache;
use crate::config::{Family, Service, Snapshot, Spec};
use crate::engine::{
    Batched, Consumer, Context, Failure, Lane, Once, Outcome, Route, SNAPSHOT_SKIPPED, Sends, Step,
    Steps, Taken,
};

const EVALUATE: &str = "mission/evaluate";
/// Skip reason of a row that advances no mission.
const NO_MISSIONS: &str = "no_missions";
const CONDITIONS: &str = "mv_mission_conditions_expanded";

/// Bytes of events to write at a time for one row, unless a single event has more.
const PART_BYTES: usize = 1 << 20;
/// The most bytes of events that a row may have to be sent together with other rows.
const BATCHED_BYTES: usize = 16 << 10;
/// Roughly the bytes of an event besides its row.
const EVENT_BYTES: usize = 512;

/// How long a merchant's missions stay in the cache Redis (behaviour section 5).
const CACHED: Duration = Duration::from_secs(300);

/// What it declares.
pub static SPEC: Spec = Spec {
    name: "mission",
    family: Family::Crm,
    by_default: true,
    tables: &["purchase_ledger", "form_submissions", "wallet_ledger", "referral_ledger"],
    changes: &[],
    commands: &[],
    concurrency: "5",
    needs: &[Service::Redis, Service::Supabase, Service::Inngest],
    settings: &[],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        Ok(Arc::new(Mission {
            snapshot: parts.settings.snapshot.clone(),
            sender: parts.sender.clone(),
            missions: Missions::new(parts.calls.clone(), parts.cache.clone()),
        }))
    },
    branches: NO_BRANCHES,
};

/// The mission consumer.
pub struct Mission {
    /// What happens to snapshot rows.
    pub snapshot: Snapshot,
    /// Inngest.
    pub sender: Sender,
    /// Which missions are active.
    pub missions: Missions,
}

/// A row that may advance missions.
#[derive(Debug, Clone)]
pub struct Work {
    /// What happened to it: one event type, or both of a referral's.
    pub event_types: SmallVec<[&'static str; 2]>,
    /// Table of the row.
    pub table: &'static str,
    /// Id of the row.
    pub row_id: String,
    /// Whose missions: for a referral, the inviter's.
    pub user_id: String,
    /// The merchant whose missions count.
    pub merchant_id: String,
    /// The row, as the event carries it.
    pub event_data: Box<RawValue>,
}

impl Work {
    fn claim(&self, event_type: &str) -> String {
        format!("mission:{event_type}:{}", self.row_id)
    }

    fn event_id(&self, mission: &str, event_type: &str) -> String {
        format!("{EVALUATE}:{mission}:{event_type}:{}", self.row_id)
    }
}

#[derive(Serialize)]
struct Evaluate<'a> {
    user_id: &'a str,
    merchant_id: &'a str,
    mission_id: &'a str,
    event_type: &'a str,
    event_data: &'a RawValue,
    trigger_id: &'a str,
}

impl Consumer for Mission {
    type Work = Work;

    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Work>, DecodeError> {
        route(change, &self.snapshot, now)
    }

    fn steps(&self, work: &Work) -> Steps {
        let of_type = |kind: &&'static str| {
            [
                Step::claim(work.claim(kind)),
                Step::cached(key(&work.merchant_id, kind)),
                Step::read(CONDITIONS).when("not in the cache"),
                Step::event(EVALUATE, Some(work.event_id("<mission_id>", kind)))
                    .when("for each active mission"),
            ]
        };
        Steps {
            lane: format!("{}:{}", work.table, work.row_id),
            steps: work.event_types.iter().flat_map(of_type).collect(),
        }
    }

    fn kept(&self, work: &Work) -> usize {
        work.event_data.get().len()
    }

    async fn process(&self, cx: &Context, work: &Work) -> Result<Outcome, Failure> {
        let mut steps: SmallVec<[Once; 2]> = SmallVec::new();
        for event_type in &work.event_types {
            let evaluate = || self.evaluate(cx, work, event_type);
            steps.push(cx.once(&work.claim(event_type), evaluate).await?);
        }
        Ok(outcome(&steps, NO_MISSIONS))
    }

    /// A row of one event type whose missions are known here, unless its events are large.
    fn batched<'w>(&self, work: &'w Work) -> Option<Batched<'w>> {
        let (event_type, _) = self.known(work)?;
        Some(Batched::claimed(work.claim(event_type)))
    }

    async fn send_all(&self, cx: &Context, works: &[&Work]) -> Result<Box<dyn Sends>, Failure> {
        let write = |index: usize, events: &mut Events| {
            let work = works[index];
            // The cache may have forgotten them since `batched` looked.
            let (event_type, missions) = self.known(work).ok_or(Failure::Alone)?;
            write(events, work, event_type, &missions).map_err(unwritable)
        };
        self.sender.send_all(cx, works.len(), write).await
    }

    fn nothing_to_send(&self) -> &'static str {
        NO_MISSIONS
    }
}

impl Mission {
    /// The only event type of a row, and its missions, where those are known here and their events
    /// are small.
    fn known(&self, work: &Work) -> Option<(&'static str, Arc<[String]>)> {
        let [event_type] = work.event_types[..] else { return None };
        let missions = self.missions.known.known(&key(&work.merchant_id, event_type))?;
        let bytes = missions.len() * (work.event_data.get().len() + EVENT_BYTES);
        (bytes <= BATCHED_BYTES).then_some((event_type, missions))
    }

    /// Sends one event for each active mission, all in one send unless they are large.
    async fn evaluate(
        &self,
        cx: &Context,
        work: &Work,
        event_type: &'static str,
    ) -> Result<Option<Timestamp>, Failure> {
        let missions = self.missions.active(cx, &work.merchant_id, event_type).await?;
        let mut accepted = None;
        // Each mission's event carries the row, so a large row with many missions is sent in parts.
        let part = (PART_BYTES / (work.event_data.get().len() + EVENT_BYTES)).max(1);
        for missions in missions.chunks(part) {
            let write = || written(work, event_type, missions);
            accepted = Some(self.sender.send_with(cx, write).await?);
        }
        Ok(accepted)
    }
}

/// The events of one row for these missions.
fn written(work: &Work, event_type: &str, missions: &[String]) -> Result<Events, InvalidEvent> {
    let mut events = Events::default();
    write(&mut events, work, event_type, missions)?;
    Ok(events)
}

fn write(
    events: &mut Events,
    work: &Work,
    event_type: &str,
    missions: &[String],
) -> Result<(), InvalidEvent> {
    for mission_id in missions {
        let data = Evaluate {
            user_id: &work.user_id,
            merchant_id: &work.merchant_id,
            mission_id,
            event_type,
            event_data: &work.event_data,
            trigger_id: &work.row_id,
        };
        let id = work.event_id(mission_id, event_type);
        events.push(EVALUATE, Some(&id), &data)?;
    }
    Ok(())
}

/// Looks up active missions: in the process, in the cache Redis, in the database.
pub struct Missions {
    calls: Calls,
    cache: Cache,
    known: LookupCache<Arc<[String]>>,
}

#[derive(Deserialize)]
struct Condition {
    mission_id: String,
}

impl Missions {
    /// A look-up that knows nothing yet.
    #[must_use]
    pub fn new(calls: Calls, cache: Cache) -> Self {
        Self { calls, cache, known: LookupCache::default() }
    }

    /// Ids of the merchant's missions that `event_type` may advance, each once.
    ///
    /// # Errors
    /// When they can be read neither from a cache nor from Supabase.
    pub async fn active(
        &self,
        cx: &Context,
        merchant: &str,
        event_type: &str,
    ) -> Result<Arc<[String]>, Failure> {
        let key = key(merchant, event_type);
        let load = || cx.for_all(self.load(cx, &key, merchant, event_type));
        cx.in_turn(self.known.get(&key, load)).await
    }

    async fn load(
        &self,
        cx: &Context,
        key: &str,
        merchant: &str,
        event_type: &str,
    ) -> Result<Arc<[String]>, Failure> {
        cx.step(Taken::Cached(key));
        let cached = self.cache.members(key).await;
        if !cached.is_empty() {
            return Ok(distinct(cached));
        }
        let (merchant, event_type) = (format!("eq.{merchant}"), format!("eq.{event_type}"));
        let query = [
            ("merchant_id", &*merchant),
            ("condition_type", &*event_type),
            ("select", "mission_id"),
        ];
        // All pages at once: the cache must not keep a part of them for everybody.
        let rows: Vec<Condition> =
            self.calls.look_up_all(cx, CONDITIONS, &query, "mission_id").await?;
        let missions = distinct(rows.into_iter().map(|row| row.mission_id).collect());
        let mut members: Vec<&str> = missions.iter().map(String::as_str).collect();
        if members.is_empty() {
            // Redis has no empty sets: this one stands for an empty answer (behaviour section 5).
            members.push("");
        }
        self.cache.set_members(key, &members, CACHED).await;
        Ok(missions)
    }
}

/// The key of the cached set (behaviour section 5).
fn key(merchant: &str, event_type: &str) -> String {
    format!("missions:active:{merchant}:{event_type}")
}

/// A mission with several conditions is named several times. Sorted, so that a repeat sends the
/// same events in the same order.
fn distinct(mut missions: Vec<String>) -> Arc<[String]> {
    missions.retain(|mission| !mission.is_empty());
    missions.sort_unstable();
    missions.dedup();
    missions.into()
}

/// When a row counts.
enum Rule {
    /// It enters a state. The row before tells if it has `state_column`; otherwise `turned_at` says
    /// when.
    State {
        holds: fn(&Row<'_>) -> Result<bool, DecodeError>,
        state_column: &'static str,
        turned_at: &'static str,
    },
    /// A time becomes non-null.
    Time(&'static str),
}

/// What advances missions.
struct Source {
    table: &'static str,
    event_type: &'static str,
    user: &'static str,
    rule: Rule,
}

const SOURCES: [Source; 6] = [
    Source {
        table: "purchase_ledger",
        event_type: "purchase",
        user: "user_id",
        rule: Rule::State { holds: purchased, state_column: "status", turned_at: "created_at" },
    },
    Source {
        table: "wallet_ledger",
        event_type: "points_earned",
        user: "user_id",
        rule: Rule::State {
            holds: |row| earned(row, "points"),
            state_column: TRANSACTION_TYPE,
            turned_at: "created_at",
        },
    },
    Source {
        table: "wallet_ledger",
        event_type: "tickets_earned",
        user: "user_id",
        rule: Rule::State {
            holds: |row| earned(row, "ticket"),
            state_column: TRANSACTION_TYPE,
            turned_at: "created_at",
        },
    },
    Source {
        table: "form_submissions",
        event_type: "form_submission",
        user: "user_id",
        rule: Rule::State {
            holds: |row| is(row, "status", &["completed"]),
            state_column: "status",
            turned_at: "submitted_at",
        },
    },
    Source {
        table: "referral_ledger",
        event_type: "referral_signup",
        user: "inviter_user_id",
        rule: Rule::Time("signed_up_at"),
    },
    Source {
        table: "referral_ledger",
        event_type: "referral_purchase",
        user: "inviter_user_id",
        rule: Rule::Time("first_purchase_at"),
    },
];

/// What to do about a change of one of the four tables.
///
/// # Errors
/// When a column that a rule needs cannot be decoded.
pub fn route(
    change: &Change<'_>,
    policy: &Snapshot,
    now: Timestamp,
) -> Result<Route<Work>, DecodeError> {
    let mut sources = SOURCES.iter().filter(|source| source.table == change.table).peekable();
    let Some(Source { table, user, .. }) = sources.peek() else {
        return Ok(Route::Skip("other_table"));
    };
    let Some(row) = &change.after else { return Ok(Route::Skip("deleted")) };
    if !snapshot::admits(policy, change, now)? {
        return Ok(Route::Skip(SNAPSHOT_SKIPPED));
    }
    let was_anonymous = match &change.before {
        Some(before) => was_anonymous(before, user)?,
        None => false,
    };
    check(table, change, row)?;
    let mut event_types = SmallVec::new();
    let mut skip = "does_not_count";
    for source in sources {
        match source.rule.matches(policy, change, row)? {
            // While the row was anonymous, it advanced no missions.
            RuleMatch::Before if was_anonymous => event_types.push(source.event_type),
            RuleMatch::Turned => event_types.push(source.event_type),
            RuleMatch::Not => {}
            RuleMatch::Before => skip = "counted_before",
            RuleMatch::LongAgo => skip = "turned_long_ago",
        }
    }
    if event_types.is_empty() {
        return Ok(Route::Skip(skip));
    }
    let Some(row_id) = row.needed_filled("id")? else { return Ok(Route::Skip("no_id")) };
    let Some((user_id, merchant_id)) = tenant(row, user)? else {
        return Ok(Route::Skip("anonymous"));
    };
    let lane = Lane::in_partition((table, &row_id));
    let event_data = row.event_data();
    let work = Work { event_types, table, row_id, user_id, merchant_id, event_data };
    Ok(Route::Process { work, lane })
}

/// What a change means to one rule.
enum RuleMatch {
    /// It does not count.
    Not,
    /// It counts since this change, or may.
    Turned,
    /// It counted before this change.
    Before,
    /// It counts, but probably not since this change.
    LongAgo,
}

impl Rule {
    /// With the state before, the transition decides; without it the present state, if its time
    /// does not lie too far back (behaviour section 2).
    fn matches(
        &self,
        policy: &Snapshot,
        change: &Change<'_>,
        row: &Row<'_>,
    ) -> Result<RuleMatch, DecodeError> {
        let before = change.before.as_ref();
        match self {
            Self::State { holds, state_column, turned_at } => {
                if !holds(row)? {
                    return Ok(RuleMatch::Not);
                }
                // An index as replica identity shows only the index's own columns.
                Ok(match before.filter(|before| before.field(state_column).is_known()) {
                    Some(before) if holds(before)? => RuleMatch::Before,
                    Some(_) => RuleMatch::Turned,
                    None if snapshot::tells_turn(policy, change, row, turned_at)? => {
                        RuleMatch::Turned
                    }
                    None => RuleMatch::LongAgo,
                })
            }
            Self::Time(column) => {
                if row.raw(column).is_none() {
                    row.needed(column)?;
                }
                if !row.field(column).is_value() {
                    return Ok(RuleMatch::Not);
                }
                Ok(match before.map_or(Field::Missing, |before| before.field(column)) {
                    Field::Value(_) => RuleMatch::Before,
                    Field::Null => RuleMatch::Turned,
                    Field::Missing | Field::Unavailable
                        if change.op == Op::Create
                            || snapshot::was_recent(row, column, change.commit_time)? =>
                    {
                        RuleMatch::Turned
                    }
                    Field::Missing | Field::Unavailable => RuleMatch::LongAgo,
                })
            }
        }
    }
}

/// Requires the columns that the rules need, and remarks on the others for operators.
fn check(table: &str, change: &Change<'_>, row: &Row<'_>) -> Result<(), DecodeError> {
    match table {
        "purchase_ledger" => {
            row.needed("status")?;
            words::remark_purchase(change, row)
        }
        "form_submissions" => row.needed("status").map(|_| ()),
        "wallet_ledger" => {
            if [TRANSACTION_TYPE, CURRENCY].iter().any(|it| row.raw(it).is_none()) {
                change.remark(Remark::NoTransactionType);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

const TRANSACTION_TYPE: &str = "transaction_type";
const CURRENCY: &str = "currency";

fn purchased(row: &Row<'_>) -> Result<bool, DecodeError> {
    Ok(is(row, "status", &["completed"])? && !is(row, "record_type", &["debit"])?)
}

fn earned(row: &Row<'_>, currency: &str) -> Result<bool, DecodeError> {
    Ok(is(row, TRANSACTION_TYPE, &["earn"])?
        && is(row, CURRENCY, &[currency])?
        && !is(row, "component", &["reversal"])?)
}

#[cfg(test)]
mod tests;
