//! The longer recordings decode, and add up to SQL's final values.

use std::collections::{BTreeMap, HashMap};

use bigdecimal::BigDecimal;
use crm_event_processors::cdc::{self, Decoded, Nothing, Op, Options};
use serde::Deserialize;

use test_support::recordings::{fixture, known, recorded};

#[test]
fn what_a_real_spicedb_writes_decodes() {
    for (file, records) in [("default", 556), ("xids", 722), ("xids_keyed", 556)] {
        let (mut changes, mut tombstones) = (0, 0);
        for record in recorded(&format!("spicedb/{file}.jsonl.gz")) {
            record.lend(|record| match cdc::decode(record, &Options::default()) {
                Ok(Decoded::Change(change)) => {
                    assert!(matches!(change.table.as_ref(), "relation_tuple" | "namespace_config"));
                    let row = change.after.as_ref().or(change.before.as_ref()).expect("a row");
                    assert!(known(row.text("namespace"), "namespace").len() > 1);
                    let created = row.integer("created_xid").expect("an xid or none");
                    assert_eq!(created.is_value(), file != "default");
                    changes += 1;
                }
                Ok(Decoded::Nothing(Nothing::Tombstone)) => tombstones += 1,
                other => panic!("{file} {}: {other:?}", record.offset),
            });
        }
        assert!(tombstones > 0);
        assert_eq!(changes + tombstones, records, "{file}");
    }
}

#[test]
fn lives_of_purchases_decode_for_both_replica_identities() {
    for (file, before) in [("default", false), ("full", true)] {
        let (mut records, mut updates) = (0, 0);
        for record in recorded(&format!("life/{file}.jsonl.gz")) {
            record.lend(|record| match cdc::decode(record, &Options::default()) {
                Ok(Decoded::Change(change)) => {
                    if change.table == "purchase_ledger" && change.op == Op::Update {
                        assert_eq!(change.before.is_some(), before);
                        updates += 1;
                    }
                    if change.table == "purchase_ledger" && change.op == Op::Delete {
                        assert_eq!(change.before_invented, !before);
                    }
                }
                Ok(Decoded::Nothing(Nothing::Tombstone)) => {}
                other => panic!("{file} {}: {other:?}", record.offset),
            });
            records += 1;
        }
        assert_eq!(records, 319, "{file}");
        assert!(updates > 0, "{file}");
    }
}

#[derive(Deserialize)]
struct Load {
    records: usize,
    final_rows: HashMap<String, usize>,
    final_purchase_state: Vec<PurchaseState>,
}

#[derive(Deserialize)]
struct PurchaseState {
    merchant_id: String,
    status: String,
    earn_currency: String,
    record_type: String,
    rows: String,
    sum_final_amount: String,
}

#[test]
fn fifty_thousand_changes_add_up_to_the_tables_at_the_end() {
    let text = std::fs::read_to_string(fixture("load_50k.truth.json")).expect("it is there");
    let load: Load = serde_json::from_str(&text).expect("the truth of the load");
    let mut tables: HashMap<String, HashMap<String, (String, BigDecimal)>> = HashMap::new();
    let mut records = 0;
    for record in recorded("load_50k.jsonl.gz") {
        records += 1;
        record.lend(|record| {
            let change = match cdc::decode(record, &Options::default()).expect("it decodes") {
                Decoded::Change(change) => change,
                Decoded::Nothing(nothing) => {
                    assert_eq!(nothing, Nothing::Tombstone);
                    return;
                }
            };
            let rows = tables.entry(change.table.to_string()).or_default();
            let id = known(change.key.text("id"), "id").into_owned();
            let Some(after) = &change.after else {
                rows.remove(&id);
                return;
            };
            let text = |column| known(after.text(column), column);
            let state = if change.table == "purchase_ledger" {
                let earns = known(after.bool("earn_currency"), "earn_currency");
                let group = format!(
                    "{} {} {earns} {}",
                    text("merchant_id"),
                    text("status"),
                    text("record_type")
                );
                (group, known(after.decimal("final_amount"), "final_amount"))
            } else {
                (String::new(), known(after.decimal("amount"), "amount"))
            };
            rows.insert(id, state);
        });
    }
    assert_eq!(records, load.records);
    let rows: HashMap<_, _> =
        tables.iter().map(|(name, rows)| (name.clone(), rows.len())).collect();
    assert_eq!(rows, load.final_rows);

    let mut got: BTreeMap<String, (usize, BigDecimal)> = BTreeMap::new();
    for (group, amount) in tables["purchase_ledger"].values() {
        let sum = got.entry(group.clone()).or_default();
        sum.0 += 1;
        sum.1 += amount;
    }
    let said: BTreeMap<String, (usize, BigDecimal)> = load
        .final_purchase_state
        .iter()
        .map(|state| {
            let earns = state.earn_currency.to_lowercase();
            let group =
                format!("{} {} {earns} {}", state.merchant_id, state.status, state.record_type);
            let sum = state.sum_final_amount.parse().expect("a sum");
            (group, (state.rows.parse().expect("a count"), sum))
        })
        .collect();
    assert_eq!(got, said);
}
