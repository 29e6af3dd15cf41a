//! The demo's verdict fails when anything is missing, extra or different.

use crm_event_processors::demo::expectation::{
    Allowed, Differences, Evaluations, Event, Expectation, Letter, Received, check,
};
use crm_event_processors::demo::recordings::Bundled;
use crm_event_processors::fakes::{active_missions, currency_rows, tier_status};
use serde_json::{Value, json};

const CANCELLED: &str = "tier/upgrade-cancelled";
const UPGRADE: &str = "tier/upgrade";
/// Names of events of mission, reward and marketplace, all with ids.
const NAMES_WITH_ID: [&str; 5] = [
    "mission/evaluate",
    "reward/redeemed",
    "reward/redemption-failed",
    "reward/code-redeemed",
    "marketplace/order-received",
];
/// Number of the record that called last for any member's evaluation.
const TRIGGERED: usize = 100;

fn event(name: &str, id: Option<&str>, data: Value) -> Event {
    Event { name: name.to_owned(), id: id.map(str::to_owned), data }
}

/// What a faultless daemon would have sent.
fn perfect(expectation: &Expectation) -> Received {
    let mut seen = Received::default();
    for id in expectation.awards_with_rows() {
        let [_, kind, row] = id.split(':').collect::<Vec<_>>()[..] else { panic!("{id}") };
        let data =
            json!({"source_type": kind, "source_id": row, "currency_rows": currency_rows(row)});
        seen.events.push(event("currency/award", Some(id), data));
    }
    for (kind, row) in &expectation.cancelled_must {
        let data = json!({"source_type": kind, "source_id": row});
        seen.events.push(event("currency/cancelled", None, data));
    }
    for reverse in &expectation.reverse {
        let mut data = json!({"source_type": "purchase", "source_id": reverse.source_id});
        if let (Some(original), Some(share)) =
            (&reverse.original_source_id, reverse.refund_percentage)
        {
            data["original_source_id"] = json!(original);
            data["refund_percentage"] = json!(share);
        }
        seen.events.push(event("currency/reverse", Some(&reverse.id), data));
    }
    seen.dead_letters =
        expectation.dead_letter_rows.iter().map(|row| letter("currency", row)).collect();
    for member in &expectation.tier_members {
        evaluate(member, &mut seen);
    }
    for (event_type, row) in &expectation.mission {
        let owner = &expectation.tenants[row];
        for mission in active_missions(&owner.merchant_id, event_type) {
            let id = format!("mission/evaluate:{mission}:{event_type}:{row}");
            let data = json!({"user_id": owner.user_id, "merchant_id": owner.merchant_id,
                "mission_id": mission, "event_type": event_type, "event_data": {"id": row},
                "trigger_id": row});
            seen.events.push(event("mission/evaluate", Some(&id), data));
        }
    }
    for (event_id, data) in &expectation.redemptions {
        let success = data["result"]["success"] == true;
        let name = if success { "reward/redeemed" } else { "reward/redemption-failed" };
        seen.events.push(event(name, Some(&format!("{name}:{event_id}")), data.clone()));
    }
    for row in &expectation.code_redeemed {
        let data = json!({"code_id": row.code_id, "code": row.code, "user_id": row.user_id,
            "merchant_id": "m", "redeemed_at": null});
        let id = format!("reward/code-redeemed:{}", row.code_id);
        seen.events.push(event("reward/code-redeemed", Some(&id), data));
    }
    for id in expectation.order_histories.iter().flatten() {
        seen.events.push(event(
            "marketplace/order-received",
            Some(id),
            expectation.orders[id].clone(),
        ));
    }
    seen
}

/// One evaluation of a member and what follows from it.
fn evaluate(member: &str, seen: &mut Received) {
    let evaluations = Evaluations { times: 1, last_after: TRIGGERED + 1 };
    seen.evaluated.insert(member.to_owned(), evaluations);
    let (user, merchant) = member.split_once('|').expect("a member");
    let status = tier_status(user, merchant);
    if status["recommended_action"] == "assign_entry" {
        return;
    }
    let mut data = json!({"user_id": user, "merchant_id": merchant});
    seen.events.push(event(CANCELLED, None, data.clone()));
    if status["recommended_action"] != "upgrade" {
        return;
    }
    let tier = status["recommended_tier_id"].clone();
    if status["effective_at"].is_null() {
        seen.applied.insert(member.to_owned(), vec![tier]);
        return;
    }
    data["to_tier_id"] = tier;
    data["to_tier_ranking"] = status["to_tier_ranking"].clone();
    data["effective_at"] = status["effective_at"].clone();
    seen.events.push(event(UPGRADE, None, data));
}

fn letter(consumer: &str, row: &str) -> Letter {
    Letter {
        consumer: consumer.to_owned(),
        row: row.to_owned(),
        kind: "original_not_found".to_owned(),
        message: "not there".to_owned(),
        origin: "t 0@0".to_owned(),
    }
}

