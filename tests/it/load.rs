//! The 49,941 recorded records of `load_50k` through the real daemon, Kafka and Redis, also with
//! kills at random moments. The events are those that the rules demand for the recorded truth.

use std::collections::{BTreeSet, HashMap, HashSet};

use crm_event_processors::fakes::{Fake, Log, Options, Stored, currency_rows};
use serde_json::Value;

use test_support::daemon::Environment;
use test_support::recordings::recorded;
use test_support::{feed, services, unique};

const PARTITIONS: i32 = 6;

/// What must and what may arrive for the recorded changes, by the rules.
#[derive(Debug, Default)]
struct Truth {
    awards: BTreeSet<String>,
    reverses: BTreeSet<String>,
    reverses_may: BTreeSet<String>,
    cancels: BTreeSet<String>,
    cancels_may: BTreeSet<String>,
}

/// Plays the recording with rules written after behaviour.md, not after the code: unique changes in
/// order, with the state of each row.
fn truth() -> Truth {
    let mut truth = Truth::default();
    let mut seen = HashSet::new();
    let mut counted: HashMap<String, bool> = HashMap::new();
    for record in recorded("load_50k.jsonl.gz") {
        if record.topic != "crm.public.purchase_ledger" {
            continue;
        }
        let Some(value) = &record.value else { continue };
        let value: Value = serde_json::from_slice(value).expect("json");
        let source = &value["source"];
        let key = String::from_utf8(record.key.clone().expect("a key")).expect("text");
        if !seen.insert((key.clone(), value["op"].to_string(), source["lsn"].to_string())) {
            continue;
        }
        let key: Value = serde_json::from_str(&key).expect("json");
        let id = key["id"].as_str().expect("an id").to_owned();
        if value["op"] == "d" {
            truth.cancels.insert(id);
            continue;
        }
        let row = &value["after"];
        let earns = row["earn_currency"] != Value::Bool(false)
            && row["record_type"] != "debit"
            && row["user_id"].is_string();
        if !earns {
            continue;
        }
        match row["status"].as_str() {
            Some("completed") => {
                counted.insert(id.clone(), true);
                if !currency_rows(&id).is_empty() {
                    truth.awards.insert(format!("currency/award:purchase:{id}"));
                }
            }
            Some("refunded" | "cancelled") if value["op"] == "u" => {
                let reverse = format!("currency/reverse:purchase:{id}");
                if counted.contains_key(&id) {
                    truth.reverses.insert(reverse);
                    truth.cancels.insert(id);
                } else {
                    truth.reverses_may.insert(reverse);
                    truth.cancels_may.insert(id);
                }
            }
            _ => {}
        }
    }
    truth
}

async fn produce(brokers: &str, prefix: &str) {
    let records: Vec<_> = recorded("load_50k.jsonl.gz").collect();
    feed::produce(brokers, prefix, PARTITIONS, &records).await;
}

async fn caught_up(brokers: &str, prefix: &str) {
    let topic = format!("{prefix}.purchase_ledger");
    feed::caught_up(brokers, &format!("{prefix}-currency"), &topic).await;
}

fn ids<'a>(log: &'a Log, name: &str) -> Vec<&'a str> {
    log.events.iter().filter(|e| &*e.name == name).filter_map(|e| e.id.as_deref()).collect()
}

fn cancelled(log: &Log) -> Vec<String> {
    let source = |event: &Stored| {
        let data: Value = serde_json::from_str(event.data.as_deref()?).ok()?;
        Some(data["source_id"].as_str()?.to_owned())
    };
    log.events.iter().filter(|e| &*e.name == "currency/cancelled").filter_map(source).collect()
}

fn expect(what: &str, found: &BTreeSet<String>, must: &BTreeSet<String>, may: &BTreeSet<String>) {
    let missing: Vec<_> = must.difference(found).take(5).collect();
    let count = must.difference(found).count();
    assert!(missing.is_empty(), "{count} {what} missing, such as {missing:?}");
    let extra: Vec<_> =
        found.iter().filter(|id| !must.contains(*id) && !may.contains(*id)).take(5).collect();
    assert!(extra.is_empty(), "{what} that nothing calls for, such as {extra:?}");
}

/// Checks the events of the currency consumer.
pub(crate) fn verify(log: &Log) {
    let truth = truth();
    let none = BTreeSet::new();
    let set = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    expect("awards", &set(ids(log, "currency/award")), &truth.awards, &none);
    expect("reverses", &set(ids(log, "currency/reverse")), &truth.reverses, &truth.reverses_may);
    expect("cancels", &cancelled(log).into_iter().collect(), &truth.cancels, &truth.cancels_may);
}

/// The number of events sent again. Copies must be equal, except for `currency_rows`.
pub(crate) fn repeats(log: &Log) -> usize {
    let mut first: HashMap<&str, Value> = HashMap::new();
    let mut repeats = 0;
    for event in &log.events {
        let (Some(id), Some(data)) = (event.id.as_deref(), event.data.as_deref()) else { continue };
        let mut data: Value = serde_json::from_str(data).expect("json");
        data.as_object_mut().expect("an object").remove("currency_rows");
        if let Some(known) = first.get(id) {
            assert_eq!(known, &data, "the same id with other content: {id}");
            repeats += 1;
        } else {
            first.insert(id, data);
        }
    }
    repeats
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_change_becomes_its_event_exactly_once_within_128_mib() {
    let (brokers, prefix) = (services::kafka(), unique("load"));
    let fake =
        Fake::start(Options { keep_data: true, ..Options::default() }).await.expect("a fake");
    let redis = services::Redis::own();
    produce(brokers, &prefix).await;
    let environment = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CURRENCY_CONCURRENCY", "64")
        .with("INNGEST_CANCEL_SETTLE", "2s");
    let daemon = environment.start();
    caught_up(brokers, &prefix).await;
    let peak = daemon.peak_memory();
    assert!(daemon.stop().success(), "a clean stop");
    fake.inspect(|log| {
        verify(log);
        assert_eq!(repeats(log), 0, "each event once");
        let cancelled = cancelled(log);
        assert_eq!(
            cancelled.iter().collect::<HashSet<_>>().len(),
            cancelled.len(),
            "each cancel once"
        );
    });
    assert!(peak < 128 * 1024, "peak memory of {peak} KiB");
    println!("peak memory {peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_it_loses_nothing_and_repeats_only_what_was_in_flight() {
    let kills: u64 = std::env::var("LOAD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let (brokers, prefix) = (services::kafka(), unique("kill"));
    let fake =
        Fake::start(Options { keep_data: true, ..Options::default() }).await.expect("a fake");
    let redis = services::Redis::own();
    produce(brokers, &prefix).await;
    // Static membership: a dynamic member that was killed holds its partitions until the session
    // times out.
    let environment = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CURRENCY_CONCURRENCY", "64")
        .with("INNGEST_CANCEL_SETTLE", "2s")
        .with("KAFKA_INSTANCE_ID", "one");
    let total = truth().awards.len() as u64;
    for kill in 0..kills {
        let daemon = environment.start();
        // A random place in this life's share of the work.
        let share = total / (kills + 1);
        let moment = kill * share + fastrand::u64(0..share.max(1));
        fake.until(|log| log.events.len() as u64 > moment).await;
        daemon.kill();
    }
    let daemon = environment.start();
    caught_up(brokers, &prefix).await;
    assert!(daemon.stop().success(), "a clean stop");
    let repeats = fake.inspect(|log| {
        verify(log);
        repeats(log)
    });
    println!("{kills} kills, {repeats} events repeated with the same id and content");
}
