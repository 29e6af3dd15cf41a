//! Collects the checker's evidence: calls as they are carried out; at the end events, dead letters
//! and the topics themselves.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crm_event_processors::clients::redis::connect;
use crm_event_processors::fakes::{
    Endpoint, Fake, Reply, currency_rows, redemption_result, tier_status,
};
use jiff::Timestamp;
use rdkafka::Message;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Headers, OwnedMessage};
use serde_json::{Map, Value};

use crate::history::{Arrival, History, Kind, Met, Written, called};
use crate::load::{TOPICS, full_name, letter};
use crate::members::SENDER;
use crate::run::Clock;
use test_support::{PATIENCE, kafka, until};

/// Functions that were carried out.
pub(crate) type Calls = Arc<Mutex<Vec<Arrival>>>;

/// A function, two of its arguments, and what it answers to them.
type Function = (&'static str, [&'static str; 2], fn(&str, &str) -> Reply);

/// Has the fake note each function that it carries out.
pub(crate) fn listen(fake: &Fake, clock: Clock) -> Calls {
    let calls = Calls::default();
    let functions: [Function; 4] = [
        ("calc_currency_for_source", ["p_source_type", "p_source_id"], |_, id| {
            Reply::json(&currency_rows(id).into())
        }),
        ("evaluate_user_tier_status", ["p_user_id", "p_merchant_id"], |user, merchant| {
            Reply::json(&tier_status(user, merchant))
        }),
        ("redeem_reward_with_points", ["p_event_id", "p_user_id"], |id, _| {
            Reply::json(&redemption_result(id))
        }),
        ("apply_tier_upgrade", ["p_user_id", "p_merchant_id"], |_, _| Reply::void()),
    ];
    for (function, names, answer) in functions {
        let into = Arc::clone(&calls);
        fake.define_for(function, move |key: &str, arguments: &Map<String, Value>| {
            let [first, second] =
                names.map(|name| arguments.get(name).and_then(Value::as_str).unwrap_or_default());
            let what = format!("{function}:{first}:{second}");
            let now = clock.now();
            let call = Arrival {
                kind: Kind::Call,
                what,
                at: now,
                begun: now,
                by: Some(key.strip_prefix(SENDER).unwrap_or(key).to_owned()),
                content: None,
                internal: None,
            };
            into.lock().expect("not poisoned").push(call);
            answer(first, second)
        });
    }
    calls
}

/// Requests that were failed.
pub(crate) fn met(fake: &Fake) -> Met {
    fake.inspect(|log| {
        let faults = |endpoint| log.requests(endpoint).faults;
        let partial = log.posts.iter().filter(|post| post.status == 400 && post.stored > 0);
        Met {
            inngest: faults(Endpoint::Post),
            supabase: faults(Endpoint::Rpc) + faults(Endpoint::Rest),
            partial: partial.count() as u64,
        }
    })
}

/// What members logged about panics.
pub(crate) fn panics(logs: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for log in fs::read_dir(logs).expect("the logs") {
        let log = log.expect("a log").path();
        let text = fs::read(&log).expect("a log is read");
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| line.contains("panicked"));
        found.extend(lines.map(|line| format!("{}: {line}", log.display())));
    }
    found
}

/// Calls and events.
pub(crate) fn arrivals(fake: &Fake, clock: Clock, calls: &Calls) -> Vec<Arrival> {
    let behind = fake.started() - clock.start;
    let mut arrivals = std::mem::take(&mut *calls.lock().expect("not poisoned"));
    fake.inspect(|log| {
        let mut begun = HashMap::new();
        for post in log.posts.iter().filter(|post| post.seed.is_some()) {
            begun.entry(&post.seed).or_insert(post.at);
        }
        arrivals.extend(log.events.iter().map(|event| {
            let post = &log.posts[event.post as usize];
            let data = event.data.as_deref().expect("data is kept");
            Arrival {
                kind: Kind::Event,
                what: called(&event.name, event.id.as_deref(), data),
                at: behind + event.at,
                begun: behind + begun.get(&post.seed).copied().unwrap_or(post.at),
                by: Some(post.key.clone()),
                content: Some(data.to_owned()),
                internal: Some(event.internal_id),
            }
        }));
    });
    arrivals
}

/// Dead letters, and when they were written.
pub(crate) async fn letters(bootstrap: &str, clock: Clock, topic: &str) -> Vec<Arrival> {
    let letters = kafka::read_topic(bootstrap, topic).await;
    let arrival = |record: &OwnedMessage| {
        let header = |name: &str| {
            let headers = record.headers().expect("a dead letter has headers");
            let found = headers.iter().find(|header| header.key == name);
            let value = found.and_then(|header| header.value).unwrap_or_default();
            String::from_utf8_lossy(value).into_owned()
        };
        let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
        let written = record.timestamp().to_millis().expect("a time");
        let since =
            Timestamp::from_millisecond(written).expect("a time").duration_since(clock.wall);
        let at = Duration::try_from(since).unwrap_or_default();
        Arrival {
            kind: Kind::Letter,
            what: letter(&header("dlq.consumer"), &key),
            at,
            begun: at,
            by: None,
            content: Some(format!("{}: {}", header("dlq.error.kind"), header("dlq.error.message"))),
            internal: None,
        }
    };
    letters.iter().map(arrival).collect()
}

