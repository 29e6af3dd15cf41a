//! Log positions, tables and databases as changes name them, in good and bad forms.

use serde_json::{Value, json};

use super::super::testing::{KEY, change, record, remarks};
use super::super::{Decoded, Op, Options, Record, Remark, decode};

/// Values that are not a number, or not one that a member of `source` can be.
fn odd_numbers() -> Vec<Value> {
    vec![
        json!("7"),
        json!("x"),
        json!(-7),
        json!(7.5),
        json!(1e30),
        json!(true),
        json!([7]),
        json!({"a": 7}),
    ]
}

fn odd_sequences() -> Vec<Value> {
    let texts = [
        "",
        "7",
        "null",
        "[]",
        "[\"7\"]",
        "[\"7\",\"9\",\"11\"]",
        "[7,9]",
        "[\"-7\",\"9\"]",
        "{}",
        "0/9",
    ];
    texts
        .iter()
        .map(|text| json!(text))
        .chain([json!(7), json!(["7", "9"]), json!({}), json!(true)])
        .collect()
}

#[test]
fn a_flattened_row_has_a_position_only_with_sequence_time_and_transaction() {
    let full = json!({"id": "a", "__op": "c", "__source_sequence": "[\"7\",\"9\"]",
        "__source_ts_us": 1_700_000_000_123_456_i64, "__source_txId": 5, "__source_lsn": 9});
    let text = full.to_string();
    let whole = change(&text);
    let position = whole.position.expect("all three are there");
    assert_eq!((position.first, position.lsn, position.tx_id), (Some(7), 9, Some(5)));
    assert_eq!(position.commit_us, 1_700_000_000_123_456);
    assert_eq!(whole.commit_time.as_millisecond(), 1_700_000_000_123);
    for missing in ["__source_sequence", "__source_ts_us", "__source_txId"] {
        let mut row = full.clone();
        row.as_object_mut().expect("an object").remove(missing);
        assert_eq!(change(&row.to_string()).position, None, "{missing}");
    }
}

#[test]
fn a_place_in_the_log_that_cannot_be_read_is_unknown_and_the_change_is_handled() {
    let source = json!({"name": "crm", "db": "crm", "table": "purchase_ledger", "ts_ms": 1_700_000_000_123_i64,
        "ts_us": 1_700_000_000_123_456_i64, "sequence": "[\"7\",\"9\"]", "txId": 5, "lsn": 9});
    let mut odd = vec![];
    for member in ["txId", "lsn", "ts_ms", "ts_us"] {
        odd.extend(odd_numbers().into_iter().map(|value| (member, value)));
    }
    odd.extend(odd_sequences().into_iter().map(|value| ("sequence", value)));
    odd.extend(["name", "db", "schema", "table"].map(|member| (member, json!(["crm"]))));
    for (member, value) in odd {
        let mut source = source.clone();
        source[member] = value;
        let text =
            json!({"op": "u", "before": null, "after": {"id": "a"}, "source": source}).to_string();
        let change = change(&text);
        assert_eq!((change.op, change.position), (Op::Update, None), "{text}");
        assert_eq!(remarks(&change), [Remark::UnknownPosition], "{text}");
        // Either of the two times is enough when the other cannot be read.
        assert_eq!(change.commit_time.as_millisecond(), 1_700_000_000_123, "{text}");
    }
    let text = json!({"op": "u", "after": {"id": "a"}, "source": source}).to_string();
    let known = change(&text);
    assert!(known.position.is_some() && known.remarks.is_empty());
}

#[test]
fn what_an_envelope_leaves_open_is_unknown_too() {
    for (source, position, remarked) in [
        (json!({"ts_us": 1, "lsn": 9, "txId": null, "sequence": null}), true, false),
        (json!({"ts_us": 1, "lsn": 9, "sequence": "[null,null]"}), true, false),
        (json!({"ts_us": 1, "lsn": null, "txId": null, "sequence": null}), false, true),
        (json!({"ts_us": null, "ts_ms": null, "lsn": 9}), false, true),
        (json!({"ts_ms": 1, "snapshot": "true"}), false, false),
        (json!({}), false, true),
    ] {
        let text = json!({"op": "u", "after": {"id": "a"}, "source": source}).to_string();
        let change = change(&text);
        assert_eq!(
            (change.position.is_some(), !change.remarks.is_empty()),
            (position, remarked),
            "{text}"
        );
    }
}

