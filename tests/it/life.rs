//! Lives of purchases through the real daemon, Kafka and Redis, with both replica identities. The
//! outcomes are exactly those of `life/expected.json`.

use std::collections::{BTreeMap, BTreeSet};

use crm_event_processors::fakes::{Fake, Log, Options, Reply};
use crm_event_processors::recording::Recorded;
use serde_json::{Map, Value, json};

use test_support::daemon::Environment;
use test_support::recordings::{fixture, recorded, unpacked};
use test_support::{feed, kafka, services, unique};

const PARTITIONS: i32 = 6;
const TABLES: [&str; 3] = ["purchase_ledger", "referral_ledger", "mission_claims"];

fn expected() -> Value {
    let text = std::fs::read_to_string(fixture("life/expected.json")).expect("the expectations");
    serde_json::from_str(&text).expect("json")
}

/// The purchases as the database has them at the end.
pub(crate) fn purchases() -> Vec<Map<String, Value>> {
    unpacked("life/purchases.jsonl.gz")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

/// The same rows with the times of the database that was recorded. The two were played at different
/// moments, and times tell refunds of one purchase apart.
fn as_of(records: &[Recorded], mut purchases: Vec<Map<String, Value>>) -> Vec<Map<String, Value>> {
    let mut times = BTreeMap::new();
    for record in records {
        let change = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        let row = change.map(|mut change: Value| change["after"].take()).unwrap_or_default();
        if let Some(id) = row["id"].as_str() {
            times.insert(id.to_owned(), [row["created_at"].clone(), row["updated_at"].clone()]);
        }
    }
    for purchase in &mut purchases {
        let id = purchase["id"].as_str().expect("an id");
        if let Some([created, updated]) = times.remove(id) {
            purchase.insert("created_at".to_owned(), created);
            purchase.insert("updated_at".to_owned(), updated);
        }
    }
    purchases
}

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().expect("a list").iter().map(|v| v.as_str().expect("text").to_owned()).collect()
}

/// `type:id` of each `[type, id]`.
fn pairs(value: &Value) -> BTreeSet<String> {
    let pair = |pair: &Value| {
        format!("{}:{}", pair[0].as_str().expect("text"), pair[1].as_str().expect("text"))
    };
    value.as_array().expect("a list").iter().map(pair).collect()
}

fn events<'a>(log: &'a Log, name: &'a str) -> impl Iterator<Item = (Option<&'a str>, Value)> {
    log.events.iter().filter(move |event| &*event.name == name).map(|event| {
        let data = event.data.as_deref().expect("data is kept");
        (event.id.as_deref(), serde_json::from_str(data).expect("json"))
    })
}

/// Checks that all of `must` and nothing beyond `must` and `may` is found, each once.
fn compare(what: &str, found: Vec<String>, must: &BTreeSet<String>, may: &BTreeSet<String>) {
    let set: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(set.len(), found.len(), "{what}: each once");
    let missing: Vec<_> = must.difference(&set).collect();
    let extra: Vec<_> = set.iter().filter(|id| !must.contains(*id) && !may.contains(*id)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, extra {extra:?}");
}

async fn live(recording: &str) {
    let (brokers, prefix) = (services::kafka(), unique("life"));
    let redis = services::Redis::own();
    let fake =
        Fake::start(Options { keep_data: true, ..Options::default() }).await.expect("a fake");
    let records: Vec<_> = recorded(recording).collect();
    fake.fill("purchase_ledger", as_of(&records, purchases()));
    // Every source earns here, as the expectations assume.
    fake.define("calc_currency_for_source", |_| {
        Reply::json(&json!([{"currency_type": "points", "component": "base", "amount": 7}]))
    });
    feed::produce(brokers, &prefix, PARTITIONS, &records).await;
    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("INNGEST_CANCEL_SETTLE", "1s")
        .with("CURRENCY_ORIGINAL_PATIENCE", "2s")
        .start();
    for table in TABLES {
        let topic = format!("{prefix}.{table}");
        feed::caught_up(brokers, &format!("{prefix}-currency"), &topic).await;
    }
    assert!(daemon.stop().success(), "a clean stop");

    let (expected, none) = (expected(), BTreeSet::new());
    fake.inspect(|log| {
        let awards = events(log, "currency/award").filter_map(|(id, _)| Some(id?.to_owned()));
        compare("awards", awards.collect(), &strings(&expected["award"]), &none);

        let cancels = events(log, "currency/cancelled").map(|(_, data)| {
            let text = |field: &str| data[field].as_str().expect("text").to_owned();
            format!("{}:{}", text("source_type"), text("source_id"))
        });
        let (must, may) = (pairs(&expected["cancelled_must"]), pairs(&expected["cancelled_may"]));
        compare("cancels", cancels.collect(), &must, &may);

        let demanded = expected["reverse"].as_array().expect("a list");
        let must = demanded.iter().map(|r| r["id"].as_str().expect("an id").to_owned()).collect();
        let may = strings(&expected["reverse_may"]);
        let reverses = events(log, "currency/reverse").filter_map(|(id, _)| Some(id?.to_owned()));
        compare("reverses", reverses.collect(), &must, &may);
        for (id, data) in events(log, "currency/reverse") {
            let Some(demanded) = demanded.iter().find(|r| r["id"].as_str() == id) else { continue };
            for field in ["source_id", "original_source_id", "refund_percentage"] {
                let (found, demanded) = (data.get(field), demanded.get(field));
                let number = |value: Option<&Value>| value.and_then(Value::as_f64);
                let same =
                    found == demanded || number(found).is_some_and(|n| Some(n) == number(demanded));
                assert!(same, "{field} of {id:?}: {found:?}, demanded {demanded:?}");
            }
        }
    });
    let letters = kafka::read_topic(brokers, &format!("{prefix}.dlq")).await;
    let set_aside = letters.iter().map(|letter| {
        let key = rdkafka::Message::key(letter).expect("the original's key");
        let key: Value = serde_json::from_slice(key).expect("json");
        key["id"].as_str().expect("an id").to_owned()
    });
    compare("dead letters", set_aside.collect(), &strings(&expected["dead_letter_rows"]), &none);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replica_identity_full_the_outcomes_are_those_of_the_rules() {
    live("life/full.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replica_identity_default_the_outcomes_are_those_of_the_rules() {
    live("life/default.jsonl.gz").await;
}
