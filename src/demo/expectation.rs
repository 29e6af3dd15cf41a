//! The judgement: what arrived against what the recorded truth expects. Pure.
//!
//! Each consumer has one module here and one entry in [`CHECKS`]; a consumer without a check does
//! not take part in the demo.

mod currency;
mod marketplace;
mod mission;
mod reward;
mod tier;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

pub(super) use self::tier::triggers;
use crate::config::Spec;
use crate::consumers;
use crate::fakes::currency_rows;

/// What the rules expect of the recorded changes, as `tests/fixtures/life/README.md` describes
/// it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Expectation {
    /// Ids of the awards.
    pub award: BTreeSet<String>,
    /// Sources that must be cancelled: type and id.
    pub cancelled_must: BTreeSet<(String, String)>,
    /// Sources that may be cancelled.
    pub cancelled_may: BTreeSet<(String, String)>,
    /// What must be taken back.
    pub reverse: Vec<Reverse>,
    /// Ids of reverses that are also allowed.
    pub reverse_may: BTreeSet<String>,
    /// Rows whose records end in the dead letter topic.
    pub dead_letter_rows: BTreeSet<String>,
    /// What may advance missions: event type and row.
    pub mission: BTreeSet<(String, String)>,
    /// The owners of those rows.
    #[serde(skip)]
    pub tenants: BTreeMap<String, Owner>,
    /// Members to evaluate, `user|merchant`.
    pub tier_members: BTreeSet<String>,
    /// By member: the number of the last record that calls for its evaluation, from 0 in the order
    /// of feeding.
    #[serde(skip)]
    pub last_triggers: BTreeMap<String, usize>,
    /// Codes that were redeemed.
    pub code_redeemed: Vec<RedeemedCode>,
    /// Redemptions asked for: the data of each one's event, by `event_id`.
    #[serde(skip)]
    pub redemptions: BTreeMap<String, Value>,
    /// Orders to be passed on: the data of each event, by its id.
    #[serde(skip)]
    pub orders: BTreeMap<String, Value>,
    /// The ids of one order's events, in their order.
    #[serde(skip)]
    pub order_histories: Vec<Vec<String>>,
}

/// The owner of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The customer; for a referral, the inviter.
    pub user_id: String,
    /// The merchant.
    pub merchant_id: String,
}

/// A code that was redeemed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RedeemedCode {
    /// Its row.
    pub code_id: u64,
    /// The code itself.
    pub code: String,
    /// Who redeemed it.
    pub user_id: String,
}

/// One reverse.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reverse {
    /// Its id.
    pub id: String,
    /// The row that takes back.
    pub source_id: String,
    /// The purchase that a debit row refunds.
    pub original_source_id: Option<String>,
    /// The share that a debit row takes back.
    pub refund_percentage: Option<f64>,
}

/// What was seen at the other end.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// Every event that Inngest stored, copies included, in order.
    pub events: Vec<Event>,
    /// Every record in the dead letter topic.
    pub dead_letters: Vec<Letter>,
    /// Evaluations of members, `user|merchant`, that Supabase answered.
    pub evaluated: BTreeMap<String, Evaluations>,
    /// The tiers that Supabase was asked to give to members at once, copies included.
    pub applied: BTreeMap<String, Vec<Value>>,
}

/// Evaluations of one member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evaluations {
    /// How many there were.
    pub times: usize,
    /// How many records had been fed when the last of them was answered.
    pub last_after: usize,
}

/// An event that Inngest stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its idempotency id.
    pub id: Option<String>,
    /// Its data.
    pub data: Value,
}

/// A record in the dead letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The consumer that set it aside.
    pub consumer: String,
    /// The row's id, or the whole key where that holds none.
    pub row: String,
    /// `dlq.error.kind`.
    pub kind: String,
    /// `dlq.error.message`.
    pub message: String,
    /// Topic, partition and offset of the record.
    pub origin: String,
}

/// What the fault of this run allows or calls for.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Whether an event may be sent again, with the same id and the same content.
    pub repeats: bool,
    /// Awards that Inngest refuses for good: their rows must become dead letters.
    pub refused: BTreeSet<String>,
    /// Records that nobody can read, each with a consumer that takes it: they must become dead
    /// letters.
    pub unreadable: BTreeSet<(&'static str, String)>,
}

/// Unexpected results, one line each, and counts of the expected ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Expected and not there.
    pub missing: Vec<String>,
    /// There and not expected, or there too often.
    pub extra: Vec<String>,
    /// There with another content.
    pub different: Vec<String>,
    /// Expected and there.
    pub right: usize,
    /// Events that came again with the same content, where that is allowed.
    pub repeated: usize,
}

