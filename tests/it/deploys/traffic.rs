//! Steady load on every partition: a sender sends its next bundle once the last one has been
//! accepted. So each partition always has some records in flight, and none runs away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crm_event_processors::fakes::{Fake, Log, Reply, Stored, currency_rows};
use futures::future::join_all;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use test_support::kafka;

/// Senders to one partition, so that records of different keys are in flight together.
const HANDS: usize = 2;
/// One of this many purchases is refunded right away.
const REFUNDED: u64 = 3;
const MERCHANT: &str = "11111111-1111-4111-8111-111111111111";
const STATUSES: [&str; 3] = ["PAID", "SHIPPED", "COMPLETED"];

/// What kind of records a topic holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    Purchases,
    Orders,
}

/// A partition under load.
pub(super) type Spot = (Stream, i32);

/// A record that was sent, and the events that it calls for, in order.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) spot: Spot,
    /// Its order domain.
    pub(super) lane: String,
    pub(super) events: Vec<String>,
}

/// The load, until it is stopped.
pub(super) struct Traffic {
    stop: CancellationToken,
    hands: JoinSet<Vec<Sent>>,
}

impl Traffic {
    /// Starts it on these topics, each with so many partitions.
    pub(super) fn start(brokers: &str, fake: &Arc<Fake>, topics: &[(Stream, String, i32)]) -> Self {
        let stop = CancellationToken::new();
        let belt = Arc::new(Belt::new(brokers));
        let mut hands = JoinSet::new();
        for (stream, topic, partitions) in topics {
            for partition in (0..*partitions).flat_map(|partition| [partition; HANDS]) {
                let hand = Hand {
                    spot: (*stream, partition),
                    topic: topic.clone(),
                    belt: Arc::clone(&belt),
                    fake: Arc::clone(fake),
                };
                hands.spawn(hand.work(stop.clone()));
            }
        }
        Self { stop, hands }
    }

    /// Stops it once all work under way has been accepted, and returns all that was sent.
    pub(super) async fn stop(self) -> Vec<Sent> {
        self.stop.cancel();
        self.hands.join_all().await.into_iter().flatten().collect()
    }
}

/// An event's name: its id, or its source if it has none.
pub(super) fn name_of(event: &Stored) -> String {
    event.id.as_deref().map_or_else(
        || {
            let data = event.data.as_deref().expect("the fake keeps data");
            let data: Value = serde_json::from_str(data).expect("json");
            format!("{}:purchase:{}", event.name, data["source_id"].as_str().expect("a source"))
        },
        str::to_owned,
    )
}

/// The partition of the record that an event was sent for.
pub(super) fn spot_of(event: &str) -> Spot {
    let mut parts = event.split(':');
    if parts.next() == Some("marketplace/order-received") {
        let shop = parts.nth(1).expect("a shop");
        return (Stream::Orders, shop.parse().expect("a shop is a partition"));
    }
    let id = parts.nth(1).expect("an id");
    let partition = id.split('-').nth(3).expect("the partition's part");
    (Stream::Purchases, i32::from_str_radix(partition, 16).expect("a partition"))
}

/// The common producer: log positions grow in the order of the records.
struct Belt {
    producer: FutureProducer,
    number: Mutex<u64>,
}

/// Records of one key, to be sent in sequence.
pub(super) struct Bundle {
    pub(super) key: String,
    pub(super) values: Vec<String>,
    /// The events that each of them calls for.
    pub(super) events: Vec<Vec<String>>,
    /// When this event has been accepted, the next bundle goes out.
    awaited: String,
}

impl Belt {
    fn new(brokers: &str) -> Self {
        let producer = kafka::client(brokers)
            .set("enable.idempotence", "true") // or a retry could change the order
            .set("linger.ms", "0")
            .create()
            .expect("a producer");
        Self { producer, number: Mutex::default() }
    }

    fn put(&self, topic: &str, spot: Spot) -> (Bundle, Vec<DeliveryFuture>) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        *number += 1;
        let bundle = bundle(spot, *number);
        let send = |value| {
            let record = FutureRecord::to(topic).partition(spot.1).key(&bundle.key);
            let sent = self.producer.send_result(record.payload(value));
            sent.map_err(|(error, _)| error).expect("room in the producer's queue")
        };
        let sent = bundle.values.iter().map(send).collect();
        (bundle, sent)
    }
}

struct Hand {
    spot: Spot,
    topic: String,
    belt: Arc<Belt>,
    fake: Arc<Fake>,
}

impl Hand {
    async fn work(self, stop: CancellationToken) -> Vec<Sent> {
        let mut sent = Vec::new();
        while !stop.is_cancelled() {
            let mut seen = self.fake.inspect(|log| log.events.len());
            let (bundle, deliveries) = self.belt.put(&self.topic, self.spot);
            for delivery in join_all(deliveries).await {
                let delivery = delivery.expect("the producer lives");
                delivery.map_err(|(error, _)| error).expect("the broker acknowledges");
            }
            let accepted = |log: &Log| {
                let news = &log.events[seen..];
                seen = log.events.len();
                news.iter().any(|event| event.id.as_deref() == Some(&*bundle.awaited))
            };
            self.fake.until(accepted).await;
            let Bundle { key, events, .. } = bundle;
            let record = |events| Sent { spot: self.spot, lane: key.clone(), events };
            sent.extend(events.into_iter().map(record));
        }
        sent
    }
}