fn expectation() -> Expectation {
    let round = Bundled::unpack().and_then(|shipped| shipped.round(0)).expect("a round");
    let mut expectation = round.expectation;
    expectation.last_triggers =
        expectation.tier_members.iter().map(|member| (member.clone(), TRIGGERED)).collect();
    expectation
}

/// The verdict on what was received, after `spoil`.
fn judged(allowed: &Allowed, spoil: impl FnOnce(&mut Received)) -> Differences {
    let expectation = expectation();
    let mut seen = perfect(&expectation);
    spoil(&mut seen);
    check(&expectation, &seen, allowed)
}

fn find<'a>(seen: &'a mut Received, name: &str) -> &'a mut Event {
    seen.events.iter_mut().find(|event| event.name == name).expect("one of them")
}

#[test]
fn what_the_recordings_demand_is_right() {
    let differences = judged(&Allowed::default(), |_| {});
    assert!(differences.is_right(), "{differences:#?}");
    assert!(differences.right > 100);
}

#[test]
fn every_single_missing_event_or_dead_letter_is_named() {
    let all = perfect(&expectation());
    for index in 0..all.events.len() {
        let differences = judged(&Allowed::default(), |seen| drop(seen.events.remove(index)));
        assert_eq!((differences.missing.len(), differences.extra.len()), (1, 0), "{index}");
    }
    for index in 0..all.dead_letters.len() {
        let differences = judged(&Allowed::default(), |seen| drop(seen.dead_letters.remove(index)));
        assert_eq!((differences.missing.len(), differences.extra.len()), (1, 0), "{index}");
    }
}

#[test]
fn events_that_nobody_demands_are_named() {
    for name in ["currency/award", "currency/cancelled", "currency/reverse"] {
        let differences = judged(&Allowed::default(), |seen| {
            let data = json!({"source_type": "purchase", "source_id": "x", "currency_rows": []});
            seen.events.push(event(name, None, data));
        });
        assert_eq!(differences.extra, [format!("{name}:purchase:x")]);
    }
    for name in NAMES_WITH_ID {
        let differences = judged(&Allowed::default(), |seen| {
            seen.events.push(event(name, Some("x"), json!({})));
        });
        assert_eq!(differences.extra, ["x"], "{name}");
    }
    for name in [CANCELLED, UPGRADE] {
        let differences = judged(&Allowed::default(), |seen| {
            let data = json!({"user_id": "nobody", "merchant_id": "m"});
            seen.events.push(event(name, None, data));
        });
        assert_eq!(differences.extra, ["tier evaluation or events of nobody|m"], "{name}");
    }
    for consumer in ["currency", "tier", "mission", "reward", "marketplace"] {
        let differences =
            judged(&Allowed::default(), |seen| seen.dead_letters.push(letter(consumer, "x")));
        assert_eq!(differences.extra, [format!("dead letter of {consumer}: x")]);
    }
}

#[test]
fn an_event_that_came_twice_is_wrong_unless_the_fault_allows_it() {
    let names = ["currency/award", "currency/cancelled", "currency/reverse"];
    for name in names.into_iter().chain(NAMES_WITH_ID) {
        let twice = |seen: &mut Received| {
            let copy = find(seen, name).clone();
            seen.events.push(copy);
        };
        assert_eq!(judged(&Allowed::default(), twice).extra.len(), 1, "{name}");
        let allowed = Allowed { repeats: true, ..Allowed::default() };
        let differences = judged(&allowed, twice);
        assert!(differences.is_right(), "{differences:#?}");
        assert_eq!(differences.repeated, 1);
    }
}

#[test]
fn a_repeat_with_other_content_is_never_allowed() {
    let allowed = Allowed { repeats: true, ..Allowed::default() };
    let differences = judged(&allowed, |seen| {
        let mut copy = find(seen, "currency/cancelled").clone();
        copy.data["user_id"] = json!("somebody else");
        seen.events.push(copy);
    });
    assert_eq!(differences.different.len(), 1);
}

#[test]
fn wrong_content_is_named() {
    let rows = judged(&Allowed::default(), |seen| {
        find(seen, "currency/award").data["currency_rows"] = json!([]);
    });
    assert_eq!(rows.different.len(), 1, "{rows:#?}");
    let share = judged(&Allowed::default(), |seen| {
        let debit = seen.events.iter_mut().find(|e| !e.data["refund_percentage"].is_null());
        debit.expect("a partial refund").data["refund_percentage"] = json!(99.5);
    });
    assert_eq!(share.different.len(), 1, "{share:#?}");
}

#[test]
fn an_award_that_inngest_refuses_must_become_a_dead_letter() {
    let expectation = expectation();
    let refused = expectation.awards_with_rows().next().expect("an award").clone();
    let allowed = Allowed { refused: [refused.clone()].into(), ..Allowed::default() };
    let sent = judged(&allowed, |_| {});
    assert_eq!(sent.extra, [refused.as_str()]);
    assert_eq!(sent.missing.len(), 1, "its dead letter");
    let row = refused.rsplit(':').next().expect("a row");
    let set_aside = judged(&allowed, |seen| {
        seen.events.retain(|event| event.id.as_ref() != Some(&refused));
        seen.dead_letters.push(letter("currency", row));
    });
    assert!(set_aside.is_right(), "{set_aside:#?}");
}

