//! Currency's share of the judgement (behaviour section 3).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Allowance, Demand, Findings, Reverse, Seen, judge_letters, row_of, text};
use crate::consumers::currency;
use crate::double::currency_rows;

pub(super) fn judge(demand: &Demand, seen: &Seen, allowance: &Allowance, findings: &mut Findings) {
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

    let refused = allowance.refused.iter().map(|id| row_of(id));
    let rows = demand.dead_letter_rows.iter().map(String::as_str).chain(refused);
    judge_letters(currency::NAME, rows, seen, allowance, findings);
}

/// What an event is about, written as its id is.
fn source_name(name: &str, data: &Value) -> String {
    format!("{name}:{}:{}", text(data, "source_type"), text(data, "source_id"))
}
