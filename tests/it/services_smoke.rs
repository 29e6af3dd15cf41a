//! Access to services: they are real, answer, and end with the tests.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer, StreamConsumer},
    message::{Header, Headers, OwnedHeaders},
    producer::FutureRecord,
};
use redis::{ExistenceCheck, SetExpiry, SetOptions, aio::MultiplexedConnection};
use tokio::time::timeout;

use test_support::{
    PATIENCE,
    kafka::{client, committed, create_topic, produce, read_topic},
    services::{self, Cluster, Redis, kafka, redis},
    unique, until,
};

#[tokio::test]
async fn a_record_comes_back_from_a_real_broker_as_it_was_sent() {
    let topic = unique("smoke");
    create_topic(kafka(), &topic, 3).await;
    let headers = OwnedHeaders::new().insert(Header { key: "source", value: Some("test") });
    let tombstone = FutureRecord::to(&topic).partition(0).key(b"gone".as_slice());
    let record = FutureRecord::to(&topic)
        .partition(2)
        .key(b"key".as_slice())
        .payload(b"value".as_slice())
        .timestamp(1_700_000_000_000)
        .headers(headers);

    assert_eq!(produce(kafka(), [tombstone, record]).await, [(0, 0), (2, 0)]);

    let records = read_topic(kafka(), &topic).await;
    let [tombstone, record] = records.as_slice() else {
        panic!("two records were sent, {} came", records.len())
    };
    assert_eq!(
        (tombstone.partition(), tombstone.key(), tombstone.payload()),
        (0, Some(b"gone".as_slice()), None)
    );
    assert_eq!(
        (record.key(), record.payload()),
        (Some(b"key".as_slice()), Some(b"value".as_slice()))
    );
    assert_eq!(record.timestamp().to_millis(), Some(1_700_000_000_000));
    let header = record.headers().expect("headers").get(0);
    assert_eq!((header.key, header.value), ("source", Some(b"test".as_slice())));
}

#[tokio::test]
async fn a_classic_group_consumes_and_its_commit_keeps_offset_and_metadata() {
    consume_and_commit(&[
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("session.timeout.ms", "6000"),
    ])
    .await;
}

#[tokio::test]
async fn a_group_of_the_new_protocol_consumes_and_its_commit_keeps_offset_and_metadata() {
    consume_and_commit(&[("group.protocol", "consumer")]).await;
}

async fn consume_and_commit(properties: &[(&str, &str)]) {
    let (topic, group) = (unique("smoke"), unique("smoke-group"));
    create_topic(kafka(), &topic, 1).await;
    let values = ["first", "second", "third"];
    let records = values
        .map(|value| FutureRecord::to(&topic).key(b"key".as_slice()).payload(value.as_bytes()));
    produce(kafka(), records).await;

    let mut config = client(kafka());
    config
        .set("group.id", &group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false");
    for (name, value) in properties {
        config.set(*name, *value);
    }
    let consumer: StreamConsumer = config.create().expect("a consumer");
    consumer.subscribe(&[&topic]).expect("a subscription");
    for value in values {
        let record =
            timeout(PATIENCE, consumer.recv()).await.expect("a record in time").expect("a record");
        assert_eq!(record.payload(), Some(value.as_bytes()));
    }
    assert!(
        committed(kafka(), &group, &topic).await.is_empty(),
        "nothing is committed unless asked for"
    );

    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(2)).expect("a valid offset");
    list.find_partition(&topic, 0).expect("the partition").set_metadata("resume here");
    consumer.commit(&list, CommitMode::Sync).expect("the commit is taken");

    assert_eq!(
        committed(kafka(), &group, &topic).await,
        [(0, (2, "resume here".to_owned()))].into()
    );
}

async fn connect(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    redis::Client::open(url).expect("a Redis URL").get_multiplexed_async_connection().await
}

