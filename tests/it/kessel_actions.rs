//! Kessel's actions on a real Kafka and a real Redis (behaviour section 9, "Actions").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use jiff::{Timestamp, ToSpan as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::FutureRecord;
use redis::AsyncCommands as _;
use serde_json::{Value, json};
use test_support::daemon::{Daemon, Environment, Log};
use test_support::http::Health;
use test_support::tcp_proxy::TcpProxy;
use test_support::{feed, kafka, services, unique, until};

const LIVING: &str = "9223372036854775807";

/// A topic of rows, and Redis keys, of one test.
struct Scene {
    name: String,
    topic: String,
}

impl Scene {
    async fn new() -> Self {
        let name = unique("kessel-actions");
        let topic = format!("{name}.relation_tuple");
        kafka::create_topic(services::kafka(), &topic, 3).await;
        Self { name, topic }
    }

    fn environment(&self, actions: &Value) -> Environment {
        Environment::default()
            .with("KAFKA_BOOTSTRAP_SERVERS", services::kafka())
            .with("KAFKA_AUTO_OFFSET_RESET", "earliest")
            .with("REDIS_URL", services::redis())
            .with("REDIS_KEY_PREFIX", &format!("{}:", self.name))
            .with("CONSUMER_GROUP", &self.name)
            .with("DLQ_TOPIC", &format!("{}.dlq", self.name))
            .with("CONSUMERS", "relationships")
            .with("RELATIONSHIPS_TOPIC", &self.topic)
            .with("RELATIONSHIPS_ACTIONS", &actions.to_string())
            .with("KAFKA_SESSION_TIMEOUT", "6s")
            .with("LOG_LEVEL", "warn")
    }

    /// The default actions of these tests: a line, and an epoch for each type.
    fn start(&self) -> (Daemon, Log) {
        let epoch = format!("{}:epoch:{{namespace}}", self.name);
        let key = format!("{}:authz:{{resource}}", self.name);
        let actions = json!([{"action": "log"},
            {"action": "cache_invalidate", "epoch": epoch, "key": key}]);
        self.environment(&actions).start_reading_output()
    }

    async fn write(&self, values: &[Value]) {
        let texts: Vec<String> = values.iter().map(Value::to_string).collect();
        let records = texts
            .iter()
            .map(|text| FutureRecord::to(&self.topic).partition(0).payload(text.as_bytes()));
        kafka::produce(services::kafka(), records).await;
    }

    async fn epoch(&self, namespace: &str) -> Option<u64> {
        let key = format!("{}:epoch:{namespace}", self.name);
        redis().await.get(key).await.expect("an answer")
    }

    async fn caught_up(&self) {
        feed::caught_up(services::kafka(), &self.name, &self.topic).await;
    }
}

async fn redis() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(services::redis()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("a connection")
}

/// A row as the connector shows it.
struct Row {
    object: &'static str,
    xid: u64,
    expires: Option<Timestamp>,
}

impl Row {
    fn columns(&self, deleted: &str) -> Value {
        json!({"namespace": "document", "object_id": self.object, "relation": "viewer",
            "userset_namespace": "user", "userset_object_id": "ann", "userset_relation": "...",
            "caveat_name": null, "caveat_context": null, "created_xid": self.xid.to_string(),
            "deleted_xid": deleted, "expiration": self.expires.map(|at| at.to_string())})
    }

    fn change(&self, op: &str, deleted: &str) -> Value {
        let now = Timestamp::now().as_millisecond();
        // No two changes of a log have the same place.
        static LSN: AtomicU64 = AtomicU64::new(1);
        let lsn = LSN.fetch_add(1, Ordering::Relaxed);
        let source = json!({"table": "relation_tuple", "ts_ms": now, "txId": self.xid,
            "lsn": lsn, "sequence": format!("[\"{lsn}\",\"{lsn}\"]"), "snapshot": "false"});
        let row = self.columns(deleted);
        let (before, after) = if op == "d" { (row, Value::Null) } else { (Value::Null, row) };
        json!({"op": op, "before": before, "after": after, "source": source, "ts_ms": now})
    }

    fn created(&self) -> Value {
        self.change("c", LIVING)
    }

    fn marked(&self) -> Value {
        self.change("u", "999999")
    }

