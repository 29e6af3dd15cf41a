//! Peak memory while 1,000,000 records wait and Inngest is down: `tests/services/up` first, then
//! `cargo bench --bench backlog` with what it exported.
//!
//! The daemon is a process of its own with all five consumers. Purchases (for three of them),
//! orders and redemptions lie in six partitions each. Every POST is answered with 503; Supabase
//! answers. The figure is `VmHWM` once it has not grown for ten seconds. Baseline: the same daemon
//! with empty topics.
//!
//! `RECORDS` sets their number. Start services for this benchmark alone: it leaves records in the
//! topic of redemptions, whose name is fixed, and every other benchmark would read them.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use crm_event_processors::fakes::{
    Endpoint, Fake, Fault, Lasting, Options, Reply, redemption_result, tier_status,
};
use serde_json::json;

use crate::support::Services;

/// For how many seconds in a row the peak must stay the same.
const STILL: usize = 10;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let services = Services::from_environment()?;
    let records: usize =
        std::env::var("RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let idle = peak(&services, 0).await?;
    let waiting = peak(&services, records).await?;
    println!("all five consumers, Inngest down, peak memory");
    println!("  empty topics          {:4} MiB", idle / 1024);
    println!("  {records} waiting  {:4} MiB", waiting / 1024);
    Ok(())
}

/// Peak memory in KiB.
async fn peak(services: &Services, records: usize) -> anyhow::Result<u64> {
    let run = format!("backlog{:08x}", fastrand::u32(..));
    let orders = format!("{run}.orders");
    let third = records / 3;
    services.fill(&format!("{run}.purchase_ledger"), 6, (0..third).map(purchase)).await?;
    for table in ["referral_ledger", "mission_claims", "wallet_ledger", "form_submissions", "codes"]
    {
        services.fill(&format!("{run}.{table}"), 6, std::iter::empty()).await?;
    }
    services.fill(&orders, 6, (0..third).map(order)).await?;
    let redemptions = (0..records - 2 * third).map(redemption);
    services.fill("reward_redemptions", 6, redemptions).await?;
    let fake = fake().await?;
    let daemon = Daemon(start(services, &run, &orders, &fake)?);
    let (mut last, mut still) = (0, 0);
    while still < STILL {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let peak = daemon.peak()?;
        still = if peak == last { still + 1 } else { 0 };
        last = peak;
    }
    ensure!(fake.inspect(|log| log.events.is_empty()), "Inngest was down");
    Ok(last)
}

/// Supabase as it should be, and an Inngest that refuses everything.
async fn fake() -> anyhow::Result<Fake> {
    let fake = Fake::start(Options::default()).await?;
    fake.define("calc_currency_for_source", |_| {
        Reply::json(&json!([{"currency_type": "points", "component": "base", "amount": 7}]))
    });
    fake.define("evaluate_user_tier_status", |_| Reply::json(&tier_status("user", "merchant")));
    fake.define("redeem_reward_with_points", |_| Reply::json(&redemption_result("event")));
    fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    Ok(fake)
}

/// A daemon that is killed on drop.
struct Daemon(Child);

impl Daemon {
    fn peak(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.split_whitespace().next()).context("a peak")?;
        Ok(peak.parse()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(services: &Services, run: &str, orders: &str, fake: &Fake) -> anyhow::Result<Child> {
    let child = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .arg("run")
        .env_clear()
        .envs([
            ("CONSUMER_GROUP_ID", run),
            ("CDC_TOPIC_PREFIX", run),
            ("KAFKA_TOPIC_MARKETPLACE_ORDERS", orders),
            ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
            ("KAFKA_BOOTSTRAP_SERVERS", &services.brokers),
            ("REDIS_URL", &services.redis),
            ("SUPABASE_URL", fake.url()),
            ("SUPABASE_SERVICE_ROLE_KEY", "bench"),
            ("INNGEST_EVENT_API_BASE_URL", fake.url()),
            ("INNGEST_EVENT_KEY", "bench"),
            ("LOG_LEVEL", "error"),
        ])
        .stdout(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn purchase(number: usize) -> (String, String) {
    let id = format!("00000000-0000-4000-8000-{number:012}");
    let row = json!({
        "id": id, "merchant_id": "merchant", "user_id": format!("user-{}", number % 50_000),
        "status": "completed", "record_type": "credit", "earn_currency": true,
        "final_amount": "AOE=", "created_at": "2026-11-23T00:00:00Z",
    });
    let (lsn, ms) = (1_000 + number, 1_795_400_000_000_u64 + number as u64);
    let source = json!({
        "name": "crm", "db": "crm", "schema": "public", "table": "purchase_ledger",
        "snapshot": "false", "lsn": lsn, "txId": lsn, "ts_ms": ms, "ts_us": ms * 1_000,
        "sequence": format!("[\"{lsn}\",\"{lsn}\"]"),
    });
    let value = json!({"before": null, "after": row, "source": source, "op": "c"});
    (json!({ "id": id }).to_string(), value.to_string())
}

fn order(number: usize) -> (String, String) {
    let shop = number % 500;
    let value = json!({"shop_id": shop, "order_sn": format!("SN{number:010}"),
                       "order_status": "READY_TO_SHIP", "timestamp": 1_795_400_000_u64});
    (format!("shop-{shop}"), value.to_string())
}

fn redemption(number: usize) -> (String, String) {
    let user = format!("user-{number}");
    let value = json!({"event_id": format!("event-{number}"), "user_id": user,
                       "reward_id": "reward", "merchant_id": "merchant", "quantity": 1});
    (user, value.to_string())
}
