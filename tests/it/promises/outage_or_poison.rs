//! Behaviour section 8.4: a dependency that is away is waited for. A record at fault becomes a dead
//! letter, whole, and only then is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crm_event_processors::engine::{Failure, Outcome};
use jiff::Timestamp;
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders, OwnedMessage};
use rdkafka::producer::FutureRecord;

use super::stage::{Call, Seen, Stage};
use test_support::kafka::{create_topic, produce, read_topic};

#[tokio::test]
async fn a_dependency_that_is_away_is_waited_for_and_nothing_is_set_aside() {
    let mut stage = Stage::new(1).await;
    stage.settings.retry.poison_after = Duration::ZERO;
    stage.send(&[(0, "a", "1"), (0, "b", "2"), (0, "a", "3")]).await;
    let dependency = stage.breakers.get("dependency");
    // It stays away until a record has failed often enough to be poison, if others were answered.
    let script = Arc::clone(&dependency);
    let member = stage.start(move |call| {
        let dependency = Arc::clone(&script);
        async move {
            if call.value == "1" && call.earlier > 20 {
                dependency.succeeded();
            }
            if dependency.successes() > 0 {
                return Ok(Outcome::Sent);
            }
            dependency.failed(std::time::Instant::now(), None, "refused");
            Err(Failure::Outage {
                breaker: dependency,
                kind: "unavailable",
                message: "refused".to_owned(),
                retry_after: None,
                attempted: true,
            })
        }
    });
    let seen = member.until_outcomes(3).await;
    assert_eq!(seen.count(Outcome::Sent), 3);
    assert!(seen.retries.iter().any(|(_, offset, why)| (*offset, &**why) == (1, "dependency")));
    stage.until_committed(0, 3).await;
    assert!(read_topic(&stage.kafka.bootstrap, &stage.kafka.dlq_topic).await.is_empty());
    member.stop().await;
}

#[tokio::test]
async fn poison_goes_to_the_dead_letter_topic_whole_and_with_what_went_wrong() {
    let stage = Stage::new(2).await;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "trace", value: Some("t-1") })
        .insert(Header::<&str> { key: "empty", value: None });
    let malformed = FutureRecord::to(&stage.topic)
        .partition(1)
        .key(b"k".as_slice())
        .payload(b"malformed \xff".as_slice())
        .timestamp(1_700_000_000_123)
        .headers(headers);
    produce(&stage.kafka.bootstrap, [malformed]).await;
    stage.send(&[(1, "k", "refused"), (1, "k", "fine")]).await;
    let before = Timestamp::now();
    let member = stage.start(async |call| match &*call.value {
        "refused" if call.earlier < 2 => {
            Err(Failure::Wait { until: std::time::Instant::now(), reason: "told_to" })
        }
        "refused" => Err(Failure::Poison { kind: "refused", message: "no such user".to_owned() }),
        _ => Ok(Outcome::Sent),
    });
    let seen = member.until_outcomes(3).await;
    assert_eq!(seen.outcome(1, 0), Some(Outcome::DeadLettered("command")));
    assert_eq!(seen.outcome(1, 1), Some(Outcome::DeadLettered("refused")));
    assert_eq!(seen.outcome(1, 2), Some(Outcome::Sent));
    member.stop().await;
    assert_eq!(stage.committed().await[&1].0, 3);

    let letters = read_topic(&stage.kafka.bootstrap, &stage.kafka.dlq_topic).await;
    let [first, second] = letters.as_slice() else { panic!("two letters, not {}", letters.len()) };
    assert_eq!(first.key(), Some(&b"k"[..]));
    assert_eq!(first.payload(), Some(&b"malformed \xff"[..]));
    let found = headers_of(first);
    let text = |name: &str| found[name].as_deref().expect("a value");
    assert_eq!((text("trace"), &found["empty"]), ("t-1", &None));
    assert_eq!(text("dlq.topic"), stage.topic);
    assert_eq!((text("dlq.partition"), text("dlq.offset")), ("1", "0"));
    assert_eq!(text("dlq.timestamp"), "1700000000123");
    assert_eq!(text("dlq.consumer"), "scripted");
    assert_eq!(text("dlq.error.kind"), "command");
    assert_eq!(text("dlq.error.message"), "value is not a valid command: it is malformed");
    assert_eq!(text("dlq.attempts"), "1");
    for name in ["dlq.first_at", "dlq.last_at"] {
        let at: Timestamp = text(name).parse().expect("RFC 3339");
        assert!(before <= at && at <= Timestamp::now(), "{name} {at}");
    }
    let found = headers_of(second);
    let text = |name: &str| found[name].as_deref().expect("a value");
    assert_eq!((text("dlq.offset"), text("dlq.error.kind")), ("1", "refused"));
    assert_eq!(text("dlq.error.message"), "no such user");
    assert_eq!(text("dlq.attempts"), "1", "waits are no attempts");
}

