use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::consumers::testing::{ALL, Bench, Handle as _, each_change, hours, record, with_change};
use crate::fakes::{Endpoint, Fault, Lasting, Reply, redemption_result};

fn command(value: &str) -> Result<Work, String> {
    match route_redemption(&record(COMMANDS, value.as_bytes())) {
        Ok(Route::Process { work, .. }) => Ok(work),
        Ok(Route::Skip(reason)) => Err(reason.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn redemption(event_id: &str) -> Value {
    json!({"event_id": event_id, "user_id": "u", "reward_id": "r", "merchant_id": "m",
        "quantity": 2, "timestamp": "2026-11-23T10:00:00Z"})
}

fn redeem(event_id: &str) -> Work {
    command(&redemption(event_id).to_string()).expect("a command")
}

/// An event id for which the fake's answer fulfils `wanted`.
fn event_where(wanted: impl Fn(&Value) -> bool) -> String {
    (0..10_000)
        .map(|number| format!("e{number}"))
        .find(|id| wanted(&redemption_result(id)))
        .expect("one of them is so")
}

fn reward(bench: &Bench) -> Reward {
    Reward {
        snapshot: ALL,
        calls: bench.calls.clone(),
        sender: bench.sender.clone(),
        broadcasts: Broadcasts::new(bench.calls.clone()),
    }
}

#[test]
fn a_quantity_is_one_where_none_is_named_and_lies_within_1_to_1000() {
    let quantity = |json: &str| {
        let value =
            format!(r#"{{"event_id":"e","user_id":"u","reward_id":"r","merchant_id":"m"{json}}}"#);
        command(&value).map(|work| match work {
            Work::Redeem(redemption) => redemption.quantity,
            Work::Code(_) => 0,
        })
    };
    for (json, expected) in [
        ("", 1),
        (r#","quantity":null"#, 1),
        (r#","quantity":1"#, 1),
        (r#","quantity":1000,"timestamp":1732350000000,"more":{}"#, 1000),
    ] {
        assert_eq!(quantity(json), Ok(expected), "{json}");
    }
    for number in ["0", "-1", "1001", "4294967297", "9223372036854775807"] {
        let error = quantity(&format!(r#","quantity":{number}"#)).expect_err(number);
        assert!(error.contains("quantity is not within 1 to 1000"), "{error}");
    }
    for other in ["1.5", "\"2\"", "true", "18446744073709551615"] {
        let error = quantity(&format!(r#","quantity":{other}"#)).expect_err(other);
        assert!(
            error.starts_with("value is not a valid command: a field has the wrong type"),
            "{error}"
        );
    }
}

#[test]
fn a_malformed_command_is_told_what_it_lacks() {
    for (value, problem) in [
        (r#"{"event_id":"e","user_id":"u","reward_id":"r"}"#, "missing field `merchant_id`"),
        (r#"{"event_id":"","user_id":"u","reward_id":"r","merchant_id":"m"}"#, "event_id is empty"),
        (r#"{"event_id":"e","user_id":"u""#, "value is not valid JSON"),
        ("[]", "value is not a valid command"),
        ("hello", "value is not valid JSON"),
    ] {
        let error = command(value).expect_err(value);
        assert!(error.contains(problem), "{value}: {error}");
    }
    let tombstone = Record { value: None, ..record(COMMANDS, b"") };
    assert!(matches!(route_redemption(&tombstone), Ok(Route::Skip("tombstone"))));
}

#[test]
fn a_members_redemptions_share_a_lane_and_members_do_not() {
    let lane = |user: &str, event: &str| {
        let mut value = redemption(event);
        value["user_id"] = user.into();
        match route_redemption(&record(COMMANDS, value.to_string().as_bytes())) {
            Ok(Route::Process { lane, .. }) => lane,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lane("a", "1"), lane("a", "2"));
    assert_ne!(lane("a", "1"), lane("b", "1"));
}

#[tokio::test]
async fn a_redemption_is_carried_out_and_told_with_the_answer_as_it_came() {
    let bench = Bench::start().await;
    bench.fake.define(REDEEM, |arguments| {
        assert_eq!(
            Value::Object(arguments.clone()),
            json!({"p_reward_id": "r", "p_quantity": 2, "p_user_id": "u", "p_merchant_id": "m",
                "p_event_id": "e"})
        );
        Reply::json(&json!({"success": true, "z": 1.50, "a": [null, {"ü": "\n"}]}))
    });
    let reward = reward(&bench);
    let done = reward.handle(&bench.cx(1), &redeem("e")).await.expect("sent");
    assert_eq!(done, Outcome::Sent);
    let mut data = redemption("e");
    data["result"] = json!({"success": true, "z": 1.50, "a": [null, {"ü": "\n"}]});
    assert_eq!(bench.events(), [("reward/redeemed:e".to_owned(), data)]);

    let again = reward.handle(&bench.cx(2), &redeem("e")).await.expect("known");
    assert_eq!(again, Outcome::Duplicate);
    bench.fake.inspect(|log| {
        assert_eq!((log.events.len(), log.calls[REDEEM]), (1, 1));
        assert!(log.broadcasts.is_empty(), "a screen that gets its reward needs no word");
    });
}

#[tokio::test]
async fn both_forms_of_a_business_answer_are_told_to_inngest_and_to_the_screen() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    for (at, (form, title, description)) in
        [("error_code", "error_code", "error_message"), ("title", "title", "description")]
            .into_iter()
            .enumerate()
    {
        let event = event_where(|answer| answer.get(form).is_some());
        let answer = redemption_result(&event);
        let done = reward.handle(&bench.cx(at as i64), &redeem(&event)).await.expect("sent");
        assert_eq!(done, Outcome::Sent, "a business answer is no failure");
        let mut data = redemption(&event);
        data["result"] = answer.clone();
        assert_eq!(bench.events()[at], (format!("reward/redemption-failed:{event}"), data));
        bench.fake.until(|log| log.broadcasts.len() > at).await;
        let broadcast = bench.fake.inspect(|log| log.broadcasts[at].clone());
        assert_eq!(
            broadcast,
            json!({"messages": [{"topic": "redemption:u", "event": "redemption_failed",
                "payload": {"event_id": event, "reward_id": "r", "title": answer[title],
                    "description": answer[description]}}]})
        );
    }
    assert_eq!(reward.broadcasts.lost(), 0);
}

#[tokio::test]
async fn a_broadcast_that_fails_or_hangs_neither_delays_nor_fails_the_record() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    bench.fake.define(REDEEM, |_| Reply::json(&json!({"success": false})));
    bench.fake.fail(Endpoint::Broadcast, Fault::status(500), Lasting::Next(1));
    bench.fake.fail(Endpoint::Broadcast, Fault::Hang, Lasting::UntilHealed);
    for offset in 0..40 {
        let work = redeem(&format!("e{offset}"));
        let done = reward.handle(&bench.cx(offset), &work).await.expect("sent");
        assert_eq!(done, Outcome::Sent);
    }
    let requests = |log: &crate::fakes::Log| log.requests(Endpoint::Broadcast);
    bench.fake.until(|log| requests(log).count >= 33).await;
    assert_eq!(bench.events().len(), 40);
    // One failed and 32 hang. Broadcasts beyond 32 under way were not sent, and none is repeated.
    let count = bench.fake.inspect(|log| requests(log).count);
    assert_eq!(count + reward.broadcasts.lost(), 40 + 1);
    assert_eq!(count, 33);
}

#[tokio::test]
async fn an_outage_is_retried_and_asks_with_the_same_event_id() {
    let bench = Bench::start().await;
    let (reward, cx) = (reward(&bench), bench.cx(1));
    let event = event_where(|answer| answer["success"] == true);
    let work = redeem(&event);
    for fault in [
        Fault::status(503),
        Fault::page(502),
        Fault::status(401),
        Fault::HandledThenReset,
        Fault::Truncated,
        Fault::OddSuccess,
    ] {
        bench.fake.fail(Endpoint::Rpc, fault.clone(), Lasting::Next(1));
        let failed = reward.handle(&cx, &work).await;
        assert!(matches!(failed, Err(Failure::Outage { .. })), "{fault:?}: {failed:?}");
    }
    assert!(bench.events().is_empty());
    assert_eq!(reward.handle(&cx, &work).await.expect("sent"), Outcome::Sent);
    assert_eq!(bench.events().len(), 1);
}

#[tokio::test]
async fn an_answer_of_another_shape_is_a_deploy_half_done_and_not_a_business_answer() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    for answer in [json!(null), json!({"ok": true}), json!([]), json!({"success": "yes"})] {
        bench.fake.define(REDEEM, move |_| Reply::json(&answer));
        let failed = reward.handle(&bench.cx(1), &redeem("e")).await;
        assert!(
            matches!(failed, Err(Failure::Outage { kind: "supabase_answer", .. })),
            "{failed:?}"
        );
    }
    bench.fake.drop_function(REDEEM);
    let failed = reward.handle(&bench.cx(1), &redeem("e")).await;
    assert!(matches!(failed, Err(Failure::Outage { kind: "supabase_setup", .. })), "{failed:?}");
    assert!(bench.events().is_empty());
}

#[tokio::test]
async fn what_the_function_refuses_is_the_records_fault() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    for code in ["22P02", "23503", "P0001"] {
        bench.fake.define(REDEEM, move |_| Reply::error(400, code, "refused"));
        let failed = reward.handle(&bench.cx(1), &redeem("e")).await;
        assert!(matches!(failed, Err(Failure::Poison { .. })), "{code}: {failed:?}");
    }
}

fn code(op: &str, before: Value, after: Value) -> Result<Code, &'static str> {
    let envelope = json!({"op": op, "before": before, "after": after, "ts_ms": 1_795_405_012_468_i64,
        "source": {"ts_ms": 1_795_405_012_468_i64}});
    let now = Timestamp::now();
    match with_change(TABLE, &envelope, |change| route_code(change, &ALL, now)).expect("decodes") {
        Route::Process { work: Work::Code(code), .. } => Ok(*code),
        Route::Process { work, .. } => panic!("{work:?}"),
        Route::Skip(reason) => Err(reason),
    }
}

#[test]
fn a_code_without_an_id_column_is_set_aside_and_names_it() {
    let envelope = json!({"op": "c", "before": null, "after": {"merchant_id": "m", "status": "redeemed"},
        "ts_ms": 1_795_405_012_468_i64, "source": {"ts_ms": 1_795_405_012_468_i64}});
    let error = with_change(TABLE, &envelope, |change| {
        route_code(change, &ALL, Timestamp::now()).expect_err("no id").to_string()
    });
    assert!(error.contains(&format!("column {TABLE}.id is not there")), "{error}");
}

#[test]
fn recorded_codes_are_told_exactly_when_they_were_redeemed() {
    let expected: Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/life/expected.json"))
            .expect("json");
    let expected = expected["code_redeemed"].as_array().expect("a list").clone();
    for life in ["life/full.jsonl.gz", "life/default.jsonl.gz"] {
        let mut found = Vec::new();
        each_change(life, |change| {
            let routed = route_code(change, &ALL, Timestamp::now()).expect("decodes");
            if let Route::Process { work: Work::Code(code), .. } = routed {
                let code = serde_json::to_value(&code).expect("json");
                found.push(json!({"code": code["code"], "code_id": code["code_id"],
                    "user_id": code["user_id"]}));
                assert!(code["merchant_id"].is_string() && code["redeemed_at"].is_string());
                assert_eq!(code.as_object().map(serde_json::Map::len), Some(5));
            }
        });
        assert_eq!(found, expected, "{life}");
    }
}

#[test]
fn a_code_counts_when_it_becomes_redeemed_or_used() {
    let row = |status: &str| {
        json!({"id": 7, "merchant_id": "m", "code": "C", "status": status,
        "assigned_to": "holder", "redeemed_at": "2026-11-23T10:00:00.000000Z"})
    };
    for status in ["redeemed", "used"] {
        assert!(code("u", row("assigned"), row(status)).is_ok());
        assert!(code("u", Value::Null, row(status)).is_ok(), "what it was is not known");
        assert!(code("c", Value::Null, row(status)).is_ok());
        assert_eq!(code("u", row("redeemed"), row(status)).err(), Some("counted_before"));
        assert_eq!(code("u", row(status), row("expired")).err(), Some("does_not_count"));
    }
    assert_eq!(code("d", row("redeemed"), Value::Null).err(), Some("deleted"));
}

#[test]
fn a_codes_user_is_the_one_who_used_it_or_else_the_one_who_held_it() {
    let row = |user: Value, holder: Value| {
        json!({"id": 9_007_199_254_740_993_i64, "code": "C",
        "merchant_id": "m", "status": "used", "user_id": user, "assigned_to": holder,
        "redeemed_at": 1_795_405_012_468_000_i64})
    };
    let told = |user, holder| {
        let code = code("u", Value::Null, row(user, holder)).expect("counts");
        serde_json::to_value(code).expect("json")
    };
    assert_eq!(told(json!("a"), json!("b"))["user_id"], "a");
    assert_eq!(told(Value::Null, json!("b"))["user_id"], "b");
    let nobody = told(Value::Null, Value::Null);
    assert_eq!(
        nobody,
        json!({"code_id": "9007199254740993", "merchant_id": "m", "user_id": null, "code": "C",
            "redeemed_at": "2026-11-23T03:36:52.468Z"}),
        "an id that a double would change is a string"
    );
}

#[test]
fn an_old_code_does_not_fire_again() {
    let now = Timestamp::from_millisecond(1_795_405_012_468).expect("a time");
    let row = |status: &str, ago: i64| {
        json!({"id": 7, "merchant_id": "m", "code": "C", "status": status, "user_id": "u",
            "redeemed_at": hours(now, -ago)})
    };
    let fires = |before, after| code("u", before, after).map(|_| ());
    assert_eq!(fires(Value::Null, row(" Redeemed", 19)), Ok(()));
    assert_eq!(fires(Value::Null, row("redeemed", 21)), Err("turned_long_ago"));
    assert_eq!(fires(row("issued", 21), row("redeemed", 21)), Ok(()));
    let never = json!({"id": 7, "merchant_id": "m", "status": "used", "redeemed_at": null});
    assert_eq!(fires(Value::Null, never), Err("turned_long_ago"));
}

#[tokio::test]
async fn a_redeemed_code_is_told_once() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    let row = json!({"id": 7, "merchant_id": "m", "code": "C", "status": "redeemed",
        "assigned_to": "u", "redeemed_at": null});
    let work = Work::Code(Box::new(code("c", Value::Null, row).expect("counts")));
    let outcomes = [
        reward.handle(&bench.cx(1), &work).await.expect("sent"),
        reward.handle(&bench.cx(2), &work).await.expect("known"),
    ];
    assert_eq!(outcomes, [Outcome::Sent, Outcome::Duplicate]);
    let data = json!({"code_id": 7, "merchant_id": "m", "user_id": "u", "code": "C",
        "redeemed_at": null});
    assert_eq!(bench.events(), [("reward/code-redeemed:7".to_owned(), data)]);
}

#[tokio::test]
async fn an_open_inngest_outage_does_not_tell_the_screen_before_the_event_is_accepted() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    bench.fake.define(REDEEM, |_| Reply::json(&json!({"success": false, "title": "no"})));
    bench.fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    let (cx, work) = (bench.cx(1), redeem("e"));
    let waiting = reward.handle(&cx, &work);
    tokio::pin!(waiting);
    let refused = bench.fake.until(|log| log.requests(Endpoint::Post).faults > 2);
    tokio::select! {
        done = &mut waiting => panic!("{done:?}"),
        () = refused => {}
    }
    bench.fake.inspect(|log| assert!(log.broadcasts.is_empty()));
    bench.fake.heal(Endpoint::Post);
    assert_eq!(waiting.await.expect("sent"), Outcome::Sent);
    let told = bench.fake.until(|log| log.broadcasts.len() == 1);
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("the screen is told");
}

#[tokio::test]
async fn explain_names_lane_claim_and_events() {
    let bench = Bench::start().await;
    let reward = reward(&bench);
    let steps = reward.steps(&redeem("e"));
    assert_eq!((steps.lane.as_str(), steps.claims().as_str()), ("user:u", "reward:e"));
    assert_eq!(
        steps.requests().collect::<Vec<_>>(),
        [
            "rpc redeem_reward_with_points",
            "event reward/redeemed reward/redeemed:e (on success)",
            "event reward/redemption-failed reward/redemption-failed:e (on refusal)",
            "broadcast redemption_failed (on refusal)",
        ]
    );
    let row = json!({"id": 7, "status": "used"});
    let steps = reward.steps(&Work::Code(Box::new(code("c", Value::Null, row).expect("counts"))));
    assert_eq!((steps.lane.as_str(), steps.claims().as_str()), ("code:7", "code:7"));
    assert_eq!(
        steps.requests().collect::<Vec<_>>(),
        ["event reward/code-redeemed reward/code-redeemed:7"]
    );
}

#[test]
fn the_doubles_answers_are_of_every_kind_and_the_same_each_time() {
    let kinds: BTreeSet<Vec<String>> = (0..100)
        .map(|number| {
            let answer = redemption_result(&number.to_string());
            assert_eq!(answer, redemption_result(&number.to_string()));
            answer.as_object().expect("an object").keys().cloned().collect()
        })
        .collect();
    assert_eq!(kinds.len(), 3);
}
