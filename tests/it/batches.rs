//! Records that need nothing but one send go through by the hundreds: what that must not change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crm_event_processors::app::{App, RunError, Stores};
use crm_event_processors::clients::redis::Cache;
use crm_event_processors::consumers::registry::{self, CONSUMERS};
use crm_event_processors::dedup::{
    ClaimOp, ClaimReply, MemoryStore, Op, Reply, Store, StoreUnavailable,
};
use crm_event_processors::engine::{Observed, Observer, Outcome};
use crm_event_processors::fakes::broker::Broker;
use crm_event_processors::fakes::{Endpoint, Fake, Fault, Lasting, Options, Poison};
use crm_event_processors::recording::Recorded;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use test_support::{PATIENCE, until};

const ORDERS: &str = "marketplace.orders";
const COUNT: usize = 600;

fn id(number: usize) -> String {
    format!("marketplace/order-received:shopee:7:SN{number}:PAID")
}

fn order(number: usize) -> Recorded {
    let order = json!({"shop_id": 7, "order_sn": format!("SN{number}"), "order_status": "PAID"});
    Recorded {
        topic: ORDERS.to_owned(),
        partition: (number % 2) as i32,
        offset: 0,
        timestamp_ms: Some(1_795_400_000_000),
        key: Some(b"7".to_vec()),
        value: Some(order.to_string().into_bytes()),
        headers: Vec::new(),
    }
}

/// Claims in memory, and how many operations came together.
#[derive(Clone)]
struct Counted {
    claims: Arc<MemoryStore>,
    requests: Arc<Mutex<Vec<usize>>>,
}

impl Store for Counted {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        self.requests.lock().expect("not poisoned").push(ops.len());
        self.claims.execute(ops)
    }
}

