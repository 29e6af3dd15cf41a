//! A broken record that is larger than what the dead letter topic takes, and good ones behind it.

use std::collections::BTreeMap;

use crm_event_processors::fakes::{Fake, Options};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use rdkafka::producer::FutureRecord;
use serde_json::json;

use test_support::daemon::Environment;
use test_support::{feed, kafka, services, unique};

const LARGE: usize = 3_000_000;
const GOOD: usize = 1_001;

async fn create(brokers: &str, name: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        kafka::client(brokers).create().expect("an admin client");
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(-1));
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    kafka::until_led(brokers, name, 1).await;
}

fn headers_of(letter: &OwnedMessage) -> BTreeMap<String, String> {
    let headers = letter.headers().expect("headers");
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    headers.iter().map(|h| (h.key.to_owned(), h.value.map(text).unwrap_or_default())).collect()
}

/// The one dead letter of a broken record, after good ones were sent behind it. With `dead_letters`
/// the topic exists before the daemon, with these settings.
async fn letter_of(dead_letters: Option<&[(&str, &str)]>) -> (String, Vec<u8>, OwnedMessage) {
    let (brokers, prefix, redis) = (services::kafka(), unique("large"), services::Redis::own());
    let fake = Fake::start(Options::default()).await.expect("a fake");
    let topic = format!("{prefix}.orders");
    create(brokers, &topic, &[("max.message.bytes", "20000000")]).await;
    if let Some(settings) = dead_letters {
        create(brokers, &format!("{prefix}.dlq"), settings).await;
    }
    // Random bytes, which no compression makes smaller.
    let broken: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(LARGE).collect();
    let order = |number| {
        json!({"shop_id": 1, "order_sn": format!("sn{number}"), "order_status": "PAID"}).to_string()
    };
    let good: Vec<String> = (0..GOOD).map(order).collect();
    let values = std::iter::once(&*broken).chain(good.iter().map(String::as_bytes));
    let records = values.map(|value| FutureRecord::to(&topic).key(b"k".as_slice()).payload(value));
    kafka::produce(brokers, records).await;

    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", "marketplace")
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &topic)
        .start();
    feed::caught_up(brokers, &format!("{prefix}-marketplace"), &topic).await;
    assert!(daemon.stop().success(), "a clean stop");
    assert_eq!(fake.inspect(|log| log.events.len()), GOOD);
    let mut letters = kafka::read_topic(brokers, &format!("{prefix}.dlq")).await;
    assert_eq!(letters.len(), 1);
    (topic, broken, letters.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_is_made_takes_what_its_source_topics_take() {
    let (_, broken, letter) = letter_of(None).await;
    assert_eq!(letter.payload(), Some(&*broken));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_is_there_is_made_to_take_it() {
    let (_, broken, letter) = letter_of(Some(&[("retention.ms", "86400000")])).await;
    assert_eq!(letter.payload(), Some(&*broken));
    let admin: AdminClient<DefaultClientContext> =
        kafka::client(services::kafka()).create().expect("an admin client");
    let topic = ResourceSpecifier::Topic(letter.topic());
    let found = admin.describe_configs([&topic], &AdminOptions::new()).await.expect("an answer");
    let settings = found[0].as_ref().expect("settings");
    let kept = settings.get("retention.ms").and_then(|entry| entry.value.as_deref());
    assert_eq!(kept, Some("86400000"), "its other settings stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_refuses_for_its_size_goes_without_its_value() {
    // A batch may be as large as a segment, whatever the topic accepts.
    let refuses = [("segment.bytes", "1048576"), ("max.message.bytes", "30000000")];
    let (topic, _, letter) = letter_of(Some(&refuses)).await;
    assert_eq!((letter.key(), letter.payload()), (Some(&b"k"[..]), None));
    let headers = headers_of(&letter);
    let header = |name: &str| headers.get(name).map(String::as_str);
    let place = ["dlq.topic", "dlq.partition", "dlq.offset"].map(header);
    assert_eq!(place, [Some(&*topic), Some("0"), Some("0")]);
    let size = (LARGE + b"k".len()).to_string();
    assert_eq!((header("dlq.left_out"), header("dlq.size")), (Some("value"), Some(&*size)));
}
