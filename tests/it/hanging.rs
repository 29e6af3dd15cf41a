//! Inngest hangs while rows of many missions wait to be sent: what the daemon holds stays within
//! its bound (behaviour section 8.5), and all of it arrives once Inngest answers again.

use std::collections::HashSet;

use crm_event_processors::fakes::{Endpoint, Fake, Fault, Lasting, Options};
use rdkafka::producer::FutureRecord;
use serde_json::{Map, Value, json};

use test_support::daemon::Environment;
use test_support::{feed, kafka, services, unique};

const ROWS: usize = 2_000;
const MISSIONS: usize = 20;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn purchase(row: usize) -> (String, String) {
    let now = jiff::Timestamp::now();
    let id = format!("row-{row}");
    let value = json!({
        "op": "c",
        "before": null,
        "after": {"id": id, "user_id": "u", "merchant_id": "m", "status": "completed",
            "record_type": "credit", "created_at": now.to_string(), "note": "n".repeat(4_000)},
        "source": {"ts_ms": now.as_millisecond(), "table": "purchase_ledger"},
        "ts_ms": now.as_millisecond(),
    });
    (json!({ "id": id }).to_string(), value.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_rows_of_twenty_missions_are_held_as_rows() {
    let (brokers, prefix) = (services::kafka(), unique("hanging"));
    let redis = services::Redis::own();
    let fake = Fake::start(Options::default()).await.expect("a fake");
    let active = |number| {
        let mission = format!("mission-{number:02}");
        object(json!({"mission_id": mission, "merchant_id": "m", "condition_type": "purchase"}))
    };
    fake.fill("mv_mission_conditions_expanded", (0..MISSIONS).map(active).collect());
    fake.fail(Endpoint::Post, Fault::Hang, Lasting::UntilHealed);
    feed::produce(brokers, &prefix, 6, &[]).await;
    let topic = format!("{prefix}.purchase_ledger");
    let rows: Vec<(String, String)> = (0..ROWS).map(purchase).collect();
    let records = rows
        .iter()
        .map(|(key, value)| FutureRecord::to(&topic).key(key.as_bytes()).payload(value.as_bytes()));
    kafka::produce(brokers, records).await;
    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", "mission")
        .with("BUFFER_BYTES", "32MiB")
        .with("CLIENT_REQUEST_TIMEOUT", "2s")
        .start();
    // Each of the four requests under way hangs, times out and is repeated.
    fake.until(|log| log.requests(Endpoint::Post).faults >= 8).await;
    fake.heal(Endpoint::Post);
    feed::caught_up(brokers, &format!("{prefix}-mission"), &topic).await;
    let peak = daemon.peak_memory();
    assert!(daemon.stop().success(), "a clean stop");
    fake.inspect(|log| {
        let ids = log.events.iter().filter_map(|event| event.id.as_deref());
        let ids: HashSet<&str> = ids.collect();
        assert_eq!((ids.len(), log.events.len()), (ROWS * MISSIONS, ROWS * MISSIONS), "each once");
    });
    // Their events alone, written out, would take as much, on top of an idle daemon's memory.
    assert!(peak < 160 * 1024, "peak memory of {peak} KiB");
    println!("peak memory {peak} KiB");
}
