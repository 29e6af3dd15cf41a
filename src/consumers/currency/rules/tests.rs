use serde_json::{Value, json};

use super::*;
use crate::consumers::testing::{ALL, hours, with_change};

fn settings() -> Settings {
    let taken_back = ["revoked", "rejected", "cancelled", "refunded", "void"];
    Settings { snapshot: ALL, taken_back: taken_back.map(Into::into).into() }
}

/// What a change of a purchase calls for, or the skip's reason.
fn routed(op: &str, before: Value, after: Value) -> Result<Work, &'static str> {
    routed_in("purchase_ledger", op, before, after)
}

fn routed_in(table: &str, op: &str, before: Value, after: Value) -> Result<Work, &'static str> {
    let now = Timestamp::now();
    let envelope = json!({"op": op, "before": before, "after": after,
        "ts_ms": now.as_millisecond(), "source": {"ts_ms": now.as_millisecond()}});
    let route = with_change(table, &envelope, |change| route(change, &settings(), now));
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

/// Whether it takes back the whole, and whether it first asks the wallet.
fn refunds(routed: Result<Work, &'static str>) -> Result<bool, String> {
    match routed {
        Ok(Work::Refund(refund)) => Ok(refund.check_wallet),
        other => Err(format!("{other:?}")),
    }
}

/// Since when it counts.
fn awards(routed: Result<Work, &'static str>) -> Result<Turn, String> {
    match routed {
        Ok(Work::Award { turn, .. }) => Ok(turn),
        other => Err(format!("{other:?}")),
    }
}

fn old() -> Value {
    json!({"created_at": hours(Timestamp::now(), -30 * 24)})
}

#[test]
fn a_purchase_is_taken_back_from_any_status_but_pending_and_those_that_took_it_back() {
    for status in ["refunded", "cancelled", " Refunded "] {
        for before in ["completed", "partially_refunded", "processing", "COMPLETED", "shipped"] {
            let (before, after) = (purchase(before, json!({})), purchase(status, json!({})));
            assert_eq!(refunds(routed("u", before.clone(), after)), Ok(false), "{before}");
        }
        let after = || purchase(status, json!({}));
        let pending = purchase("pending", json!({}));
        assert_eq!(routed("u", pending, after()), Err("never_counted"));
        assert_eq!(routed("c", Value::Null, after()), Err("never_counted"));
        for before in ["refunded", "cancelled"] {
            let before = purchase(before, json!({}));
            assert_eq!(routed("u", before, after()), Err("counted_before"));
        }
        assert_eq!(refunds(routed("u", Value::Null, after())), Ok(false), "it may have counted");
        assert_eq!(refunds(routed("u", Value::Null, purchase(status, old()))), Ok(true));
    }
}

#[test]
fn what_was_a_debit_or_earned_nothing_is_not_taken_back() {
    let nothing = json!({"earn_currency": false});
    let after = || purchase("refunded", nothing.clone());
    assert_eq!(refunds(routed("u", purchase("completed", json!({})), after())), Ok(false));
    assert_eq!(refunds(routed("u", Value::Null, after())), Ok(false), "it may have earned then");
    let earned_nothing = purchase("completed", nothing.clone());
    assert_eq!(routed("u", earned_nothing, after()), Err("never_counted"));
    let debit = purchase("completed", json!({"record_type": "debit"}));
    assert_eq!(routed("u", debit, after()), Err("never_counted"));
}

#[test]
fn a_purchase_that_counts_again_or_may_have_counted_is_told_apart_from_one_that_turns() {
    let completed = || purchase("completed", json!({}));
    assert_eq!(awards(routed("c", Value::Null, completed())), Ok(Turn::Here));
    assert_eq!(awards(routed("u", purchase("pending", json!({})), completed())), Ok(Turn::Here));
    for before in ["refunded", "cancelled"] {
        let before = purchase(before, json!({}));
        assert_eq!(awards(routed("u", before, completed())), Ok(Turn::Again));
    }
    let reopened = |changes| purchase("processing", changes);
    assert_eq!(awards(routed("u", reopened(json!({})), completed())), Ok(Turn::Recent));
    let (before, after) = (reopened(old()), purchase("completed", old()));
    assert_eq!(awards(routed("u", before, after)), Ok(Turn::Unsure));
    assert_eq!(awards(routed("u", Value::Null, completed())), Ok(Turn::Recent));
    assert_eq!(awards(routed("u", Value::Null, purchase("completed", old()))), Ok(Turn::Unsure));
}