    fn collected(&self) -> Value {
        let mut gone = Self { expires: None, ..*self }.change("d", LIVING);
        gone["before"]["expiration"] = Value::Null;
        gone
    }
}

/// How often each operation was logged for an object.
fn operations(lines: &[String], object: &str) -> BTreeMap<String, usize> {
    let resource = format!("document:{object} ");
    let mut all = BTreeMap::new();
    for line in lines.iter().filter(|line| line.contains(&resource)) {
        let operation = line.split_whitespace().next().unwrap_or_default();
        *all.entry(operation.to_owned()).or_default() += 1;
    }
    all
}

fn counts<const N: usize>(all: [(&str, usize); N]) -> BTreeMap<String, usize> {
    all.into_iter().map(|(operation, count)| (operation.to_owned(), count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_and_epochs_move_on_with_every_change() {
    let scene = Scene::new().await;
    let mut redis = redis().await;
    let entry = format!("{}:authz:document:kept", scene.name);
    let gone = format!("{}:authz:document:changed", scene.name);
    let _: () = redis.mset(&[(&entry, "1"), (&gone, "1")]).await.expect("written");
    let (daemon, _log) = scene.start();
    scene.write(&[Row { object: "changed", xid: 7, expires: None }.created()]).await;
    until("the epoch moves on", async || scene.epoch("document").await).await;
    scene.caught_up().await;
    assert!(daemon.stop().success(), "a clean stop");
    assert_eq!(redis.get::<_, Option<u64>>(&entry).await.expect("an answer"), Some(1));
    assert_eq!(redis.get::<_, Option<u64>>(&gone).await.expect("an answer"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiration_is_acted_on_once_though_instances_are_killed_before_its_time() {
    let scene = Scene::new().await;
    let row = Row { object: "soon", xid: 11, expires: Some(Timestamp::now() + 8.seconds()) };
    let (killed, log) = scene.start();
    scene.write(&[row.created()]).await;
    scene.caught_up().await;
    killed.kill();
    let mut lines: Vec<String> = log.whole().lines().map(str::to_owned).collect();
    let before = scene.epoch("document").await;
    let runs = [scene.start(), scene.start()];
    until("the epoch moves on", async || (scene.epoch("document").await > before).then_some(()))
        .await;
    // Its marking and its collection come later, and are no second end.
    scene.write(&[row.marked(), row.collected()]).await;
    scene.caught_up().await;
    for (daemon, log) in runs {
        assert!(daemon.stop().success(), "a clean stop");
        lines.extend(log.whole().lines().map(str::to_owned));
    }
    assert_eq!(operations(&lines, "soon"), counts([("CREATE", 1), ("EXPIRE", 1)]), "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_deleted_before_its_time_does_not_expire_in_whatever_order_that_comes() {
    let scene = Scene::new().await;
    let soon = Some(Timestamp::now() + 3.seconds());
    let in_order = Row { object: "in-order", xid: 21, expires: soon };
    let reversed = Row { object: "reversed", xid: 22, expires: soon };
    // Expires after both: once it has, they would have.
    let witness = Row { object: "witness", xid: 23, expires: soon.map(|at| at + 1.second()) };
    let (daemon, log) = scene.start();
    scene.write(&[in_order.created(), in_order.marked()]).await;
    scene.write(&[reversed.marked(), reversed.created(), witness.created()]).await;
    log.until("EXPIRE").await;
    assert!(daemon.stop().success(), "a clean stop");
    let lines: Vec<String> = log.whole().lines().map(str::to_owned).collect();
    assert_eq!(operations(&lines, "witness"), counts([("CREATE", 1), ("EXPIRE", 1)]), "{lines:#?}");
    for object in ["in-order", "reversed"] {
        let expected = counts([("CREATE", 1), ("DELETE", 1)]);
        assert_eq!(operations(&lines, object), expected, "{lines:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_had_expired_before_it_was_marked_has_expired() {
    let scene = Scene::new().await;
    let (daemon, log) = scene.start();
    let past = Some(Timestamp::now() - 1.second());
    let born = Row { object: "born-expired", xid: 31, expires: past };
    scene.write(&[born.created()]).await;
    log.until("EXPIRE").await;
    scene.write(&[born.marked(), born.collected()]).await;
    // Its creation was never seen.
    let unseen = Row { object: "unseen", xid: 32, expires: past };
    scene.write(&[unseen.marked(), unseen.collected()]).await;
    scene.caught_up().await;
    assert!(daemon.stop().success(), "a clean stop");
    let lines: Vec<String> = log.whole().lines().map(str::to_owned).collect();
    let expected = counts([("CREATE", 1), ("EXPIRE", 1)]);
    assert_eq!(operations(&lines, "born-expired"), expected, "{lines:#?}");
    assert_eq!(operations(&lines, "unseen"), counts([("EXPIRE", 1)]), "{lines:#?}");
}

/// A receiver of webhooks: what it answers, and what it took.
#[derive(Clone, Default)]
struct Receiver {
    refuses: Arc<AtomicBool>,
    taken: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Receiver {
    async fn start(&self) -> String {
        async fn receive(
            State(me): State<Receiver>,
            headers: HeaderMap,
            body: axum::body::Bytes,
        ) -> StatusCode {
            if me.refuses.load(Ordering::Relaxed) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let verifier = standardwebhooks::Webhook::new(&secret()).expect("a secret");
            if verifier.verify(&body, &headers).is_err() {
                return StatusCode::UNAUTHORIZED;
            }
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            if body["resource"]["id"] == "refused" {
                return StatusCode::UNPROCESSABLE_ENTITY;
            }
            let id = headers["webhook-id"].to_str().expect("text").to_owned();
            me.taken.lock().expect("a lock").push((id, body));
            StatusCode::NO_CONTENT
        }
        let app = Router::new().fallback(receive).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        format!("http://{address}/hooks")
    }

    fn taken(&self) -> Vec<(String, Value)> {
        self.taken.lock().expect("a lock").clone()
    }
}

fn secret() -> String {
    format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode([7; 32]))
}

fn hooks(scene: &Scene, url: &str) -> Environment {
    let webhook = json!({"action": "webhook", "name": "hooks", "url": url, "start": "earliest",
        "allow_addresses": ["127.0.0.0/8"], "retries": 1});
    let actions = json!([{"action": "log"}, webhook]);
    scene
        .environment(&actions)
        .with("KESSEL_WEBHOOK_SECRETS", &secret())
        .with("BACKOFF_BASE", "50ms")
        .with("BACKOFF_MAX", "200ms")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_away_holds_up_no_other_action_and_misses_nothing() {
    let scene = Scene::new().await;
    let receiver = Receiver::default();
    let url = receiver.start().await;
    receiver.refuses.store(true, Ordering::Relaxed);
    let objects = ["one", "two", "three", "four", "five", "six"];
    let rows = objects.iter().zip(100..).map(|(object, xid)| Row { object, xid, expires: None });
    let rows: Vec<Value> = rows.map(|row| row.created()).collect();
    let (killed, log) = hooks(&scene, &url).start_reading_output();
    scene.write(&rows).await;
    // The group of `log` goes on by itself.
    scene.caught_up().await;
    killed.kill();
    let logged = log.whole();
    assert!(objects.iter().all(|object| logged.contains(&format!("document:{object} "))));
    assert_eq!(receiver.taken(), []);
    let (daemon, _log) = hooks(&scene, &url).start_reading_output();
    receiver.refuses.store(false, Ordering::Relaxed);
    let group = format!("{}-hooks", scene.name);
    feed::caught_up(services::kafka(), &group, &scene.topic).await;
    assert!(daemon.stop().success(), "a clean stop");
    let taken = receiver.taken();
    let ids: BTreeSet<&String> = taken.iter().map(|(id, _)| id).collect();
    assert_eq!((taken.len(), ids.len()), (objects.len(), objects.len()), "each once: {taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_receiver_refuses_is_a_dead_letter_that_names_the_action() {
    let scene = Scene::new().await;
    let receiver = Receiver::default();
    let url = receiver.start().await;
    let (daemon, _log) = hooks(&scene, &url).start_reading_output();
    let row = |object, xid| Row { object, xid, expires: None }.created();
    scene.write(&[row("refused", 1), row("taken", 2)]).await;
    let group = format!("{}-hooks", scene.name);
    feed::caught_up(services::kafka(), &group, &scene.topic).await;
    assert!(daemon.stop().success(), "a clean stop");
    assert_eq!(receiver.taken().len(), 1);
    let letters = kafka::read_topic(services::kafka(), &format!("{}.dlq", scene.name)).await;
    assert_eq!(letters.len(), 1);
    let headers = letters[0].headers().expect("headers");
    let header = |name| {
        let header = headers.iter().find(|header| header.key == name);
        String::from_utf8_lossy(header.and_then(|header| header.value).expect(name)).into_owned()
    };
    let message = header("dlq.error.message");
    assert!(message.contains("action hooks: the receiver answered 422"), "{message}");
}

/// A server that hangs up on everybody.
async fn hangs_up() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_are_away_hold_up_no_webhook_and_miss_nothing() {
    let scene = Scene::new().await;
    let receiver = Receiver::default();
    let url = receiver.start().await;
    let nowhere = hangs_up().await;
    let of_index = services::opensearch().strip_prefix("http://").expect("an address");
    let (database, index) = (TcpProxy::to(&nowhere).await, TcpProxy::to(&nowhere).await);
    let mut real = url::Url::parse(services::postgres()).expect("a URL");
    let of_database = format!("127.0.0.1:{}", real.port().expect("a port"));
    let port = database.address().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    real.set_port(port).expect("a port");
    let name = scene.name.replace('-', "_");
    let actions = json!([
        {"action": "webhook", "name": "hooks", "url": url, "start": "earliest",
            "allow_addresses": ["127.0.0.0/8"]},
        {"action": "replica", "table": rows_of(&name),
            "view": format!("{}_view", rows_of(&name))},
        {"action": "search_index", "index": scene.name, "alias": format!("{}-live", scene.name)}]);
    let health = Health::free();
    let daemon = scene
        .environment(&actions)
        .with("KESSEL_WEBHOOK_SECRETS", &secret())
        .with("KESSEL_DATABASE_URL", real.as_str())
        .with("KESSEL_SEARCH_URL", &format!("http://{}", index.address()))
        .with("HTTP_LISTEN", health.listen())
        .with("BACKOFF_BASE", "50ms")
        .with("BACKOFF_MAX", "500ms")
        .start();
    let row = |number: u64| Row { object: "doc", xid: number, expires: None }.created();
    scene.write(&(0..600).map(row).collect::<Vec<_>>()).await;
    let group = |action: &str| format!("{}-{action}", scene.name);
    feed::caught_up(services::kafka(), &group("hooks"), &scene.topic).await;
    assert_eq!(receiver.taken().len(), 600, "webhooks went on");
    let readiness = until("both are away", async || {
        let (_, readiness) = health.readiness().await?;
        let text = serde_json::to_string(&readiness).expect("JSON");
        (text.contains("kessel/postgres") && text.contains("kessel/search")).then_some(text)
    });
    readiness.await;
    database.lead_to(&of_database);
    index.lead_to(of_index);
    feed::caught_up(services::kafka(), &group("replica"), &scene.topic).await;
    feed::caught_up(services::kafka(), &group("search_index"), &scene.topic).await;
    assert!(daemon.stop().success(), "a clean stop");
    let letters = format!("{}.dlq", scene.name);
    assert!(kafka::read_topic(services::kafka(), &letters).await.is_empty(), "nothing set aside");
    let (client, connection) =
        tokio_postgres::connect(services::postgres(), tokio_postgres::NoTls).await.expect("there");
    tokio::spawn(connection);
    let table = rows_of(&name);
    let count = client.query_one(&format!("select count(*) from {table}"), &[]).await;
    assert_eq!(count.expect("a count").get::<_, i64>(0), 600);
    drop(rustls::crypto::ring::default_provider().install_default());
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let base = format!("{}/{}", services::opensearch(), scene.name);
    http.post(format!("{base}/_refresh")).send().await.expect("an answer");
    let found = http.get(format!("{base}/_count")).send().await.expect("an answer");
    let found: Value = serde_json::from_slice(&found.bytes().await.expect("bytes")).expect("JSON");
    assert_eq!(found["count"], 600, "{found}");
}

/// A table of this test's own, short enough for a name.
fn rows_of(name: &str) -> String {
    let (_, own) = name.rsplit_once('_').expect("a unique end");
    format!("rows_{own}")
}
