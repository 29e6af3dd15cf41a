//! Bytes that the Kafka binding takes for text: a header's name.

use std::ptr;

use crm_event_processors::fakes::{Fake, Options};
use rdkafka::message::{BorrowedHeaders, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::FutureRecord;
use serde_json::json;

use test_support::daemon::Environment;
use test_support::{feed, kafka, services, unique};

/// A name with the byte e9, as a producer with ISO 8859-1 writes it.
const NAME: &[u8] = b"caf\xe9";

#[expect(unsafe_code, reason = "the binding takes names as text alone")]
fn headers() -> OwnedHeaders {
    let headers = OwnedHeaders::new();
    let value = b"\xff1";
    // SAFETY: the binding makes this reference of librdkafka's pointer, and name and value are
    // copied.
    unsafe {
        let native = ptr::from_ref(headers.as_borrowed()).cast_mut().cast();
        let (name, size) = (NAME.as_ptr().cast(), NAME.len().cast_signed());
        let value = (value.as_ptr().cast(), value.len().cast_signed());
        rdkafka_sys::rd_kafka_header_add(native, name, size, value.0, value.1);
    }
    headers
}

/// The value of the header with that name.
#[expect(unsafe_code, reason = "the binding panics at such a name")]
fn value_of(letter: &OwnedMessage) -> Option<Vec<u8>> {
    let headers: &BorrowedHeaders = letter.headers().expect("headers").as_borrowed();
    let (mut value, mut size) = (ptr::null(), 0);
    let name = [NAME, b"\0"].concat();
    // SAFETY: the name ends with a zero byte, and the value lives as long as the letter.
    unsafe {
        let native = ptr::from_ref(headers).cast();
        let name = name.as_ptr().cast();
        let error =
            rdkafka_sys::rd_kafka_header_get_last(native, name, &raw mut value, &raw mut size);
        (error == rdkafka_sys::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)
            .then(|| std::slice::from_raw_parts(value.cast::<u8>(), size).to_vec())
    }
}

fn order(number: u32) -> String {
    json!({"shop_id": 1, "order_sn": format!("sn{number}"), "order_status": "PAID"}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_whose_name_is_no_text_ends_nothing_and_a_dead_letter_keeps_it() {
    let (brokers, prefix, redis) = (services::kafka(), unique("bytes"), services::Redis::own());
    let fake = Fake::start(Options::default()).await.expect("a fake");
    let topic = format!("{prefix}.orders");
    kafka::create_topic(brokers, &topic, 1).await;
    let values = [order(0), "no order".to_owned(), order(2)];
    let records = values.iter().enumerate().map(|(at, value)| {
        let record = FutureRecord::to(&topic).key(b"shop-1".as_slice()).payload(value.as_bytes());
        if at < 2 { record.headers(headers()) } else { record }
    });
    kafka::produce(brokers, records).await;

    let environment = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", "marketplace")
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &topic);
    let daemon = environment.start();
    feed::caught_up(brokers, &format!("{prefix}-marketplace"), &topic).await;
    assert!(daemon.stop().success(), "a clean stop");
    let mut ids: Vec<_> =
        fake.inspect(|log| log.events.iter().filter_map(|e| e.id.clone()).collect());
    // The two orders are two lanes, so either may come first.
    ids.sort();
    let id = |number| format!("marketplace/order-received:shopee:1:sn{number}:PAID");
    assert_eq!(ids.iter().map(|id| &**id).collect::<Vec<_>>(), [id(0), id(2)]);

    let letters = kafka::read_topic(brokers, &format!("{prefix}.dlq")).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].payload(), Some(values[1].as_bytes()));
    assert_eq!(value_of(&letters[0]).as_deref(), Some(&b"\xff1"[..]), "byte for byte");

    let place = ["--topic", &topic, "--partition", "0", "--offset", "0", "--count", "3"];
    let explained = environment.run_with(&[&["explain", "--json"], &place[..]].concat());
    let printed = String::from_utf8(explained.stdout).expect("text");
    assert!(explained.status.success(), "{}", String::from_utf8_lossy(&explained.stderr));
    assert_eq!(printed.lines().count(), 3, "{printed}");
}
