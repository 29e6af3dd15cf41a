//! The judgement: what arrived against what the recorded truth demands. Pure.
//!
//! Each consumer has one function here and one line in [`JUDGES`]; a consumer without a judge does
//! not take part in the demo.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::double::currency_rows;
use crate::config::ConsumerName;
use crate::consumers::currency;

/// What the rules demand of the recorded changes, as `tests/fixtures/life/README.md` describes it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Demand {
    /// Ids of the awards.
    pub award: BTreeSet<String>,
    /// Sources that must be cancelled: type and id.
    pub cancelled_must: BTreeSet<(String, String)>,
    /// Sources that may be.
    pub cancelled_may: BTreeSet<(String, String)>,
    /// What must be taken back.
    pub reverse: Vec<Reverse>,
    /// Ids of reverses that are allowed besides.
    pub reverse_may: BTreeSet<String>,
    /// Rows whose records end in the dead letter topic.
    pub dead_letter_rows: BTreeSet<String>,
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
pub struct Seen {
    /// Every event that Inngest stored, copies included, in order.
    pub events: Vec<Event>,
    /// Every record in the dead letter topic.
    pub dead_letters: Vec<Letter>,
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
    /// Who set it aside.
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
pub struct Allowance {
    /// Whether an event may be sent again, with the same id and the same content.
    pub repeats: bool,
    /// Awards that Inngest refuses for good: their rows must become dead letters.
    pub refused: BTreeSet<String>,
    /// Rows whose records nobody can read: they must become dead letters.
    pub unreadable: BTreeSet<String>,
}

/// What is not as demanded, one line each; and what is, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Demanded and not there.
    pub missing: Vec<String>,
    /// There and not demanded, or there too often.
    pub extra: Vec<String>,
    /// There with another content.
    pub different: Vec<String>,
    /// Demanded and there.
    pub right: usize,
    /// Events that came again with the same content, where that is allowed.
    pub repeated: usize,
}

impl Findings {
    /// Whether everything is as demanded.
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

impl Demand {
    /// Demands both.
    pub fn add(&mut self, other: Self) {
        self.award.extend(other.award);
        self.cancelled_must.extend(other.cancelled_must);
        self.cancelled_may.extend(other.cancelled_may);
        self.reverse.extend(other.reverse);
        self.reverse_may.extend(other.reverse_may);
        self.dead_letter_rows.extend(other.dead_letter_rows);
    }

    /// Awards that lead to an event here: Supabase's double awards nothing to some sources.
    pub fn awards_with_rows(&self) -> impl Iterator<Item = &String> {
        self.award.iter().filter(|id| !currency_rows(row_of(id)).is_empty())
    }
}

/// One consumer's share of the judgement.
pub type Judge = fn(&Demand, &Seen, &Allowance, &mut Findings);

/// A consumer of the demo: who, which tables it takes, and who judges it.
pub const JUDGES: [(ConsumerName, &[&str], Judge); 1] =
    [(ConsumerName::Currency, &currency::TABLES, judge_currency)];

/// Judges every consumer.
#[must_use]
pub fn judge(demand: &Demand, seen: &Seen, allowance: &Allowance) -> Findings {
    let mut findings = Findings::default();
    for (_, _, judge) in JUDGES {
        judge(demand, seen, allowance, &mut findings);
    }
    findings
}

/// The last part of an event id: the row that it is about.
fn row_of(id: &str) -> &str {
    id.rsplit(':').next().unwrap_or(id)
}

fn judge_currency(demand: &Demand, seen: &Seen, allowance: &Allowance, findings: &mut Findings) {
    let (mut awards, mut cancelled, mut reversed) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for event in &seen.events {
        let by_name: &mut BTreeMap<String, Vec<&Value>> = match event.name.as_str() {
            "currency/award" => &mut awards,
            "currency/cancelled" => &mut cancelled,
            "currency/reverse" => &mut reversed,
            _ => continue,
        };
        let id = event.id.clone().unwrap_or_else(|| source_name(&event.name, &event.data));
        by_name.entry(id).or_default().push(&event.data);
    }

    let must: BTreeSet<String> =
        demand.awards_with_rows().filter(|id| !allowance.refused.contains(*id)).cloned().collect();
    findings.compare(&awards, &must, &BTreeSet::new(), allowance.repeats);
    for (id, copies) in &awards {
        let rows = Value::from(currency_rows(row_of(id)));
        if copies.iter().any(|data| data["currency_rows"] != rows) {
            findings.different.push(format!("{id}: not the rows that the function answered"));
        }
        if copies.iter().any(|data| source_name("currency/award", data) != *id) {
            findings.different.push(format!("{id}: its data name another source"));
        }
    }

    let names = |sources: &BTreeSet<(String, String)>| -> BTreeSet<String> {
        sources.iter().map(|(kind, id)| format!("currency/cancelled:{kind}:{id}")).collect()
    };
    let (must, may) = (names(&demand.cancelled_must), names(&demand.cancelled_may));
    findings.compare(&cancelled, &must, &may, allowance.repeats);

    let must = demand.reverse.iter().map(|reverse| reverse.id.clone()).collect();
    findings.compare(&reversed, &must, &demand.reverse_may, allowance.repeats);
    for wanted in &demand.reverse {
        for data in reversed.get(&wanted.id).into_iter().flatten() {
            let sent = Reverse {
                id: wanted.id.clone(),
                source_id: text(data, "source_id"),
                original_source_id: data["original_source_id"].as_str().map(str::to_owned),
                refund_percentage: data["refund_percentage"].as_f64(),
            };
            if sent != *wanted {
                findings.different.push(format!("{}: {data}", wanted.id));
            }
        }
    }

    let must: BTreeSet<String> = demand
        .dead_letter_rows
        .iter()
        .chain(&allowance.unreadable)
        .map(String::as_str)
        .chain(allowance.refused.iter().map(|id| row_of(id)))
        .map(|row| format!("dead letter of currency: {row}"))
        .collect();
    let mut letters: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for letter in seen.dead_letters.iter().filter(|letter| letter.consumer == currency::NAME) {
        let name = format!("dead letter of currency: {}", letter.row);
        letters.entry(name).or_default().push(&Value::Null);
    }
    findings.compare(&letters, &must, &BTreeSet::new(), allowance.repeats);
}

/// What an event is about, written as its id is.
fn source_name(name: &str, data: &Value) -> String {
    format!("{name}:{}:{}", text(data, "source_type"), text(data, "source_id"))
}

fn text(data: &Value, field: &str) -> String {
    data[field].as_str().unwrap_or_default().to_owned()
}