#[test]
fn a_purchase_of_less_than_nothing_is_no_purchase() {
    let negative = json!({"final_amount": "-5.00"});
    let after = purchase("completed", negative.clone());
    assert_eq!(routed("c", Value::Null, after), Err("negative_amount"));
    let counted = purchase("completed", negative.clone());
    assert_eq!(routed("u", counted, purchase("refunded", negative)), Err("negative_amount"));
}

fn debit(status: &str, changes: Value) -> Value {
    let mut row = purchase(
        status,
        json!({"record_type": "debit", "final_amount": "-25.00",
        "external_ref": "N-1"}),
    );
    row.as_object_mut().expect("an object").extend(changes.as_object().expect("one").clone());
    row
}

#[test]
fn a_debit_takes_back_once_it_is_neither_pending_nor_cancelled() {
    let debits = |routed: Result<Work, &'static str>| match routed {
        Ok(Work::Debit(debit)) => Ok((debit.original, debit.check_wallet)),
        other => Err(format!("{other:?}")),
    };
    let number = Some("N-1".to_owned());
    for status in ["completed", "refunded", "processing"] {
        assert_eq!(
            debits(routed("c", Value::Null, debit(status, json!({})))),
            Ok((number.clone(), false))
        );
    }
    for status in ["pending", "Cancelled"] {
        let after = debit(status, json!({}));
        assert_eq!(routed("c", Value::Null, after), Err("does_not_count"));
        let before = debit(status, json!({}));
        let after = debit("completed", json!({}));
        assert_eq!(debits(routed("u", before, after)), Ok((number.clone(), false)), "{status}");
    }
    let edited = routed("u", debit("completed", json!({})), debit("refunded", json!({})));
    assert_eq!(edited, Err("counted_before"));
    let after = debit("completed", old());
    assert_eq!(debits(routed("u", Value::Null, after)), Ok((number, true)));
}

#[test]
fn a_referral_or_a_claim_that_leaves_its_counting_status_is_taken_back() {
    for (table, column, user, counts) in [
        ("referral_ledger", "reward_status", "invitee_user_id", "completed"),
        ("mission_claims", "status", "user_id", "approved"),
    ] {
        let row = |status: &str| {
            let created_at = hours(Timestamp::now(), -1);
            json!({"id": "x", user: "u", "merchant_id": "m", column: status,
                "created_at": created_at})
        };
        for status in ["revoked", "Rejected", "cancelled", "refunded", "void"] {
            let taken_back = routed_in(table, "u", row(counts), row(status));
            assert_eq!(refunds(taken_back), Ok(false), "{table} {status}");
            let taken_back = routed_in(table, "u", Value::Null, row(status));
            assert_eq!(refunds(taken_back), Ok(false), "{table} {status}: it may have counted");
            let never = routed_in(table, "u", row("pending"), row(status));
            assert_eq!(never, Err("never_counted"), "{table} {status}");
        }
        let other = routed_in(table, "u", row("claimed"), row("revoked"));
        assert_eq!(other, Err("never_counted"), "{table}: it leaves no counting status");
        let other = routed_in(table, "u", row(counts), row("pending"));
        assert_eq!(other, Err("does_not_count"), "{table}");
        let again = routed_in(table, "u", row("revoked"), row(counts));
        assert_eq!(awards(again), Ok(Turn::Again), "{table}");
    }
}

