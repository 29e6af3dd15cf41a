//! Mission's share of the judgement (behaviour section 5).

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use super::{Allowed, Differences, Expectation, Received, by_id, judge_letters, text};
use crate::consumers::mission;
use crate::fakes::active_missions;

const EVALUATE: &str = "mission/evaluate";

pub(super) fn check(
    expectation: &Expectation,
    seen: &Received,
    allowed: &Allowed,
    differences: &mut Differences,
) {
    let mut wanted = BTreeMap::new();
    for (event_type, row) in &expectation.mission {
        let Some(tenant) = expectation.tenants.get(row) else {
            differences.missing.push(format!("the record of {event_type} {row}"));
            continue;
        };
        for mission in active_missions(&tenant.merchant_id, event_type) {
            let id = format!("{EVALUATE}:{mission}:{event_type}:{row}");
            wanted.insert(id, (tenant, mission, event_type, row));
        }
    }
    let arrived = by_id(seen, &[EVALUATE]);
    let must: BTreeSet<String> = wanted.keys().cloned().collect();
    differences.compare(&arrived, &must, &BTreeSet::new(), allowed.repeats);
    for (id, (tenant, mission, event_type, row)) in &wanted {
        for data in arrived.get(id).into_iter().flatten() {
            let named = [
                ("user_id", &tenant.user_id),
                ("merchant_id", &tenant.merchant_id),
                ("mission_id", mission),
                ("event_type", event_type),
                ("trigger_id", row),
            ];
            let wrong = named.iter().filter(|(field, value)| text(data, field) != **value);
            for (field, _) in wrong {
                differences.different.push(format!("{id}: another {field}"));
            }
            if text(&data["event_data"], "id") != **row {
                differences.different.push(format!("{id}: event_data is another row"));
            }
        }
    }
    judge_letters(mission::SPEC.name, iter::empty(), seen, allowed, differences);
}
