//! Tier: its rules on recordings, its claims in memory and in a real Redis, and the whole of it in
//! the real daemon (behaviour section 4).

pub(crate) mod daemon;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::clients::redis::connect;
use crm_event_processors::dedup::{
    ClaimOp, ClaimReply, LockOp, LockReply, MemoryStore, Op, RedisStore, Reply, Store,
};
use serde_json::Value;

use test_support::recordings::{fixture, recorded};
use test_support::{services, unique};

/// What `explain` prints for the tier consumer, record by record; null where it does not take it.
fn explained(name: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .args(["explain", "--json"])
        .arg(fixture(name))
        .env_clear()
        .env("SNAPSHOT_POLICY", "all")
        .stdin(Stdio::null())
        .output()
        .expect("explain runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let report = |line| serde_json::from_str::<Value>(line).expect("an object a line");
    text.lines().map(|line| report(line)["consumers"]["tier"].take()).collect()
}

/// Whom a recorded change triggers; `None` for nobody. The rules are written after behaviour.md,
/// not after the code.
pub(crate) fn triggered(topic: &str, value: Option<&[u8]>) -> Option<String> {
    let value: Value = serde_json::from_slice(value?).expect("json");
    let (before, row) = (&value["before"], &value["after"]);
    let triggers = if topic.ends_with(".wallet_ledger") {
        row["transaction_type"] == "earn"
    } else if topic.ends_with(".purchase_ledger") {
        match row["status"].as_str() {
            Some("completed" | "refunded") => true,
            Some("cancelled") if value["op"] == "u" => {
                before.is_null() || before["status"] == "completed"
            }
            _ => row["record_type"] == "debit",
        }
    } else {
        false
    };
    let member = format!("{}:{}", row["user_id"].as_str()?, row["merchant_id"].as_str()?);
    triggers.then_some(member)
}

fn expected_members() -> BTreeSet<String> {
    let text = std::fs::read_to_string(fixture("life/expected.json")).expect("the fixture");
    let expected: Value = serde_json::from_str(&text).expect("json");
    let members = expected["tier_members"].as_array().expect("an array");
    members.iter().map(|member| member.as_str().expect("text").replace('|', ":")).collect()
}

#[test]
fn every_recorded_trigger_is_an_evaluation_of_its_member_and_nothing_else_is() {
    for name in ["life/full.jsonl.gz", "life/default.jsonl.gz", "load_50k.jsonl.gz"] {
        let decisions = explained(name);
        let records: Vec<_> = recorded(name).collect();
        assert_eq!(decisions.len(), records.len(), "{name}");
        let mut members = BTreeSet::new();
        for (record, decision) in records.iter().zip(&decisions) {
            let place = format!("{name}: {} {}", record.topic, record.offset);
            let member = triggered(&record.topic, record.value.as_deref());
            let process = (decision["decision"] == "process").then_some(&decision["lane"]);
            assert_eq!(process.and_then(Value::as_str), member.as_deref(), "{place}: {decision}");
            members.extend(member);
        }
        assert!(!members.is_empty(), "{name}");
        if name.starts_with("life/") {
            assert_eq!(members, expected_members(), "{name}");
        }
    }
}

#[test]
fn explain_tells_the_claim_and_the_requests_in_order() {
    let decisions = explained("life/full.jsonl.gz");
    let process = decisions.iter().find(|decision| decision["decision"] == "process");
    let process = process.expect("a trigger");
    let lane = process["lane"].as_str().expect("text");
    assert_eq!(process["claim"], format!("tier:{lane}"));
    let plan: Vec<&str> =
        process["plan"].as_array().expect("an array").iter().filter_map(Value::as_str).collect();
    for (step, begins) in plan.iter().zip([
        "rpc evaluate_user_tier_status",
        "event tier/upgrade-cancelled",
        "event tier/upgrade ",
        "rpc apply_tier_upgrade",
    ]) {
        assert!(step.starts_with(begins), "{step}");
    }
    assert_eq!(plan.len(), 4);
}

async fn ask(store: &impl Store, op: Op) -> Reply {
    store.execute(&[op]).await.expect("an answer").remove(0)
}

/// The protocol of a claim that one record at a time holds, as every store must keep it.
async fn protocol(store: &impl Store) {
    let key: Arc<str> = unique("tier").into();
    let acquire = |asker: &str, left_by: Option<&str>| {
        let (asker, left_by) = (asker.into(), left_by.map(Into::into));
        Op::Lock(LockOp::Acquire { key: key.clone(), asker, left_by, lease: LEASE })
    };
    let free = |asker: &str, accepted_ms| {
        Op::Lock(LockOp::Free { key: key.clone(), asker: asker.into(), accepted_ms })
    };
    let acquired = |accepted_ms, resumed| Reply::Lock(LockReply::Acquired { accepted_ms, resumed });
    let taken = |holder: &str| Reply::Lock(LockReply::Taken { holder: holder.into() });

    assert_eq!(ask(store, acquire("g/t/0/1", None)).await, acquired(None, false));
    assert_eq!(ask(store, acquire("g/t/0/1", None)).await, acquired(Some(0), true));
    assert_eq!(ask(store, acquire("g/t/1/2", None)).await, taken("g/t/0/1"));
    assert_eq!(ask(store, acquire("g/t/1/2", Some("g/t/9/9"))).await, taken("g/t/0/1"));
    let look = Op::Claim(ClaimOp::Look { key: key.clone(), asker: None });
    assert_eq!(ask(store, look).await, Reply::Claim(ClaimReply::Held));

    ask(store, free("g/t/1/2", 77)).await;
    assert_eq!(ask(store, acquire("g/t/1/2", None)).await, taken("g/t/0/1"), "not its to give");
    ask(store, free("g/t/0/1", 42)).await;
    assert_eq!(ask(store, acquire("g/t/1/2", None)).await, acquired(Some(42), false));
    assert_eq!(
        ask(store, acquire("g/t/0/3", Some("g/t/1/2"))).await,
        acquired(Some(42), true),
        "the time stays while it is held"
    );
    assert_eq!(ask(store, acquire("g/t/1/2", None)).await, taken("g/t/0/3"), "in its place");
    ask(store, free("g/t/0/3", 43)).await;
    assert_eq!(ask(store, acquire("g/t/1/2", None)).await, acquired(Some(43), false));

    let lost: Arc<str> = format!("{key}-lost").into();
    let free_lost = LockOp::Free { key: lost.clone(), asker: "g/t/0/1".into(), accepted_ms: 44 };
    ask(store, Op::Lock(free_lost)).await;
    let next = Op::Lock(LockOp::Acquire {
        key: lost,
        asker: "g/t/0/2".into(),
        left_by: None,
        lease: LEASE,
    });
    assert_eq!(ask(store, next).await, acquired(Some(44), false), "the time outlives its claim");

    let claim =
        Op::Claim(ClaimOp::Take { key: format!("{key}-claim").into(), asker: "g/t/0/1".into() });
    let replies = store.execute(&[claim, free("g/t/1/2", 0), acquire("g/t/0/4", None)]).await;
    let replies = replies.expect("answers");
    let expected = [
        Reply::Claim(ClaimReply::Granted),
        Reply::Lock(LockReply::Noted),
        acquired(Some(0), false),
    ];
    assert_eq!(replies, expected, "in one go");
}

const WINDOW: Duration = Duration::from_secs(300);
const LEASE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_claim_held_alone_follows_its_protocol_in_memory() {
    protocol(&Arc::new(MemoryStore::new(WINDOW))).await;
}

#[tokio::test]
async fn a_claim_held_alone_follows_its_protocol_in_redis_and_runs_out_there() {
    let connection = connect(services::redis()).expect("a URL");
    protocol(&RedisStore::new(connection.clone(), WINDOW)).await;

    let key = unique("tier-ttl");
    let store = RedisStore::new(connection.clone(), WINDOW);
    let seconds = async || -> u64 {
        let mut connection = connection.clone();
        redis::cmd("TTL").arg(&key).query_async(&mut connection).await.expect("an answer")
    };
    let (asker, held): (Arc<str>, Arc<str>) = ("o".into(), key.clone().into());
    let acquire = Op::Lock(LockOp::Acquire {
        key: held.clone(),
        asker: asker.clone(),
        left_by: None,
        lease: LEASE,
    });
    ask(&store, acquire).await;
    assert!((1..=60).contains(&seconds().await), "a claim that is left runs out with its lease");
    ask(&store, Op::Lock(LockOp::Free { key: held, asker, accepted_ms: 1 })).await;
    assert!((61..=300).contains(&seconds().await), "what is free is forgotten with the window");
}
