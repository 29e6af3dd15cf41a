//! The daemon over TLS with accounts, to a real Kafka and a real Redis; and what it says when that
//! does not work.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crm_event_processors::fakes::{Fake, Options};
use rdkafka::message::Headers as _;
use rdkafka::{Message as _, producer::FutureRecord};
use redis::AsyncCommands as _;

use super::Secure;
use test_support::daemon::Environment;
use test_support::http::Health;
use test_support::kafka::{committed, create_topic, produce, read_topic};
use test_support::{unique, until};

/// `openssl s_server`, which answers every GET with a page. Ends when dropped.
struct Https {
    server: Child,
    url: String,
}

impl Https {
    async fn start() -> Self {
        let own = Path::new(Secure::services().ca()).parent().expect("a directory").to_owned();
        let health = Health::free();
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-www", "-accept", health.listen()])
            .args(["-key", "key.pem", "-cert", "certificate.pem"])
            .current_dir(own)
            .stdin(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let answers = || std::net::TcpStream::connect(health.listen()).ok().map(drop);
        until("openssl s_server", async || answers()).await;
        Self { server, url: format!("https://{}", health.listen()) }
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.server.kill().and_then(|()| self.server.wait()).expect("it ends");
    }
}

/// A topic with a valid order and an invalid one, and their consumer.
struct Orders {
    services: &'static Secure,
    fake: Fake,
    topic: String,
    group: String,
}

impl Orders {
    async fn new() -> Self {
        let services = Secure::services();
        let (topic, group) = (unique("orders"), unique("tls"));
        create_topic(services.kafka(), &topic, 1).await;
        let fake = Fake::start(Options::default()).await.expect("a fake");
        let orders = Self { services, fake, topic, group };
        orders.send(r#"{"shop_id":1,"order_sn":"A1","order_status":"PAID"}"#).await;
        orders.send("no order").await;
        orders
    }

    async fn send(&self, value: &str) {
        let record = FutureRecord::to(&self.topic).key(b"1".as_slice()).payload(value.as_bytes());
        produce(self.services.kafka(), [record]).await;
    }

    /// Everything but how to reach Kafka and Redis.
    fn environment(&self, kafka: &str, redis: &str) -> Environment {
        Environment::new(kafka, redis, self.fake.url(), &self.group)
            .with("CONSUMERS", "marketplace")
            .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &self.topic)
            .with("BACKOFF_BASE", "10ms")
            .with("BACKOFF_MAX", "100ms")
            .with("COMMIT_INTERVAL", "50ms")
    }

    /// All of it over TLS, as it should be.
    fn secured(&self) -> Environment {
        let services = self.services;
        self.with_account(self.environment(services.kafka_tls(), services.redis_tls()))
            .with("SSL_CERT_FILE", services.ca())
    }

    fn with_account(&self, environment: Environment) -> Environment {
        environment
            .with("KAFKA_API_KEY", self.services.user())
            .with("KAFKA_API_SECRET", self.services.password())
    }

    async fn committed(&self) -> Option<i64> {
        let group = format!("{}-marketplace", self.group);
        let committed = committed(self.services.kafka(), &group, &self.topic).await;
        committed.get(&0).map(|(next, _)| *next)
    }

    /// Runs a daemon until both records are finished, and checks their outcomes.
    async fn delivered(&self, environment: &Environment) {
        let daemon = environment.start();
        until("both records to be committed", async || {
            (self.committed().await == Some(2)).then_some(())
        })
        .await;
        assert!(daemon.stop().success(), "a clean stop");
        self.fake.inspect(|log| {
            let ids: Vec<_> = log.events.iter().filter_map(|event| event.id.as_deref()).collect();
            assert_eq!(ids, ["marketplace/order-received:shopee:1:A1:PAID"]);
        });
        let letters = read_topic(self.services.kafka(), &format!("{}.dlq", self.group)).await;
        let [letter] = &letters[..] else { panic!("one record is no order, {}", letters.len()) };
        assert_eq!(letter.payload(), Some(&b"no order"[..]));
        let headers = letter.headers().expect("headers");
        let kind = headers.iter().find(|header| header.key == "dlq.error.kind");
        assert_eq!(kind.and_then(|kind| kind.value), Some(&b"invalid_json"[..]));
    }

    /// How many claims this group has.
    async fn claims(&self) -> usize {
        let client = redis::Client::open(self.services.redis()).expect("an address");
        let mut connection =
            client.get_multiplexed_async_connection().await.expect("Redis answers");
        let keys: Vec<String> =
            connection.keys(format!("*{}*", self.group)).await.expect("Redis answers");
        keys.len()
    }

