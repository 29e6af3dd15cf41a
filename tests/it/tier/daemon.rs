//! The tier consumer in the real daemon, on a real Kafka and Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crm_event_processors::clients::redis::connect;
use crm_event_processors::dedup::{LockOp, Op, RedisStore, Reply as Answer, Store as _};
use crm_event_processors::fakes::{
    Endpoint, Fake, Fault, Lasting, Log, Options, Reply, Stored, tier_status,
};
use jiff::Timestamp;
use rdkafka::producer::FutureRecord;
use serde_json::{Value, json};

use test_support::daemon::Environment;
use test_support::recordings::recorded;
use test_support::{feed, kafka, services, unique, until};

const PARTITIONS: i32 = 6;
const TABLES: [&str; 2] = ["purchase_ledger", "wallet_ledger"];
const HOUR_MS: i64 = 60 * 60 * 1000;

/// Requests to the database, and a gate that one member's evaluations wait at.
#[derive(Default)]
pub(crate) struct Seen {
    evaluated: Mutex<BTreeMap<String, usize>>,
    applied: Mutex<BTreeMap<String, Value>>,
    gated: Mutex<Option<String>>,
    opened: Condvar,
}

impl Seen {
    /// Records `fake`'s requests from now on. `answer` answers evaluations by user and merchant.
    pub(crate) fn of(
        fake: &Fake,
        answer: impl Fn(&str, &str) -> Value + Send + Sync + 'static,
    ) -> Arc<Self> {
        let seen = Arc::new(Self::default());
        let evaluated = Arc::clone(&seen);
        fake.define("evaluate_user_tier_status", move |arguments| {
            let (user, merchant) = (text(arguments, "p_user_id"), text(arguments, "p_merchant_id"));
            let member = format!("{user}:{merchant}");
            *evaluated.evaluated.lock().expect("not poisoned").entry(member).or_default() += 1;
            tokio::task::block_in_place(|| evaluated.pass(user));
            Reply::json(&answer(user, merchant))
        });
        let applied = Arc::clone(&seen);
        fake.define("apply_tier_upgrade", move |arguments| {
            let (user, merchant) = (text(arguments, "p_user_id"), text(arguments, "p_merchant_id"));
            let tier = arguments["p_to_tier_id"].clone();
            let mut applied = applied.applied.lock().expect("not poisoned");
            applied.insert(format!("{user}:{merchant}"), tier);
            Reply::void()
        });
        seen
    }

    fn count(&self, user: &str) -> usize {
        let evaluated = self.evaluated.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = evaluated.iter().filter(|(member, _)| member.starts_with(user));
        of_user.map(|(_, count)| count).sum()
    }

    fn close(&self, user: &str) {
        *self.gated.lock().expect("not poisoned") = Some(user.to_owned());
    }

    fn open(&self) {
        *self.gated.lock().expect("not poisoned") = None;
        self.opened.notify_all();
    }

    fn pass(&self, user: &str) {
        let gated = self.gated.lock().expect("not poisoned");
        let behind = |gated: &mut Option<String>| gated.as_deref() == Some(user);
        drop(self.opened.wait_while(gated, behind).expect("not poisoned"));
    }
}

/// A daemon's surroundings, with their own topics.
struct Scene {
    brokers: &'static str,
    prefix: String,
    fake: Fake,
    redis: services::Redis,
    seen: Arc<Seen>,
}

fn text<'a>(arguments: &'a serde_json::Map<String, Value>, name: &str) -> &'a str {
    arguments.get(name).and_then(Value::as_str).expect("a named argument")
}

impl Scene {
    /// `answer` answers evaluations by user and merchant.
    async fn new(answer: impl Fn(&str, &str) -> Value + Send + Sync + 'static) -> Self {
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Fake::start(options).await.expect("a fake");
        let seen = Seen::of(&fake, answer);
        let (brokers, prefix) = (services::kafka(), unique("tier"));
        Self { brokers, prefix, fake, redis: services::Redis::own(), seen }
    }

    async fn with_topics(self) -> Self {
        for table in TABLES {
            kafka::create_topic(self.brokers, &format!("{}.{table}", self.prefix), PARTITIONS)
                .await;
        }
        self
    }