#[test]
fn content_of_the_others_that_is_wrong_is_named() {
    for (name, field) in [
        ("mission/evaluate", "user_id"),
        ("mission/evaluate", "merchant_id"),
        ("mission/evaluate", "mission_id"),
        ("mission/evaluate", "event_type"),
        ("mission/evaluate", "event_data"),
        ("mission/evaluate", "trigger_id"),
        ("reward/redeemed", "quantity"),
        ("reward/redeemed", "result"),
        ("reward/redemption-failed", "result"),
        ("reward/code-redeemed", "code_id"),
        ("reward/code-redeemed", "user_id"),
        ("marketplace/order-received", "shop_id"),
        ("marketplace/order-received", "platform"),
        (UPGRADE, "to_tier_id"),
        (UPGRADE, "effective_at"),
    ] {
        let differences = judged(&Allowed::default(), |seen| {
            find(seen, name).data[field] = json!(4711);
        });
        assert_eq!(differences.different.len(), 1, "{name} {field}: {differences:#?}");
    }
}

#[test]
fn a_member_must_be_evaluated_after_its_last_change_and_nobody_else_may_be() {
    let early = judged(&Allowed::default(), |seen| {
        let evaluations = seen.evaluated.values_mut().next().expect("a member");
        evaluations.last_after = TRIGGERED;
    });
    assert_eq!((early.missing.len(), early.extra.len()), (1, 0), "{early:#?}");
    let nobody = judged(&Allowed::default(), |seen| {
        let evaluations = Evaluations { times: 1, last_after: TRIGGERED + 1 };
        seen.evaluated.insert("nobody|m".to_owned(), evaluations);
    });
    assert_eq!(nobody.extra, ["tier evaluation or events of nobody|m"]);
}

#[test]
fn tiers_that_are_not_given_or_given_otherwise_are_named() {
    let applied = |spoil: fn(&mut Vec<Value>)| {
        judged(&Allowed::default(), |seen| {
            spoil(seen.applied.values_mut().next().expect("an upgrade at once"));
        })
    };
    assert_eq!(applied(Vec::clear).missing.len(), 1);
    assert_eq!(applied(|tiers| tiers.push(tiers[0].clone())).extra.len(), 1);
    assert_eq!(applied(|tiers| tiers[0] = json!("another")).different.len(), 1);
}

#[test]
fn more_upgrades_or_cancels_than_evaluations_are_named_and_as_many_are_right() {
    let member = |seen: &Received| {
        let data = &seen.events.iter().find(|event| event.name == UPGRADE).expect("one").data;
        format!(
            "{}|{}",
            data["user_id"].as_str().unwrap_or(""),
            data["merchant_id"].as_str().unwrap_or("")
        )
    };
    let again = |seen: &mut Received| {
        let upgrade = find(seen, UPGRADE).clone();
        let mut data = json!({});
        for field in ["user_id", "merchant_id"] {
            data[field] = upgrade.data[field].clone();
        }
        seen.events.extend([event(CANCELLED, None, data), upgrade]);
    };
    assert_eq!(judged(&Allowed::default(), again).extra.len(), 2);
    let differences = judged(&Allowed::default(), |seen| {
        again(seen);
        let member = member(seen);
        seen.evaluated.get_mut(&member).expect("evaluated").times = 2;
    });
    assert!(differences.is_right(), "{differences:#?}");
}

#[test]
fn an_upgrade_must_come_after_its_own_cancel_and_the_last_cancel_before_it() {
    let differences = judged(&Allowed::default(), |seen| {
        let at = seen.events.iter().position(|event| event.name == UPGRADE).expect("one");
        seen.events.swap(at - 1, at);
    });
    assert_eq!(differences.different.len(), 1, "{differences:#?}");
}

#[test]
fn an_order_whose_states_come_in_another_order_is_named() {
    let differences = judged(&Allowed::default(), |seen| {
        let received = |event: &Event| event.name == "marketplace/order-received";
        let at = seen.events.iter().position(received).expect("an order");
        seen.events.swap(at, at + 1);
    });
    assert_eq!(differences.different.len(), 1, "{differences:#?}");
}

#[test]
fn what_nobody_can_read_must_be_set_aside_by_each_consumer_that_takes_it() {
    let unreadable = ["tier", "marketplace"].map(|consumer| (consumer, "x".to_owned()));
    let allowed = Allowed { unreadable: unreadable.into(), ..Allowed::default() };
    let half = |seen: &mut Received| seen.dead_letters.push(letter("tier", "x"));
    assert_eq!(judged(&allowed, half).missing, ["dead letter of marketplace: x"]);
    let whole = judged(&allowed, |seen| {
        half(seen);
        seen.dead_letters.push(letter("marketplace", "x"));
    });
    assert!(whole.is_right(), "{whole:#?}");
}
