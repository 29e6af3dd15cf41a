//! Peers that send too much, too slowly or without end: clients of the health endpoints, and
//! services that answer the daemon.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crm_event_processors::clients::redis::{Cache, connect};
use crm_event_processors::outage::{Backoff, Breaker};
use rdkafka::Message as _;
use rdkafka::producer::FutureRecord;
use redis::AsyncCommands as _;

use super::http_server::{Answer, HttpServer};
use test_support::daemon::{Daemon, Environment};
use test_support::http::Health;
use test_support::kafka::{committed, create_topic, produce, read_topic};
use test_support::mock::Mock;
use test_support::{services, unique, until};

/// A daemon with nothing to do, which anyone can talk to.
async fn idle(health: &Health) -> (Mock, Daemon) {
    let broker = Mock::start();
    let environment =
        Environment::new(broker.bootstrap(), "redis://127.0.0.1:9", "http://127.0.0.1:9", "idle")
            .with("CONSUMERS", "marketplace")
            .with("HTTP_LISTEN", health.listen());
    let daemon = environment.start();
    until("the health endpoints", async || health.get("/livez").await).await;
    (broker, daemon)
}

/// Writes as much of `bytes` as the daemon takes, then reads what it says until it hangs up.
fn told(listen: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(listen).expect("it listens");
    stream.set_read_timeout(Some(test_support::PATIENCE)).expect("a time-out");
    // It may hang up in the middle.
    stream.write_all(bytes).ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_endpoints_take_short_requests_and_nothing_else() {
    let health = Health::free();
    let (_broker, daemon) = idle(&health).await;
    let listen = health.listen().to_owned();
    let before = daemon.peak_memory();
    let answers = tokio::task::spawn_blocking(move || {
        let told = |bytes: &[u8]| told(&listen, bytes);
        assert!(told(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200"));
        let long = "a".repeat(64 << 20);
        let many: String = (0..1000).map(|n| format!("X-{n}: y\r\n")).collect();
        let refused = [
            ("a long line", format!("GET /{long} HTTP/1.1\r\n\r\n")),
            ("a long header", format!("GET /livez HTTP/1.1\r\nX: {long}\r\n\r\n")),
            ("many headers", format!("GET /livez HTTP/1.1\r\n{many}\r\n")),
            ("no request", long.clone()),
            ("a TLS client", "\u{16}\u{3}\u{1}".repeat(100)),
            ("another method", "POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n".to_owned()),
            ("another path", "GET /../etc/passwd HTTP/1.1\r\n\r\n".to_owned()),
        ];
        for (what, request) in refused {
            let answer = told(request.as_bytes());
            let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
            assert!(refused, "{what}: {answer:.100}");
        }
        // The daemon neither waits for a body nor reads it.
        let head = "GET /livez HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n";
        let answer = told(format!("{head}{long}").as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200"), "{answer:.100}");
        // One request a connection.
        let twice = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
        assert_eq!(told(twice.as_bytes()).matches("HTTP/1.1 200").count(), 1);
    });
    answers.await.expect("all answers are as they should be");
    let grown = daemon.peak_memory() - before;
    println!("the daemon grew by {grown} KiB");
    assert!(grown < 32 << 10, "what is too long is not kept: {grown} KiB");
    assert_eq!(health.get("/livez").await.map(|answer| answer.0), Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_finish_are_hung_up_on_and_keep_nobody_out_for_long() {
    let health = Health::free();
    let (_broker, daemon) = idle(&health).await;
    let before = daemon.peak_memory();
    // More than it serves at a time: half say nothing, half begin and do not end.
    let mut waiting: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = TcpStream::connect(health.listen()).expect("it listens");
            if number % 2 == 0 {
                stream.write_all(b"GET /livez HTTP/1.1\r\nX: ").expect("it listens");
            }
            stream
        })
        .collect();
    until("an answer all the same", async || health.get("/livez").await).await;
    let mut first = waiting.remove(0);
    first.set_read_timeout(Some(test_support::PATIENCE)).expect("a time-out");
    let hung_up = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        // A reset is an end too.
        first.read_to_end(&mut rest).ok();
        first.shutdown(Shutdown::Both).ok();
    });
    hung_up.await.expect("it hangs up");
    let grown = daemon.peak_memory() - before;
    println!("200 connections cost {grown} KiB");
    assert!(grown < 32 << 10, "{grown} KiB");
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
const GIBIBYTE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const GZIP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n";
const FAILED: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\n\r\n";

/// An answer that would fill the memory of a client that reads all of it.
fn too_much(number: usize) -> Answer {
    let more = b" ".repeat(1 << 16);
    match number % 7 {
        0 => Answer::Endless(HEAD, more),
        1 => Answer::Endless(GIBIBYTE, more),
        2 => Answer::Endless(CHUNKED, [&b"10000\r\n"[..], &more, b"\r\n"].concat()),
        3 => Answer::Endless(GZIP, gzip_of_nothing()),
        4 => Answer::Endless(FAILED, more),
        5 => Answer::Endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n".repeat(1000)),
        _ => Answer::Endless(b"HTTP/1.1 200 OK\r\nX: ", more),
    }
}

/// Sixteen MiB of zeros, from a server that compresses without being asked to.
fn gzip_of_nothing() -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&vec![0; 16 << 20]).expect("memory takes it");
    gzip.finish().expect("memory takes it")
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_end_fill_no_memory_and_set_no_record_aside() {
    let (brokers, prefix, health) = (services::kafka(), unique("endless"), Health::free());
    let (orders, purchases) = (format!("{prefix}.orders"), format!("{prefix}.purchase_ledger"));
    for topic in [&orders, &purchases] {
        create_topic(brokers, topic, 1).await;
    }
    for number in 0..20_u64 {
        let order =
            format!("{{\"shop_id\":1,\"order_sn\":\"{number}\",\"order_status\":\"PAID\"}}");
        let row = serde_json::json!({ "id": number.to_string(), "user_id": "u", "merchant_id": "m",
            "status": "completed", "record_type": "credit", "earn_currency": true });
        let purchase = serde_json::json!({ "op": "c", "before": null, "after": row,
            "source": { "ts_ms": 1, "table": "purchase_ledger" } })
        .to_string();
        for (topic, value) in [(&orders, order), (&purchases, purchase)] {
            let key = number.to_string();
            let record = FutureRecord::to(topic).key(key.as_bytes()).payload(value.as_bytes());
            produce(brokers, [record]).await;
        }
    }
    let server = HttpServer::start(|_, number| too_much(number)).await;
    let environment = Environment::new(brokers, services::redis(), server.url(), &prefix)
        .with("CONSUMERS", "currency,marketplace")
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &orders)
        .with("HTTP_LISTEN", health.listen())
        .with("BACKOFF_BASE", "1ms")
        .with("BACKOFF_MAX", "20ms")
        .with("LOG_LEVEL", "error");
    let daemon = environment.start();
    until("both to be away", async || {
        let (status, consumers) = health.readiness().await?;
        assert_eq!(status, 200, "an outage");
        let waits =
            |name: &str, text: &str| consumers[name]["waits_for"].to_string().contains(text);
        let both = waits("currency", "supabase/rpc/") && waits("marketplace", "inngest");
        (both && server.requests() > 60).then_some(())
    })
    .await;
    let peak = daemon.peak_memory();
    println!("{} requests, peak memory {peak} KiB", server.requests());
    assert!(peak < 256 << 10, "{peak} KiB");
    assert!(daemon.stop().success(), "a clean stop");
    for (name, topic) in [("currency", &purchases), ("marketplace", &orders)] {
        let committed = committed(brokers, &format!("{prefix}-{name}"), topic).await;
        assert_eq!(committed.get(&0).map_or(0, |(next, _)| *next), 0, "nothing was given up");
    }
    let letters = read_topic(brokers, &format!("{prefix}.dlq")).await;
    assert_eq!(letters.len(), 0, "a server's nonsense is no record's fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_value_that_is_too_large_is_not_read() {
    let client = redis::Client::open(services::redis()).expect("an address");
    let mut other = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO };
    let breaker = std::sync::Arc::new(Breaker::new("cache", 1, backoff));
    let cache = Cache::new(connect(services::redis()).expect("an address"), breaker.clone());

    let key = unique("cached");
    let life = Duration::from_secs(60);
    cache.set(&key, "{\"a\":\"ü\"}", life).await;
    assert_eq!(cache.get(&key).await.as_deref(), Some("{\"a\":\"ü\"}"));
    for (bytes, read) in [(64 << 10, true), ((64 << 10) + 1, false), (16 << 20, false)] {
        // Created inside Redis, so that it need not be sent.
        let _: usize = other.setrange(&key, bytes - 1, "x").await.expect("Redis answers");
        assert_eq!(cache.get(&key).await.is_some(), read, "{bytes} bytes");
    }
    let _: () = other.del(&key).await.expect("Redis answers");
    assert_eq!(cache.get(&key).await, None);

    for (members, read) in [(10_000, 10_000), (10_001, 0)] {
        let all: Vec<String> = (0..members).map(|number| number.to_string()).collect();
        let _: () = other.sadd(&key, all).await.expect("Redis answers");
        assert_eq!(cache.members(&key).await.len(), read);
    }
    let _: () = other.del(&key).await.expect("Redis answers");
    assert!(breaker.away().is_none(), "the cache is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_as_large_as_its_topic_takes_fits_into_the_dead_letter_topic() {
    let (brokers, prefix) = (services::kafka(), unique("large"));
    let topic = format!("{prefix}.orders");
    create_topic(brokers, &topic, 1).await;
    // The broker's limit is 1,048,588 bytes, of a batch with its own header.
    let value = format!("no json{}", " and no end".repeat(95_300));
    let record = FutureRecord::to(&topic).key(&b"1"[..]).payload(value.as_bytes());
    produce(brokers, [record]).await;
    let environment = Environment::new(brokers, services::redis(), "http://127.0.0.1:9", &prefix)
        .with("CONSUMERS", "marketplace")
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &topic);
    let daemon = environment.start();
    until("the record to be set aside", async || {
        let committed = committed(brokers, &format!("{prefix}-marketplace"), &topic).await;
        (committed.get(&0)?.0 == 1).then_some(())
    })
    .await;
    assert!(daemon.stop().success(), "a clean stop");
    let letters = read_topic(brokers, &format!("{prefix}.dlq")).await;
    let [letter] = &letters[..] else { panic!("one letter, not {}", letters.len()) };
    assert_eq!(letter.payload().map(<[u8]>::len), Some(value.len()), "whole");
}