#[test]
fn a_delete_cancels_unless_the_row_shows_that_it_never_counted() {
    for (status, changes) in [
        ("pending", json!({})),
        ("completed", json!({"user_id": null})),
        ("completed", json!({"earn_currency": false})),
        ("completed", json!({"record_type": "debit"})),
    ] {
        let gone = routed("d", purchase(status, changes.clone()), Value::Null);
        assert_eq!(gone, Err("never_counted"), "{status} {changes}");
    }
    for before in ["completed", "processing", "refunded"] {
        let gone = routed("d", purchase(before, json!({})), Value::Null);
        assert!(matches!(gone, Ok(Work::Delete { .. })), "{gone:?}");
    }
}

/// Why a change of a purchase cannot be routed.
fn refused(after: Value) -> String {
    let now = Timestamp::now().as_millisecond();
    let envelope = json!({"op": "c", "before": null, "after": after, "ts_ms": now,
        "source": {"ts_ms": now}});
    let routed = with_change("purchase_ledger", &envelope, |change| {
        route(change, &settings(), Timestamp::now()).map(|_| ())
    });
    routed.expect_err("a column is missing").to_string()
}

#[test]
fn a_column_that_a_rule_needs_and_that_is_not_there_is_not_null() {
    for (row, columns) in [
        (purchase("completed", json!({})), &["id", "user_id", "merchant_id", "status"][..]),
        (debit("completed", json!({})), &["final_amount", "external_ref"]),
    ] {
        for column in columns {
            let mut row = row.clone();
            row.as_object_mut().expect("an object").remove(*column);
            let refused = refused(row);
            assert!(refused.contains("purchase_ledger") && refused.contains(column), "{refused}");
        }
    }
    let mut row = purchase("completed", json!({}));
    for column in ["record_type", "earn_currency", "final_amount", "created_at"] {
        row.as_object_mut().expect("an object").remove(column);
    }
    assert_eq!(awards(routed("c", Value::Null, row)), Ok(Turn::Here), "no rule needs these");
}

#[test]
fn words_that_no_rule_knows_and_columns_that_are_not_there_are_remarked() {
    let remarks = |after: Value| {
        let envelope = json!({"op": "c", "before": null, "after": after, "ts_ms": 1,
            "source": {"ts_ms": 1, "lsn": 9}});
        with_change("purchase_ledger", &envelope, |change| {
            route(change, &settings(), Timestamp::now()).expect("routed");
            change.remarks.iter().collect::<Vec<_>>()
        })
    };
    assert_eq!(remarks(purchase("Completed ", json!({}))), []);
    assert_eq!(remarks(purchase("shipped", json!({}))), [Remark::UnknownStatus]);
    let odd = json!({"record_type": "reverse"});
    assert_eq!(remarks(purchase("completed", odd)), [Remark::UnknownRecordType]);
    let mut bare = purchase("completed", json!({}));
    bare.as_object_mut()
        .expect("an object")
        .retain(|column, _| column != "record_type" && column != "earn_currency");
    assert_eq!(remarks(bare), [Remark::NoRecordType, Remark::NoEarnCurrency]);
}

#[test]
fn a_state_before_that_is_not_known_is_no_state() {
    let unknown = json!({"id": "p", "status": "__debezium_unavailable_value"});
    let refunded = routed("u", unknown.clone(), purchase("refunded", json!({})));
    assert_eq!(refunds(refunded), Ok(false));
    let edited = routed("u", unknown, purchase("completed", old()));
    assert_eq!(awards(edited), Ok(Turn::Unsure));
}

#[test]
fn an_anonymous_sale_counts_when_it_gets_its_user_and_is_taken_back_only_then() {
    let anonymous = |status| purchase(status, json!({"user_id": null}));
    assert_eq!(routed("c", Value::Null, anonymous("completed")), Err("anonymous"));
    assert_eq!(routed("u", anonymous("completed"), anonymous("completed")), Err("anonymous"));
    let claimed = routed("u", anonymous("completed"), purchase("completed", json!({})));
    assert_eq!(awards(claimed), Ok(Turn::Here));
    let refunded = routed("u", anonymous("completed"), purchase("refunded", json!({})));
    assert_eq!(refunded, Err("never_counted"));
    let part = json!({"id": "p", "status": "completed"});
    let edited = routed("u", part, purchase("completed", json!({})));
    assert_eq!(edited, Err("counted_before"), "a before without the user's column tells enough");
}