async fn claim(connection: &mut MultiplexedConnection, key: &str, value: &str) -> Option<String> {
    let options = SetOptions::default()
        .conditional_set(ExistenceCheck::NX)
        .with_expiration(SetExpiry::EX(300));
    redis::AsyncTypedCommands::set_options(connection, key, value, options)
        .await
        .expect("Redis answers")
}

#[tokio::test]
async fn set_nx_ex_claims_a_key_once_on_a_real_redis() {
    let mut connection = connect(redis()).await.expect("a connection");
    let key = unique("smoke-claim");

    assert_eq!(claim(&mut connection, &key, "first").await.as_deref(), Some("OK"));
    assert_eq!(claim(&mut connection, &key, "second").await, None);

    let (value, seconds): (String, u64) = redis::pipe()
        .get(&key)
        .ttl(&key)
        .query_async(&mut connection)
        .await
        .expect("Redis answers");
    assert_eq!(value, "first");
    assert!((1..=300).contains(&seconds), "the claim ends by itself, in {seconds} s");
}

#[tokio::test]
async fn an_own_redis_can_be_stopped_and_comes_back_empty_at_the_same_address() {
    let own = Redis::own();
    assert_ne!(own.url(), redis());
    let mut connection = connect(own.url()).await.expect("a connection");
    assert_eq!(claim(&mut connection, "key", "first").await.as_deref(), Some("OK"));

    own.stop();
    assert!(connect(own.url()).await.is_err(), "a stopped Redis refuses connections");

    own.start();
    let mut connection = connect(own.url()).await.expect("a connection");
    assert_eq!(claim(&mut connection, "key", "second").await.as_deref(), Some("OK"));

    own.restart_empty();
    let mut connection = connect(own.url()).await.expect("a connection");
    assert_eq!(claim(&mut connection, "key", "third").await.as_deref(), Some("OK"));

    let url = own.url().to_owned();
    drop(own);
    assert!(connect(&url).await.is_err(), "a dropped Redis is gone");
}

#[tokio::test]
async fn an_own_cluster_takes_records_with_a_broker_stopped_or_killed_and_keeps_them_all() {
    let own = Cluster::own(3);
    let topic = unique("smoke");
    create_topic(own.bootstrap(), &topic, 3).await;
    let send = async |value: &'static str| {
        let record = |partition| {
            FutureRecord::<[u8], _>::to(&topic).partition(partition).payload(value.as_bytes())
        };
        produce(own.bootstrap(), (0..3).map(record)).await;
    };
    send("with all").await;
    own.stop(1);
    send("with one stopped").await;
    own.start(1);
    own.kill(2);
    send("with one killed").await;

    let records = read_topic(own.bootstrap(), &topic).await;
    let found = records.iter().map(|record| (record.partition(), record.payload().expect("text")));
    let values = ["with all", "with one stopped", "with one killed"];
    let expected = (0..3).flat_map(|partition| values.map(|value| (partition, value.as_bytes())));
    assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn services_end_with_the_process_that_they_were_started_for_even_when_it_is_killed() {
    let mut owner =
        Command::new("cat").stdin(Stdio::piped()).spawn().expect("a process that waits");
    // The later of the two owners counts, so that this process does not end the run.
    let exports =
        services::up(&["--until-parent-exits", &owner.id().to_string(), "redis"]).expect("a Redis");
    let (run, url) = (&exports["TEST_SERVICES"], &exports["TEST_REDIS"]);
    connect(url).await.expect("it answers while its owner lives");

    owner.kill().expect("the owner is killed");
    owner.wait().expect("the owner is gone");

    until("the run's directory to go", async || (!Path::new(run).exists()).then_some(())).await;
    assert!(connect(url).await.is_err(), "its Redis is gone too");
}

#[test]
fn a_service_that_cannot_be_had_is_an_error_that_says_why() {
    let reason = services::up(&["nonsense"]).expect_err("there is no such service");
    assert!(reason.contains("unknown service nonsense"), "{reason}");
}
