//! All five consumers in one daemon, on a real Kafka and Redis.

mod endpoints;
mod hung;
mod stop;

use std::collections::BTreeSet;

use crm_event_processors::fakes::{
    Fake, Log, Options, active_missions, redemption_result, tier_status,
};
use rdkafka::producer::FutureRecord;
use serde_json::{Value, json};

use crate::tier::daemon::{Seen, members_of_the_load};
use crate::{load, tier};
use test_support::daemon::Environment;
use test_support::recordings::recorded;
use test_support::{feed, kafka, services, unique};

const PARTITIONS: i32 = 6;
/// The topic of commands. Its name is fixed, so it may hold another test's commands too.
const COMMANDS: &str = "reward_redemptions";
/// Whose changes each consumer takes, by topic after the prefix.
const TAKES: [(&str, &[&str]); 5] = [
    ("currency", &["purchase_ledger", "referral_ledger", "mission_claims"]),
    ("tier", &["purchase_ledger", "wallet_ledger"]),
    ("mission", &["purchase_ledger", "form_submissions", "wallet_ledger", "referral_ledger"]),
    ("reward", &["codes"]),
    ("marketplace", &["orders"]),
];

/// A daemon's surroundings, with their own topics.
struct Scene {
    brokers: &'static str,
    prefix: String,
    fake: Fake,
    redis: services::Redis,
}

impl Scene {
    /// With the records of a recording in its tables' topics, and an empty topic of orders.
    async fn with(recording: &str) -> Self {
        let options = Options { keep_data: true, ..Options::default() };
        let scene = Self {
            brokers: services::kafka(),
            prefix: unique("five"),
            fake: Fake::start(options).await.expect("a fake"),
            redis: services::Redis::own(),
        };
        let records: Vec<_> = recorded(recording).collect();
        feed::produce(scene.brokers, &scene.prefix, PARTITIONS, &records).await;
        kafka::create_topic(scene.brokers, &scene.topic("orders"), PARTITIONS).await;
        kafka::ensure_topic(scene.brokers, COMMANDS, 3).await;
        scene
    }

    fn topic(&self, table: &str) -> String {
        format!("{}.{table}", self.prefix)
    }

    fn group(&self, consumer: &str) -> String {
        format!("{}-{consumer}", self.prefix)
    }

    fn environment(&self) -> Environment {
        let environment =
            Environment::new(self.brokers, self.redis.url(), self.fake.url(), &self.prefix)
                .with("CONSUMERS", "currency,tier,mission,reward,marketplace")
                .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &self.topic("orders"))
                .with("CURRENCY_ORIGINAL_PATIENCE", "2s")
                .with("INNGEST_CANCEL_SETTLE", "2s");
        let bounds = ["CURRENCY", "TIER", "MISSION", "REWARD"];
        bounds.iter().fold(environment, |environment, name| {
            environment.with(&format!("{name}_CONCURRENCY"), "64")
        })
    }

    /// Sends these keys and values as they are.
    async fn send(&self, topic: &str, records: &[(String, String)]) {
        let records = records.iter().map(|(key, value)| {
            FutureRecord::to(topic).key(key.as_bytes()).payload(value.as_bytes())
        });
        kafka::produce(self.brokers, records).await;
    }

    async fn send_orders(&self, count: usize) {
        let orders: Vec<_> = (0..count).map(|number| order(number, "PAID")).collect();
        self.send(&self.topic("orders"), &orders).await;
    }

    /// Sends redemption commands, and answers the ids of their events.
    async fn send_redemptions(&self, count: usize) -> BTreeSet<String> {
        let id = |number: usize| format!("{}-{number}", self.prefix);
        let command = |number: usize| {
            let user = format!("user-{}", number % 7);
            let command = json!({"event_id": id(number), "user_id": user, "reward_id": "r",
                "merchant_id": "m"});
            (user, command.to_string())
        };
        self.send(COMMANDS, &(0..count).map(command).collect::<Vec<_>>()).await;
        let event = |number| {
            let id = id(number);
            let redeemed = redemption_result(&id)["success"] == true;
            let name = if redeemed { "reward/redeemed" } else { "reward/redemption-failed" };
            format!("{name}:{id}")
        };
        (0..count).map(event).collect()
    }

    /// Waits until these consumers have committed all that they take.
    async fn caught_up(&self, consumers: impl Fn(&str) -> bool) {
        for (consumer, tables) in TAKES.iter().filter(|(consumer, _)| consumers(consumer)) {
            for table in *tables {
                feed::caught_up(self.brokers, &self.group(consumer), &self.topic(table)).await;
            }
            if *consumer == "reward" {
                feed::caught_up(self.brokers, &self.group(consumer), COMMANDS).await;
            }
        }
    }

    /// How many records lie in a table's topic.
    async fn fed(&self, table: &str) -> i64 {
        kafka::ends(self.brokers, &self.topic(table)).await.values().sum()
    }
}