fn headers_of(letter: &OwnedMessage) -> BTreeMap<String, Option<String>> {
    let headers = letter.headers().expect("headers");
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).expect("text");
    headers.iter().map(|header| (header.key.to_owned(), header.value.map(text))).collect()
}

#[tokio::test]
async fn a_flood_of_dead_letters_is_held_and_goes_on_when_one_of_it_passes() {
    let mut stage = Stage::new(1).await;
    stage.settings.dlq_flood = Some(5);
    let keys: Vec<String> = (0..20).map(|key| format!("k-{key}")).collect();
    let records: Vec<(i32, &str, &str)> = keys.iter().map(|key| (0, &**key, "bad")).collect();
    stage.send(&records).await;
    let mended = Arc::new(AtomicBool::new(false));
    let script = Arc::clone(&mended);
    let member = stage.start(move |_| {
        let mended = script.load(Ordering::Relaxed);
        async move {
            if mended {
                return Ok(Outcome::Sent);
            }
            Err(Failure::Poison { kind: "refused", message: "no such function".to_owned() })
        }
    });
    let seen = member.until_outcomes(5).await;
    assert_eq!(seen.count(Outcome::DeadLettered("refused")), 5);
    test_support::until("the flood in readiness", async || {
        let waits_for = member.pulse().read().waits_for;
        let named = |reason: &String| reason.contains("refused") && reason.contains("DLQ_FLOOD");
        waits_for.iter().any(named).then_some(())
    })
    .await;
    // They are retried in vain, and none becomes a dead letter.
    let held = |seen: &Seen| seen.retries.iter().filter(|r| r.2 == "dead_letters_held").count();
    member.until("some that were tried", |seen| held(seen) > 20).await;
    mended.store(true, Ordering::Relaxed);
    let seen = member.until_outcomes(20).await;
    assert_eq!(seen.count(Outcome::DeadLettered("refused")), 5);
    assert_eq!(seen.count(Outcome::Sent), 15);
    stage.until_committed(0, 20).await;
    assert_eq!(read_topic(&stage.kafka.bootstrap, &stage.kafka.dlq_topic).await.len(), 5);
    member.stop().await;
}

#[tokio::test]
async fn while_the_dead_letter_topic_cannot_be_written_only_that_lane_waits() {
    let stage = Stage::bare(test_support::services::kafka());
    create_topic(&stage.kafka.bootstrap, &stage.topic, 2).await;
    stage
        .send(&[(0, "a", "fine"), (0, "bad", "refused"), (0, "bad", "behind"), (0, "b", "fine")])
        .await;
    stage.send(&[(1, "c", "fine")]).await;
    let script = async |call: Call| match &*call.value {
        "refused" => Err(Failure::Poison { kind: "refused", message: "no such user".to_owned() }),
        _ => Ok(Outcome::Sent),
    };
    let member = stage.start(script);
    let seen = member.until_outcomes(3).await;
    assert!(seen.outcome(0, 1).is_none() && seen.outcome(0, 2).is_none());
    stage.until_committed(0, 1).await;
    stage.until_committed(1, 1).await;
    let topic = stage.kafka.dlq_topic.clone();
    member
        .until("the dead letter that cannot be written", |seen| {
            seen.retries.iter().any(|retry| retry.1 == 1)
        })
        .await;
    test_support::until("the reason in readiness", async || {
        let waits_for = member.pulse().read().waits_for;
        waits_for.iter().any(|reason| reason.contains(&topic)).then_some(())
    })
    .await;
    assert_eq!(stage.committed().await[&0].0, 1, "nothing is committed beyond it");
    // It merely waits: a stop need not wait for it, and the next start goes on with it.
    member.stop().await;
    let member = stage.start(script);

    create_topic(&stage.kafka.bootstrap, &stage.kafka.dlq_topic, 1).await;
    let seen = member.until_outcomes(2).await;
    assert_eq!(seen.outcome(0, 1), Some(Outcome::DeadLettered("refused")));
    assert_eq!(seen.outcome(0, 2), Some(Outcome::Sent));
    stage.until_committed(0, 4).await;
    assert_eq!(read_topic(&stage.kafka.bootstrap, &stage.kafka.dlq_topic).await.len(), 1);
    member.stop().await;
}
