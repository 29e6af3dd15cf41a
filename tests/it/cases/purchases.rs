//! Purchases as a connector writes them, and their awards.

use std::collections::BTreeMap;

use crm_event_processors::fakes::{Fake, Reply};
use rdkafka::producer::FutureRecord;
use serde_json::json;

use test_support::{kafka, services, until};

/// When the purchase at `lsn` was committed, in microseconds.
pub(super) fn commit_us(lsn: u64) -> i64 {
    1_795_405_012_000_000 + i64::try_from(lsn).expect("a small number")
}

/// A purchase that counts, as a connector writes it into the log at `lsn`; a replay repeats it.
pub(super) fn purchase(lsn: u64) -> (String, String) {
    let at = commit_us(lsn);
    let row = json!({"id": format!("p{lsn}"), "user_id": format!("u{lsn}"), "merchant_id": "m",
        "status": "completed", "record_type": "credit", "earn_currency": true, "final_amount": "10.00"});
    let source = json!({"name": "crm", "db": "crm", "schema": "public", "table": "purchase_ledger",
        "snapshot": "false", "connector": "postgresql", "txId": lsn, "lsn": lsn,
        "sequence": format!("[\"{lsn}\",\"{lsn}\"]"), "ts_ms": at / 1_000, "ts_us": at});
    let value =
        json!({"op": "c", "before": null, "after": row, "source": source, "ts_ms": at / 1_000});
    (json!({"id": format!("p{lsn}")}).to_string(), value.to_string())
}

pub(super) async fn send(topic: &str, lsns: impl IntoIterator<Item = u64>) {
    let records: Vec<_> = lsns.into_iter().map(purchase).collect();
    let records = records
        .iter()
        .map(|(key, value)| FutureRecord::to(topic).key(key.as_bytes()).payload(value.as_bytes()));
    kafka::produce(services::kafka(), records).await;
}

/// Has every purchase call for an award at once.
pub(super) fn award_all(fake: &Fake) {
    fake.define("calc_currency_for_source", |_| {
        Reply::json(&json!([{"currency_type": "points", "component": "base", "amount": 7}]))
    });
}

/// How often each purchase was awarded, by its log position.
pub(super) fn awards(fake: &Fake) -> BTreeMap<u64, u32> {
    let mut awards = BTreeMap::new();
    fake.inspect(|log| {
        for event in log.events.iter().filter(|event| &*event.name == "currency/award") {
            let id = event.id.as_deref().expect("an id");
            let lsn = id.strip_prefix("currency/award:purchase:p").expect("a purchase's");
            *awards.entry(lsn.parse().expect("a position")).or_default() += 1;
        }
    });
    awards
}

pub(super) async fn until_awarded(fake: &Fake, purchases: usize) {
    until("the awards", async || (awards(fake).len() >= purchases).then_some(())).await;
}

/// Waits until the group has committed `offset` of the topic's only partition.
pub(super) async fn until_committed(group: &str, topic: &str, offset: i64) {
    until(&format!("{group}'s commit of {offset}"), async || {
        let found = kafka::committed(services::kafka(), group, topic).await;
        found.get(&0).is_some_and(|(found, _)| *found == offset).then_some(())
    })
    .await;
}
