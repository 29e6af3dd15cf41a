use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::consumers::testing::{ALL, Bench, Handle as _, each_change, hours, with_change};
use crate::fakes::{Endpoint, Fault, Lasting, active_missions};
use crate::outage::{Backoff, Breaker};

/// The event types and the row, or the skip's reason.
fn routed(table: &str, envelope: &Value) -> Result<Work, &'static str> {
    let now = Timestamp::now();
    match with_change(table, envelope, |change| route(change, &ALL, now)).expect("decodes") {
        Route::Process { work, .. } => Ok(work),
        Route::Skip(reason) => Err(reason),
    }
}

fn envelope(op: &str, before: Value, after: Value, committed: Timestamp) -> Value {
    json!({"op": op, "before": before, "after": after, "ts_ms": committed.as_millisecond(),
        "source": {"ts_ms": committed.as_millisecond()}})
}

fn types(
    table: &str,
    op: &str,
    before: Value,
    after: Value,
) -> Result<Vec<&'static str>, &'static str> {
    routed(table, &envelope(op, before, after, Timestamp::now()))
        .map(|work| work.event_types.to_vec())
}

/// `base` with some columns changed.
fn with(base: &Value, changes: Value) -> Value {
    let mut row = base.clone();
    let (Value::Object(row_columns), Value::Object(changes)) = (&mut row, changes) else {
        panic!("objects")
    };
    row_columns.extend(changes);
    row
}

fn missions_of(life: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    each_change(life, |change| {
        let routed = route(change, &ALL, Timestamp::now()).expect("decodes");
        if let Route::Process { work, .. } = routed {
            let row = &work.row_id;
            found.extend(work.event_types.iter().map(|kind| ((*kind).to_owned(), row.clone())));
        }
    });
    found
}