    fn environment(&self, settle: &str) -> Environment {
        Environment::new(self.brokers, self.redis.url(), self.fake.url(), &self.prefix)
            .with("CONSUMERS", "tier")
            .with("INNGEST_CANCEL_SETTLE", settle)
            .with("KAFKA_INSTANCE_ID", "one")
            .with("REDIS_KEY_PREFIX", "claims:")
    }

    /// Adds a trigger of a user's to one partition of one table.
    async fn trigger(&self, table: &str, partition: i32, user: &str) {
        self.triggers(&[(table, partition, user)]).await;
    }

    /// Adds triggers of a user's to every partition.
    async fn trigger_everywhere(&self, times: usize, user: &str) {
        let all: Vec<_> = everywhere().map(|(table, number)| (table, number, user)).collect();
        self.triggers(&all.repeat(times)).await;
    }

    async fn triggers(&self, triggers: &[(&str, i32, &str)]) {
        let now = Timestamp::now().as_millisecond();
        let written = triggers.iter().map(|(table, partition, user)| {
            let row = json!({"id": unique("row"), "user_id": user, "merchant_id": "m",
                "status": "completed", "record_type": "credit", "transaction_type": "earn"});
            let value = json!({"op": "c", "before": null, "after": row, "ts_ms": now,
                "source": {"table": table, "ts_ms": now}});
            (format!("{}.{table}", self.prefix), *partition, value.to_string())
        });
        let written: Vec<_> = written.collect();
        let records = written.iter().map(|(topic, partition, value)| {
            let record = FutureRecord::to(topic).partition(*partition).key(b"k".as_slice());
            record.payload(value.as_bytes())
        });
        kafka::produce(self.brokers, records).await;
    }

    /// Adds a marker trigger of its own user at the end of every partition, and returns once all
    /// were evaluated. Everything before them has been taken by then.
    async fn taken(&self) {
        let run = unique("marker");
        let markers: Vec<String> =
            everywhere().map(|(table, number)| format!("{run}-{table}-{number}-end")).collect();
        let all: Vec<_> = everywhere()
            .zip(&markers)
            .map(|((table, number), marker)| (table, number, &**marker))
            .collect();
        self.triggers(&all).await;
        until("everything to be taken", async || {
            markers.iter().all(|marker| self.seen.count(marker) > 0).then_some(())
        })
        .await;
    }

    async fn evaluated(&self, user: &str, times: usize) {
        until("an evaluation", async || (self.seen.count(user) >= times).then_some(())).await;
    }

    async fn caught_up(&self) {
        for table in TABLES {
            let (group, topic) =
                (format!("{}-tier", self.prefix), format!("{}.{table}", self.prefix));
            feed::caught_up(self.brokers, &group, &topic).await;
        }
    }

    /// Performs an operation in Redis, as another process would.
    async fn elsewhere(&self, op: Op) -> Answer {
        let connection = connect(self.redis.url()).expect("a URL");
        let store = RedisStore::new(connection, Duration::from_secs(300));
        store.execute(&[op]).await.expect("an answer").remove(0)
    }

    fn claim(&self, user: &str) -> String {
        format!("claims:{}-tier:tier:{user}:m", self.prefix)
    }

    /// Another process gives the claim of `user` back.
    fn free(&self, user: &str, accepted_ms: i64) -> Op {
        let (key, asker) = (self.claim(user).into(), "elsewhere".into());
        Op::Lock(LockOp::Free { key, asker, accepted_ms })
    }
}

fn everywhere() -> impl Iterator<Item = (&'static str, i32)> {
    TABLES.into_iter().flat_map(|table| (0..PARTITIONS).map(move |partition| (table, partition)))
}

fn maintain(_: &str, _: &str) -> Value {
    json!({"recommended_action": "maintain"})
}

/// A scheduled upgrade for the user `upgraded`.
fn upgrade(user: &str, merchant: &str) -> Value {
    if user != "upgraded" {
        return maintain(user, merchant);
    }
    json!({"recommended_action": "upgrade", "recommended_tier_id": "gold", "to_tier_ranking": 3,
        "upgrade_timing": "days", "upgrade_timing_value": 7,
        "effective_at": "2027-01-01T00:00:00+00:00"})
}

fn named<'a>(log: &'a Log, name: &str) -> Vec<&'a Stored> {
    log.events.iter().filter(|event| &*event.name == name).collect()
}

fn data(event: &Stored) -> Value {
    serde_json::from_str(event.data.as_deref().expect("kept")).expect("json")
}

