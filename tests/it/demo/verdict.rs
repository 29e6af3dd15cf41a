//! The demo's verdict fails when anything is missing, extra or different.

use crm_event_processors::demo::demand::{Allowance, Demand, Event, Findings, Letter, Seen, judge};
use crm_event_processors::demo::double::currency_rows;
use crm_event_processors::demo::recordings::Shipped;
use serde_json::{Value, json};

fn event(name: &str, id: Option<&str>, data: Value) -> Event {
    Event { name: name.to_owned(), id: id.map(str::to_owned), data }
}

/// What a faultless daemon would have sent.
fn perfect(demand: &Demand) -> Seen {
    let mut seen = Seen::default();
    for id in demand.awards_with_rows() {
        let [_, kind, row] = id.split(':').collect::<Vec<_>>()[..] else { panic!("{id}") };
        let data =
            json!({"source_type": kind, "source_id": row, "currency_rows": currency_rows(row)});
        seen.events.push(event("currency/award", Some(id), data));
    }
    for (kind, row) in &demand.cancelled_must {
        let data = json!({"source_type": kind, "source_id": row});
        seen.events.push(event("currency/cancelled", None, data));
    }
    for reverse in &demand.reverse {
        let mut data = json!({"source_type": "purchase", "source_id": reverse.source_id});
        if let (Some(original), Some(share)) =
            (&reverse.original_source_id, reverse.refund_percentage)
        {
            data["original_source_id"] = json!(original);
            data["refund_percentage"] = json!(share);
        }
        seen.events.push(event("currency/reverse", Some(&reverse.id), data));
    }
    seen.dead_letters = demand.dead_letter_rows.iter().map(|row| letter(row)).collect();
    seen
}

fn letter(row: &str) -> Letter {
    Letter {
        consumer: "currency".to_owned(),
        row: row.to_owned(),
        kind: "original_not_found".to_owned(),
        message: "not there".to_owned(),
        origin: "t 0@0".to_owned(),
    }
}

fn demand() -> Demand {
    Shipped::unpack().and_then(|shipped| shipped.round(0)).expect("a round").demand
}

/// Judges what is seen after `spoil`.
fn judged(allowance: &Allowance, spoil: impl FnOnce(&mut Seen)) -> Findings {
    let demand = demand();
    let mut seen = perfect(&demand);
    spoil(&mut seen);
    judge(&demand, &seen, allowance)
}

fn find<'a>(seen: &'a mut Seen, name: &str) -> &'a mut Event {
    seen.events.iter_mut().find(|event| event.name == name).expect("one of them")
}

#[test]
fn what_the_recordings_demand_is_right() {
    let findings = judged(&Allowance::default(), |_| {});
    assert!(findings.is_right(), "{findings:#?}");
    assert!(findings.right > 100);
}

#[test]
fn every_single_missing_event_or_dead_letter_is_named() {
    let all = perfect(&demand());
    for index in 0..all.events.len() {
        let findings = judged(&Allowance::default(), |seen| drop(seen.events.remove(index)));
        assert_eq!((findings.missing.len(), findings.extra.len()), (1, 0), "{index}");
    }
    for index in 0..all.dead_letters.len() {
        let findings = judged(&Allowance::default(), |seen| drop(seen.dead_letters.remove(index)));
        assert_eq!((findings.missing.len(), findings.extra.len()), (1, 0), "{index}");
    }
}

#[test]
fn events_that_nobody_demands_are_named() {
    for name in ["currency/award", "currency/cancelled", "currency/reverse"] {
        let findings = judged(&Allowance::default(), |seen| {
            let data = json!({"source_type": "purchase", "source_id": "x", "currency_rows": []});
            seen.events.push(event(name, None, data));
        });
        assert_eq!(findings.extra, [format!("{name}:purchase:x")]);
    }
    let findings = judged(&Allowance::default(), |seen| seen.dead_letters.push(letter("x")));
    assert_eq!(findings.extra, ["dead letter of currency: x"]);
}

#[test]
fn an_event_that_came_twice_is_wrong_unless_the_fault_allows_it() {
    for name in ["currency/award", "currency/cancelled", "currency/reverse"] {
        let twice = |seen: &mut Seen| {
            let copy = find(seen, name).clone();
            seen.events.push(copy);
        };
        assert_eq!(judged(&Allowance::default(), twice).extra.len(), 1);
        let allowed = Allowance { repeats: true, ..Allowance::default() };
        let findings = judged(&allowed, twice);
        assert!(findings.is_right(), "{findings:#?}");
        assert_eq!(findings.repeated, 1);
    }
}

#[test]
fn a_repeat_with_other_content_is_never_allowed() {
    let allowed = Allowance { repeats: true, ..Allowance::default() };
    let findings = judged(&allowed, |seen| {
        let mut copy = find(seen, "currency/cancelled").clone();
        copy.data["user_id"] = json!("somebody else");
        seen.events.push(copy);
    });
    assert_eq!(findings.different.len(), 1);
}

#[test]
fn wrong_content_is_named() {
    let rows = judged(&Allowance::default(), |seen| {
        find(seen, "currency/award").data["currency_rows"] = json!([]);
    });
    assert_eq!(rows.different.len(), 1, "{rows:#?}");
    let share = judged(&Allowance::default(), |seen| {
        let debit = seen.events.iter_mut().find(|e| !e.data["refund_percentage"].is_null());
        debit.expect("a partial refund").data["refund_percentage"] = json!(99.5);
    });
    assert_eq!(share.different.len(), 1, "{share:#?}");
}

#[test]
fn an_award_that_inngest_refuses_must_become_a_dead_letter() {
    let demand = demand();
    let refused = demand.awards_with_rows().next().expect("an award").clone();
    let allowance = Allowance { refused: [refused.clone()].into(), ..Allowance::default() };
    let sent = judged(&allowance, |_| {});
    assert_eq!(sent.extra, [refused.as_str()]);
    assert_eq!(sent.missing.len(), 1, "its dead letter");
    let row = refused.rsplit(':').next().expect("a row");
    let set_aside = judged(&allowance, |seen| {
        seen.events.retain(|event| event.id.as_ref() != Some(&refused));
        seen.dead_letters.push(letter(row));
    });
    assert!(set_aside.is_right(), "{set_aside:#?}");
}
