//! Dead letters that are produced to their topics again, long after their neighbours were finished.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crm_event_processors::clients::redis::connect;
use crm_event_processors::fakes::{Fake, Options, Reply};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use serde_json::json;

use super::purchases::{award_all, awards, purchase, send, until_committed};
use test_support::daemon::Environment;
use test_support::{kafka, services, unique};

const GROUPS: [&str; 2] = ["currency", "tier"];

/// Produces these purchases again, each as the dead letter of a consumer.
async fn send_again(topic: &str, letters: &[(u64, &str)]) {
    let records: Vec<_> =
        letters.iter().map(|(lsn, consumer)| (purchase(*lsn), *consumer)).collect();
    let records = records.iter().map(|((key, value), consumer)| {
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("dlq.topic", topic))
            .insert(header("dlq.consumer", *consumer));
        FutureRecord::to(topic).key(key.as_bytes()).payload(value.as_bytes()).headers(headers)
    });
    kafka::produce(services::kafka(), records).await;
}

/// How often each member's tier was evaluated.
#[derive(Clone, Default)]
struct Evaluations(Arc<Mutex<BTreeMap<String, u32>>>);

impl Evaluations {
    fn of(fake: &Fake) -> Self {
        let seen = Self::default();
        let noted = seen.clone();
        fake.define("evaluate_user_tier_status", move |arguments| {
            let user = arguments["p_user_id"].as_str().expect("a user").to_owned();
            *noted.0.lock().expect("not poisoned").entry(user).or_default() += 1;
            Reply::json(&json!({"recommended_action": "assign_entry"}))
        });
        seen
    }

    fn count(&self, lsn: u64) -> u32 {
        let seen = self.0.lock().expect("not poisoned");
        seen.get(&format!("u{lsn}")).copied().unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_handled_again_by_the_consumer_that_set_it_aside_and_by_no_other() {
    let (brokers, prefix, redis) = (services::kafka(), unique("letters"), services::Redis::own());
    let fake = Fake::start(Options::default()).await.expect("a fake");
    award_all(&fake);
    let evaluations = Evaluations::of(&fake);
    let topic = format!("{prefix}.purchase_ledger");
    kafka::create_topic(brokers, &topic, 1).await;
    kafka::create_topic(brokers, &format!("{prefix}.wallet_ledger"), 1).await;
    let committed = async |offset| {
        for consumer in GROUPS {
            until_committed(&format!("{prefix}-{consumer}"), &topic, offset).await;
        }
    };
    // From then on only the kept positions tell what was finished.
    let mut claims = connect(redis.url()).expect("a redis url");
    let mut forget = async || {
        let () = redis::cmd("FLUSHALL").query_async(&mut claims).await.expect("emptied");
    };
    let environment = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", &GROUPS.join(","))
        // After a start the tier waits this long if no claim tells when a tier last changed.
        .with("INNGEST_CANCEL_SETTLE", "1s");
    send(&topic, 0..4).await;
    let daemon = environment.start();
    committed(4).await;
    assert_eq!(awards(&fake), (0..4).map(|lsn| (lsn, 1)).collect());

    forget().await;
    send(&topic, [0]).await; // the connector's
    // Two of a member's in a row are one evaluation or two.
    send_again(&topic, &[(1, "currency"), (2, "tier"), (2, "tier"), (3, "mission")]).await;
    // This change was never seen here, and lies behind all others.
    send_again(&topic, &[(50, "currency")]).await;
    send(&topic, [10]).await;
    committed(11).await;
    let expected = BTreeMap::from([(0, 1), (1, 2), (2, 1), (3, 1), (10, 1), (50, 1)]);
    assert_eq!(awards(&fake), expected);
    for (lsn, times) in [(0, 1..=1), (1, 1..=1), (2, 2..=3), (3, 1..=1), (10, 1..=1)] {
        assert!(times.contains(&evaluations.count(lsn)), "u{lsn}: {}", evaluations.count(lsn));
    }
    assert!(daemon.stop().success(), "a clean stop");

    // After a restart the letters' changes are not known either.
    forget().await;
    send(&topic, [11, 10, 2]).await;
    let daemon = environment.start();
    committed(14).await;
    assert!(daemon.stop().success(), "a clean stop");
    let expected = BTreeMap::from([(0, 1), (1, 2), (2, 1), (3, 1), (10, 1), (11, 1), (50, 1)]);
    assert_eq!(awards(&fake), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_lacks_its_value_is_set_aside_again_and_deletes_nothing() {
    let (brokers, prefix, redis) = (services::kafka(), unique("lacking"), services::Redis::own());
    let fake = Fake::start(Options::default()).await.expect("a fake");
    award_all(&fake);
    let topic = format!("{prefix}.purchase_ledger");
    kafka::create_topic(brokers, &topic, 1).await;
    let (key, _) = purchase(0);
    let header = |key, value| Header { key, value: Some(value) };
    let letter = |consumer| {
        let headers = OwnedHeaders::new()
            .insert(header("dlq.consumer", consumer))
            .insert(header("dlq.left_out", "value"));
        FutureRecord::<[u8], [u8]>::to(&topic).key(key.as_bytes()).headers(headers)
    };
    kafka::produce(brokers, [letter("currency"), letter("tier")]).await;
    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CDC_TOMBSTONES", "delete")
        .start();
    until_committed(&format!("{prefix}-currency"), &topic, 2).await;
    assert!(daemon.stop().success(), "a clean stop");
    assert!(fake.inspect(|log| log.events.is_empty()), "nothing is cancelled");
    let letters = kafka::read_topic(brokers, &format!("{prefix}.dlq")).await;
    assert_eq!(letters.len(), 1, "the one of this consumer");
}
