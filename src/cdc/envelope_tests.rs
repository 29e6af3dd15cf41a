//! Forms that the recordings do not hold.

use serde_json::json;

use super::super::{
    Change, DecodeError, Decoded, Field, Header, Nothing, Op, Options, Record, decode, decode_key,
};

const TOPIC: &str = "crm.public.purchase_ledger";
const KEY: &str = r#"{"id":"a"}"#;

fn record<'a>(key: Option<&'a str>, value: &'a str) -> Record<'a> {
    Record {
        topic: TOPIC,
        partition: 0,
        offset: 0,
        timestamp_ms: Some(1_700_000_000_000),
        key: key.map(str::as_bytes),
        value: Some(value.as_bytes()),
        headers: &[],
    }
}

fn read(value: &str) -> Result<Decoded<'_>, DecodeError> {
    decode(&record(Some(KEY), value), &Options::default())
}

fn change(value: &str) -> Change<'_> {
    match read(value) {
        Ok(Decoded::Change(change)) => change,
        other => panic!("{value}: {other:?}"),
    }
}

#[test]
fn an_envelope_without_source_takes_table_and_time_from_the_record() {
    let change = change(r#"{"before":null,"after":{"id":"a"},"op":"c","ts_ms":1700000000001}"#);
    assert_eq!((change.op, change.table.as_ref()), (Op::Create, "purchase_ledger"));
    assert_eq!(change.commit_time.as_millisecond(), 1_700_000_000_001);
    assert_eq!(change.position, None);
}

#[test]
fn a_flattened_row_may_have_columns_named_like_an_envelope() {
    for value in [
        r#"{"id":"a","op":"c","before":null,"after":null,"source":"web","__op":"u"}"#,
        r#"{"id":"a","op":"c","before":null,"after":null,"source":"web"}"#,
        r#"{"id":"a","op":"d","after":null}"#,
        r#"{"op":"d","after":null,"__source_ts_ms":1}"#,
        r#"{"id":"a","schema":null,"payload":"{}","__deleted":"false"}"#,
    ] {
        let change = change(value);
        assert_eq!((change.op, change.before.is_some()), (Op::Update, false), "{value}");
        let after = change.after.expect("an update has a row");
        assert!(after.columns().all(|(name, _)| !name.starts_with("__")));
        assert!(after.raw("op").is_some() || after.raw("schema").is_some(), "{value}");
    }
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
fn a_wrapped_null_is_the_delete_of_the_key() {
    for value in ["null", " null\n", r#"{"schema":{"type":"struct"},"payload":null}"#] {
        let change = change(value);
        assert_eq!((change.op, change.after.is_none()), (Op::Delete, true), "{value}");
        assert_eq!(change.key.text("id"), Ok(Field::Value("a".into())));
    }
    let framed = b"\0\0\0\0\x01null";
    let record = Record { value: Some(framed), ..record(Some(KEY), "") };
    let decoded = decode(&record, &Options::default());
    assert!(matches!(decoded, Ok(Decoded::Change(_))), "{decoded:?}");
}

#[test]
fn half_of_a_key_change_is_marked_by_its_header() {
    for (name, value) in [
        ("__debezium.newkey", r#"{"before":{"id":"a"},"after":null,"op":"d"}"#),
        ("__debezium.oldkey", r#"{"before":null,"after":{"id":"a"},"op":"c"}"#),
    ] {
        let headers = [Header { name, value: Some(KEY.as_bytes()) }];
        let record = Record { headers: &headers, ..record(Some(KEY), value) };
        match decode(&record, &Options::default()) {
            Ok(Decoded::Change(change)) => assert!(change.key_change),
            other => panic!("{other:?}"),
        }
        assert!(!change(value).key_change);
    }
}

#[test]
fn a_real_before_of_a_delete_stays_whole() {
    let change = change(
        r#"{"before":{"id":"a","merchant_id":"m","user_id":null,"note":""},"after":null,"op":"d"}"#,
    );
    assert!(!change.before_invented);
    let before = change.before.expect("it was there");
    assert_eq!(before.text("merchant_id"), Ok(Field::Value("m".into())));
    assert_eq!(before.text("user_id"), Ok(Field::Null));
}

#[test]
fn the_schema_wins_over_catalogue_and_configuration() {
    let column = |name, kind| {
        json!({"field": name, "type": "bytes", "name": kind,
        "parameters": {"scale": "4"}})
    };
    let fields = json!([column("final_amount", "org.apache.kafka.connect.data.Decimal"),
        {"field": "created_at", "type": "int64", "name": "io.debezium.time.NanoTimestamp"},
        {"field": "total_amount", "type": "string"}]);
    let row = json!({"id": "a", "final_amount": "1500", "created_at": 1, "total_amount": "1500"});
    let value = json!({
        "schema": {"type": "struct", "fields": [{"field": "after", "fields": fields}]},
        "payload": {"before": null, "after": row, "op": "c", "source": {"table": "purchase_ledger"}},
    });
    let text = value.to_string();
    let after = change(&text).after.expect("a create has a row");
    let number = |column| after.decimal(column).map(|field| field.map(|n| n.to_plain_string()));
    assert_eq!(number("final_amount"), Ok(Field::Value("-264.6732".to_owned())));
    assert_eq!(number("total_amount"), Ok(Field::Value("1500".to_owned())));
    let created = after.timestamp("created_at").expect("a time").value().expect("a value");
    assert_eq!(created.as_nanosecond(), 1);
}

#[test]
fn the_configured_scale_holds_where_no_schema_came() {
    let value = r#"{"id":"a","final_amount":"JxA=","fx_rate":"1500","other":"JxA=","__op":"c"}"#;
    let options = Options { default_scale: 3 };
    let record = record(Some(KEY), value);
    let Ok(Decoded::Change(change)) = decode(&record, &options) else { panic!("a change") };
    let after = change.after.expect("a create has a row");
    for (column, number) in [("final_amount", "10.000"), ("other", "10.000"), ("fx_rate", "1500")] {
        let got = after.decimal(column).map(|field| field.map(|n| n.to_plain_string()));
        assert_eq!(got, Ok(Field::Value(number.to_owned())), "{column}");
    }
    let error = after.decimal("id").expect_err("a uuid is no number");
    assert_eq!(
        error.to_string(),
        "column purchase_ledger.id is not a decimal number in a form its type can have"
    );
}

#[test]
fn an_array_or_bytes_that_were_not_written_again_are_unavailable() {
    let base64 = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
    let value = json!({"id": "a", "tags": ["__debezium_unavailable_value"],
        "metadata": "__debezium_unavailable_value", "other": base64, "note": base64, "__op": "u"});
    let text = value.to_string();
    let after = change(&text).after.expect("an update has a row");
    // serde_json sorts the names.
    assert_eq!(after.unavailable().collect::<Vec<_>>(), ["metadata", "other", "tags"]);
    assert_eq!(after.text("note"), Ok(Field::Value(base64.into())), "a text column may say that");
    assert_eq!(after.event_data().get(), format!(r#"{{"id":"a","note":"{base64}"}}"#));
}

#[test]
fn event_data_has_numbers_and_times_decoded_and_json_as_it_came() {
    let value = json!({"id": "a", "final_amount": "JxA=", "external_seq": 9_007_199_254_740_993_i64,
        "item_count": 3, "created_at": 1_700_000_000_000_000_i64, "business_date": 19782,
        "earn_currency": true, "metadata": "{\"a\": 1.10}", "fx_rate": {"scale": 0, "value": "AA=="}});
    let value = json!({"op": "c", "after": value});
    let text = value.to_string();
    let after = change(&text).after.expect("a create has a row");
    assert_eq!(
        after.event_data().get(),
        r#"{"business_date":"2024-02-29","created_at":"2023-11-14T22:13:20Z","earn_currency":true,"external_seq":"9007199254740993","final_amount":100.00,"fx_rate":0,"id":"a","item_count":3,"metadata":"{\"a\": 1.10}"}"#
    );
    assert!(after.explained().get().contains(r#""final_amount":"100.00""#));
}

#[test]
fn what_is_no_change_says_so() {
    for (value, kind) in [
        ("", "invalid_json"),
        (r#"{"op":"c","after":{"id":"#, "invalid_json"),
        (r#"{"op":"c","after":{"id":"a"}} x"#, "invalid_json"),
        ("[]", "not_a_change"),
        ("7", "not_a_change"),
        ("{}", "not_a_change"),
        (r#"{"hello":"world"}"#, "not_a_change"),
        (r#"{"id":"other","status":"completed"}"#, "not_a_change"),
        (r#"{"op":"x","after":{"id":"a"},"source":{}}"#, "unknown_op"),
        (r#"{"op":"c","after":null,"source":{}}"#, "malformed"),
        (r#"{"op":"u","before":{"id":"a"},"source":{}}"#, "malformed"),
        (r#"{"op":"c","after":{"id":"a"},"source":{"lsn":"x"}}"#, "malformed"),
        (r#"{"op":"c","after":{"id":"a"},"source":{"sequence":"[1]"}}"#, "malformed"),
        (r#"{"id":"a","__op":"c","__ts_ms":"soon"}"#, "malformed"),
    ] {
        match read(value) {
            Err(error) => assert_eq!(error.kind(), kind, "{value}: {error}"),
            Ok(decoded) => panic!("{value}: {decoded:?}"),
        }
    }
}

#[test]
fn where_the_key_cannot_be_read_the_row_tells_it() {
    for value in [
        r#"{"op":"c","after":{"id":"a","status":"x"}}"#,
        r#"{"op":"d","before":{"id":"a","merchant_id":"","status":"x"},"after":null}"#,
        r#"{"id":"a","status":"x","__deleted":"true"}"#,
    ] {
        for key in [None, Some("Struct{id=a}")] {
            let Ok(Decoded::Change(change)) = decode(&record(key, value), &Options::default())
            else {
                panic!("{value} has all that is needed")
            };
            assert_eq!(change.key.explained().get(), KEY, "{value}");
        }
    }
    let error = decode(&record(Some("Struct{id=a}"), "null"), &Options::default())
        .expect_err("nothing says what was deleted");
    assert_eq!(error.kind(), "delete_without_key");
}

#[test]
fn signs_of_life_are_known_whatever_their_topic_is_called() {
    let heartbeat = record(Some(r#"{"serverName":"crm"}"#), r#"{"ts_ms":1}"#);
    let marker = record(
        Some(r#"{"id":"1:2"}"#),
        r#"{"status":"BEGIN","id":"1:2","event_count":null,"data_collections":null,"ts_ms":1}"#,
    );
    for (record, nothing) in [(heartbeat, Nothing::Heartbeat), (marker, Nothing::TransactionMarker)]
    {
        match decode(&record, &Options::default()) {
            Ok(Decoded::Nothing(found)) => assert_eq!(found, nothing),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_flattened_row_of_a_snapshot_was_read_even_if_its_op_is_not_told() {
    let row = change(r#"{"id":"a","__source_snapshot":"true","__source_ts_ms":1}"#);
    assert_eq!((row.op, row.snapshot), (Op::Read, true));
    let row = change(r#"{"id":"a","__source_snapshot":"false","__source_ts_ms":1}"#);
    assert_eq!((row.op, row.snapshot), (Op::Update, false));
}

#[test]
fn the_key_of_a_record_is_decoded_whatever_its_value_is() {
    let tombstone = Record { value: None, ..record(Some(KEY), "") };
    let key = decode_key(&tombstone, &Options::default());
    assert_eq!(key.filled("id"), Ok(Some("a".to_owned())));
    let text = record(Some("shop-1"), "{}");
    assert_eq!(decode_key(&text, &Options::default()).columns().count(), 0);
}
