//! No secret and nothing of a record is ever shown, whatever the servers answer: not in logs at
//! their loudest, errors, metrics or readiness, nor by `check`.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::clients::inngest::{Events, Inngest, InngestConfig};
use crm_event_processors::clients::supabase::{Supabase, SupabaseConfig};
use crm_event_processors::outage::{Backoff, Breakers};
use rdkafka::Message as _;
use rdkafka::message::Headers as _;
use rdkafka::producer::FutureRecord;
use serde_json::{Value, json};

use super::Secure;
use super::canary::{Canary, none_in};
use super::http_server::{Answer, HttpServer};
use test_support::daemon::Environment;
use test_support::feed;
use test_support::http::Health;
use test_support::kafka::{create_topic, produce, read_topic};
use test_support::{unique, until, until_within};

/// Everything that the daemon and its libraries can log.
const LOUDEST: &str = "trace,h2=trace,hyper=trace,hyper_util=trace,librdkafka=trace,rdkafka=trace,\
                       reqwest=trace,rustls=trace,redis=trace,tokio=trace";

/// The secrets of one configuration.
struct Secrets {
    kafka: Canary,
    redis: Canary,
    cache: Canary,
    supabase: Canary,
    inngest: Canary,
    key_password: Canary,
    keystore: Canary,
    proxy: Canary,
}

impl Secrets {
    fn new() -> Self {
        Self {
            kafka: Canary::new("KAFKA_API_SECRET"),
            redis: Canary::new("the password in REDIS_URL"),
            cache: Canary::new("the password in CRM_CACHE_REDIS_URL"),
            supabase: Canary::new("SUPABASE_SERVICE_ROLE_KEY"),
            inngest: Canary::new("INNGEST_EVENT_KEY"),
            key_password: Canary::new("ssl.key.password in KAFKA_PROPERTIES"),
            keystore: Canary::new("ssl.keystore.password in KAFKA_PROPERTIES"),
            proxy: Canary::new("the password in HTTPS_PROXY"),
        }
    }

    fn all(&self) -> [&Canary; 8] {
        let Self { kafka, redis, cache, supabase, inngest, key_password, keystore, proxy } = self;
        [kafka, redis, cache, supabase, inngest, key_password, keystore, proxy]
    }

    /// A configuration that holds all of them. Nobody listens at its addresses.
    fn environment(&self) -> Environment {
        let nobody = "127.0.0.1:9";
        let redis = |secret: &Canary| format!("rediss://me:{}@{nobody}/0", secret.encoded());
        let web = "https://project.invalid";
        Environment::new(nobody, &redis(&self.redis), web, &unique("secrets"))
            .with("CONSUMERS", "currency,tier,mission,reward,marketplace")
            .with("KAFKA_API_KEY", "me")
            .with("KAFKA_API_SECRET", &self.kafka.value())
            .with("CRM_CACHE_REDIS_URL", &redis(&self.cache))
            .with("SUPABASE_SERVICE_ROLE_KEY", &self.supabase.value())
            .with("INNGEST_EVENT_KEY", &self.inngest.value())
            .with("HTTPS_PROXY", &format!("http://me:{}@{nobody}", self.proxy.encoded()))
            .with("KAFKA_PROPERTIES", &self.properties())
            .with("LOG_LEVEL", LOUDEST)
    }

    fn properties(&self) -> String {
        format!(
            "ssl.key.password={},ssl.keystore.password={},debug=all",
            self.key_password.value(),
            self.keystore.value()
        )
    }

    fn none_in(&self, place: &str, text: &str) {
        none_in(self.all(), place, text);
    }

    fn none_in_output(&self, place: &str, output: &Output) {
        for bytes in [&output.stdout, &output.stderr] {
            self.none_in(place, &String::from_utf8_lossy(bytes));
        }
    }
}

