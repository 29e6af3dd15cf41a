//! Everything that the full path needs, running: database, connector, broker, daemon, and the fake
//! in front of the database.

use std::sync::Arc;

use crm_event_processors::fakes::{Fake, Options};
use jiff::Timestamp;
use rdkafka::Message as _;
use rdkafka::producer::FutureRecord;
use tokio_postgres::Client;

use super::connector::Connector;
use super::database::database;
use super::postgrest::Postgrest;
use super::workflows::{Progress, Workflows};
use test_support::daemon::{Daemon, Environment};
use test_support::{feed, kafka, services, unique, until};

/// The topic of commands. Its name is fixed, so it may hold another test's commands too.
const COMMANDS: &str = "reward_redemptions";
/// Partitions of a topic, as the connector is configured to create it.
const PARTITIONS: i32 = 6;
/// Whose changes each consumer takes.
const TAKES: [(&str, &[&str]); 4] = [
    ("currency", &["purchase_ledger", "referral_ledger", "mission_claims"]),
    ("tier", &["purchase_ledger", "wallet_ledger"]),
    ("mission", &["purchase_ledger", "form_submissions", "wallet_ledger", "referral_ledger"]),
    ("reward", &["codes"]),
];

pub(super) struct World {
    pub(super) crm: Client,
    pub(super) fake: Arc<Fake>,
    /// When the fake started: its log counts from then.
    pub(super) started: Timestamp,
    /// Prefix of all our names on the shared broker.
    pub(super) prefix: String,
    brokers: &'static str,
    connector: Connector,
    daemon: Daemon,
    /// Stopped when dropped, as the rest.
    _redis: services::Redis,
}

impl World {
    /// Starts everything; the daemon starts before any topic of changes exists.
    pub(super) async fn start() -> Self {
        let (brokers, prefix) = (services::kafka(), unique("path"));
        let (redis, database) = (services::Redis::own(), database().await);
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Fake::start(options).await.expect("a fake");
        let started = Timestamp::now();
        fake.delegate(Postgrest::new(database.as_authenticator()));
        kafka::ensure_topic(brokers, COMMANDS, 3).await;
        let orders = format!("{prefix}.orders");
        kafka::create_topic(brokers, &orders, 3).await;
        let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
            .with("CDC_TOPIC_PREFIX", &format!("{prefix}.public"))
            .with("CONSUMERS", "currency,tier,mission,reward,marketplace")
            .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &orders)
            .with("KAFKA_METADATA_REFRESH", "1s")
            .with("INNGEST_CANCEL_SETTLE", "1s")
            .with("CURRENCY_ORIGINAL_PATIENCE", "2s")
            .with("COMMIT_INTERVAL", "100ms")
            // The topic of redemptions has a fixed name. It holds other tests' commands, which this
            // database refuses.
            .with("DLQ_FLOOD", "off")
            .start();
        let connector = Connector::start(database, &prefix).await;
        for table in feed::TABLES {
            kafka::until_led(brokers, &format!("{prefix}.public.{table}"), PARTITIONS).await;
        }
        let crm = database.crm().await;
        let fake = Arc::new(fake);
        Self { crm, fake, started, prefix, brokers, connector, daemon, _redis: redis }
    }

    /// Inngest's workflows on a connection of their own.
    pub(super) async fn workflows(&self) -> Workflows {
        Workflows::start(Arc::clone(&self.fake), database().await.crm().await)
    }

    /// Commits statements, each text in a transaction of its own.
    pub(super) async fn commit(&self, statements: &[String]) {
        for sql in statements {
            self.crm.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }

    /// The one value of a query, as text.
    pub(super) async fn text(&self, sql: &str) -> String {
        let row = self.crm.query_one(sql, &[]).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    pub(super) async fn send_orders(&self, orders: &[(String, String)]) {
        self.send(&self.topic("orders"), orders).await;
    }

    pub(super) async fn send_commands(&self, commands: &[(String, String)]) {
        self.send(COMMANDS, commands).await;
    }

    async fn send(&self, topic: &str, records: &[(String, String)]) {
        let records = records.iter().map(|(key, value)| {
            FutureRecord::to(topic).key(key.as_bytes()).payload(value.as_bytes())
        });
        kafka::produce(self.brokers, records).await;
    }

    /// Waits until nothing is under way: no changes of the database, no events, and no workflows'
    /// writes.
    pub(super) async fn settled(&self, workflows: &Workflows) -> Progress {
        let mut before = workflows.handled(0).await;
        loop {
            self.streamed().await;
            for (consumer, tables) in TAKES {
                for table in tables {
                    let topic = self.topic(&format!("public.{table}"));
                    feed::caught_up(self.brokers, &self.group(consumer), &topic).await;
                }
            }
            feed::caught_up(self.brokers, &self.group("reward"), COMMANDS).await;
            let orders = self.topic("orders");
            feed::caught_up(self.brokers, &self.group("marketplace"), &orders).await;
            let events = self.fake.inspect(|log| log.events.len());
            let now = workflows.handled(events).await;
            if now.written == before.written {
                return now;
            }
            before = now;
        }
    }

    /// Waits until all that is committed so far is in Kafka. A code that nobody gets comes after it
    /// as a marker.
    async fn streamed(&self) {
        let code = format!("{:016x}", fastrand::u64(..));
        let insert = format!(
            "INSERT INTO codes (merchant_id, code, status) VALUES (gen_random_uuid(), '{code}', 'expired')"
        );
        self.commit(&[insert]).await;
        let topic = self.topic("public.codes");
        until("a change to come to Kafka", async || {
            let records = kafka::read_topic(self.brokers, &topic).await;
            let holds = |value: &[u8]| String::from_utf8_lossy(value).contains(&code);
            records.iter().any(|record| record.payload().is_some_and(holds)).then_some(())
        })
        .await;
    }

    /// The dead letters: the consumer, and the record's key and value as text.
    pub(super) async fn dead_letters(&self) -> Vec<(String, String)> {
        use rdkafka::message::Headers as _;
        let letters = kafka::read_topic(self.brokers, &format!("{}.dlq", self.prefix)).await;
        let consumer = |letter: &rdkafka::message::OwnedMessage| {
            let headers = letter.headers().expect("headers");
            let header = headers.iter().find(|header| header.key == "dlq.consumer");
            let value = header.and_then(|header| header.value).expect("the consumer");
            String::from_utf8_lossy(value).into_owned()
        };
        let value = |letter: &rdkafka::message::OwnedMessage| {
            String::from_utf8_lossy(letter.payload().unwrap_or_default()).into_owned()
        };
        letters.iter().map(|letter| (consumer(letter), value(letter))).collect()
    }

    /// Stops the daemon, which must end cleanly, and the connector.
    pub(super) async fn stop(self) {
        assert!(self.daemon.stop().success(), "a clean stop");
        self.connector.remove().await;
    }

    fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn group(&self, consumer: &str) -> String {
        format!("{}-{consumer}", self.prefix)
    }
}
