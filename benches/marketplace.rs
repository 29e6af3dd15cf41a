//! Marketplace orders a second, with real claims: `tests/services/up` first, then
//! `cargo bench --bench marketplace` with what it exported.
//!
//! 400,000 orders lie in six partitions of a real Kafka; claims go to a real Redis. The event API
//! runs in this process and shares its processors with everything else; it only counts and answers.
//! A second run keeps claims in memory.
//!
//! Baselines, on the same machine: posting the same events in full batches one request after
//! another, with nothing in front; and a bare `StreamConsumer` with the daemon's client settings that
//! parses each order and does no more.
//!
//! `ORDERS` sets the number of orders.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use crm_event_processors::config::Properties;
use crm_event_processors::dedup::MemoryStore;
use crm_event_processors::kafka::Kafka;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use serde::Deserialize;
use serde_json::json;

use crate::support::Services;
use crate::support::sink::Sink;

const BATCH: usize = 1_000;
const EVENT: &str = "marketplace/order-received";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let services = Services::from_environment()?;
    let orders: usize =
        std::env::var("ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(400_000);
    let topic = format!("bench-orders-{:08x}", fastrand::u32(..));
    services.fill(&topic, 6, (0..orders).map(order)).await?;
    let api_alone = baseline(orders).await?;
    let bare = bare_consumer(&services, &topic, orders).await?;
    let window = Duration::from_secs(300);
    let in_memory = Some(Arc::new(MemoryStore::new(window)));
    let in_memory = daemon(&services, &topic, "memory", in_memory, orders).await?;
    let in_redis = daemon(&services, &topic, "redis", None, orders).await?;
    println!("{orders} orders over 6 partitions, no latency");
    println!("  the event API alone            {api_alone:9.0} events/s");
    println!("  a bare StreamConsumer          {bare:9.0} records/s");
    println!("  this daemon, claims in memory  {in_memory:9.0} events/s");
    println!("    to the bare consumer         {:9.2}", in_memory / bare);
    println!("  this daemon, claims in Redis   {in_redis:9.0} events/s");
    println!("    to the event API alone       {:9.2}", in_redis / api_alone);
    Ok(())
}

async fn baseline(orders: usize) -> anyhow::Result<f64> {
    // Another call may have installed it already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let sink = Sink::start(EVENT).await?;
    let (http, url) = (reqwest::Client::new(), format!("{}/e/bench", sink.url));
    let bodies: Vec<String> = (0..orders)
        .collect::<Vec<_>>()
        .chunks(BATCH)
        .map(|numbers| {
            let event = |number: &usize| {
                json!({"name": EVENT, "id": format!("baseline:{number}"),
                       "data": {"shop_id": "1", "order_sn": number.to_string(), "order_status": "PAID",
                                "platform": "shopee"}})
            };
            serde_json::Value::from(numbers.iter().map(event).collect::<Vec<_>>()).to_string()
        })
        .collect();
    let start = Instant::now();
    for body in bodies {
        http.post(&url).body(body).send().await?.bytes().await?;
    }
    let took = start.elapsed();
    ensure!(sink.result().0 == orders, "every event was counted");
    Ok(orders as f64 / took.as_secs_f64())
}

/// An order as the daemon's own rules read it.
#[derive(Deserialize)]
#[expect(dead_code, reason = "parsed, not read")]
struct Order<'a> {
    shop_id: u64,
    order_sn: &'a str,
    order_status: &'a str,
}

/// Records a second from the first to the last.
async fn bare_consumer(services: &Services, topic: &str, orders: usize) -> anyhow::Result<f64> {
    let settings = services.settings(&[
        ("CONSUMERS", "marketplace"),
        ("CONSUMER_GROUP_ID", "bare"),
        ("INNGEST_EVENT_KEY", "bench"),
    ])?;
    let mut client =
        Kafka::of(&settings).configure(&format!("{topic}-bare"), &Properties::default());
    client.set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = client.create()?;
    consumer.subscribe(&[topic])?;
    let mut first = None;
    for _ in 0..orders {
        let message = consumer.recv().await?;
        first.get_or_insert_with(Instant::now);
        let order: Order<'_> = serde_json::from_slice(message.payload().unwrap_or_default())?;
        std::hint::black_box(order);
    }
    let took = first.map(|first| first.elapsed()).unwrap_or_default();
    Ok(orders as f64 / took.as_secs_f64())
}

async fn daemon(
    services: &Services,
    topic: &str,
    group: &str,
    claims: Option<Arc<MemoryStore>>,
    orders: usize,
) -> anyhow::Result<f64> {
    let group = format!("{topic}-{group}");
    let variables = [
        ("CONSUMERS", "marketplace"),
        ("CONSUMER_GROUP_ID", &*group),
        ("KAFKA_TOPIC_MARKETPLACE_ORDERS", topic),
    ];
    services.run_to_sink(EVENT, claims, orders, &variables).await
}

fn order(number: usize) -> (String, String) {
    let shop = number % 500;
    let value = json!({"shop_id": shop, "order_sn": format!("SN{number:010}"),
                       "order_status": "READY_TO_SHIP", "timestamp": 1_795_400_000_u64});
    (format!("shop-{shop}"), value.to_string())
}
