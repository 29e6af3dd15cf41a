//! Marketplace's share of the judgement (behaviour section 7).

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use super::{Allowed, Differences, Expectation, Received, by_id, judge_letters};
use crate::consumers::marketplace;

const RECEIVED: &str = "marketplace/order-received";

pub(super) fn check(
    expectation: &Expectation,
    seen: &Received,
    allowed: &Allowed,
    differences: &mut Differences,
) {
    let arrived = by_id(seen, &[RECEIVED]);
    let must: BTreeSet<String> = expectation.orders.keys().cloned().collect();
    differences.compare(&arrived, &must, &BTreeSet::new(), allowed.repeats);
    for (id, wanted) in &expectation.orders {
        for data in arrived.get(id).into_iter().flatten().filter(|data| **data != wanted) {
            differences.different.push(format!("{id}: {data}"));
        }
    }

    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    let orders = seen.events.iter().filter(|event| event.name == RECEIVED);
    for (at, id) in orders.filter_map(|event| event.id.as_deref()).enumerate() {
        first.entry(id).or_insert(at);
    }
    for history in &expectation.order_histories {
        // Events that did not arrive are reported as missing above.
        let there: Vec<&String> = history.iter().filter(|id| first.contains_key(&***id)).collect();
        for pair in there.windows(2).filter(|pair| first[&**pair[0]] > first[&**pair[1]]) {
            differences.different.push(format!("{}: came before what came before it", pair[1]));
        }
    }
    judge_letters(marketplace::SPEC.name, iter::empty(), seen, allowed, differences);
}
