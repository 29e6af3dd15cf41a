//! Forms that do not occur in the recordings.

use serde_json::json;

use super::super::testing::{KEY, change, read, record, remarks};
use super::super::{
    Decoded, Field, Header, Nothing, Op, Options, Record, Remark, Tombstones, decode, decode_key,
};

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
#[test]
fn an_envelope_stays_one_whatever_is_added_to_it() {
    for added in ["__ts_ms", "__op", "__deleted", "__source_ts_ms", "region", "trace"] {
        for (op, before, after) in
            [("c", None, Some("a")), ("u", Some("a"), Some("a")), ("d", Some("a"), None)]
        {
            let row = |id: Option<&str>| id.map(|id| json!({"id": id}));
            let text = json!({"op": op, "before": row(before), "after": row(after), "source": {"ts_ms": 1}, added: "x"}).to_string();
            let change = change(&text);
            assert_eq!(
                (change.op.as_str(), change.after.is_some()),
                (op, after.is_some()),
                "{text}"
            );
        }
    }
}

#[test]
fn a_flattened_row_that_tells_neither_operation_nor_snapshot_may_be_a_snapshot_s() {
    for (row, maybe) in [
        (json!({"id": "a"}), true),
        (json!({"id": "a", "__deleted": "false"}), true),
        (json!({"id": "a", "__ts_ms": 1, "__source_snapshot": null}), true),
        (json!({"id": "a", "__op": "u"}), false),
        (json!({"id": "a", "__op": "c"}), false),
        (json!({"id": "a", "__op": "r"}), false),
        (json!({"id": "a", "__source_snapshot": "false"}), false),
        (json!({"id": "a", "__snapshot": "true"}), false),
        (json!({"id": "a", "__deleted": "true"}), false),
    ] {
        let text = row.to_string();
        let change = change(&text);
        assert_eq!(change.maybe_snapshot, maybe, "{text}");
        assert_eq!(remarks(&change).contains(&Remark::UnknownOperation), maybe, "{text}");
    }
    let headers = [Header { name: "__op", value: Some(b"u") }];
    let told = Record { headers: &headers, ..record(Some(KEY), r#"{"id":"a"}"#) };
    let Ok(Decoded::Change(change)) = decode(&told, &Options::default()) else {
        panic!("a change")
    };
    assert!(!change.maybe_snapshot, "a header tells");
    let deleted = self::change("null");
    assert!(!deleted.maybe_snapshot && deleted.remarks.is_empty());
}

#[test]
fn a_tombstone_is_a_delete_of_its_key_where_that_is_configured() {
    let delete = Options { tombstones: Tombstones::Delete, ..Options::default() };
    let tombstone = Record { value: None, ..record(Some(KEY), "") };
    let Ok(Decoded::Change(change)) = decode(&tombstone, &delete) else { panic!("a delete") };
    assert_eq!((change.op, change.table.as_ref()), (Op::Delete, "purchase_ledger"));
    assert_eq!(change.key.filled("id"), Ok(Some("a".to_owned())));
    assert!(change.before.is_none() && change.after.is_none() && !change.maybe_snapshot);
    let is_nothing = |record: &Record<'_>, options: &Options| {
        matches!(decode(record, options), Ok(Decoded::Nothing(Nothing::Tombstone)))
    };
    assert!(is_nothing(&tombstone, &Options::default()));
    assert!(is_nothing(&Record { key: None, ..tombstone }, &delete), "it names no row");
    let odd = Record { key: Some(b"Struct{id=a}"), ..tombstone };
    assert_eq!(decode(&odd, &delete).expect_err("no row is named").kind(), "delete_without_key");
    let headers = [Header { name: "__debezium.newkey", value: Some(KEY.as_bytes()) }];
    let Ok(Decoded::Change(half)) = decode(&Record { headers: &headers, ..tombstone }, &delete)
    else {
        panic!("half of a key change")
    };
    assert!(half.key_change);
}