    /// A daemon that cannot reach what it needs says why in one log line and in readiness, treats
    /// it as an outage, and keeps running.
    async fn refused(&self, environment: &Environment, told: &[&str]) {
        let health = Health::free();
        let environment = environment.clone().with("HTTP_LISTEN", health.listen());
        let (daemon, log) = environment.start_logging();
        let what = format!("readiness to tell {told:?}");
        let waits_for = until(&what, async || {
            let (status, consumers) = health.readiness().await?;
            let consumer = &consumers["marketplace"];
            let waits_for = consumer["waits_for"].to_string();
            let all = told.iter().all(|text| waits_for.contains(text));
            all.then(|| (status, consumer["state"].clone(), waits_for))
        });
        let (status, state, waits_for) = waits_for.await;
        assert_eq!((status, state), (200, "degraded".into()), "an outage is no reason to restart");
        assert!(!waits_for.contains("\\n"), "one line: {waits_for}");
        assert!(daemon.stop().success(), "a clean stop: {waits_for}");
        let log = log.whole();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("is away")).collect();
        let all = |line: &&&str| told[1..].iter().all(|text| line.contains(text));
        assert_eq!(lines.iter().filter(all).count(), 1, "{told:?} is said once in {lines:#?}");
        assert!(!log.contains(self.services.password()), "no password");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_all_the_way_over_tls_with_accounts_and_a_private_authority() {
    let orders = Orders::new().await;
    orders.delivered(&orders.secured()).await;
    assert_eq!(orders.claims().await, 1, "claims went over TLS too");
}

#[tokio::test(flavor = "multi_thread")]
async fn librdkafkas_own_property_may_name_the_authority_too() {
    let orders = Orders::new().await;
    let services = orders.services;
    let environment =
        orders.with_account(orders.environment(services.kafka_tls(), services.redis()));
    let property = format!("ssl.ca.location={}", services.ca());
    orders.delivered(&environment.with("KAFKA_PROPERTIES", &property)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_trusted_or_joined_is_an_outage_that_tells_what_to_do() {
    let orders = Orders::new().await;
    let services = orders.services;
    let secured = orders.secured();
    let account = "KAFKA_API_KEY and KAFKA_API_SECRET";
    let wrong = secured.clone().with("KAFKA_API_SECRET", &unique("wrong"));
    orders.refused(&wrong, &["kafka: ", "Invalid username or password", account]).await;
    // Without the private authority only the system's are trusted.
    let unknown = orders.with_account(orders.environment(services.kafka_tls(), services.redis()));
    orders.refused(&unknown, &["kafka: ", "certificate verify failed", "SSL_CERT_FILE"]).await;
    let plain = orders.environment(services.kafka_tls(), services.redis());
    orders.refused(&plain, &["kafka: ", "is this a port for TLS? Then set", account]).await;
    let too_secure = orders
        .with_account(orders.environment(services.kafka(), services.redis()))
        .with("SSL_CERT_FILE", services.ca());
    orders.refused(&too_secure, &["kafka: ", "is this a port for TLS?", "turn TLS on"]).await;
    assert_eq!(orders.committed().await.unwrap_or(0), 0);

    orders.delivered(&secured).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_cannot_be_trusted_or_entered_is_an_outage_that_tells_what_to_do() {
    let orders = Orders::new().await;
    let services = orders.services;
    let with_redis = |url: &str| orders.environment(services.kafka(), url);
    let trusting = |url: &str| with_redis(url).with("SSL_CERT_FILE", services.ca());
    let (tls, plain) = (services.redis_tls(), services.redis());
    orders.refused(&with_redis(tls), &["redis: ", "UnknownIssuer", "SSL_CERT_FILE"]).await;
    let wrong = tls.replace(services.password(), &unique("wrong"));
    orders
        .refused(&trusting(&wrong), &["redis: ", "authentication failed", "password in REDIS_URL"])
        .await;
    let too_secure = plain.replace("redis://", "rediss://");
    orders.refused(&trusting(&too_secure), &["redis: ", "rediss://"]).await;
    let too_plain = tls.replace("rediss://", "redis://");
    orders.refused(&with_redis(&too_plain), &["redis: ", "rediss://"]).await;
    assert_eq!(orders.committed().await.unwrap_or(0), 0);
    assert_eq!(orders.fake.inspect(|log| log.events.len()), 0);

    orders.delivered(&trusting(tls)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn supabase_and_inngest_are_trusted_by_the_same_file() {
    let (services, server, prefix) = (Secure::services(), Https::start().await, unique("https"));
    let topic = format!("{prefix}.purchase_ledger");
    create_topic(services.kafka(), &topic, 1).await;
    let row = serde_json::json!({ "id": "1", "user_id": "u", "merchant_id": "m",
        "status": "completed", "record_type": "credit", "earn_currency": true });
    let change = serde_json::json!({ "op": "c", "before": null, "after": row,
        "source": { "ts_ms": 1, "table": "purchase_ledger" } })
    .to_string();
    let record = FutureRecord::to(&topic).key(&b"1"[..]).payload(change.as_bytes());
    produce(services.kafka(), [record]).await;
    let environment = Environment::new(services.kafka(), services.redis(), &server.url, &prefix)
        .with("CONSUMERS", "mission")
        .with("BACKOFF_BASE", "10ms")
        .with("BACKOFF_MAX", "100ms");
    for (environment, told) in [
        (environment.clone(), "SSL_CERT_FILE must name the authority"),
        // The page is not a valid answer, but it was read.
        (
            environment.with("SSL_CERT_FILE", services.ca()),
            "answered 200 with something that is not",
        ),
    ] {
        let health = Health::free();
        let daemon = environment.with("HTTP_LISTEN", health.listen()).start();
        until(told, async || health.get("/readyz").await?.1.contains(told).then_some(())).await;
        assert!(daemon.stop().success(), "a clean stop");
    }
}
