//! Currency's share of the judgement (behaviour section 3).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Allowed, Differences, Expectation, Received, Reverse, judge_letters, row_of, text};
use crate::consumers::currency;
use crate::fakes::currency_rows;

pub(super) fn check(
    expectation: &Expectation,
    seen: &Received,
    allowed: &Allowed,
    differences: &mut Differences,
) {
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

    let must: BTreeSet<String> = expectation
        .awards_with_rows()
        .filter(|id| !allowed.refused.contains(*id))
        .cloned()
        .collect();
    differences.compare(&awards, &must, &BTreeSet::new(), allowed.repeats);
    for (id, copies) in &awards {
        let rows = Value::from(currency_rows(row_of(id)));
        if copies.iter().any(|data| data["currency_rows"] != rows) {
            differences.different.push(format!("{id}: not the rows that the function answered"));
        }
        if copies.iter().any(|data| source_name("currency/award", data) != *id) {
            differences.different.push(format!("{id}: its data name another source"));
        }
    }

    let names = |sources: &BTreeSet<(String, String)>| -> BTreeSet<String> {
        sources.iter().map(|(kind, id)| format!("currency/cancelled:{kind}:{id}")).collect()
    };
    let (must, may) = (names(&expectation.cancelled_must), names(&expectation.cancelled_may));
    differences.compare(&cancelled, &must, &may, allowed.repeats);

    let must = expectation.reverse.iter().map(|reverse| reverse.id.clone()).collect();
    differences.compare(&reversed, &must, &expectation.reverse_may, allowed.repeats);
    for wanted in &expectation.reverse {
        for data in reversed.get(&wanted.id).into_iter().flatten() {
            let sent = Reverse {
                id: wanted.id.clone(),
                source_id: text(data, "source_id"),
                original_source_id: data["original_source_id"].as_str().map(str::to_owned),
                refund_percentage: data["refund_percentage"].as_f64(),
            };
            if sent != *wanted {
                differences.different.push(format!("{}: {data}", wanted.id));
            }
        }
    }

    let refused = allowed.refused.iter().map(|id| row_of(id));
    let rows = expectation.dead_letter_rows.iter().map(String::as_str).chain(refused);
    judge_letters(currency::SPEC.name, rows, seen, allowed, differences);
}

/// What an event is about, written as its id is.
fn source_name(name: &str, data: &Value) -> String {
    format!("{name}:{}:{}", text(data, "source_type"), text(data, "source_id"))
}
