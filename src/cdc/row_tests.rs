//! Columns by what is known about them.

use serde_json::{Value, json};

use super::super::testing::{KEY, change, record};
use super::super::{DecimalMode, Decoded, Field, Options, decode};

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
    let options = Options { default_scale: 3, ..Options::default() };
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
fn digits_alone_are_read_as_the_other_numerics_of_their_row() {
    let read = |row: Value, options: &Options| {
        let text = json!({"op": "c", "after": row}).to_string();
        let Ok(Decoded::Change(change)) = decode(&record(Some(KEY), &text), options) else {
            panic!("{text}")
        };
        change
            .after
            .expect("a row")
            .decimal("final_amount")
            .map(|n| n.value().map(|n| n.to_plain_string()))
    };
    let auto = Options::default();
    let with = |mode| Options { decimal_mode: mode, ..Options::default() };
    for (other, number) in [
        (json!("AA=="), "-26467.32"),
        (json!("JxA="), "-26467.32"),
        (json!("0.00"), "1500"),
        (json!("1500"), "1500"),
        (json!(0), "1500"),
        (json!(null), "1500"),
    ] {
        let row =
            json!({"id": "a", "note": "AA==", "discount_amount": other, "final_amount": "1500"});
        assert_eq!(read(row.clone(), &auto), Ok(Some(number.to_owned())), "{row}");
        assert_eq!(
            read(row.clone(), &with(DecimalMode::Precise)),
            Ok(Some("-26467.32".to_owned()))
        );
        assert_eq!(read(row.clone(), &with(DecimalMode::String)), Ok(Some("1500".to_owned())));
        assert_eq!(read(row, &with(DecimalMode::Double)), Ok(Some("1500".to_owned())));
    }
    let struct_beside = json!({"fx_rate": {"scale": 1, "value": "Dw=="}, "final_amount": "1500"});
    assert_eq!(read(struct_beside, &auto), Ok(Some("-26467.32".to_owned())));
    let scales = Options {
        scales: "purchase_ledger.final_amount=4".parse().expect("a list"),
        ..Options::default()
    };
    assert_eq!(read(json!({"final_amount": "JxA="}), &scales), Ok(Some("1.0000".to_owned())));
    assert_eq!(read(json!({"final_amount": "1500"}), &scales), Ok(Some("1500".to_owned())));
    for value in ["NaN", "Infinity", "-Infinity"] {
        let error = read(json!({"final_amount": value}), &auto).expect_err("no rule can use it");
        assert_eq!(error.kind(), "not_finite");
        assert!(
            error.to_string().contains(&format!("purchase_ledger.final_amount is {value}")),
            "{error}"
        );
    }
}

#[test]
fn a_scale_makes_a_constrained_numeric_of_a_column_that_is_taken_for_another() {
    let scales = Options {
        scales: "purchase_ledger.fx_rate=4".parse().expect("a list"),
        ..Options::default()
    };
    let text = r#"{"op":"c","after":{"id":"a","fx_rate":"JxA=","total_amount":"JxA="}}"#;
    let Ok(Decoded::Change(change)) = decode(&record(Some(KEY), text), &scales) else {
        panic!("{text}")
    };
    let after = change.after.expect("a row");
    let number = |column| after.decimal(column).map(|n| n.value().map(|n| n.to_plain_string()));
    assert_eq!(number("fx_rate"), Ok(Some("1.0000".to_owned())));
    assert_eq!(number("total_amount"), Ok(Some("100.00".to_owned())));
}
