//! Kessel's webhooks on a real Kafka (behaviour section 9, "Actions").

use std::collections::{BTreeMap, BTreeSet};
use std::future;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use crm_event_processors::cdc::{self, Decoded};
use crm_event_processors::consumers::kessel::row::{Operation, Reading, read};
use crm_event_processors::recording::Recorded;
use serde_json::{Value, json};
use test_support::daemon::Environment;
use test_support::{feed, services, until};

use super::kessel::{Scene, relationships};

/// What a receiver does with posts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Away,
    Takes,
    /// It takes so many in all. More of them it takes too, but never answers.
    TakesThenHangs(usize),
}

/// A receiver of webhooks, and the posts that it took and verified: id and body.
#[derive(Clone)]
struct Receiver {
    mood: Arc<Mutex<Mood>>,
    taken: Arc<Mutex<Vec<(String, Bytes)>>>,
    url: String,
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let me = Self {
            mood: Arc::new(Mutex::new(Mood::Away)),
            taken: Arc::default(),
            url: format!("http://{address}/hooks"),
        };
        let app = Router::new().fallback(receive).with_state(me.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        me
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().expect("not poisoned") = mood;
    }

    fn taken(&self) -> MutexGuard<'_, Vec<(String, Bytes)>> {
        self.taken.lock().expect("not poisoned")
    }
}

async fn receive(State(me): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mood = *me.mood.lock().expect("not poisoned");
    if mood == Mood::Away {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let verifier = standardwebhooks::Webhook::new(&secret()).expect("a secret");
    if verifier.verify(&body, &headers).is_err() {
        return StatusCode::BAD_REQUEST;
    }
    let id = headers["webhook-id"].to_str().expect("text").to_owned();
    let count = {
        let mut taken = me.taken();
        taken.push((id, body));
        taken.len()
    };
    match mood {
        Mood::TakesThenHangs(most) if count > most => future::pending().await,
        _ => StatusCode::NO_CONTENT,
    }
}

fn secret() -> String {
    format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode([9; 32]))
}

fn environment(scene: &Scene, receiver: &Receiver) -> Environment {
    let hooks = json!({"action": "webhook", "name": "hooks", "start": "earliest",
        "url": receiver.url, "allow_addresses": ["127.0.0.0/8"]});
    scene
        .environment()
        .with("RELATIONSHIPS_ACTIONS", &json!([{"action": "log"}, hooks]).to_string())
        .with("KESSEL_WEBHOOK_SECRETS", &secret())
        .with("BACKOFF_BASE", "50ms")
        .with("BACKOFF_MAX", "200ms")
        .with("KAFKA_SESSION_TIMEOUT", "6s")
}

/// The idempotency key of each change but those that a snapshot has read.
fn keys(records: &[Recorded]) -> BTreeSet<String> {
    let key = |record: &Recorded| {
        record.lend(|record| {
            let decoded = cdc::decode(record, &cdc::Options::default()).expect("a sound record");
            let Decoded::Change(change) = decoded else { return None };
            let change = read(&change, Reading::default()).expect("a sound row").ok()?;
            (change.operation != Operation::Read).then(|| change.idempotency_key())
        })
    };
    records.iter().filter_map(key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_reaches_a_receiver_that_was_away_though_the_daemon_is_killed_meanwhile() {
    let records = relationships("spicedb2/xids_keyed.jsonl.gz");
    let scene = Scene::with(&records).await;
    let receiver = Receiver::start().await;
    let (killed, log) = environment(&scene, &receiver).start_reading_output();
    // The action log has a group of its own and goes on while the receiver is away.
    scene.caught_up().await;
    assert!(log.lines().len() > 200, "{} lines", log.lines().len());
    assert!(receiver.taken().is_empty());
    receiver.set(Mood::TakesThenHangs(100));
    until("posts without an answer", async || (receiver.taken().len() > 100).then_some(())).await;
    killed.kill();
    let before = receiver.taken().len();
    receiver.set(Mood::Takes);
    let (daemon, _log) = environment(&scene, &receiver).start_reading_output();
    let group = format!("{}-hooks", scene.group);
    feed::caught_up(services::kafka(), &group, &scene.topic).await;
    assert!(daemon.stop().success(), "a clean stop");

    let taken = receiver.taken().clone();
    let mut bodies = BTreeMap::new();
    for (id, body) in &taken {
        assert_eq!(bodies.entry(id).or_insert(body), &body, "a repeat is the same post");
    }
    let key = |body: &Bytes| -> String {
        let body: Value = serde_json::from_slice(body).expect("JSON");
        body["key"].as_str().expect("a key").to_owned()
    };
    let received: BTreeSet<String> = bodies.values().map(|body| key(body)).collect();
    assert_eq!(received, keys(&records));
    assert_eq!(received.len(), bodies.len(), "one id for each change");
    let unanswered = taken[100..before].iter().map(|(id, _)| id);
    for id in unanswered {
        let times = taken.iter().filter(|(taken, _)| taken == id).count();
        assert!(times > 1, "{id} was never answered, and so comes again");
    }
}