/// Claims that are still held: somebody would wait for them.
pub(crate) async fn held_claims(redis: &str) -> Vec<String> {
    let mut connection = connect(redis).expect("a connection");
    let mut ask = redis::cmd("KEYS");
    let keys: Vec<String> = ask.arg("crm:*").query_async(&mut connection).await.expect("keys");
    let mut held = Vec::new();
    for key in keys {
        let mut ask = redis::cmd("GET");
        let value: Option<String> = ask.arg(&key).query_async(&mut connection).await.expect("one");
        let value = value.unwrap_or_default();
        // Marks of what was taken back, decisions about refunds, and since when claims are kept.
        let kept = ["done:", "free:", "taken:", "{"].iter().any(|kind| value.starts_with(kind));
        if !kept && !key.ends_with(":claims:since") {
            held.push(format!("claim {key}: {value}"));
        }
    }
    held
}

/// Checks that the topics hold exactly what was written, and where it was acknowledged.
pub(crate) async fn read_back(bootstrap: &str, history: &mut History, prefix: &str) {
    let place = |topic: &str, partition, offset| (topic.to_owned(), partition, offset);
    let mut there = Vec::new();
    for (topic, _) in TOPICS {
        let topic = full_name(prefix, topic);
        let records = kafka::read_topic(bootstrap, &topic).await;
        there.extend(records.into_iter().map(|record| (topic.clone(), record)));
    }
    locate(history, &there);
    let mut written: BTreeMap<_, _> = history
        .written
        .iter()
        .map(|record| (place(&record.topic, record.partition, record.offset), record))
        .collect();
    let (mut wrong, mut again) = (Vec::new(), Vec::new());
    for (topic, record) in &there {
        let (partition, offset) = (record.partition(), record.offset());
        let here = place(topic, partition, offset);
        if written.get(&here).is_some_and(|found| same(found, topic, record)) {
            written.remove(&here);
            continue;
        }
        // A producer that lost its broker may write a batch twice, as Debezium's may.
        match history.written.iter().find(|found| same(found, topic, record)) {
            Some(known) => again.push(Written { offset, copy: true, ..known.clone() }),
            None => wrong.push(format!("{topic}/{partition}/{offset}")),
        }
    }
    wrong.extend(
        written
            .into_keys()
            .map(|(topic, partition, offset)| format!("{topic}/{partition}/{offset} is gone")),
    );
    if !wrong.is_empty() {
        wrong.truncate(5);
        let text = wrong.join(", ");
        history.incidents.push(format!("the topics do not hold what was written: {text}"));
    }
    history.written.append(&mut again);
}

/// Whether a record in a topic is the one that was written.
fn same(written: &Written, topic: &str, record: &OwnedMessage) -> bool {
    written.topic == topic
        && written.partition == record.partition()
        && record.key() == Some(written.key.as_bytes())
        && record.payload() == Some(written.value.as_bytes())
}

/// Finds the places of records that the broker acknowledged without an offset. It does so if it
/// already had what the producer sent again.
fn locate(history: &mut History, there: &[(String, OwnedMessage)]) {
    let mut taken: HashSet<(String, i32, i64)> = history
        .written
        .iter()
        .map(|record| (record.topic.clone(), record.partition, record.offset))
        .collect();
    for written in history.written.iter_mut().filter(|written| written.offset < 0) {
        let alike = there.iter().filter(|(topic, record)| same(written, topic, record));
        let mut places =
            alike.map(|(topic, record)| (topic.clone(), record.partition(), record.offset()));
        if let Some(place) = places.find(|place| !taken.contains(place)) {
            written.offset = place.2;
            taken.insert(place);
        }
    }
}

/// Old topics only cost the brokers memory, and the fixed name is needed again.
pub(crate) async fn delete_topics(bootstrap: &str, topics: impl Iterator<Item = String>) {
    let admin: AdminClient<DefaultClientContext> =
        kafka::client(bootstrap).create().expect("an admin client");
    let topics: Vec<String> = topics.collect();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    admin.delete_topics(&names, &AdminOptions::new()).await.expect("an answer");
    until("the topics to be gone", async || {
        let all = admin.inner().fetch_metadata(None, PATIENCE).ok()?;
        let there = |name: &String| all.topics().iter().any(|topic| topic.name() == name);
        (!topics.iter().any(there)).then_some(())
    })
    .await;
}