/// The bundle of this number, which no other has: log positions grow with it.
pub(super) fn bundle((stream, partition): Spot, number: u64) -> Bundle {
    match stream {
        Stream::Purchases => purchase(partition, number),
        Stream::Orders => order(partition, number),
    }
}

/// An order that is paid, shipped and completed.
fn order(partition: i32, number: u64) -> Bundle {
    let event = |status| format!("marketplace/order-received:shopee:{partition}:{number}:{status}");
    let value = |status| {
        let number = number.to_string();
        json!({"shop_id": partition, "order_sn": number, "order_status": status}).to_string()
    };
    Bundle {
        key: format!("shop-{partition}-{number}"),
        values: STATUSES.map(value).into(),
        events: STATUSES.map(|status| vec![event(status)]).into(),
        awaited: event(STATUSES[STATUSES.len() - 1]),
    }
}

/// A completed purchase; one in [`REFUNDED`] is refunded before it can have been awarded.
fn purchase(partition: i32, number: u64) -> Bundle {
    // For some ids the fake answers no rows, like the real function: no event.
    let id = std::iter::repeat_with(|| {
        format!("{:08x}-0000-4000-{partition:04x}-{number:012x}", fastrand::u32(..))
    })
    .find(|id| !currency_rows(id).is_empty())
    .expect("most ids have rows");
    let award = format!("currency/award:purchase:{id}");
    let completed = row(&id, "completed");
    let mut bundle = Bundle {
        key: json!({"id": id}).to_string(),
        values: vec![change("c", number, 0, &Value::Null, &completed)],
        events: vec![vec![award.clone()]],
        awaited: award,
    };
    if number.is_multiple_of(REFUNDED) {
        bundle.values.push(change("u", number, 50, &completed, &row(&id, "refunded")));
        bundle.events.push(vec![
            format!("currency/cancelled:purchase:{id}"),
            format!("currency/reverse:purchase:{id}"),
        ]);
    }
    bundle
}

/// A completed referral, and the event that awards it.
pub(super) fn referral(number: u64) -> (String, String) {
    let Bundle { events, values, .. } = purchase(0, number);
    let mut value: Value = serde_json::from_str(&values[0]).expect("json");
    value["source"]["table"] = "referral_ledger".into();
    let id = value["after"]["id"].clone();
    value["after"] = json!({"id": id, "merchant_id": MERCHANT, "inviter_user_id": id,
        "invitee_user_id": id, "reward_status": "completed", "created_at": "2026-09-21T00:00:00Z"});
    (events[0][0].replace(":purchase:", ":referral:"), value.to_string())
}

fn row(id: &str, status: &str) -> Value {
    json!({
        "id": id,
        "merchant_id": MERCHANT,
        "user_id": "22222222-2222-4222-8222-222222222222",
        "transaction_number": id,
        "status": status,
        "record_type": "credit",
        "earn_currency": true,
        "created_at": "2026-09-21T00:00:00Z",
    })
}

/// A change as the connector writes it, in the transaction `number` of the log.
fn change(op: &str, number: u64, step: u64, before: &Value, after: &Value) -> String {
    let at_ms = 1_790_000_000_000 + number * 100 + step;
    let lsn = 1_000_000 + number * 100 + step;
    let source = json!({
        "version": "3.6.3.Final", "connector": "postgresql", "name": "crm", "ts_ms": at_ms,
        "snapshot": "false", "db": "crm", "schema": "public", "table": "purchase_ledger",
        "sequence": format!("[\"{}\",\"{lsn}\"]", lsn - 10),
        "ts_us": at_ms * 1_000, "txId": number * 2 + u64::from(step > 0), "lsn": lsn,
    });
    let value = json!({
        "before": before, "after": after, "source": source, "op": op, "ts_ms": at_ms + 5,
        "transaction": null,
    });
    value.to_string()
}

/// The row of these purchases' merchant, who awards without delay.
pub(super) fn merchant() -> Map<String, Value> {
    let columns = ["delay_days", "delay_minutes", "time", "timezone"];
    let settings = columns.map(|column| (format!("currency_award_{column}"), Value::Null));
    settings.into_iter().chain([("id".to_owned(), MERCHANT.into())]).collect()
}

/// How often each source's currency was asked for.
pub(super) type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

/// Counts the calls for each source.
pub(super) fn count_calls(fake: &Fake) -> Asked {
    let asked = Asked::default();
    let counted = Arc::clone(&asked);
    fake.define("calc_currency_for_source", move |arguments| {
        let id = arguments["p_source_id"].as_str().expect("a source");
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry(id.to_owned()).or_default() += 1;
        Reply::json(&currency_rows(id).into())
    });
    asked
}
