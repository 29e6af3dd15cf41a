//! Mission, reward and marketplace, each through the real daemon, Kafka and Redis; and what
//! `explain` says of their records.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crm_event_processors::clients::redis::connect;
use crm_event_processors::fakes::{Fake, Options, redemption_result};
use rdkafka::Message as _;
use rdkafka::message::Headers as _;
use rdkafka::producer::FutureRecord;
use serde_json::{Map, Value, json};

use test_support::daemon::Environment;
use test_support::recordings::{fixture, recorded};
use test_support::{feed, kafka, services, unique};

const COMMANDS: &str = "reward_redemptions";

fn expected() -> Value {
    let text = std::fs::read_to_string(fixture("life/expected.json")).expect("the expectations");
    serde_json::from_str(&text).expect("json")
}

async fn fake() -> Fake {
    Fake::start(Options { keep_data: true, ..Options::default() }).await.expect("a fake")
}

/// Name, id and data of every stored event.
fn events(fake: &Fake) -> Vec<(String, String, Value)> {
    fake.inspect(|log| {
        let events = log.events.iter().map(|event| {
            let data = event.data.as_deref().expect("data is kept");
            let id = event.id.as_deref().expect("an id").to_owned();
            (event.name.to_string(), id, serde_json::from_str(data).expect("json"))
        });
        events.collect()
    })
}

async fn send(brokers: &str, topic: &str, records: &[(String, String)]) {
    let records = records
        .iter()
        .map(|(key, value)| FutureRecord::to(topic).key(key.as_bytes()).payload(value.as_bytes()));
    kafka::produce(brokers, records).await;
}

