//! Tier's share of the judgement (behaviour section 4): every member is evaluated after its last
//! change, and what the evaluation recommends is done. How often is up to the consumer, since it
//! may evaluate several changes at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::iter;

use serde_json::{Value, json};

use super::{Allowed, Differences, Event, Expectation, Received, judge_letters, text};
use crate::consumers::tier;
use crate::fakes::tier_status;
use crate::recording::Recorded;

const CANCELLED: &str = "tier/upgrade-cancelled";
const UPGRADE: &str = "tier/upgrade";

pub(super) fn check(
    expectation: &Expectation,
    seen: &Received,
    allowed: &Allowed,
    differences: &mut Differences,
) {
    let mut events: BTreeMap<String, Vec<&Event>> = BTreeMap::new();
    for event in seen.events.iter().filter(|event| [CANCELLED, UPGRADE].contains(&&*event.name)) {
        let (user, merchant) = (text(&event.data, "user_id"), text(&event.data, "merchant_id"));
        events.entry(format!("{user}|{merchant}")).or_default().push(event);
    }
    for member in &expectation.tier_members {
        let evaluations = seen.evaluated.get(member).copied().unwrap_or_default();
        match expectation.last_triggers.get(member) {
            Some(last) if evaluations.last_after > *last => differences.right += 1,
            _ => differences
                .missing
                .push(format!("tier evaluation of {member} after its last change")),
        }
        let sent = events.remove(member).unwrap_or_default();
        let applied = seen.applied.get(member).map_or(&[][..], Vec::as_slice);
        judge_member(member, evaluations.times, &sent, applied, differences);
    }
    let others: BTreeSet<&String> =
        events.keys().chain(seen.evaluated.keys()).chain(seen.applied.keys()).collect();
    for member in others.into_iter().filter(|member| !expectation.tier_members.contains(*member)) {
        differences.extra.push(format!("tier evaluation or events of {member}"));
    }
    judge_letters(tier::SPEC.name, iter::empty(), seen, allowed, differences);
}

fn judge_member(
    member: &str,
    evaluations: usize,
    sent: &[&Event],
    applied: &[Value],
    differences: &mut Differences,
) {
    let (user, merchant) = member.split_once('|').unwrap_or((member, ""));
    let status = tier_status(user, merchant);
    let (cancels, upgrades) = match status["recommended_action"].as_str() {
        Some("upgrade") => (true, true),
        Some("maintain" | "downgrade") => (true, false),
        _ => (false, false),
    };
    let scheduled = upgrades && !status["effective_at"].is_null();
    let count = |name: &str| sent.iter().filter(|event| event.name == name).count();
    for (what, wanted, found) in [
        (CANCELLED, cancels, count(CANCELLED)),
        (UPGRADE, scheduled, count(UPGRADE)),
        ("rpc apply_tier_upgrade", upgrades && !scheduled, applied.len()),
    ] {
        match (wanted, found) {
            (true, 0) => differences.missing.push(format!("{what}:{member}")),
            (false, 0) => {}
            (true, found) if found <= evaluations => differences.right += 1,
            (_, found) => differences.extra.push(format!("{what}:{member}, {found} times")),
        }
    }
    if scheduled && !sent.is_empty() && !in_order(sent) {
        differences
            .different
            .push(format!("{UPGRADE}:{member}: not each after a cancel of its own"));
    }
    let tier = &status["recommended_tier_id"];
    let plain = json!({"user_id": user, "merchant_id": merchant});
    let mut full = plain.clone();
    full["to_tier_id"] = tier.clone();
    full["to_tier_ranking"] = status["to_tier_ranking"].clone();
    full["effective_at"] = status["effective_at"].clone();
    for event in sent {
        let wanted = if event.name == UPGRADE { &full } else { &plain };
        if event.data != *wanted || event.id.is_some() {
            differences.different.push(format!("{}:{member}: {}", event.name, event.data));
        }
    }
    if applied.iter().any(|given| given != tier) {
        differences.different.push(format!("rpc apply_tier_upgrade:{member}: another tier"));
    }
}

/// Whether a cancel comes right before each upgrade, and none comes last, where it would stop the
/// upgrade.
fn in_order(sent: &[&Event]) -> bool {
    let begins = sent.first().is_some_and(|event| event.name == CANCELLED);
    let ends = sent.last().is_some_and(|event| event.name == UPGRADE);
    let mut upgrades = sent.windows(2).filter(|pair| pair[1].name == UPGRADE);
    begins && ends && upgrades.all(|pair| pair[0].name == CANCELLED)
}

/// For each record, the member that it calls to evaluate, if any. A record that the connector
/// repeats calls for nothing, since the first one did.
pub(in crate::demo) fn triggers(records: &[Recorded]) -> Vec<Option<String>> {
    let mut known = HashSet::new();
    let triggers = records.iter().map(|record| {
        let change: Value = serde_json::from_slice(record.value.as_deref()?).ok()?;
        let place = (&record.topic, &record.key, change["source"]["lsn"].as_u64()?);
        (known.insert(place) && calls(&record.topic, &change)).then_some(())?;
        let row = &change["after"];
        Some(format!("{}|{}", row["user_id"].as_str()?, row["merchant_id"].as_str()?))
    });
    triggers.collect()
}

/// Behaviour section 4, for changes with whole `before` or none, without snapshots.
fn calls(topic: &str, change: &Value) -> bool {
    let (op, before, row) = (&change["op"], &change["before"], &change["after"]);
    let live = *op == "c" || *op == "u";
    let purchase = || match row["status"].as_str() {
        Some("completed" | "refunded") => true,
        Some("cancelled") if *op == "u" => before.is_null() || before["status"] == "completed",
        _ => row["record_type"] == "debit",
    };
    match topic.rsplit('.').next() {
        Some("purchase_ledger") => live && purchase(),
        Some("wallet_ledger") => live && row["transaction_type"] == "earn",
        _ => false,
    }
}
