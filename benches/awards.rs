//! Awards a second at RPC 20 ms, event POST 50 ms and a bound of 5, next to the old service's shape
//! on the same work: `cargo bench --bench awards`.
//!
//! Baseline: five workers (p-limit 5), each doing a record's RPC and then its POST, one event a
//! request. The bound of 5 and 20 ms allow 250 RPCs a second; the baseline's permit also covers the
//! POST, so 5 / 70 ms = 71 is its best. Both sides run in this process against the same fake, the
//! daemon with an embedded broker and claims in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crm_event_processors::app::{App, Stores};
use crm_event_processors::clients::redis::Cache;
use crm_event_processors::config::Environment;
use crm_event_processors::consumers::registry::{self, CONSUMERS};
use crm_event_processors::dedup::MemoryStore;
use crm_event_processors::fakes::broker::Broker;
use crm_event_processors::fakes::{Endpoint, Fake, Options, Reply};
use crm_event_processors::recording::Recorded;
use crm_event_processors::telemetry::metrics::Recorder;
use futures::{StreamExt, stream};
use serde_json::json;
use tokio::sync::mpsc;

const RPC: Duration = Duration::from_millis(20);
const POST: Duration = Duration::from_millis(50);
const BOUND: usize = 5;
const AWARDS: usize = 2_000;
const BASELINE_AWARDS: usize = 400;

type AnyError = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let baseline = baseline().await?;
    let daemon = daemon().await?;
    let ideal = BOUND as f64 / RPC.as_secs_f64();
    println!(
        "{AWARDS} awards, rpc {} ms, post {} ms, bound {BOUND}",
        RPC.as_millis(),
        POST.as_millis()
    );
    println!(
        "  old service's shape  {baseline:6.1} awards/s  {:5.1} % of {ideal}",
        100.0 * baseline / ideal
    );
    println!(
        "  this daemon          {daemon:6.1} awards/s  {:5.1} % of {ideal}",
        100.0 * daemon / ideal
    );
    println!("  ratio                {:6.2}", daemon / baseline);
    Ok(())
}

async fn fake() -> Result<Fake, AnyError> {
    let fake = Fake::start(Options::default()).await?;
    fake.set_latency(Endpoint::Rpc, RPC);
    fake.set_latency(Endpoint::Post, POST);
    fake.define("calc_currency_for_source", |_| {
        Reply::json(&json!([{"currency_type": "points", "component": "base", "amount": 7}]))
    });
    Ok(fake)
}

/// A pool of workers that do one record after another, as the old service did.
async fn baseline() -> Result<f64, AnyError> {
    let fake = fake().await?;
    let http = reqwest_client()?;
    let rpc = format!("{}/rest/v1/rpc/calc_currency_for_source", fake.url());
    let post = format!("{}/e/bench", fake.url());
    let start = Instant::now();
    let done: Vec<Result<(), reqwest::Error>> = stream::iter(0..BASELINE_AWARDS)
        .map(|number| {
            let (http, rpc, post) = (&http, &rpc, &post);
            async move {
                let id = format!("baseline-{number}");
                http.post(rpc).json(&json!({"p_source_id": id})).send().await?.bytes().await?;
                let event = json!({"name": "currency/award", "id": id, "data": {"source_id": id}});
                http.post(post).json(&event).send().await?.bytes().await?;
                Ok(())
            }
        })
        .buffer_unordered(BOUND)
        .collect()
        .await;
    let took = start.elapsed();
    done.into_iter().collect::<Result<Vec<()>, _>>()?;
    assert_eq!(fake.inspect(|log| log.events.len()), BASELINE_AWARDS);
    Ok(BASELINE_AWARDS as f64 / took.as_secs_f64())
}

fn reqwest_client() -> Result<reqwest::Client, AnyError> {
    // Another call may have installed it already.
    rustls::crypto::ring::default_provider().install_default().ok();
    Ok(reqwest::Client::new())
}

/// Awards a second of the daemon, measured over the middle of the run.
async fn daemon() -> Result<f64, AnyError> {
    let fake = fake().await?;
    let broker = Broker::start()?;
    let topic = "crm.public.purchase_ledger";
    for topic in [topic, "crm.public.referral_ledger", "crm.public.mission_claims", "bench.dlq"] {
        broker.create_topic(topic, 6)?;
    }
    let records = (0..AWARDS).map(|number| purchase(topic, number));
    let sent = records.map(|record| broker.produce(&record)).collect::<Result<Vec<_>, _>>()?;
    for delivery in sent {
        delivery.await?.map_err(|(error, _)| error)?;
    }
    let environment: Environment = [
        ("CONSUMERS", "currency"),
        ("CONSUMER_GROUP_ID", "bench"),
        ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
        ("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap()),
        ("REDIS_URL", "redis://in-memory.invalid"),
        ("SUPABASE_URL", fake.url()),
        ("SUPABASE_SERVICE_ROLE_KEY", "bench"),
        ("INNGEST_EVENT_API_BASE_URL", fake.url()),
        ("INNGEST_EVENT_KEY", "bench"),
        ("CURRENCY_CONCURRENCY", "5"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let settings = *registry::load(&environment, Path::new("")).settings?;
    let store = Arc::new(MemoryStore::new(settings.dedup.window));
    let stores = |_: &_, _: &_| Ok(Stores { claims: Box::new(store), cache: Cache::none() });
    let app = App::build(settings, &CONSUMERS, stores, Arc::new(Recorder::default()))?;
    let (stop, signals) = mpsc::channel(1);
    let running = tokio::spawn(app.run(signals));
    fake.until(|log| log.events.len() >= AWARDS).await;
    // At the start awards wait for connections, at the end for events to share a request with.
    let (from, to) = (AWARDS / 10, AWARDS * 9 / 10);
    let (took, at_once) = fake.inspect(|log| {
        let took = log.events[to].at.saturating_sub(log.events[from].at);
        (took, log.requests(Endpoint::Rpc).most_under_way)
    });
    stop.send(()).await?;
    running.await??;
    assert!(at_once <= BOUND, "the bound held: {at_once} RPCs at a time");
    Ok((to - from) as f64 / took.as_secs_f64())
}

fn purchase(topic: &str, number: usize) -> Recorded {
    let id = format!("00000000-0000-4000-8000-{number:012}");
    let row = json!({
        "id": id, "merchant_id": "merchant", "user_id": format!("user-{number}"),
        "status": "completed", "record_type": "credit", "earn_currency": true,
        "created_at": "2026-11-23T00:00:00Z",
    });
    let lsn = 1_000 + number;
    let source = json!({
        "name": "crm", "db": "crm", "schema": "public", "table": "purchase_ledger",
        "snapshot": "false", "lsn": lsn, "txId": lsn, "ts_ms": 1_795_400_000_000_u64 + number as u64,
        "ts_us": (1_795_400_000_000_u64 + number as u64) * 1_000,
        "sequence": format!("[\"{lsn}\",\"{lsn}\"]"),
    });
    let value = json!({"before": null, "after": row, "source": source, "op": "c"});
    Recorded {
        topic: topic.to_owned(),
        partition: (number % 6) as i32,
        offset: 0,
        timestamp_ms: Some(1_795_400_000_000),
        key: Some(json!({ "id": id }).to_string().into_bytes()),
        value: Some(value.to_string().into_bytes()),
        headers: Vec::new(),
    }
}