async fn missions_of(recording: &str) {
    const MISSION: &str = "7f000000-0000-4000-8000-000000000001";
    // A set that holds only the empty string: no missions, whatever the view says.
    const WITHOUT: (&str, &str) = ("db5b5fab-8f4d-4e27-9da1-494c73cf256d", "form_submission");
    let (brokers, prefix, redis) = (services::kafka(), unique("mission"), services::Redis::own());
    let mut cache = connect(redis.url()).expect("a redis url");
    let without = format!("missions:active:{}:{}", WITHOUT.0, WITHOUT.1);
    let seeded: i64 =
        redis::cmd("SADD").arg(&without).arg("").query_async(&mut cache).await.expect("set");
    assert_eq!(seeded, 1);
    let fake = fake().await;
    fake.compute("mv_mission_conditions_expanded", |query| {
        let filter = |name: &str| {
            let found = query.iter().find(|(column, _)| column == name).expect("a filter");
            Value::from(found.1.strip_prefix("eq.").expect("eq"))
        };
        let row = ["merchant_id", "condition_type"].map(|name| (name.to_owned(), filter(name)));
        vec![Map::from_iter(row.into_iter().chain([("mission_id".to_owned(), MISSION.into())]))]
    });
    feed::produce(brokers, &prefix, 6, &recorded(recording).collect::<Vec<_>>()).await;
    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", "mission")
        .start();
    for table in ["purchase_ledger", "wallet_ledger", "form_submissions", "referral_ledger"] {
        feed::caught_up(brokers, &format!("{prefix}-mission"), &format!("{prefix}.{table}")).await;
    }
    assert!(daemon.stop().success(), "a clean stop");

    let mut found = BTreeSet::new();
    for (name, id, data) in events(&fake) {
        let text = |field: &str| data[field].as_str().expect("text").to_owned();
        let (kind, row) = (text("event_type"), text("trigger_id"));
        assert_eq!((name.as_str(), text("mission_id").as_str()), ("mission/evaluate", MISSION));
        assert_eq!(id, format!("mission/evaluate:{MISSION}:{kind}:{row}"));
        assert_eq!(data["event_data"]["id"], data["trigger_id"]);
        assert_ne!((text("merchant_id").as_str(), kind.as_str()), WITHOUT);
        if kind.starts_with("referral") {
            assert_eq!(data["event_data"]["inviter_user_id"], data["user_id"]);
            assert!(data["event_data"]["invitee_user_id"].is_string());
        }
        assert!(found.insert((kind, row)), "each once: {id}");
    }
    let mut demanded: BTreeSet<(String, String)> =
        serde_json::from_value(expected()["mission"].clone()).expect("pairs");
    let missing: BTreeSet<_> = demanded.difference(&found).cloned().collect();
    assert!(
        !missing.is_empty() && missing.iter().all(|(kind, _)| kind == WITHOUT.1),
        "{missing:?}"
    );
    demanded.retain(|pair| !missing.contains(pair));
    assert_eq!(found, demanded);

    let filled = format!("missions:active:{}:purchase", WITHOUT.0);
    let members: Vec<String> =
        redis::cmd("SMEMBERS").arg(&filled).query_async(&mut cache).await.expect("a set");
    assert_eq!(members, [MISSION]);
    let lifetime: i64 =
        redis::cmd("TTL").arg(&filled).query_async(&mut cache).await.expect("a time");
    assert!((1..=300).contains(&lifetime), "{lifetime} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_lives_evaluate_exactly_the_missions_that_the_rules_demand() {
    missions_of("life/full.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_states_before_claims_absorb_what_repeats() {
    missions_of("life/default.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redemptions_and_codes_become_their_events_once_and_a_malformed_command_a_dead_letter() {
    let (brokers, prefix, redis) = (services::kafka(), unique("reward"), services::Redis::own());
    let fake = fake().await;
    feed::produce(brokers, &prefix, 6, &recorded("life/full.jsonl.gz").collect::<Vec<_>>()).await;
    kafka::ensure_topic(brokers, COMMANDS, 3).await;
    // The topic's name is fixed, so another test's commands may lie there too.
    let event = |number: u32| format!("{prefix}-{number}");
    let command = |number: u32, quantity: u32| {
        let user = format!("{prefix}-user-{}", number % 7);
        let value = json!({"event_id": event(number), "user_id": user, "reward_id": "r",
            "merchant_id": "m", "quantity": quantity});
        (user, value.to_string())
    };
    let mut commands: Vec<_> = (0..100).map(|number| command(number, 1)).collect();
    commands.extend((0..20).map(|number| command(number, 1)));
    commands.push(command(1000, 0));
    send(brokers, COMMANDS, &commands).await;
    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", "reward")
        .start();
    for topic in [COMMANDS, &format!("{prefix}.codes")] {
        feed::caught_up(brokers, &format!("{prefix}-reward"), topic).await;
    }
    assert!(daemon.stop().success(), "a clean stop");

    let mut found = BTreeMap::new();
    for (name, id, data) in events(&fake) {
        if name == "reward/code-redeemed" || id.contains(&prefix) {
            assert!(found.insert(id.clone(), (name, data)).is_none(), "each once: {id}");
        }
    }
    let mut refused = 0;
    for number in 0..100 {
        let result = redemption_result(&event(number));
        let succeeded = result["success"] == true;
        refused += usize::from(!succeeded);
        let name = if succeeded { "reward/redeemed" } else { "reward/redemption-failed" };
        let (_, data) = found.remove(&format!("{name}:{}", event(number))).expect(name);
        assert_eq!((&data["result"], &data["quantity"]), (&result, &json!(1)));
    }
    assert!(refused > 0);
    let codes = expected()["code_redeemed"].as_array().expect("a list").clone();
    for code in &codes {
        let (_, data) = found
            .remove(&format!("reward/code-redeemed:{}", code["code_id"]))
            .expect("the code's event");
        for field in ["code", "code_id", "user_id"] {
            assert_eq!(data[field], code[field]);
        }
    }
    assert!(found.is_empty(), "and nothing else: {found:?}");

    let letters = kafka::read_topic(brokers, &format!("{prefix}.dlq")).await;
    let mine: Vec<_> = letters
        .iter()
        .filter(|letter| letter.key().is_some_and(|key| key.starts_with(prefix.as_bytes())))
        .collect();
    assert_eq!(mine.len(), 1);
    let headers = mine[0].headers().expect("headers");
    let header = |name: &str| {
        let found = headers.iter().find(|header| header.key == name).expect(name);
        String::from_utf8_lossy(found.value.unwrap_or_default()).into_owned()
    };
    assert_eq!(header("dlq.error.kind"), "command");
    assert_eq!(
        header("dlq.error.message"),
        "value is not a valid command: quantity is not within 1 to 1000"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_passed_on_once_in_order_and_without_supabase() {
    const ORDERS: u32 = 2_000;
    const STATUSES: [&str; 3] = ["PAID", "SHIPPED", "COMPLETED"];
    let (brokers, prefix, redis) = (services::kafka(), unique("orders"), services::Redis::own());
    let fake = fake().await;
    let topic = format!("{prefix}.renamed");
    kafka::create_topic(brokers, &topic, 4).await;
    let mut records = Vec::new();
    for status in ["UNPAID", STATUSES[0], STATUSES[0], STATUSES[1], STATUSES[2]] {
        for order in 0..ORDERS {
            let shop = order % 3;
            let value = json!({"shop_id": shop, "order_sn": format!("sn{order}"),
                "order_status": status, "timestamp": 1_795_405_012});
            records.push((format!("shop-{shop}"), value.to_string()));
        }
    }
    send(brokers, &topic, &records).await;
    let daemon = Environment::new(brokers, redis.url(), fake.url(), &prefix)
        .with("CONSUMERS", "marketplace")
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &topic)
        .with("SUPABASE_URL", "")
        .with("SUPABASE_SERVICE_ROLE_KEY", "")
        .start();
    feed::caught_up(brokers, &format!("{prefix}-marketplace"), &topic).await;
    assert!(daemon.stop().success(), "a clean stop");

    let mut statuses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, id, data) in events(&fake) {
        let text = |field: &str| data[field].as_str().expect("text").to_owned();
        assert_eq!(name, "marketplace/order-received");
        let (shop, number, status) = (text("shop_id"), text("order_sn"), text("order_status"));
        assert_eq!(id, format!("marketplace/order-received:shopee:{shop}:{number}:{status}"));
        statuses.entry(number).or_default().push(status);
    }
    assert_eq!(statuses.len(), ORDERS as usize);
    for (order, found) in statuses {
        assert_eq!(found, STATUSES, "{order}: each once, in order");
    }
}

#[test]
fn explain_says_what_each_of_them_would_do() {
    let directory = std::env::temp_dir().join(unique("explain"));
    std::fs::create_dir_all(&directory).expect("a directory for the test");
    let file = directory.join("records.jsonl");
    let record =
        |topic: &str, value: Value| json!({"topic": topic, "value": value.to_string()}).to_string();
    let referral = json!({"op": "c", "before": null, "ts_ms": 1_795_405_012_468_i64,
        "after": {"id": "r1", "merchant_id": "m", "inviter_user_id": "u", "invitee_user_id": "v",
            "reward_status": "pending", "signed_up_at": "2026-11-23T03:00:00Z",
            "first_purchase_at": null}});
    let code = json!({"op": "u", "before": null, "ts_ms": 1_795_405_012_468_i64,
        "after": {"id": 7, "merchant_id": "m", "code": "C", "status": "redeemed",
            "redeemed_at": "2026-11-23T03:30:00Z"}});
    let lines = [
        record("crm.public.referral_ledger", referral),
        record("crm.public.codes", code),
        record(
            COMMANDS,
            json!({"event_id": "e", "user_id": "u", "reward_id": "r", "merchant_id": "m"}),
        ),
        record(COMMANDS, json!({"event_id": "e"})),
        record(
            "marketplace.orders",
            json!({"shop_id": 1, "order_sn": "x", "order_status": "PAID"}),
        ),
        record(
            "marketplace.orders",
            json!({"shop_id": 1, "order_sn": "x", "order_status": "UNPAID"}),
        ),
    ];
    std::fs::write(&file, lines.join("\n")).expect("the file is written");
    let output = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .env_clear()
        .args(["explain", "--json"])
        .arg(&file)
        .output()
        .expect("it runs");
    std::fs::remove_dir_all(directory).expect("the directory was made above");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<Value> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    let process = |lane: &str, claim: &str, plan: &[&str]| json!({"decision": "process", "reason": null, "lane": lane, "claim": claim, "plan": plan});
    assert_eq!(
        said[0]["consumers"]["mission"],
        process(
            "referral_ledger:r1",
            "mission:referral_signup:r1",
            &[
                "cache missions:active:m:referral_signup",
                "rest mv_mission_conditions_expanded (not in the cache)",
                "event mission/evaluate mission/evaluate:<mission_id>:referral_signup:r1 \
                 (for each active mission)"
            ]
        )
    );
    assert_eq!(
        said[1]["consumers"]["reward"],
        process("code:7", "code:7", &["event reward/code-redeemed reward/code-redeemed:7"])
    );
    let redeem = &said[2];
    assert_eq!(
        (&redeem["kind"], &redeem["consumers"]["reward"]["claim"]),
        (&json!("command"), &json!("reward:e"))
    );
    let malformed = said[3]["consumers"]["reward"]["reason"].as_str().expect("a reason");
    assert!(malformed.starts_with("dead letter: value is not a valid command"), "{malformed}");
    let id = "marketplace/order-received:shopee:1:x:PAID";
    assert_eq!(
        said[4]["consumers"]["marketplace"],
        process("shopee:1:x", id, &[&format!("event marketplace/order-received {id}")])
    );
    assert_eq!(
        said[5]["consumers"]["marketplace"],
        json!({"decision": "skip", "reason": "unpaid"})
    );
}
