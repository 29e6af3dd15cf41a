//! Changes of relationships a second into each store: `tests/services/up kafka redis postgres opensearch` first,
//! then `cargo bench --bench kessel` with what it exported.
//!
//! Rows lie in six partitions of a real Kafka. Half of them create a relationship, half mark one as deleted.
//! Everything shares this machine's processors: the broker, the store and the daemon.
//!
//! Baseline, in the same run: a bare `StreamConsumer` with the daemon's client settings that reads what each
//! record means and does no more.
//!
//! `ROWS` sets the number of rows, `ACTION` a single action.

mod support;

use std::time::Instant;

use anyhow::Context as _;
use crm_event_processors::cdc::{self, Decoded, Record};
use crm_event_processors::config::Properties;
use crm_event_processors::consumers::kessel::row::{Reading, read};
use crm_event_processors::kafka::Kafka;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use serde_json::{Value, json};

use crate::support::Services;

const LIVING: &str = "9223372036854775807";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let services = Services::from_environment()?;
    let var = |name: &str| {
        std::env::var(name).with_context(|| format!("{name} is not set: run tests/services/up"))
    };
    let (database, index) = (var("TEST_POSTGRES")?, var("TEST_OPENSEARCH")?);
    let rows: usize = std::env::var("ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let name = format!("bench-{:08x}", fastrand::u32(..));
    let topic = format!("{name}.relation_tuple");
    services.fill(&topic, 6, (0..rows).map(row)).await?;
    let table = name.replace('-', "_");
    let only = std::env::var("ACTION").ok();
    let bare = bare_consumer(&services, &topic, rows).await?;
    println!("{rows} changes over 6 partitions");
    println!("  {:<18} {bare:9.0} records/s", "a bare consumer");
    for (action, options) in [
        ("cache_invalidate", json!({"key": "authz:{resource}", "epoch": "authz:{namespace}"})),
        ("replica", json!({"table": table, "view": format!("{table}_view")})),
        ("audit", json!({"table": format!("{table}_audit")})),
        ("search_index", json!({"index": name, "alias": format!("{name}-live")})),
    ] {
        if only.as_ref().is_some_and(|only| only != action) {
            continue;
        }
        let mut options = options;
        options["action"] = action.into();
        let group = format!("{name}-{action}");
        let consumer = match action {
            "cache_invalidate" => "relationships",
            "replica" => "relationships-replica",
            "audit" => "relationships-audit",
            _ => "relationships-search_index",
        };
        let actions = Value::from(vec![options]).to_string();
        let variables = [
            ("CONSUMERS", "relationships"),
            ("CONSUMER_GROUP", &*group),
            ("RELATIONSHIPS_TOPIC", &*topic),
            ("RELATIONSHIPS_ACTIONS", &*actions),
            ("KESSEL_DATABASE_URL", &*database),
            ("KESSEL_SEARCH_URL", &*index),
        ];
        let rate = services.run_to_outcomes(consumer, rows, &variables).await?;
        println!("  {action:<18} {rate:9.0} changes/s");
    }
    Ok(())
}

/// Records a second from the first to the last.
async fn bare_consumer(services: &Services, topic: &str, rows: usize) -> anyhow::Result<f64> {
    let settings =
        services.settings(&[("CONSUMERS", "relationships"), ("CONSUMER_GROUP", "bare")])?;
    let mut client =
        Kafka::of(&settings).configure(&format!("{topic}-bare"), &Properties::default());
    client.set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = client.create()?;
    consumer.subscribe(&[topic])?;
    let mut first = None;
    for _ in 0..rows {
        let message = consumer.recv().await?;
        first.get_or_insert_with(Instant::now);
        let record = Record {
            topic,
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: None,
            key: message.key(),
            value: message.payload(),
            headers: &[],
        };
        if let Decoded::Change(change) = cdc::decode(&record, &settings.cdc)? {
            std::hint::black_box(read(&change, Reading::default())?.ok());
        }
    }
    let took = first.map(|first| first.elapsed()).unwrap_or_default();
    Ok(rows as f64 / took.as_secs_f64())
}

/// Every second row is the deletion of the one before.
fn row(number: usize) -> (String, String) {
    let (object, marks) = (number / 2, number % 2 == 1);
    let key = json!({"namespace": "document", "object_id": format!("doc-{object}"),
        "relation": "viewer", "userset_namespace": "user",
        "userset_object_id": format!("user-{}", object % 5_000), "userset_relation": "..."});
    let mut row = key.clone();
    row["created_xid"] = (object + 1_000).to_string().into();
    row["deleted_xid"] = if marks { (number + 900_000).to_string() } else { LIVING.into() }.into();
    let lsn = number as u64 + 1;
    let source = json!({"table": "relation_tuple", "schema": "public", "db": "spicedb",
        "name": "kessel", "ts_ms": 1_795_400_000_000_u64 + number as u64, "txId": number, "lsn": lsn,
        "sequence": format!("[\"{lsn}\",\"{lsn}\"]"), "snapshot": "false"});
    let op = if marks { "u" } else { "c" };
    let value = json!({"op": op, "before": null, "after": row, "source": source});
    (key.to_string(), value.to_string())
}
