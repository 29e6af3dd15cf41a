//! Feeds recordings into real topics, and waits until a group has finished them.

use std::collections::BTreeSet;
use std::time::Duration;

use crm_event_processors::recording::Recorded;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;

use super::{kafka, until_within};

/// Long, because a busy machine with an unoptimised build takes its time. Only a failure waits to
/// the end.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(300);

/// Tables whose topics a daemon may ask for.
pub const TABLES: [&str; 6] = [
    "purchase_ledger",
    "wallet_ledger",
    "referral_ledger",
    "mission_claims",
    "form_submissions",
    "codes",
];

/// Makes every table's topic behind `prefix` and sends the records, recorded as `crm.public.*`, in
/// order. A recording of several partitions keeps them: its lines are in the log's order only within
/// each. One of a single partition is spread by key.
pub async fn produce(brokers: &str, prefix: &str, partitions: i32, records: &[Recorded]) {
    let recorded = |topic: &str| topic.strip_prefix("crm.public.").map(str::to_owned);
    let mut tables: BTreeSet<String> = TABLES.iter().map(|&table| table.to_owned()).collect();
    tables.extend(records.iter().filter_map(|record| recorded(&record.topic)));
    for table in &tables {
        kafka::create_topic(brokers, &format!("{prefix}.{table}"), partitions).await;
    }
    let topics: Vec<String> = records
        .iter()
        .map(|record| format!("{prefix}.{}", recorded(&record.topic).expect("a table's topic")))
        .collect();
    let keep = records.iter().any(|record| record.partition != 0);
    let futures = records.iter().zip(&topics).map(|(record, topic)| {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        let mut future = FutureRecord::to(topic).headers(headers);
        future.key = record.key.as_deref();
        future.payload = record.value.as_deref();
        future.timestamp = record.timestamp_ms;
        future.partition = keep.then_some(record.partition);
        future
    });
    kafka::produce(brokers, futures).await;
}

/// Waits until the group has committed what is now the end of every partition of `topic`; others may
/// go on writing there.
pub async fn caught_up(brokers: &str, group: &str, topic: &str) {
    let ends = kafka::ends(brokers, topic).await;
    until_within(BACKLOG_PATIENCE, "the last record to be committed", async || {
        let committed = kafka::committed(brokers, group, topic).await;
        let done = ends.iter().all(|(partition, end)| {
            *end == 0 || committed.get(partition).is_some_and(|(offset, _)| offset >= end)
        });
        done.then_some(())
    })
    .await;
}