impl Differences {
    /// Whether everything is as expected.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty()
    }

    /// Compares what arrived, by name, with what must and what may.
    fn compare(
        &mut self,
        arrived: &BTreeMap<String, Vec<&Value>>,
        must: &BTreeSet<String>,
        may: &BTreeSet<String>,
        repeats: bool,
    ) {
        for name in must {
            match arrived.contains_key(name) {
                true => self.right += 1,
                false => self.missing.push(name.clone()),
            }
        }
        for (name, copies) in arrived {
            if !must.contains(name) && !may.contains(name) {
                self.extra.push(name.clone());
                continue;
            }
            if copies.windows(2).any(|pair| pair[0] != pair[1]) {
                self.different.push(format!("{name}: its copies differ"));
            }
            match copies.len() - 1 {
                0 => {}
                again if repeats => self.repeated += again,
                again => self.extra.push(format!("{name}, sent {} times", again + 1)),
            }
        }
    }
}

impl Expectation {
    /// Expects what `other` expects as well.
    pub fn add(&mut self, other: Self) {
        self.award.extend(other.award);
        self.cancelled_must.extend(other.cancelled_must);
        self.cancelled_may.extend(other.cancelled_may);
        self.reverse.extend(other.reverse);
        self.reverse_may.extend(other.reverse_may);
        self.dead_letter_rows.extend(other.dead_letter_rows);
        self.mission.extend(other.mission);
        self.tenants.extend(other.tenants);
        self.tier_members.extend(other.tier_members);
        self.last_triggers.extend(other.last_triggers);
        self.code_redeemed.extend(other.code_redeemed);
        self.redemptions.extend(other.redemptions);
        self.orders.extend(other.orders);
        self.order_histories.extend(other.order_histories);
    }

    /// Awards that lead to an event here: Supabase's fake awards nothing to some sources.
    pub fn awards_with_rows(&self) -> impl Iterator<Item = &String> {
        self.award.iter().filter(|id| !currency_rows(row_of(id)).is_empty())
    }
}

/// One consumer's share of the judgement.
pub type Check = fn(&Expectation, &Received, &Allowed, &mut Differences);

/// A consumer of the demo.
pub struct CheckedConsumer {
    /// What it declares.
    pub spec: &'static Spec,
    check: Check,
}

/// The consumers of the demo.
pub static CHECKS: [CheckedConsumer; 5] = [
    CheckedConsumer { spec: &consumers::currency::SPEC, check: currency::check },
    CheckedConsumer { spec: &consumers::tier::SPEC, check: tier::check },
    CheckedConsumer { spec: &consumers::mission::SPEC, check: mission::check },
    CheckedConsumer { spec: &consumers::reward::SPEC, check: reward::check },
    CheckedConsumer { spec: &consumers::marketplace::SPEC, check: marketplace::check },
];

/// Judges every consumer.
#[must_use]
pub fn check(expectation: &Expectation, seen: &Received, allowed: &Allowed) -> Differences {
    let mut differences = Differences::default();
    for judged in &CHECKS {
        (judged.check)(expectation, seen, allowed, &mut differences);
    }
    differences
}

/// The last part of an event id: the row that it is about.
fn row_of(id: &str) -> &str {
    id.rsplit(':').next().unwrap_or(id)
}

/// Compares the dead letters of one consumer with the rows that must be among them, and with what
/// nobody can read.
fn judge_letters<'a>(
    consumer: &str,
    rows: impl Iterator<Item = &'a str>,
    seen: &Received,
    allowed: &Allowed,
    differences: &mut Differences,
) {
    let name = |row: &str| format!("dead letter of {consumer}: {row}");
    let unreadable = allowed.unreadable.iter().filter(|(taker, _)| *taker == consumer);
    let must = rows.map(name).chain(unreadable.map(|(_, row)| name(row))).collect();
    let mut letters: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for letter in seen.dead_letters.iter().filter(|letter| letter.consumer == consumer) {
        letters.entry(name(&letter.row)).or_default().push(&Value::Null);
    }
    differences.compare(&letters, &must, &BTreeSet::new(), allowed.repeats);
}

/// The data of events with these names, by id. An event without an id is listed under its name.
fn by_id<'a>(seen: &'a Received, names: &[&str]) -> BTreeMap<String, Vec<&'a Value>> {
    let mut found: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for event in seen.events.iter().filter(|event| names.contains(&event.name.as_str())) {
        let id = event.id.as_ref().unwrap_or(&event.name);
        found.entry(id.clone()).or_default().push(&event.data);
    }
    found
}

fn text(data: &Value, field: &str) -> String {
    data[field].as_str().unwrap_or_default().to_owned()
}