#[derive(Default)]
struct Outcomes(watch::Sender<BTreeMap<&'static str, usize>>);

impl Observer for Outcomes {
    fn observe(&self, _: &'static str, observed: &Observed<'_>) {
        if let Observed::Outcome { outcome, .. } = observed {
            self.0.send_modify(|counts| *counts.entry(outcome.as_str()).or_default() += 1);
        }
    }
}

/// A daemon beside which nothing else runs.
struct Scene {
    broker: Broker,
    fake: Fake,
    store: Counted,
    outcomes: Arc<Outcomes>,
}

impl Scene {
    async fn new() -> Self {
        Self::with_window(Duration::from_secs(300)).await
    }

    /// The same, with claims that live for so long.
    async fn with_window(window: Duration) -> Self {
        let broker = Broker::start().expect("a broker");
        broker.create_topic(ORDERS, 2).expect("a topic");
        broker.create_topic("crm-event-processors.dlq", 1).expect("a topic");
        for number in 0..COUNT {
            let stored = broker.produce(&order(number)).expect("room in the queue");
            stored.await.expect("the producer lives").expect("the broker acknowledges");
        }
        Self {
            broker,
            fake: Fake::start(Options::default()).await.expect("a fake"),
            store: Counted { claims: Arc::new(MemoryStore::new(window)), requests: Arc::default() },
            outcomes: Arc::default(),
        }
    }

    fn start(&self) -> (mpsc::Sender<()>, JoinHandle<Result<(), RunError>>) {
        self.start_with(&[])
    }

    fn start_with(
        &self,
        more: &[(&str, &str)],
    ) -> (mpsc::Sender<()>, JoinHandle<Result<(), RunError>>) {
        let environment = [
            ("CONSUMERS", "marketplace"),
            ("KAFKA_BOOTSTRAP_SERVERS", self.broker.bootstrap()),
            ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
            ("REDIS_URL", "redis://in-memory.invalid"), // never connected to: claims are in memory
            ("INNGEST_EVENT_API_BASE_URL", self.fake.url()),
            ("INNGEST_EVENT_KEY", "for-the-fake"),
            ("BACKOFF_BASE", "10ms"),
            ("BACKOFF_MAX", "50ms"),
        ];
        let environment = environment.iter().chain(more);
        let environment =
            environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = registry::load(&environment.collect(), Path::new(""));
        let settings = *loaded.settings.expect("sound settings");
        let claims = Box::new(self.store.clone());
        let stores = |_: &_, _: &_| Ok(Stores { claims, cache: Cache::none() });
        let observer = Arc::clone(&self.outcomes) as Arc<dyn Observer>;
        let app = App::build(settings, &CONSUMERS, stores, observer);
        let (stop, signals) = mpsc::channel(1);
        (stop, tokio::spawn(app.expect("an app").run(signals)))
    }

    /// Waits until this many records had this outcome.
    async fn until(&self, outcome: Outcome, count: usize) {
        let mut outcomes = self.outcomes.0.subscribe();
        let reached =
            outcomes.wait_for(|counts| counts.get(outcome.as_str()).is_some_and(|it| *it >= count));
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        drop(reached.expect("outcomes").expect("the observer is there"));
    }

    /// How many different events of each id Inngest would see: a request that is repeated with its
    /// seed makes none.
    fn copies(&self) -> BTreeMap<String, usize> {
        self.fake.inspect(|log| {
            let mut copies: BTreeMap<String, BTreeSet<u128>> = BTreeMap::new();
            for event in &log.events {
                let id = event.id.as_deref().unwrap_or_default().to_owned();
                copies.entry(id).or_default().insert(event.internal_id);
            }
            copies.into_iter().map(|(id, copies)| (id, copies.len())).collect()
        })
    }
}

async fn stopped(stop: mpsc::Sender<()>, running: JoinHandle<Result<(), RunError>>) {
    stop.send(()).await.expect("the daemon runs");
    running.await.expect("no panic").expect("a clean stop");
}

fn each_once(numbers: impl Iterator<Item = usize>) -> BTreeMap<String, usize> {
    numbers.map(|number| (id(number), 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_marks_of_many_records_are_one_request_each() {
    let scene = Scene::new().await;
    let (stop, running) = scene.start();
    scene.until(Outcome::Sent, COUNT).await;
    stopped(stop, running).await;
    assert_eq!(scene.copies(), each_once(0..COUNT));
    let requests = scene.store.requests.lock().expect("not poisoned").clone();
    assert_eq!(requests.iter().sum::<usize>(), 2 * COUNT, "each is claimed and marked once");
    assert!(requests.len() < COUNT / 4, "{} requests: {requests:?}", requests.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_refused_among_hundreds_is_set_aside_alone_and_the_others_go_out_once() {
    let scene = Scene::new().await;
    let refused = [3, COUNT / 2, COUNT - 1];
    for number in refused {
        let poison = Poison::Refused("event name is empty".to_owned());
        scene.fake.poison(&id(number), Some(poison));
    }
    let (stop, running) = scene.start();
    scene.until(Outcome::DeadLettered(""), refused.len()).await;
    scene.until(Outcome::Sent, COUNT - refused.len()).await;
    stopped(stop, running).await;
    assert_eq!(scene.copies(), each_once((0..COUNT).filter(|number| !refused.contains(number))));
    let uncommitted = scene.broker.uncommitted("crm-event-processors-marketplace", ORDERS);
    assert_eq!(uncommitted.expect("offsets").values().sum::<i64>(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_record_has_claimed_waits_and_holds_up_no_other() {
    let scene = Scene::new().await;
    let held = [5, 6, 300];
    let key = |number| format!("crm:crm-event-processors-marketplace:{}", id(number)).into();
    let claim = |number| Op::Claim(ClaimOp::Take { key: key(number), asker: "another/0/0".into() });
    let replies = scene.store.claims.execute(&held.map(claim)).await.expect("in memory");
    assert_eq!(replies, vec![Reply::Claim(ClaimReply::Granted); 3]);
    let (stop, running) = scene.start();
    scene.until(Outcome::Sent, COUNT - held.len()).await;
    assert_eq!(scene.copies(), each_once((0..COUNT).filter(|number| !held.contains(number))));
    let keep = Duration::from_secs(300);
    let done = Op::Claim(ClaimOp::Confirm { key: key(5), accepted_ms: 1, due_ms: 0, keep });
    let release =
        |number| Op::Claim(ClaimOp::Release { key: key(number), asker: "another/0/0".into() });
    let ops = [done, release(6), release(300)];
    scene.store.claims.execute(&ops).await.expect("in memory");
    scene.until(Outcome::Duplicate, 1).await;
    scene.until(Outcome::Sent, COUNT - 1).await;
    stopped(stop, running).await;
    assert_eq!(scene.copies(), each_once((0..COUNT).filter(|number| *number != 5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_unknown_outcome_is_repeated_as_it_was() {
    let scene = Scene::new().await;
    // Requests are accepted, but the answers get lost. Splitting them into new requests would send
    // everything again under other ids.
    scene.fake.fail(Endpoint::Post, Fault::HandledThenReset, Lasting::Next(4));
    let (stop, running) = scene.start();
    scene.until(Outcome::Sent, COUNT).await;
    stopped(stop, running).await;
    assert_eq!(scene.copies(), each_once(0..COUNT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_an_outage_gives_up_all_and_the_next_run_sends_each_once() {
    let scene = Scene::new().await;
    scene.fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    let (stop, running) = scene.start();
    tokio::time::timeout(PATIENCE, scene.fake.until(|log| log.requests(Endpoint::Post).count > 5))
        .await
        .expect("requests");
    stopped(stop, running).await;
    assert_eq!(scene.copies(), BTreeMap::new());
    scene.fake.heal(Endpoint::Post);
    let (stop, running) = scene.start();
    scene.until(Outcome::Sent, COUNT).await;
    stopped(stop, running).await;
    assert_eq!(scene.copies(), each_once(0..COUNT));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_inngest_keeps_its_claims_for_longer_than_they_live() {
    let scene = Scene::with_window(Duration::from_secs(3)).await;
    scene.fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    let (stop, running) =
        scene.start_with(&[("DEDUP_WINDOW", "3s"), ("INNGEST_CANCEL_SETTLE", "1s")]);
    // Claimed once, and renewed each second: four times lie beyond the first window.
    let renewed = || scene.store.requests.lock().expect("not poisoned").iter().sum::<usize>();
    until("renewals", async || (renewed() >= 5 * COUNT).then_some(())).await;
    let ask = |number| {
        let key = format!("crm:crm-event-processors-marketplace:{}", id(number)).into();
        Op::Claim(ClaimOp::Take { key, asker: "another/0/0".into() })
    };
    let asked: Vec<Op> = (0..COUNT).map(ask).collect();
    let replies = scene.store.claims.execute(&asked).await.expect("in memory");
    assert!(replies.iter().all(|reply| *reply == Reply::Claim(ClaimReply::Held)), "{replies:?}");
    scene.fake.heal(Endpoint::Post);
    scene.until(Outcome::Sent, COUNT).await;
    stopped(stop, running).await;
    assert_eq!(scene.copies(), each_once(0..COUNT));
}
