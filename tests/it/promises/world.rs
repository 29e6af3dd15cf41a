//! The currency consumer's surroundings, for promises that need the whole way of a change: the
//! daemon as a process on real brokers and a real Redis, and a fake of the rest.

use crm_event_processors::fakes::{Fake, Options, currency_rows};
use crm_event_processors::recording::Recorded;
use rdkafka::producer::FutureRecord;
use redis::AsyncCommands as _;

use test_support::daemon::{Daemon, Environment};
use test_support::kafka::{committed, create_topic, produce, read_topic};
use test_support::services::{kafka, redis};
use test_support::{unique, until};

/// A topic of purchases, and the daemon's settings.
pub(super) struct World {
    pub(super) fake: Fake,
    pub(super) topic: String,
    prefix: String,
    pub(super) environment: Environment,
    partitions: i32,
    purchases: u64,
}

impl World {
    /// An empty topic of purchases with one partition.
    pub(super) async fn new() -> Self {
        Self::with_partitions(1).await
    }

    /// An empty topic with this many partitions, which purchases go to in turn.
    pub(super) async fn with_partitions(partitions: i32) -> Self {
        let prefix = unique("crash");
        let topic = format!("{prefix}.purchase_ledger");
        create_topic(kafka(), &topic, partitions).await;
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Fake::start(options).await.expect("a fake");
        let environment = Environment::new(kafka(), redis(), fake.url(), &prefix)
            // After a kill a static member goes on at once; another waits for its session.
            .with("KAFKA_INSTANCE_ID", "one")
            .with("COMMIT_INTERVAL", "50ms")
            .with("BACKOFF_BASE", "10ms")
            .with("BACKOFF_MAX", "50ms")
            .with("LOG_LEVEL", "error");
        Self { fake, topic, prefix, environment, partitions, purchases: 0 }
    }

    /// Starts the daemon.
    pub(super) fn start(&self) -> Daemon {
        self.environment.start()
    }

    /// Starts the daemon with one more setting.
    pub(super) fn start_with(&self, name: &str, value: &str) -> Daemon {
        self.environment.clone().with(name, value).start()
    }

    /// Sends a recorded change to partition 0, whatever its topic was.
    pub(super) async fn replay(&self, records: &[&Recorded]) {
        let records = records.iter().map(|record| {
            let mut sent = FutureRecord::to(&self.topic).partition(0);
            sent.key = record.key.as_deref();
            sent.payload = record.value.as_deref();
            sent.timestamp = record.timestamp_ms;
            sent
        });
        produce(kafka(), records).await;
    }

    /// Forgets every claim, as an emptied Redis does.
    pub(super) async fn forget_claims(&self) {
        let mut connection = connection().await;
        let keys: Vec<String> =
            connection.keys(format!("*{}*", self.prefix)).await.expect("Redis answers");
        for key in keys {
            let _: () = connection.del(key).await.expect("Redis answers");
        }
    }

    /// How often the currency of a source was asked for.
    pub(super) fn calls(&self) -> u64 {
        self.fake
            .inspect(|log| log.calls.get("calc_currency_for_source").copied().unwrap_or_default())
    }

    /// Sends the change of a completed purchase, and answers its id.
    pub(super) async fn purchase(&mut self) -> String {
        self.purchases += 1;
        // For some ids the fake answers no rows, like the real function: no event.
        let id = std::iter::repeat_with(|| {
            format!("{:08x}-0000-4000-8000-{:012x}", fastrand::u32(..), self.purchases)
        })
        .find(|id| !currency_rows(id).is_empty())
        .expect("most ids have rows");
        let (key, value) = completed_purchase(&id, self.purchases);
        let record = FutureRecord::to(&self.topic)
            .partition(self.purchases as i32 % self.partitions)
            .key(key.as_bytes())
            .payload(value.as_bytes());
        produce(kafka(), [record]).await;
        id
    }

    /// A change of a purchase with an invalid time.
    pub(super) fn malformed(&mut self) -> Recorded {
        self.purchases += 1;
        let (key, value) = completed_purchase("malformed", self.purchases);
        let value =
            value.replace("2026-09-21T00:00:00Z", "soon").replace(r#""op":"c""#, r#""op":"u""#);
        Recorded {
            topic: self.topic.clone(),
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: Some(key.into()),
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }

    /// How many records became dead letters.
    pub(super) async fn letters(&self) -> usize {
        read_topic(kafka(), &format!("{}.dlq", self.prefix)).await.len()
    }

    /// How often a purchase's award was stored. All copies must be the same.
    pub(super) fn awards(&self, id: &str) -> usize {
        let event_id = award(id);
        self.fake.inspect(|log| {
            let found = log.events.iter().filter(|event| event.id.as_deref() == Some(&*event_id));
            let data: Vec<_> = found.map(|event| &event.data).collect();
            assert!(data.windows(2).all(|pair| pair[0] == pair[1]), "one id, one content");
            data.len()
        })
    }

    /// Waits until the award of a purchase was stored.
    pub(super) async fn until_awarded(&self, id: &str) {
        let what = format!("award of {id}");
        until(&what, async || (self.awards(id) > 0).then_some(())).await;
    }

    /// The offset that the group has committed.
    pub(super) async fn committed(&self) -> i64 {
        let group = format!("{}-currency", self.prefix);
        let committed = committed(kafka(), &group, &self.topic).await;
        committed.get(&0).map_or(0, |(next, _)| *next)
    }

    pub(super) async fn until_committed(&self, offset: i64) {
        let what = format!("commit of {offset}");
        until(&what, async || (self.committed().await == offset).then_some(())).await;
    }

    /// The value of the claim of a purchase's award.
    pub(super) async fn claim(&self, id: &str) -> Option<String> {
        let mut connection = connection().await;
        let pattern = format!("*award:purchase:{id}");
        let keys: Vec<String> = connection.keys(pattern).await.expect("Redis answers");
        let [key] = keys.as_slice() else { return None };
        connection.get(key).await.expect("Redis answers")
    }
}

async fn connection() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(redis()).expect("a Redis address");
    client.get_multiplexed_async_connection().await.expect("Redis answers")
}

/// The id of a purchase's award.
fn award(id: &str) -> String {
    format!("currency/award:purchase:{id}")
}

/// Key and value of the change that a completed purchase makes, as the connector writes it.
fn completed_purchase(id: &str, number: u64) -> (String, String) {
    let at_ms = 1_790_000_000_000 + number * 1_000;
    let lsn = 1_000_000 + number * 100;
    let row = serde_json::json!({
        "id": id,
        "merchant_id": "11111111-1111-4111-8111-111111111111",
        "user_id": "22222222-2222-4222-8222-222222222222",
        "transaction_number": format!("T{number}"),
        "status": "completed",
        "record_type": "credit",
        "earn_currency": true,
        "created_at": "2026-09-21T00:00:00Z",
    });
    let source = serde_json::json!({
        "version": "3.6.3.Final", "connector": "postgresql", "name": "crm", "ts_ms": at_ms,
        "snapshot": "false", "db": "crm", "schema": "public", "table": "purchase_ledger",
        "sequence": format!("[\"{}\",\"{lsn}\"]", lsn - 50),
        "ts_us": at_ms * 1_000, "txId": number, "lsn": lsn,
    });
    let value = serde_json::json!({
        "before": null, "after": row, "source": source, "op": "c", "ts_ms": at_ms + 5,
        "transaction": null,
    });
    (serde_json::json!({ "id": id }).to_string(), value.to_string())
}