#[test]
fn check_and_a_start_that_fails_show_no_secret() {
    let secrets = Secrets::new();
    let good = secrets.environment();
    for args in [&["check"][..], &["check", "--json"]] {
        let output = good.run_with(args);
        assert!(output.status.success(), "{output:?}");
        secrets.none_in_output("check", &output);
    }
    // Each secret in a form that makes its setting invalid.
    let broken = |secret: &Canary| format!("{}\u{7}", secret.value());
    let userinfo = |secret: &Canary| format!("https://me:{}@host", secret.value());
    for (variable, value) in [
        ("KAFKA_API_SECRET", broken(&secrets.kafka)),
        ("KAFKA_BOOTSTRAP_SERVERS", format!("me:{}@broker:9092", secrets.kafka.value())),
        ("REDIS_URL", format!("redis//me:{}@host", secrets.redis.value())),
        ("CRM_CACHE_REDIS_URL", secrets.cache.value()),
        ("SUPABASE_SERVICE_ROLE_KEY", broken(&secrets.supabase)),
        ("SUPABASE_URL", userinfo(&secrets.supabase)),
        ("SUPABASE_URL", format!("https://host/rest/v1/?apikey={}", secrets.supabase.value())),
        ("INNGEST_EVENT_KEY", broken(&secrets.inngest)),
        ("INNGEST_EVENT_API_BASE_URL", userinfo(&secrets.inngest)),
        ("INNGEST_EVENT_API_BASE_URL", format!("https://inn.gs/e/{}", secrets.inngest.value())),
        ("INNGEST_BASE_URL", format!("https://inn.gs/e/{}", secrets.inngest.encoded())),
        ("KAFKA_PROPERTIES", format!("sasl.password={}", secrets.kafka.value())),
        ("KAFKA_PROPERTIES", format!("ssl.key.pasword={}", secrets.key_password.value())),
        ("KAFKA_PROPERTIES", format!("ssl.key.pem={}", secrets.key_password.value())),
        ("CURRENCY_KAFKA_PROPERTIES", secrets.keystore.value()),
    ] {
        for args in [&["check"][..], &["check", "--json"], &["run"]] {
            let output = good.clone().with(variable, &value).run_with(args);
            if variable != "KAFKA_PROPERTIES" || !value.starts_with("ssl.key.pem") {
                assert_eq!(output.status.code(), Some(64), "{variable}: {output:?}");
            }
            secrets.none_in_output(variable, &output);
        }
    }
}

/// An answer that repeats everything the server knows of the key.
fn repeating(request: &str, number: usize) -> Answer {
    let key = request
        .lines()
        .find_map(|line| line.strip_prefix("apikey: "))
        .or_else(|| request.split_whitespace().nth(1)?.strip_prefix("/e/"))
        .unwrap_or_default();
    let plain = key.replace("%2F", "/").replace("%2B", "+");
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &plain);
    let told = format!("{key} {plain} {base64} in {request} ");
    let body = |status: u16| {
        let body = json!({ "status": status, "error": told, "ids": [], "code": "XX000",
            "message": told, "details": told, "hint": told });
        body.to_string()
    };
    match number % 10 {
        0 => Answer::status("401 Unauthorized", "", &body(401)),
        1 => Answer::status("500 Internal Server Error", "", &body(500)),
        2 => Answer::status("302 Found", &format!("Location: http://127.0.0.1:9{key}\r\n"), &told),
        3 => Answer::status("400 Bad Request", "", &body(400)),
        4 => Answer::status("200 OK", "", &told),
        5 => Answer::Bytes(Vec::new()),
        6 => Answer::Bytes(format!("HTTP/1.1 2x0 {told}\r\n\r\n").into_bytes()),
        7 => Answer::Bytes(
            format!("HTTP/1.1 500 {key}\r\nContent-Length: 99999\r\n\r\n{told}").into_bytes(),
        ),
        8 => Answer::status(&format!("503 {plain}"), "X-Told: x\r\n", &told.repeat(100)),
        // The key lies across the place where a message is cut.
        _ => {
            let long = json!({ "status": 403, "code": "XX000", "error": format!("{}{told}", "x".repeat(230)),
                "message": format!("{}{told}", "x".repeat(230)) });
            Answer::status("403 Forbidden", "", &long.to_string())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_repeats_the_key_has_it_taken_out_of_every_error() {
    let secrets = Secrets::new();
    let backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO };
    let server = HttpServer::start(repeating).await;
    let breakers = Arc::new(Breakers::new(1, backoff));
    let key = secrets.supabase.value().into();
    let supabase = Supabase::new(&SupabaseConfig::new(server.url(), key), Arc::clone(&breakers))
        .expect("a client");
    for _ in 0..20 {
        let error = supabase.rpc("f", &json!({})).await.expect_err("it never answers well");
        secrets.none_in("an error of Supabase", &format!("{error} {error:?}"));
        // A broadcast counts any success, even without a sensible answer.
        if let Err(error) = supabase.broadcast(&json!({})).await {
            secrets.none_in("an error of Supabase", &format!("{error} {error:?}"));
        }
    }
    secrets.none_in("the client of Supabase", &format!("{supabase:?}"));

    let key = secrets.inngest.value().into();
    let config = InngestConfig { backoff, ..InngestConfig::new(server.url(), key) };
    let breaker = breakers.get("inngest");
    let inngest = Inngest::start(&config, Arc::clone(&breaker)).expect("a client");
    let before = server.requests();
    let mut away = breaker.watch();
    let mut told = 0;
    while server.requests() < before + 20 {
        let events = Events::one("a/b", None, &json!({})).expect("an event");
        let sending = inngest.send(events);
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => {
                    let error = sent.expect_err("it never answers well");
                    secrets.none_in("an error of Inngest", &format!("{error} {error:?}"));
                    break;
                }
                changed = away.changed() => {
                    changed.expect("the breaker is there");
                    if let Some(away) = away.borrow_and_update().as_ref() {
                        secrets.none_in("Inngest's outage", &away.error);
                        told += 1;
                    }
                    if server.requests() >= before + 20 { break; }
                }
            }
        }
    }
    assert!(told > 10, "outages were looked at: {told}");
    secrets.none_in("the client of Inngest", &format!("{inngest:?} {config:?}"));
}