#[test]
fn recorded_lives_advance_exactly_the_missions_that_the_rules_demand() {
    let expected: Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/life/expected.json"))
            .expect("json");
    let expected: BTreeSet<(String, String)> =
        serde_json::from_value(expected["mission"].clone()).expect("pairs");
    let full = missions_of("life/full.jsonl.gz");
    assert_eq!(full.len(), expected.len(), "each once, since every row tells what it was before");
    assert_eq!(full.into_iter().collect::<BTreeSet<_>>(), expected);
    let default = missions_of("life/default.jsonl.gz");
    assert!(default.len() > expected.len(), "edits repeat: for the claims to absorb");
    assert_eq!(default.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn the_recorded_load_advances_what_its_rows_say() {
    // These rules are written after behaviour.md, not after the code.
    let mut expected = BTreeSet::new();
    let mut found = BTreeSet::new();
    each_change("load_50k.jsonl.gz", |change| {
        if let Some(row) = &change.after {
            let text = |column: &str| match row.raw(column).map(RawValue::get) {
                None | Some("null") => "",
                Some(text) => text.trim_matches('"'),
            };
            let kind = match (&*change.table, text("currency")) {
                ("purchase_ledger", _) => "purchase",
                (_, "points") => "points_earned",
                _ => "tickets_earned",
            };
            let counts = if kind == "purchase" {
                text("status") == "completed" && text("record_type") == "credit"
            } else {
                text("transaction_type") == "earn" && text("component") != "reversal"
            };
            if counts && !text("user_id").is_empty() {
                expected.insert((kind, text("id").to_owned()));
            }
        }
        if let Route::Process { work, .. } = route(change, &ALL, Timestamp::now()).expect("decodes")
        {
            found.extend(work.event_types.iter().map(|kind| (*kind, work.row_id.clone())));
        }
    });
    assert!(found.len() > 30_000, "{} found", found.len());
    assert_eq!(found, expected);
}

#[test]
fn a_row_without_an_id_column_is_set_aside_and_names_it() {
    let row = json!({"merchant_id": "m", "user_id": "u", "status": "completed"});
    let envelope = envelope("c", Value::Null, row, Timestamp::now());
    let error = with_change("form_submissions", &envelope, |change| {
        route(change, &ALL, Timestamp::now()).expect_err("no id").to_string()
    });
    assert!(error.contains("column form_submissions.id is not there"), "{error}");
}

#[test]
fn a_purchase_counts_when_it_becomes_completed_and_is_no_debit() {
    let row = json!({"id": "p", "merchant_id": "m", "user_id": "u", "status": "completed",
        "record_type": "credit"});
    let pending = with(&row, json!({"status": "pending"}));
    let debit = with(&row, json!({"record_type": "debit"}));
    let types = |op, before, after| types("purchase_ledger", op, before, after);
    assert_eq!(types("c", Value::Null, row.clone()), Ok(vec!["purchase"]));
    assert_eq!(types("r", Value::Null, row.clone()), Ok(vec!["purchase"]));
    assert_eq!(types("u", pending.clone(), row.clone()), Ok(vec!["purchase"]));
    assert_eq!(types("u", debit.clone(), row.clone()), Ok(vec!["purchase"]));
    let recent = with(&row, json!({"created_at": hours(Timestamp::now(), -19)}));
    let old = with(&row, json!({"created_at": hours(Timestamp::now(), -21)}));
    for (before, after, expected) in [
        (json!({"id": "p"}), recent.clone(), Ok(vec!["purchase"])),
        (Value::Null, recent, Ok(vec!["purchase"])),
        (Value::Null, old.clone(), Err("turned_long_ago")),
        (Value::Null, row.clone(), Err("turned_long_ago")),
        (pending.clone(), old, Ok(vec!["purchase"])),
    ] {
        assert_eq!(types("u", before, after.clone()), expected, "{after}");
    }
    let cased = with(&row, json!({"status": " Completed", "record_type": "CREDIT"}));
    assert_eq!(types("u", pending.clone(), cased), Ok(vec!["purchase"]));
    assert_eq!(types("u", row.clone(), row.clone()), Err("counted_before"));
    assert_eq!(types("u", row.clone(), pending), Err("does_not_count"));
    assert_eq!(types("c", Value::Null, debit), Err("does_not_count"));
    assert_eq!(types("d", row.clone(), Value::Null), Err("deleted"));
    for nobody in [json!({"user_id": null}), json!({"user_id": ""}), json!({"merchant_id": null})] {
        assert_eq!(types("c", Value::Null, with(&row, nobody)), Err("anonymous"));
    }
}

#[test]
fn an_old_form_does_not_fire_again() {
    let now = Timestamp::now();
    let row = |status: &str, ago: i64| {
        json!({"id": "f", "merchant_id": "m", "user_id": "u", "status": status,
            "created_at": hours(now, -1), "submitted_at": hours(now, -ago)})
    };
    let types = |before, after| types("form_submissions", "u", before, after);
    assert_eq!(types(Value::Null, row("completed", 19)), Ok(vec!["form_submission"]));
    assert_eq!(types(Value::Null, row("completed", 21)), Err("turned_long_ago"));
    assert_eq!(types(row("draft", 21), row("completed", 21)), Ok(vec!["form_submission"]));
    let never = with(&row("completed", 0), json!({"submitted_at": null}));
    assert_eq!(types(Value::Null, never), Err("turned_long_ago"));
}

#[test]
fn an_anonymous_purchase_counts_when_it_gets_its_user() {
    let row = json!({"id": "p", "user_id": "u", "merchant_id": "m", "status": "completed"});
    let types = |before, after| types("purchase_ledger", "u", before, after);
    let anonymous = with(&row, json!({"user_id": null}));
    assert_eq!(types(anonymous.clone(), row.clone()), Ok(vec!["purchase"]));
    assert_eq!(types(anonymous.clone(), anonymous), Err("anonymous"));
    assert_eq!(types(json!({"id": "p", "status": "completed"}), row), Err("counted_before"));
}

#[test]
fn earnings_count_by_currency_and_reversals_do_not() {
    let row = json!({"id": "w", "merchant_id": "m", "user_id": "u", "transaction_type": "earn",
        "currency": "points", "component": "base"});
    let types = |changes| types("wallet_ledger", "c", Value::Null, with(&row, changes));
    assert_eq!(types(json!({})), Ok(vec!["points_earned"]));
    assert_eq!(types(json!({"currency": "ticket"})), Ok(vec!["tickets_earned"]));
    assert_eq!(types(json!({"component": "bonus"})), Ok(vec!["points_earned"]));
    assert_eq!(types(json!({"component": "reversal"})), Err("does_not_count"));
    assert_eq!(types(json!({"transaction_type": "burn"})), Err("does_not_count"));
    assert_eq!(types(json!({"currency": "stars"})), Err("does_not_count"));
}

#[test]
fn a_referral_advances_the_inviters_missions_at_signup_and_at_the_first_purchase() {
    let now = Timestamp::now();
    let row = json!({"id": "r", "merchant_id": "m", "inviter_user_id": "inviter",
        "invitee_user_id": "invitee", "signed_up_at": hours(now, -1), "first_purchase_at": null});
    let both = with(&row, json!({"first_purchase_at": hours(now, 0)}));
    let types = |op, before, after| types("referral_ledger", op, before, after);
    assert_eq!(types("c", Value::Null, row.clone()), Ok(vec!["referral_signup"]));
    assert_eq!(
        types("c", Value::Null, both.clone()),
        Ok(vec!["referral_signup", "referral_purchase"])
    );
    assert_eq!(types("u", row.clone(), both.clone()), Ok(vec!["referral_purchase"]));
    assert_eq!(types("u", both.clone(), both.clone()), Err("counted_before"));
    let work = routed("referral_ledger", &envelope("c", Value::Null, row, now)).expect("counts");
    assert_eq!(work.user_id, "inviter");
    assert!(work.event_data.get().contains(r#""invitee_user_id":"invitee""#));
}

#[test]
fn without_the_state_before_a_time_counts_while_it_is_younger_than_20_hours_at_the_commit() {
    let now = Timestamp::now();
    let row = |signed_up: i64, purchased: Option<i64>| {
        json!({"id": "r", "merchant_id": "m", "inviter_user_id": "u",
            "signed_up_at": hours(now, -signed_up),
            "first_purchase_at": purchased.map(|ago| hours(now, -ago))})
    };
    let types = |op, after| types("referral_ledger", op, Value::Null, after);
    assert_eq!(types("u", row(21, Some(19))), Ok(vec!["referral_purchase"]));
    assert_eq!(types("u", row(19, None)), Ok(vec!["referral_signup"]));
    assert_eq!(types("u", row(21, None)), Err("turned_long_ago"));
    assert_eq!(types("r", row(21, None)), Err("turned_long_ago"));
    assert_eq!(types("c", row(21, None)), Ok(vec!["referral_signup"]), "a new row has turned now");
    // However late the change is read: the age at its commit counts.
    let late = envelope("u", Value::Null, row(21, None), now - jiff::SignedDuration::from_hours(2));
    assert!(routed("referral_ledger", &late).is_ok());
}

proptest! {
    /// Whatever the times, a row calls for nothing if it did not count, and a visible transition is
    /// never missed.
    #[test]
    fn a_visible_transition_always_counts_once(was in any::<bool>(), is in any::<bool>(), ago in 0_i64..100) {
        let now = Timestamp::now();
        let row = |set: bool| json!({"id": "r", "merchant_id": "m", "inviter_user_id": "u",
            "signed_up_at": null, "first_purchase_at": set.then(|| hours(now, -ago))});
        let found = types("referral_ledger", "u", row(was), row(is));
        prop_assert_eq!(found.is_ok(), !was && is);
    }
}

fn mission(bench: &Bench, cache: Cache) -> Mission {
    Mission {
        snapshot: ALL,
        sender: bench.sender.clone(),
        missions: Missions::new(bench.calls.clone(), cache),
    }
}

/// A merchant with this many missions of a type at the fake.
fn merchant(event_type: &str, missions: usize) -> String {
    (0..10_000)
        .map(|number| format!("m{number}"))
        .find(|merchant| active_missions(merchant, event_type).len() == missions)
        .expect("one of them has")
}

fn work(merchant: &str, row: &str, event_types: &[&'static str]) -> Work {
    Work {
        event_types: event_types.iter().copied().collect(),
        table: "purchase_ledger",
        row_id: row.to_owned(),
        user_id: "u".to_owned(),
        merchant_id: merchant.to_owned(),
        event_data: RawValue::from_string(format!(r#"{{"id":"{row}"}}"#)).expect("json"),
    }
}

fn rest_requests(bench: &Bench) -> u64 {
    bench.fake.inspect(|log| log.requests(Endpoint::Rest).count)
}

#[tokio::test]
async fn each_active_mission_gets_one_event_and_all_go_in_one_request() {
    let bench = Bench::start().await;
    let mission = mission(&bench, Cache::none());
    let merchant = merchant("purchase", 3);
    let work = work(&merchant, "p1", &["purchase"]);
    let sent = mission.handle(&bench.cx(1), &work).await;
    assert_eq!(sent.expect("sent"), Outcome::Sent);
    let events = bench.events();
    let missions = active_missions(&merchant, "purchase");
    for (mission, (id, data)) in missions.iter().zip(&events) {
        assert_eq!(id, &format!("mission/evaluate:{mission}:purchase:p1"));
        assert_eq!(
            data,
            &json!({"user_id": "u", "merchant_id": merchant, "mission_id": mission,
                "event_type": "purchase", "event_data": {"id": "p1"}, "trigger_id": "p1"})
        );
    }
    assert_eq!(events.len(), 3);
    bench.fake.inspect(|log| assert_eq!(log.posts.len(), 1));

    let again = mission.handle(&bench.cx(2), &work).await;
    assert_eq!(again.expect("known"), Outcome::Duplicate);
    assert_eq!(bench.events().len(), 3);
}

/// So many active missions of merchant `m` for purchases.
fn activate(bench: &Bench, count: usize) {
    let row = |number| {
        let mission = format!("mission-{number:03}");
        let row = json!({"mission_id": mission, "merchant_id": "m", "condition_type": "purchase"});
        row.as_object().expect("an object").clone()
    };
    bench.fake.fill(CONDITIONS, (0..count).map(row).collect());
}

/// A row of so many bytes.
fn sized(row: &str, bytes: usize) -> Work {
    let data = json!({"id": row, "note": "n".repeat(bytes)}).to_string();
    let event_data = RawValue::from_string(data).expect("json");
    Work { event_data, ..work("m", row, &["purchase"]) }
}

fn all_once(bench: &Bench, count: usize) {
    let ids: BTreeSet<String> = bench.events().into_iter().map(|(id, _)| id).collect();
    assert_eq!((ids.len(), bench.events().len()), (count, count), "all of them, each once");
}

#[tokio::test]
async fn while_inngest_hangs_events_are_written_only_as_far_as_there_is_room() {
    const ROOM: usize = 256 << 10;
    let bench = Bench::with(|config| {
        config.max_written_bytes = ROOM;
        config.http.timeout = Duration::from_millis(500);
    })
    .await;
    activate(&bench, 20);
    bench.fake.fail(Endpoint::Post, Fault::Hang, Lasting::UntilHealed);
    let mission = mission(&bench, Cache::none());
    let all = join_all((0..2_000).map(|row| {
        let (mission, cx) = (&mission, bench.cx(row));
        async move { mission.handle(&cx, &sized(&row.to_string(), 512)).await }
    }));
    // A hung request is retried after its time-out. By then all that can be written is.
    let hung = bench.fake.until(|log| log.requests(Endpoint::Post).faults >= 8);
    let mut all = Box::pin(all);
    tokio::select! {
        _ = &mut all => panic!("nothing is answered"),
        _ = hung => {}
    }
    let written = bench.sender.written_bytes();
    let one = 20 * 1_024;
    assert!((ROOM..ROOM + one).contains(&written), "{written} bytes are written");
    bench.fake.heal(Endpoint::Post);
    assert!(all.await.iter().all(|done| matches!(done, Ok(Outcome::Sent))));
    all_once(&bench, 40_000);
    assert_eq!(bench.sender.written_bytes(), 0);
}

#[tokio::test]
async fn what_many_missions_make_of_a_large_row_is_written_in_parts() {
    let bench = Bench::start().await;
    activate(&bench, 20);
    let mission = mission(&bench, Cache::none());
    let work = sized("p", 300_000);
    assert!(mission.kept(&work) > 300_000, "the row is kept besides its record");
    assert_eq!(mission.handle(&bench.cx(1), &work).await.expect("sent"), Outcome::Sent);
    all_once(&bench, 20);
    bench.fake.inspect(|log| {
        assert!(log.posts.iter().all(|post| post.bytes < PART_BYTES + 64));
    });
}

#[tokio::test]
async fn a_row_that_calls_for_two_types_has_two_claims() {
    let bench = Bench::start().await;
    let mission = mission(&bench, Cache::none());
    let merchant = (0..10_000)
        .map(|number| format!("m{number}"))
        .find(|merchant| {
            ["referral_signup", "referral_purchase"]
                .iter()
                .all(|kind| active_missions(merchant, kind).len() == 1)
        })
        .expect("one of them has");
    let signup = work(&merchant, "r", &["referral_signup"]);
    let both = work(&merchant, "r", &["referral_signup", "referral_purchase"]);
    assert_eq!(mission.handle(&bench.cx(1), &signup).await.expect("sent"), Outcome::Sent);
    assert_eq!(mission.handle(&bench.cx(2), &both).await.expect("sent"), Outcome::Sent);
    let types: Vec<Value> =
        bench.events().into_iter().map(|(_, mut data)| data["event_type"].take()).collect();
    assert_eq!(types, ["referral_signup", "referral_purchase"], "each once");
}

#[tokio::test]
async fn no_active_mission_is_an_answer_that_is_remembered() {
    let bench = Bench::start().await;
    let mission = mission(&bench, Cache::none());
    let merchant = merchant("purchase", 0);
    for row in 1..=3 {
        let work = work(&merchant, &row.to_string(), &["purchase"]);
        let outcome = mission.handle(&bench.cx(row), &work).await.expect("done");
        assert_eq!(outcome, Outcome::Skipped("no_missions"));
    }
    assert_eq!(rest_requests(&bench), 1);
    assert!(bench.events().is_empty());
}

#[tokio::test]
async fn many_rows_that_need_one_set_cause_one_request() {
    let bench = Bench::start().await;
    bench.fake.set_latency(Endpoint::Rest, Duration::from_millis(20));
    let mission = mission(&bench, Cache::none());
    let merchant = merchant("purchase", 1);
    let done = join_all((0..50).map(|row| {
        let (mission, cx) = (&mission, bench.cx(row));
        let work = work(&merchant, &row.to_string(), &["purchase"]);
        async move { mission.handle(&cx, &work).await }
    }))
    .await;
    assert!(done.iter().all(|outcome| matches!(outcome, Ok(Outcome::Sent))));
    assert_eq!((rest_requests(&bench), bench.events().len()), (1, 50));
}

#[tokio::test]
async fn a_view_that_is_missing_or_unwell_is_an_outage_and_the_next_attempt_goes_on() {
    let bench = Bench::start().await;
    let mission = mission(&bench, Cache::none());
    let merchant = merchant("purchase", 1);
    let (work, cx) = (work(&merchant, "p", &["purchase"]), bench.cx(1));
    for fault in [Fault::status(503), Fault::status(401), Fault::Reset, Fault::OddSuccess] {
        bench.fake.fail(Endpoint::Rest, fault.clone(), Lasting::Next(1));
        let failed = mission.handle(&cx, &work).await;
        assert!(matches!(failed, Err(Failure::Outage { .. })), "{fault:?}: {failed:?}");
    }
    assert!(bench.events().is_empty());
    assert_eq!(mission.handle(&cx, &work).await.expect("sent"), Outcome::Sent);
    assert_eq!(bench.events().len(), 1);
}

#[tokio::test]
async fn a_mission_with_several_conditions_is_evaluated_once() {
    let bench = Bench::start().await;
    let row = |mission: &str| {
        let columns =
            [("mission_id", mission), ("merchant_id", "m"), ("condition_type", "purchase")];
        columns
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text.into()))
            .collect::<Map<_, _>>()
    };
    let view = ["b", "a", "b"].map(row).to_vec();
    bench.fake.fill("mv_mission_conditions_expanded", view);
    let mission = mission(&bench, Cache::none());
    let work = work("m", "p", &["purchase"]);
    assert_eq!(mission.handle(&bench.cx(1), &work).await.expect("sent"), Outcome::Sent);
    let ids: Vec<String> = bench.events().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["mission/evaluate:a:purchase:p", "mission/evaluate:b:purchase:p"]);
}

#[tokio::test]
async fn a_merchant_may_have_more_missions_than_a_server_answers_with_at_once() {
    let bench = Bench::start().await;
    let row = |number: usize| {
        let columns = [("mission_id", format!("{number:04}")), ("merchant_id", "m".to_owned())];
        let columns = columns.into_iter().chain([("condition_type", "purchase".to_owned())]);
        columns.map(|(name, text)| (name.to_owned(), text.into())).collect::<Map<_, _>>()
    };
    bench.fake.fill("mv_mission_conditions_expanded", (0..1_500).map(row).collect());
    let mission = mission(&bench, Cache::none());
    let work = work("m", "p", &["purchase"]);
    assert_eq!(mission.handle(&bench.cx(1), &work).await.expect("sent"), Outcome::Sent);
    assert_eq!((rest_requests(&bench), bench.events().len()), (2, 1_500));
}

#[tokio::test]
async fn an_event_that_inngest_refuses_is_the_records_fault() {
    let bench = Bench::start().await;
    let mission = mission(&bench, Cache::none());
    let merchant = merchant("purchase", 1);
    let mut work = work(&merchant, "p", &["purchase"]);
    let long = format!(r#"{{"note":"{}"}}"#, "x".repeat(4 << 20));
    work.event_data = RawValue::from_string(long).expect("json");
    let failed = mission.handle(&bench.cx(1), &work).await;
    assert!(matches!(failed, Err(Failure::Poison { kind: "inngest_refused", .. })), "{failed:?}");
}

#[tokio::test]
async fn explain_names_lane_claims_and_events() {
    let bench = Bench::start().await;
    let mission = mission(&bench, Cache::none());
    let steps = mission.steps(&work("m", "p", &["referral_signup", "referral_purchase"]));
    assert_eq!(steps.lane, "purchase_ledger:p");
    assert_eq!(steps.claims(), "mission:referral_signup:p, mission:referral_purchase:p");
    assert_eq!(
        steps.requests().collect::<Vec<_>>(),
        [
            "cache missions:active:m:referral_signup",
            "rest mv_mission_conditions_expanded (not in the cache)",
            "event mission/evaluate mission/evaluate:<mission_id>:referral_signup:p \
             (for each active mission)",
            "cache missions:active:m:referral_purchase",
            "rest mv_mission_conditions_expanded (not in the cache)",
            "event mission/evaluate mission/evaluate:<mission_id>:referral_purchase:p \
             (for each active mission)",
        ]
    );
}

#[tokio::test]
async fn a_cache_that_is_away_is_no_outage() {
    let bench = Bench::start().await;
    // The listener is gone again, so its port refuses connections.
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    let connection = crate::clients::redis::connect(&format!("redis://{address}")).expect("a url");
    let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(2) };
    let breaker = Arc::new(Breaker::new("cache", 1, backoff));
    let mission = mission(&bench, Cache::new(connection, Arc::clone(&breaker)));
    let merchant = merchant("purchase", 1);
    let sent = mission.handle(&bench.cx(1), &work(&merchant, "p", &["purchase"])).await;
    assert_eq!(sent.expect("sent"), Outcome::Sent);
    assert!(breaker.away().is_some(), "the cache was asked in vain");
    assert_eq!((rest_requests(&bench), bench.events().len()), (1, 1));
}