fn member(event: &Stored) -> String {
    let data = data(event);
    let text = |name: &str| data[name].as_str().expect("text").to_owned();
    format!("{}:{}", text("user_id"), text("merchant_id"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_that_wait_are_one_evaluation_and_those_that_come_during_one_need_another() {
    let scene = Scene::new(maintain).await.with_topics().await;
    let daemon = scene.environment("0s").start();
    scene.seen.close("busy");
    scene.trigger("purchase_ledger", 0, "busy").await;
    scene.evaluated("busy", 1).await;
    scene.trigger_everywhere(3, "busy").await;
    scene.taken().await;
    scene.seen.open();
    scene.caught_up().await;
    assert_eq!(scene.seen.count("busy"), 2, "of 37 changes");
    assert!(daemon.stop().success(), "a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_change_of_an_evaluation_that_is_poison_becomes_a_dead_letter() {
    let scene = Scene::new(|user, merchant| match user {
        "poison" => json!({"recommended_action": "upgrade", "recommended_tier_id": null}),
        _ => maintain(user, merchant),
    });
    let scene = scene.await.with_topics().await;
    let daemon = scene.environment("0s").start();
    scene.seen.close("poison");
    scene.trigger("wallet_ledger", 1, "poison").await;
    scene.evaluated("poison", 1).await;
    scene.trigger_everywhere(1, "poison").await;
    scene.taken().await;
    scene.seen.open();
    scene.caught_up().await;
    assert!(daemon.stop().success(), "a clean stop");
    let letters = kafka::read_topic(scene.brokers, &format!("{}.dlq", scene.prefix)).await;
    assert_eq!((letters.len(), scene.seen.count("poison")), (13, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_another_process_is_at_waits_and_the_others_go_on() {
    let scene = Scene::new(maintain).await.with_topics().await;
    let acquire = Op::Lock(LockOp::Acquire {
        key: scene.claim("busy").into(),
        asker: "elsewhere".into(),
        left_by: None,
        lease: Duration::from_secs(300),
    });
    scene.elsewhere(acquire).await;
    let daemon = scene.environment("0s").start();
    scene.trigger("purchase_ledger", 0, "busy").await;
    scene.taken().await;
    assert_eq!(scene.seen.count("busy"), 0, "another process is at it");
    let free = scene.free("busy", 0);
    scene.elsewhere(free).await;
    scene.evaluated("busy", 1).await;
    scene.caught_up().await;
    assert!(daemon.stop().success(), "a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_upgrade_that_another_process_sent_is_left_to_settle() {
    let scene = Scene::new(maintain).await.with_topics().await;
    let accepted_ms = Timestamp::now().as_millisecond() + HOUR_MS;
    let free = scene.free("fresh", accepted_ms);
    scene.elsewhere(free).await;
    let daemon = scene.environment("1s").start();
    scene.trigger("purchase_ledger", 0, "fresh").await;
    scene.taken().await;
    assert_eq!(scene.seen.count("fresh"), 0, "its upgrade has not settled");
    assert!(daemon.stop().success(), "what waits is given up at a stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crash_during_an_evaluation_is_no_duplicate_and_does_not_wait_for_the_claim_to_run_out() {
    let scene = Scene::new(upgrade).await.with_topics().await;
    scene.seen.close("upgraded");
    let daemon = scene.environment("0s").start();
    scene.trigger("purchase_ledger", 0, "upgraded").await;
    scene.trigger("wallet_ledger", 3, "upgraded").await;
    scene.evaluated("upgraded", 1).await;
    daemon.kill();
    scene.seen.open();
    // The claim would stand for 300 s.
    let daemon = scene.environment("0s").start();
    scene.caught_up().await;
    assert!(scene.seen.count("upgraded") >= 2);
    assert!(daemon.stop().success(), "a clean stop");
    scene.fake.inspect(|log| assert!(!named(log, "tier/upgrade").is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_crash_behind_an_accepted_upgrade_the_repeat_lets_it_settle() {
    const SETTLE: Duration = Duration::from_secs(5);
    let scene = Scene::new(upgrade).await.with_topics().await;
    // The event is accepted, but the daemon does not learn it.
    scene.fake.fail(Endpoint::Post, Fault::HandledThenReset, Lasting::UntilHealed);
    let daemon = scene.environment("5s").start();
    scene.trigger("purchase_ledger", 0, "upgraded").await;
    scene.fake.until(|log| !named(log, "tier/upgrade").is_empty()).await;
    daemon.kill();
    scene.fake.heal(Endpoint::Post);
    let before = scene.fake.inspect(|log| log.posts.len());
    let daemon = scene.environment("5s").start();
    scene.caught_up().await;
    assert!(daemon.stop().success(), "a clean stop");
    scene.fake.inspect(|log| {
        let (first, repeat): (Vec<&Stored>, Vec<&Stored>) =
            log.events.iter().partition(|event| (event.post as usize) < before);
        let names: Vec<&str> = repeat.iter().map(|event| &*event.name).collect();
        assert_eq!(names, ["tier/upgrade-cancelled", "tier/upgrade"], "once, in this order");
        let last = first.last().expect("the first life sent").at;
        assert!(repeat[0].at >= last + SETTLE, "{last:?}, then {:?}", repeat[0].at);
        let runs: BTreeSet<u128> =
            named(log, "tier/upgrade").iter().map(|event| event.internal_id).collect();
        assert_eq!(runs.len(), 2, "a retry of one request starts no further run");
        for event in named(log, "tier/upgrade") {
            assert_eq!(event.id, None, "inngest would drop the repeat of an id");
            assert_eq!(
                data(event),
                json!({"user_id": "upgraded", "merchant_id": "m", "to_tier_id": "gold",
                    "to_tier_ranking": 3, "effective_at": "2027-01-01T00:00:00+00:00"})
            );
        }
    });
}

/// Members whom the recorded load triggers.
pub(crate) fn members_of_the_load() -> BTreeSet<String> {
    recorded("load_50k.jsonl.gz")
        .filter_map(|record| super::triggered(&record.topic, record.value.as_deref()))
        .collect()
}

/// Checks that exactly these members were evaluated and acted on as [`tier_status`] answers.
/// Returns the number of evaluations.
pub(crate) fn verify(members: &BTreeSet<String>, seen: &Seen, log: &Log) -> usize {
    let expected = |action: &dyn Fn(&Value) -> bool| -> BTreeSet<&String> {
        let of = |member: &&String| {
            let (user, merchant) = member.split_once(':').expect("a member");
            action(&tier_status(user, merchant))
        };
        members.iter().filter(of).collect()
    };
    let upgrades = |answer: &Value| answer["recommended_action"] == "upgrade";
    let scheduled = |answer: &Value| upgrades(answer) && !answer["effective_at"].is_null();
    let at_once = |answer: &Value| upgrades(answer) && answer["effective_at"].is_null();
    let cancelled = |answer: &Value| answer["recommended_action"] != "assign_entry";

    let evaluated = seen.evaluated.lock().expect("not poisoned");
    let applied = seen.applied.lock().expect("not poisoned");
    assert!(evaluated.keys().eq(members), "every member, and nobody else");
    assert!(applied.keys().eq(expected(&at_once)));
    let of = |name| named(log, name).into_iter().map(member).collect::<BTreeSet<_>>();
    assert!(of("tier/upgrade-cancelled").iter().eq(expected(&cancelled)));
    assert!(of("tier/upgrade").iter().eq(expected(&scheduled)));
    let mut last = BTreeMap::new();
    for event in log.events.iter().filter(|event| event.name.starts_with("tier/")) {
        let before = last.insert(member(event), event);
        if &*event.name == "tier/upgrade" {
            let before = before.expect("a cancel before the upgrade");
            assert_eq!((&*before.name, before.post), ("tier/upgrade-cancelled", event.post));
        }
    }
    evaluated.values().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_recorded_load_evaluates_every_triggered_member_and_acts_on_each_answer() {
    let scene = Scene::new(tier_status).await;
    let records: Vec<_> = recorded("load_50k.jsonl.gz").collect();
    let members = members_of_the_load();
    feed::produce(scene.brokers, &scene.prefix, PARTITIONS, &records).await;
    let daemon = scene.environment("1s").with("TIER_CONCURRENCY", "64").start();
    scene.caught_up().await;
    let peak = daemon.peak_memory();
    assert!(daemon.stop().success(), "a clean stop");
    assert!(peak < 128 * 1024, "peak memory of {peak} KiB");

    let count = scene.fake.inspect(|log| verify(&members, &scene.seen, log));
    println!("{count} evaluations of {} members, peak memory {peak} KiB", members.len());
}
