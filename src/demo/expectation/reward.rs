//! Reward's share of the judgement (behaviour section 6).

use std::collections::BTreeSet;
use std::iter;

use super::{Allowed, Differences, Expectation, Received, by_id, judge_letters, text};
use crate::consumers::reward;

const NAMES: [&str; 3] = ["reward/redeemed", "reward/redemption-failed", "reward/code-redeemed"];

pub(super) fn check(
    expectation: &Expectation,
    seen: &Received,
    allowed: &Allowed,
    differences: &mut Differences,
) {
    let [redeemed, failed, code_redeemed] = NAMES;
    let redemption = |event_id: &str| {
        let success = &expectation.redemptions[event_id]["result"]["success"];
        format!("{}:{event_id}", if *success == true { redeemed } else { failed })
    };
    let code = |code_id: u64| format!("{code_redeemed}:{code_id}");
    let codes = expectation.code_redeemed.iter().map(|row| code(row.code_id));
    let must: BTreeSet<String> =
        expectation.redemptions.keys().map(|event_id| redemption(event_id)).chain(codes).collect();
    let arrived = by_id(seen, &NAMES);
    differences.compare(&arrived, &must, &BTreeSet::new(), allowed.repeats);
    for (event_id, wanted) in &expectation.redemptions {
        let id = redemption(event_id);
        for data in arrived.get(&id).into_iter().flatten().filter(|data| **data != wanted) {
            differences.different.push(format!("{id}: {data}"));
        }
    }
    for row in &expectation.code_redeemed {
        let id = code(row.code_id);
        for data in arrived.get(&id).into_iter().flatten() {
            let same = data["code_id"] == row.code_id
                && text(data, "code") == row.code
                && text(data, "user_id") == row.user_id;
            if !same {
                differences.different.push(format!("{id}: {data}"));
            }
        }
    }
    judge_letters(reward::SPEC.name, iter::empty(), seen, allowed, differences);
}
