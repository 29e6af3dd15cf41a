//! Marketplace orders a second, with real claims: `tests/services/up` first, then
//! `cargo bench --bench marketplace` with what it exported.
//!
//! 200,000 orders lie in six partitions of a real Kafka; claims go to a real Redis; the fake of
//! Inngest answers without latency, in this process, and shares its processors with everything
//! else. Baseline, on the same machine and the same fake: posting the same events in full
//! batches one request after another, with nothing in front: what the fake itself can take.
//!
//! `ORDERS` sets their number.

mod support;

use std::time::Instant;

use anyhow::ensure;
use crm_event_processors::clients::redis::Cache;
use crm_event_processors::fakes::{Endpoint, Fake, Options};
use serde_json::json;

use crate::support::Services;

const BATCH: usize = 1_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let services = Services::from_environment()?;
    let orders: usize =
        std::env::var("ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let fake_alone = baseline(orders).await?;
    let daemon = daemon(&services, orders).await?;
    println!("{orders} orders, claims in Redis, no latency");
    println!("  the fake alone, batches of {BATCH}  {fake_alone:9.0} events/s");
    println!("  this daemon                    {daemon:9.0} events/s");
    println!("  ratio                          {:9.2}", daemon / fake_alone);
    Ok(())
}

async fn baseline(orders: usize) -> anyhow::Result<f64> {
    // Whoever comes first installs it.
    rustls::crypto::ring::default_provider().install_default().ok();
    let fake = Fake::start(Options::default()).await?;
    let (http, url) = (reqwest::Client::new(), format!("{}/e/bench", fake.url()));
    let bodies: Vec<String> = (0..orders)
        .collect::<Vec<_>>()
        .chunks(BATCH)
        .map(|numbers| {
            let event = |number: &usize| {
                json!({"name": "marketplace/order-received", "id": format!("baseline:{number}"),
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
    ensure!(fake.inspect(|log| log.events.len()) == orders, "every event was stored");
    Ok(orders as f64 / took.as_secs_f64())
}

async fn daemon(services: &Services, orders: usize) -> anyhow::Result<f64> {
    let topic = format!("bench-orders-{:08x}", fastrand::u32(..));
    services.fill(&topic, 6, (0..orders).map(order)).await?;
    let fake = Fake::start(Options::default()).await?;
    let variables = [
        ("CONSUMERS", "marketplace"),
        ("CONSUMER_GROUP_ID", &*topic),
        ("KAFKA_TOPIC_MARKETPLACE_ORDERS", &*topic),
    ];
    let rate = services.run(&fake, Cache::none(), orders, &variables).await?;
    let posts = fake.inspect(|log| log.requests(Endpoint::Post).count);
    println!("  {posts} posts, {} events each", orders / usize::try_from(posts)?.max(1));
    Ok(rate)
}

fn order(number: usize) -> (String, String) {
    let shop = number % 500;
    let value = json!({"shop_id": shop, "order_sn": format!("SN{number:010}"),
                       "order_status": "READY_TO_SHIP", "timestamp": 1_795_400_000_u64});
    (format!("shop-{shop}"), value.to_string())
}