/// A person's data, as records hold it.
struct Person {
    user: Canary,
    email: Canary,
}

impl Person {
    fn change(&self, table: &str, number: u64, row: &Value) -> String {
        let at = 1_790_000_000_000 + number * 1_000;
        json!({
            "before": null, "after": row, "op": "c", "ts_ms": at,
            "source": { "name": "crm", "db": "crm", "schema": "public", "table": table,
                "sequence": format!("[\"{number}\",\"{}\"]", number + 1), "lsn": number + 1,
                "txId": number, "ts_ms": at, "ts_us": at * 1_000 },
        })
        .to_string()
    }

    /// Records for every topic: good ones, and each way in which one can be bad.
    fn records(&self, prefix: &str) -> Vec<(String, String)> {
        let (user, email) = (self.user.uuid(), self.email.value());
        let row = |number: u64| {
            json!({ "id": format!("{number:08x}-0000-4000-8000-000000000000"), "user_id": user,
                "invitee_user_id": user, "merchant_id": "11111111-1111-4111-8111-111111111111",
                "email": email, "name": email, "answers": { "q": email }, "code": email,
                "external_ref": "T1", "transaction_type": "earn", "currency": "points",
                "status": "completed", "record_type": "credit", "earn_currency": true,
                "reward_status": "completed", "redeemed_at": "2026-09-21T00:00:00Z",
                "used": true, "created_at": "2026-09-21T00:00:00Z" })
        };
        let with = |number, column: &str, value: Value| {
            let mut row = row(number);
            row[column] = value;
            row
        };
        let mut records = Vec::new();
        for table in feed::TABLES {
            let bad = [
                row(1),
                with(2, "status", json!({ "wrong": email })),
                with(3, "created_at", json!(email)),
                with(4, "earn_currency", json!(email)),
                with(5, "user_id", json!([email])),
                with(6, "record_type", json!("debit")),
                with(7, "redeemed_at", json!(email)),
            ];
            let topic = format!("{prefix}.{table}");
            for (number, row) in (1..).zip(bad) {
                records.push((topic.clone(), self.change(table, number, &row)));
            }
            let whole = self.change(table, 9, &row(9));
            records.push((topic.clone(), whole[..whole.len() - 9].to_owned()));
            records.push((topic.clone(), json!({ "email": email }).to_string()));
            records.push((topic.clone(), email.clone()));
            records.push((topic, format!("\0\0\0\0\u{1}{email}")));
        }
        let command = |field: &str, value: Value| {
            let mut command = json!({ "event_id": unique("e"), "user_id": user, "reward_id": "r",
                "merchant_id": "m", "quantity": 1, "note": email, "shop_id": 1,
                "order_sn": unique("o"), "order_status": "PAID", "buyer": email });
            command[field] = value;
            command.to_string()
        };
        for topic in ["reward_redemptions".to_owned(), format!("{prefix}.orders")] {
            for (field, value) in [
                ("note", json!(null)),
                ("quantity", json!(email)),
                ("user_id", json!({ "wrong": email })),
                ("order_status", json!([email])),
                ("shop_id", json!({ "wrong": email })),
            ] {
                records.push((topic.clone(), command(field, value)));
            }
            records.push((topic.clone(), format!("{{\"{email}\":")));
            records.push((topic, format!("{email}\u{0}")));
        }
        records
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_secret_nor_a_persons_data_is_shown_while_everything_fails() {
    let services = Secure::services();
    let (secrets, prefix) = (Secrets::new(), unique("secrets"));
    let person = Person { user: Canary::new("a user's id"), email: Canary::new("an address") };
    let account = Canary::known("the real password", services.password());
    let canaries = || secrets.all().into_iter().chain([&person.user, &person.email, &account]);
    let records = person.records(&prefix);
    let mut topics: Vec<_> = records.iter().map(|(topic, _)| topic.clone()).collect();
    topics.sort_unstable();
    topics.dedup();
    for topic in topics.iter().filter(|topic| *topic != "reward_redemptions") {
        create_topic(services.kafka(), topic, 1).await;
    }
    test_support::kafka::ensure_topic(services.kafka(), "reward_redemptions", 1).await;
    let sent = records.iter().map(|(topic, value)| {
        let key = person.email.value().into_bytes();
        FutureRecord::to(topic).key(&*key.leak()).payload(value.as_bytes())
    });
    produce(services.kafka(), sent).await;

    let server = HttpServer::start(repeating).await;
    for format in ["json", "human"] {
        let health = Health::free();
        let environment = secrets
            .environment()
            .with("KAFKA_BOOTSTRAP_SERVERS", services.kafka_tls())
            .with("KAFKA_API_KEY", services.user())
            .with("KAFKA_API_SECRET", services.password())
            .with("SSL_CERT_FILE", services.ca())
            .with("REDIS_URL", services.redis_tls())
            .with("SUPABASE_URL", server.url())
            .with("INNGEST_EVENT_API_BASE_URL", server.url())
            .with("CDC_TOPIC_PREFIX", &prefix)
            .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &format!("{prefix}.orders"))
            .with("CONSUMER_GROUP_ID", &format!("{prefix}-{format}"))
            .with("DLQ_TOPIC", &format!("{prefix}-{format}.dlq"))
            .with("HTTP_LISTEN", health.listen())
            .with("BACKOFF_BASE", "1ms")
            .with("BACKOFF_MAX", "50ms")
            .with("LOG_FORMAT", format)
            .with("RUST_BACKTRACE", "full");
        let (daemon, log) = environment.start_quietly();
        let (before, mut seen) = (server.requests(), String::new());
        until("requests that fail in every way", async || {
            for path in ["/readyz", "/metrics"] {
                seen += &health.get(path).await?.1;
            }
            (server.requests() > before + 200).then_some(())
        })
        .await;
        let letters = until("dead letters", async || {
            let letters = read_topic(services.kafka(), &format!("{prefix}-{format}.dlq")).await;
            (letters.len() > 30).then_some(letters)
        })
        .await;
        assert!(daemon.stop().code().is_some(), "no crash");
        let log = log.whole();
        assert!(seen.contains("supabase/rpc/") && seen.contains("inngest"), "both were away");
        assert!(log.contains("set aside"), "records were set aside");
        assert!(log.contains("librdkafka") && log.len() > 100_000, "it was loud: {}", log.len());
        none_in(canaries(), "the health endpoints", &seen);
        none_in(canaries(), "the log", &log);
        for letter in letters {
            let headers = letter.headers().expect("headers");
            let message = headers.iter().find(|header| header.key == "dlq.error.message");
            let message = message.and_then(|header| header.value).expect("a message");
            none_in(canaries(), "a dead letter's message", &String::from_utf8_lossy(message));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_unreachable_servers_are_not_shown() {
    let services = Secure::services();
    let secrets = Secrets::new();
    let (topic, health) = (unique("orders"), Health::free());
    create_topic(services.kafka(), &topic, 1).await;
    let order = json!({ "shop_id": 1, "order_sn": "A", "order_status": "PAID" }).to_string();
    let record = FutureRecord::to(&topic).key(&b"1"[..]).payload(order.as_bytes());
    produce(services.kafka(), [record]).await;
    let environment = secrets
        .environment()
        .with("CONSUMERS", "marketplace")
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &topic)
        .with("SSL_CERT_FILE", services.ca())
        .with("HTTP_LISTEN", health.listen())
        .with("BACKOFF_BASE", "1ms")
        .with("BACKOFF_MAX", "50ms");
    let right_kafka = environment
        .clone()
        .with("KAFKA_BOOTSTRAP_SERVERS", services.kafka_tls())
        .with("KAFKA_API_KEY", services.user())
        .with("KAFKA_API_SECRET", services.password());
    let redis = services.redis_tls().replace(services.password(), &secrets.redis.encoded());
    let cases = [
        (environment.with("KAFKA_BOOTSTRAP_SERVERS", services.kafka_tls()), "kafka: "),
        (right_kafka.clone().with("REDIS_URL", &redis), "redis: "),
        (right_kafka.with("DEDUP_ON_OUTAGE", "proceed"), "inngest: "),
    ];
    for (environment, waits_for) in cases {
        let (daemon, log) = environment.start_quietly();
        let seen = until_within(Duration::from_secs(120), waits_for, async || {
            let (_, seen) = health.get("/readyz").await?;
            seen.contains(waits_for).then_some(seen)
        })
        .await;
        let metrics = health.metrics().await.to_string();
        assert!(daemon.stop().code().is_some(), "no crash");
        secrets.none_in("readiness", &seen);
        secrets.none_in("metrics", &metrics);
        secrets.none_in("the log", &log.whole());
    }
}