#[test]
fn a_flattened_place_in_the_log_that_cannot_be_read_is_unknown_too() {
    let row = json!({"id": "a", "__op": "u", "__source_ts_us": 1_700_000_000_123_456_i64,
        "__source_ts_ms": 1_700_000_000_123_i64, "__source_sequence": "[\"7\",\"9\"]", "__source_txId": 5, "__lsn": 9});
    let mut odd = vec![];
    for member in ["__source_txId", "__lsn", "__source_lsn", "__source_ts_us", "__source_ts_ms"] {
        odd.extend(odd_numbers().into_iter().chain([json!(null)]).map(|value| (member, value)));
    }
    odd.extend(
        odd_sequences().into_iter().chain([json!(null)]).map(|value| ("__source_sequence", value)),
    );
    for (member, value) in odd {
        let mut row = row.clone();
        row[member] = value;
        let text = row.to_string();
        let change = change(&text);
        assert_eq!(
            (change.position, remarks(&change)),
            (None, vec![Remark::UnknownPosition]),
            "{text}"
        );
    }
    // An unreadable `__ts_ms` is unknown too if there is no other time.
    let change = change(r#"{"id":"a","__op":"c","__ts_ms":"soon"}"#);
    assert_eq!(remarks(&change), [Remark::UnknownPosition]);
    assert_eq!(change.commit_time.as_millisecond(), 1_700_000_000_000);
}

#[test]
fn two_databases_on_one_topic_are_told_apart() {
    for (name, db) in [("__source_name", "__source_db"), ("__name", "__db")] {
        let text = json!({"id": "a", "__op": "u", name: "crm", db: "east"}).to_string();
        let source = change(&text).source;
        assert_eq!((source.name.as_ref(), source.db.as_ref()), ("crm", "east"));
    }
}

#[test]
fn a_partition_s_topic_names_the_table_where_the_change_names_none_that_is_known() {
    let envelope = |table: &str| {
        json!({"op": "c", "after": {"id": "a"}, "source": {"table": table, "ts_ms": 1}}).to_string()
    };
    for (told, table) in [
        ("purchase_ledger_2026_11", "purchase_ledger"),
        ("", "purchase_ledger"),
        ("wallet_ledger", "wallet_ledger"),
    ] {
        let flattened = ["__table", "__source_table"]
            .map(|member| json!({"id": "a", "__op": "c", member: told}).to_string());
        for text in flattened.into_iter().chain([envelope(told)]) {
            let change = change(&text);
            assert_eq!(
                (change.table.as_ref(), change.source.table.as_ref()),
                (table, table),
                "{text}"
            );
        }
    }
    let text = envelope("purchase_ledger_p3");
    let elsewhere = Record { topic: "crm.public.all", ..record(Some(KEY), &text) };
    let Ok(Decoded::Change(change)) = decode(&elsewhere, &Options::default()) else {
        panic!("a change")
    };
    assert_eq!(change.table, "purchase_ledger_p3");
}

#[test]
fn a_routed_key_holds_more_than_the_row() {
    for key in [
        r#"{"id":"a","__dbz__physicalTableIdentifier":"crm.public.p3"}"#,
        r#"{"id":"a","shard":"p3"}"#,
    ] {
        let record = record(Some(key), r#"{"id":"a","status":"completed"}"#);
        let Ok(Decoded::Change(change)) = decode(&record, &Options::default()) else {
            panic!("{key}")
        };
        assert_eq!(change.key.filled("id"), Ok(Some("a".to_owned())));
        assert_eq!(change.key.raw("__dbz__physicalTableIdentifier").map(|_| ()), None);
    }
}
