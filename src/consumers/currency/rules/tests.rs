use serde_json::{Value, json};

use super::*;
use crate::consumers::testing::{ALL, hours, with_change};

/// What a change of a purchase calls for, or the skip's reason.
fn routed(op: &str, before: Value, after: Value) -> Result<Work, &'static str> {
    let now = Timestamp::now();
    let envelope = json!({"op": op, "before": before, "after": after,
        "ts_ms": now.as_millisecond(), "source": {"ts_ms": now.as_millisecond()}});
    let route = with_change("purchase_ledger", &envelope, |change| route(change, &ALL, now));
    match route.expect("decodes") {
        Route::Process { work, .. } => Ok(work),
        Route::Skip(reason) => Err(reason),
    }
}

fn purchase(status: &str, changes: Value) -> Value {
    let mut row = json!({"id": "p", "user_id": "u", "merchant_id": "m", "status": status,
        "record_type": "credit", "earn_currency": true, "created_at": hours(Timestamp::now(), -1)});
    row.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
    row
}

fn source() -> Source {
    let (id, user_id, merchant_id) = ("p".into(), "u".into(), "m".into());
    Source { kind: "purchase", id, user_id, merchant_id }
}

#[test]
fn a_purchase_that_counted_is_taken_back_even_if_it_is_said_to_earn_nothing_by_then() {
    let refund = Work::Refund { source: source(), ask_wallet: false };
    let nothing = json!({"earn_currency": false});
    for status in ["refunded", "cancelled"] {
        let counted = purchase("completed", json!({}));
        assert_eq!(routed("u", counted, purchase(status, nothing.clone())), Ok(refund.clone()));
        let never = purchase("completed", nothing.clone());
        for before in [never, Value::Null] {
            let after = purchase(status, nothing.clone());
            assert_eq!(routed("u", before, after), Err("does_not_count"));
        }
    }
}

#[test]
fn a_state_before_that_is_not_known_is_no_state() {
    let unknown = json!({"id": "p", "status": "__debezium_unavailable_value"});
    let refunded = routed("u", unknown.clone(), purchase("refunded", json!({})));
    assert_eq!(refunded, Ok(Work::Refund { source: source(), ask_wallet: false }));
    let old = json!({"created_at": hours(Timestamp::now(), -30 * 24)});
    let edited = routed("u", unknown, purchase("completed", old));
    assert!(matches!(edited, Ok(Work::Award { ask_wallet: true, .. })), "{edited:?}");
}

#[test]
fn an_anonymous_sale_counts_when_it_gets_its_user_and_is_taken_back_only_then() {
    let anonymous = |status| purchase(status, json!({"user_id": null}));
    assert_eq!(routed("c", Value::Null, anonymous("completed")), Err("anonymous"));
    assert_eq!(routed("u", anonymous("completed"), anonymous("completed")), Err("anonymous"));
    let claimed = routed("u", anonymous("completed"), purchase("completed", json!({})));
    assert!(matches!(claimed, Ok(Work::Award { ask_wallet: false, .. })), "{claimed:?}");
    let refunded = routed("u", anonymous("completed"), purchase("refunded", json!({})));
    assert_eq!(refunded, Err("never_counted"));
    let part = json!({"id": "p", "status": "completed"});
    let edited = routed("u", part, purchase("completed", json!({})));
    assert_eq!(edited, Err("counted_before"), "a before without the user's column tells enough");
}