/// An order, keyed by its shop.
fn order(number: usize, status: &str) -> (String, String) {
    let shop = number % 3;
    let order = json!({"shop_id": shop, "order_sn": format!("sn{number}"), "order_status": status});
    (format!("shop-{shop}"), order.to_string())
}

/// Ids of the stored events of one name.
fn ids(log: &Log, name: &str) -> BTreeSet<String> {
    let named = log.events.iter().filter(|event| &*event.name == name);
    named.filter_map(|event| event.id.as_deref()).map(str::to_owned).collect()
}

/// Ids of the evaluations that the recorded load calls for. These rules are written after
/// behaviour.md, not after the code: a row that ever counts does so once.
fn missions_of_the_load() -> BTreeSet<String> {
    let mut missions = BTreeSet::new();
    for record in recorded("load_50k.jsonl.gz") {
        let Some(value) = &record.value else { continue };
        let value: Value = serde_json::from_slice(value).expect("json");
        let row = &value["after"];
        let event_type = if record.topic.ends_with(".purchase_ledger") {
            (row["status"] == "completed" && row["record_type"] != "debit").then_some("purchase")
        } else {
            (row["transaction_type"] == "earn" && row["component"] != "reversal")
                .then(|| match row["currency"].as_str() {
                    Some("points") => Some("points_earned"),
                    Some("ticket") => Some("tickets_earned"),
                    _ => None,
                })
                .flatten()
        };
        let (Some(event_type), Some(_)) = (event_type, row["user_id"].as_str()) else { continue };
        let text = |column: &str| row[column].as_str().expect("text");
        for mission in active_missions(text("merchant_id"), event_type) {
            missions.insert(format!("mission/evaluate:{mission}:{event_type}:{}", text("id")));
        }
    }
    missions
}

/// Compares the two, and names a few of the differences.
fn same(what: &str, found: &BTreeSet<String>, demanded: &BTreeSet<String>) {
    let missing: Vec<_> = demanded.difference(found).take(5).collect();
    let extra: Vec<_> = found.difference(demanded).take(5).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, extra {extra:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_five_on_the_recorded_load_do_what_the_rules_say_within_192_mib() {
    const ORDERS: usize = 2_000;
    let scene = Scene::with("load_50k.jsonl.gz").await;
    scene.send_orders(ORDERS).await;
    let redemptions = scene.send_redemptions(200).await;
    let evaluations = Seen::of(&scene.fake, tier_status);
    let daemon = scene.environment().start();
    scene.caught_up(|_| true).await;
    let peak = daemon.peak_memory();
    assert!(daemon.stop().success(), "a clean stop");

    let count = scene.fake.inspect(|log| {
        load::verify(log);
        assert_eq!(load::repeats(log), 0, "each event once");
        same("missions", &ids(log, "mission/evaluate"), &missions_of_the_load());
        assert_eq!(ids(log, "marketplace/order-received").len(), ORDERS);
        let mut redeemed = ids(log, "reward/redeemed");
        redeemed.append(&mut ids(log, "reward/redemption-failed"));
        redeemed.retain(|id| id.contains(&scene.prefix));
        same("redemptions", &redeemed, &redemptions);
        tier::daemon::verify(&members_of_the_load(), &evaluations, log)
    });
    assert!(peak < 192 * 1024, "peak memory of {peak} KiB");
    println!("{count} evaluations of tiers, peak memory {peak} KiB");
}
