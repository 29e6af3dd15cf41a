//! What tests do with a Kafka besides running the daemon on it. Everything panics on an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::join_all;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::OwnedMessage,
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
};
use tokio::task::spawn_blocking;

use super::{PATIENCE, unique, until};

/// Client configuration for `brokers` and nothing else.
pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// Creates a topic, and returns once each of its partitions has a leader.
pub async fn create_topic(brokers: &str, name: &str, partitions: i32) {
    ask_for_topic(brokers, name, partitions).await.expect("the topic is created");
    until_led(brokers, name, partitions).await;
}

/// As [`create_topic`], for a topic whose name is not the test's own: another may have made it, with
/// as many partitions.
pub async fn ensure_topic(brokers: &str, name: &str, partitions: i32) {
    match ask_for_topic(brokers, name, partitions).await {
        Ok(()) | Err(RDKafkaErrorCode::TopicAlreadyExists) => {}
        Err(code) => panic!("the topic is not created: {code}"),
    }
    until_led(brokers, name, partitions).await;
}

async fn ask_for_topic(brokers: &str, name: &str, partitions: i32) -> Result<(), RDKafkaErrorCode> {
    let admin: AdminClient<DefaultClientContext> =
        client(brokers).create().expect("an admin client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1)); // -1: the broker's default
    let results = admin
        .create_topics([&topic], &AdminOptions::new())
        .await
        .expect("an answer to create_topics");
    results.into_iter().try_for_each(|result| result.map(drop).map_err(|(_, code)| code))
}

/// Waits until the topic exists and each of its partitions has a leader.
pub async fn until_led(brokers: &str, name: &str, partitions: i32) {
    until("leaders of a new topic", async || {
        let (brokers, name) = (brokers.to_owned(), name.to_owned());
        let ids = spawn_blocking(move || {
            let consumer: BaseConsumer = client(&brokers).create().expect("a consumer");
            led_partitions(&consumer, &name)
        });
        let ids = ids.await.expect("the metadata request ends");
        (ids.len() == usize::try_from(partitions).expect("a positive number of partitions"))
            .then_some(())
    })
    .await;
}

/// Sends the records in order, all at once. Once acknowledged, returns their (partition, offset).
pub async fn produce<'a>(
    brokers: &str,
    records: impl IntoIterator<Item = FutureRecord<'a, [u8], [u8]>>,
) -> Vec<(i32, i64)> {
    let producer: FutureProducer = client(brokers)
        .set("enable.idempotence", "true") // or a retry could change the order
        .set("queue.buffering.max.messages", "1000000")
        .set("message.max.bytes", "10000000") // the limit is the broker's
        .create()
        .expect("a producer");
    let sent: Vec<_> = records
        .into_iter()
        .map(|record| {
            producer
                .send_result(record)
                .map_err(|(error, _)| error)
                .expect("room in the producer's queue")
        })
        .collect();
    join_all(sent)
        .await
        .into_iter()
        .map(|delivery| {
            let delivery = delivery
                .expect("the producer lives")
                .map_err(|(error, _)| error)
                .expect("the broker acknowledges");
            (delivery.partition, delivery.offset)
        })
        .collect()
}

/// Everything that the topic holds now, by partition and offset.
pub async fn read_topic(brokers: &str, topic: &str) -> Vec<OwnedMessage> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    spawn_blocking(move || {
        let consumer: BaseConsumer = client(&brokers)
            .set("group.id", unique("reader")) // librdkafka assigns nothing without one; it is never joined
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        let mut open = led_partitions(&consumer, &topic);
        assert!(!open.is_empty(), "there is no topic {topic}");
        let mut list = TopicPartitionList::new();
        for &partition in &open {
            list.add_partition_offset(&topic, partition, Offset::Beginning)
                .expect("a valid offset");
        }
        consumer.assign(&list).expect("the partitions can be assigned");
        let mut records = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while !open.is_empty() {
            assert!(
                Instant::now() < deadline,
                "the end of {topic} did not come within {PATIENCE:?}"
            );
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => records.push(record.detach()),
                // Offsets have gaps, so only this error marks the end. It does not name the topic.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                // A test has stopped this broker; the partitions are read from another.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                ))) => {}
                Some(Err(error)) => panic!("{topic} cannot be read: {error}"),
                None => {}
            }
        }
        records.sort_by_key(|record| (record.partition(), record.offset()));
        records
    })
    .await
    .expect("the topic is read")
}

/// What the group has committed for the topic: next offset and metadata by partition, without those never committed.
pub async fn committed(brokers: &str, group: &str, topic: &str) -> BTreeMap<i32, (i64, String)> {
    let (brokers, group, topic) = (brokers.to_owned(), group.to_owned(), topic.to_owned());
    spawn_blocking(move || {
        let consumer: BaseConsumer =
            client(&brokers).set("group.id", &group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        for partition in led_partitions(&consumer, &topic) {
            list.add_partition(&topic, partition);
        }
        let deadline = Instant::now() + PATIENCE;
        let answer = loop {
            // A broker that has just started may not coordinate the group yet.
            match consumer.committed_offsets(list.clone(), PATIENCE) {
                Ok(answer) => break answer,
                Err(error) => assert!(Instant::now() < deadline, "the group's offsets: {error}"),
            }
        };
        answer
            .elements()
            .iter()
            .filter_map(|element| match element.offset() {
                Offset::Offset(next) => {
                    Some((element.partition(), (next, element.metadata().to_owned())))
                }
                _ => None,
            })
            .collect()
    })
    .await
    .expect("the group's offsets are read")
}

/// Deletes the records of partition 0 before `offset`, as retention does.
pub async fn delete_before(brokers: &str, topic: &str, offset: i64) {
    let admin: AdminClient<DefaultClientContext> =
        client(brokers).create().expect("an admin client");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
    let deleted = admin.delete_records(&list, &AdminOptions::new()).await.expect("an answer");
    for element in deleted.elements() {
        element.error().expect("records are deleted");
    }
}

/// The end of each of the topic's partitions: the offset that the next record will have.
pub async fn ends(brokers: &str, topic: &str) -> BTreeMap<i32, i64> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    spawn_blocking(move || {
        let consumer: BaseConsumer = client(&brokers).create().expect("a consumer");
        let end = |partition| {
            let bounds = consumer.fetch_watermarks(&topic, partition, PATIENCE);
            (partition, bounds.expect("the partition's bounds").1)
        };
        led_partitions(&consumer, &topic).into_iter().map(end).collect()
    })
    .await
    .expect("the ends are read")
}

/// Partitions of the topic that have a leader; none if the topic does not exist.
fn led_partitions(consumer: &BaseConsumer, topic: &str) -> BTreeSet<i32> {
    let metadata =
        consumer.fetch_metadata(Some(topic), PATIENCE).expect("the broker answers with metadata");
    let partitions = metadata
        .topics()
        .iter()
        .filter(|found| found.name() == topic)
        .flat_map(|found| found.partitions());
    partitions.filter(|partition| partition.leader() >= 0).map(|partition| partition.id()).collect()
}
