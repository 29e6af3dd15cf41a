//! Marketplace orders a second, with real claims: `tests/services/up` first, then
//! `cargo bench --bench marketplace` with what it exported.
//!
//! 200,000 orders lie in six partitions of a real Kafka; claims go to a real Redis; the double of
//! Inngest answers without latency, in this process, and shares its processors with everything
//! else. Baseline, on the same machine and the same double: posting the same events in full
//! batches one request after another, with nothing in front: what the double itself can take.
//!
//! `ORDERS` sets their number.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use crm_event_processors::clients::redis::{Cache, connect};
use crm_event_processors::config::{self, Environment};
use crm_event_processors::dedup::RedisStore;
use crm_event_processors::double::{Double, Endpoint, Options};
use crm_event_processors::supervisor::{Daemon, Memory, breakers};
use crm_event_processors::telemetry::metrics::Recorder;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use serde_json::json;
use tokio::sync::mpsc;

const BATCH: usize = 1_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let brokers =
        std::env::var("TEST_KAFKA").context("TEST_KAFKA is not set: run tests/services/up")?;
    let redis =
        std::env::var("TEST_REDIS").context("TEST_REDIS is not set: run tests/services/up")?;
    let orders: usize =
        std::env::var("ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let double_alone = baseline(orders).await?;
    let daemon = daemon(&brokers, &redis, orders).await?;
    println!("{orders} orders, claims in Redis, no latency");
    println!("  the double alone, batches of {BATCH}  {double_alone:9.0} events/s");
    println!("  this daemon                    {daemon:9.0} events/s");
    println!("  ratio                          {:9.2}", daemon / double_alone);
    Ok(())
}

async fn baseline(orders: usize) -> anyhow::Result<f64> {
    // Whoever comes first installs it.
    rustls::crypto::ring::default_provider().install_default().ok();
    let double = Double::start(Options::default()).await?;
    let (http, url) = (reqwest::Client::new(), format!("{}/e/bench", double.url()));
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
    ensure!(double.inspect(|log| log.events.len()) == orders, "every event was stored");
    Ok(orders as f64 / took.as_secs_f64())
}

async fn daemon(brokers: &str, redis: &str, orders: usize) -> anyhow::Result<f64> {
    let topic = format!("bench-orders-{:08x}", fastrand::u32(..));
    produce(brokers, &topic, orders).await?;
    let double = Double::start(Options::default()).await?;
    let environment: Environment = [
        ("CONSUMERS", "marketplace"),
        ("CONSUMER_GROUP_ID", &*topic),
        ("KAFKA_TOPIC_MARKETPLACE_ORDERS", &*topic),
        ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
        ("KAFKA_BOOTSTRAP_SERVERS", brokers),
        ("REDIS_URL", redis),
        ("INNGEST_EVENT_API_BASE_URL", double.url()),
        ("INNGEST_EVENT_KEY", "bench"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let settings = *config::load(&environment, Path::new("")).settings?;
    let breakers = breakers(&settings);
    let memory = Memory {
        claims: Box::new(RedisStore::new(connect(redis)?, settings.dedup.window)),
        cache: Cache::none(),
    };
    let daemon = Daemon::new(settings, breakers, memory, Arc::new(Recorder::default()))?;
    let (stop, signals) = mpsc::channel(1);
    let running = tokio::spawn(daemon.run(signals));
    double.until(|log| log.events.len() >= orders).await;
    let took: Duration = double.inspect(|log| {
        // Joining the group is not what is measured.
        let first = log.events.first().map(|event| event.at).unwrap_or_default();
        log.events.last().map(|event| event.at).unwrap_or_default() - first
    });
    let (posts, count) =
        double.inspect(|log| (log.requests(Endpoint::Post).count, log.events.len()));
    stop.send(()).await?;
    running.await??;
    ensure!(count == orders, "each order once, not {count}");
    println!("  {posts} posts, {} events each", orders / usize::try_from(posts)?.max(1));
    Ok(orders as f64 / took.as_secs_f64())
}

async fn produce(brokers: &str, topic: &str, orders: usize) -> anyhow::Result<()> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers).set("queue.buffering.max.messages", "1000000");
    let admin: AdminClient<DefaultClientContext> = client.create()?;
    let new = NewTopic::new(topic, 6, TopicReplication::Fixed(-1));
    admin.create_topics([&new], &AdminOptions::new()).await?;
    let producer: ThreadedProducer<_> = client.create()?;
    for number in 0..orders {
        let shop = number % 500;
        let value = json!({"shop_id": shop, "order_sn": format!("SN{number:010}"),
                           "order_status": "READY_TO_SHIP", "timestamp": 1_795_400_000_u64});
        let (key, value) = (format!("shop-{shop}"), value.to_string());
        producer
            .send(BaseRecord::to(topic).key(&key).payload(&value))
            .map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}
