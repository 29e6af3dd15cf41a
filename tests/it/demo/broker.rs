//! The embedded broker does what the daemon and the tests expect of a Kafka.

use crm_event_processors::fakes::broker::{Broker, BrokerError};
use crm_event_processors::recording::Recorded;
use rdkafka::Message as _;
use rdkafka::message::Headers as _;

fn record(partition: i32, value: Option<&[u8]>) -> Recorded {
    Recorded {
        topic: "changes".to_owned(),
        partition,
        offset: 4711,
        timestamp_ms: Some(1_700_000_000_123),
        key: Some(b"key".to_vec()),
        value: value.map(<[u8]>::to_vec),
        headers: vec![("h".to_owned(), Some(vec![0, 0xff])), ("n".to_owned(), None)],
    }
}

#[tokio::test]
async fn records_arrive_in_their_partition_with_everything_that_they_had() {
    let broker = Broker::start().expect("a broker");
    broker.create_topic("changes", 3).expect("a topic");
    for (value, offset) in [(Some(&b"one"[..]), 0), (None, 1)] {
        let stored = broker.produce(&record(2, value)).expect("room in the queue");
        let stored = stored.await.expect("the producer lives").expect("the broker stores it");
        assert_eq!((stored.partition, stored.offset), (2, offset));
    }
    let (broker, read) = tokio::task::spawn_blocking(move || {
        let read = broker.read("changes").expect("the topic is read");
        (broker, read)
    })
    .await
    .expect("reading ends");
    let [one, tombstone] = &read[..] else { panic!("two records, not {}", read.len()) };
    assert_eq!(
        (one.partition(), one.key(), one.payload()),
        (2, Some(&b"key"[..]), Some(&b"one"[..]))
    );
    assert_eq!(one.timestamp().to_millis(), Some(1_700_000_000_123));
    let headers = one.headers().expect("headers");
    assert_eq!((headers.get(0).key, headers.get(0).value), ("h", Some(&[0, 0xff][..])));
    assert_eq!((headers.get(1).key, headers.get(1).value), ("n", None));
    assert_eq!(tombstone.payload(), None);
    let open = tokio::task::spawn_blocking(move || broker.uncommitted("nobody", "changes"));
    let open = open.await.expect("asking ends").expect("an answer");
    assert_eq!(open.into_iter().collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 2)]);
}

#[tokio::test]
async fn a_broker_that_was_away_comes_back_with_what_it_held() {
    let broker = Broker::start().expect("a broker");
    broker.create_topic("changes", 1).expect("a topic");
    let produce = || broker.produce(&record(0, Some(b"x"))).expect("room in the queue");
    produce().await.expect("the producer lives").expect("stored");
    broker.down().expect("it goes");
    let waiting = produce();
    broker.up().expect("it comes");
    let stored = waiting.await.expect("the producer lives").expect("stored in the end");
    assert_eq!(stored.offset, 1);
}

#[test]
fn a_topic_cannot_be_made_twice() {
    let broker = Broker::start().expect("a broker");
    broker.create_topic("changes", 1).expect("a topic");
    let error = broker.create_topic("changes", 1).expect_err("it exists");
    assert!(matches!(error, BrokerError::Kafka(_)), "{error}");
}
