//! Mission events a second over 1, 6 and 50 partitions, with an event POST of 50 ms:
//! `tests/services/up` first, then `cargo bench --bench partitions` with what it exported.
//!
//! All five consumers run and share the bound on memory; only one topic has a backlog. Claims and
//! cached missions are in a real Redis. The fake of Inngest runs in this process and shares its
//! processors with everything else. Baseline: the line before, with fewer partitions.
//!
//! `FORMS` sets the number of rows, `PARTITIONS` the numbers of partitions (`1,6,50`).

mod support;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crm_event_processors::clients::redis::{Cache, connect};
use crm_event_processors::fakes::{Endpoint, Fake, Options};
use crm_event_processors::outage::{Backoff, Breaker};
use serde_json::json;

use crate::support::Services;

const POST: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let services = Services::from_environment()?;
    let forms = std::env::var("FORMS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    println!("{forms} form submissions, a mission each, post {} ms", POST.as_millis());
    let partitions = std::env::var("PARTITIONS").unwrap_or_else(|_| "1,6,50".to_owned());
    let mut baseline = None;
    for partitions in partitions.split(',') {
        let partitions: i32 = partitions.parse().context("PARTITIONS is a list of numbers")?;
        let rate = rate(&services, partitions, forms).await?;
        let fewer = baseline.replace(rate).unwrap_or(rate);
        println!("  {partitions:2} partitions  {rate:8.0} events/s  {:5.2}", rate / fewer);
    }
    Ok(())
}

async fn rate(services: &Services, partitions: i32, forms: usize) -> anyhow::Result<f64> {
    let run = format!("bench{:08x}", fastrand::u32(..));
    let topic = format!("{run}.form_submissions");
    services.fill(&topic, partitions, (0..forms).map(|number| form(&run, number))).await?;
    let fake = Fake::start(Options::default()).await?;
    fake.set_latency(Endpoint::Post, POST);
    let backoff = Backoff { base: Duration::from_millis(250), max: Duration::from_secs(30) };
    let breaker = Arc::new(Breaker::new("cache", 5, backoff));
    let cache = Cache::new(connect(&services.redis)?, breaker);
    let missions = format!("missions:active:{run}:form_submission");
    cache.set_members(&missions, &["mission"], Duration::from_secs(600)).await;
    let variables = [
        ("CDC_TOPIC_PREFIX", &*run),
        ("CONSUMER_GROUP_ID", &*run),
        ("SUPABASE_URL", fake.url()),
        ("SUPABASE_SERVICE_ROLE_KEY", "bench"),
        ("CRM_CACHE_REDIS_URL", &*services.redis),
    ];
    services.run(&fake, cache, forms, &variables).await
}

fn form(merchant: &str, number: usize) -> (String, String) {
    let id = format!("00000000-0000-4000-8000-{number:012}");
    let row = json!({
        "id": id, "merchant_id": merchant, "user_id": format!("user-{}", number % 5_000),
        "form_id": "form", "status": "completed", "submitted_at": "2026-11-23T00:00:00Z",
        "created_at": "2026-11-23T00:00:00Z",
    });
    let (lsn, ms) = (1_000 + number, 1_795_400_000_000_u64 + number as u64);
    let source = json!({
        "name": "crm", "db": "crm", "schema": "public", "table": "form_submissions",
        "snapshot": "false", "lsn": lsn, "txId": lsn, "ts_ms": ms, "ts_us": ms * 1_000,
        "sequence": format!("[\"{lsn}\",\"{lsn}\"]"),
    });
    let value = json!({"before": null, "after": row, "source": source, "op": "c"});
    (json!({ "id": id }).to_string(), value.to_string())
}
