//! The Supabase client over real HTTP, against the fake.

use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::clients::supabase::{CallError, CallFault, Supabase, SupabaseConfig};
use crm_event_processors::fakes::{Endpoint, Fake, Fault, Lasting, Options, Reply, currency_rows};
use crm_event_processors::outage::{Backoff, Breakers};
use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

const CALC: &str = "calc_currency_for_source";

struct Scene {
    fake: Fake,
    supabase: Supabase,
    breakers: Arc<Breakers>,
}

async fn scene(key: &str, change: impl FnOnce(&mut SupabaseConfig)) -> Scene {
    let options = Options { supabase_key: Some(key.to_owned()), ..Options::default() };
    let fake = Fake::start(options).await.expect("a fake");
    let mut config = SupabaseConfig::new(format!("{}/", fake.url()), SecretString::from(key));
    change(&mut config);
    // Breakers that stay open once they are, so that nothing depends on speed.
    let hour = Duration::from_secs(3600);
    let breakers = Arc::new(Breakers::new(3, Backoff { base: hour, max: hour }));
    let supabase = Supabase::new(&config, Arc::clone(&breakers)).expect("a client");
    Scene { fake, supabase, breakers }
}

async fn plain() -> Scene {
    scene("a.legacy.key", |_| {}).await
}

impl Scene {
    async fn call(&self, function: &str) -> Result<Value, CallError> {
        self.supabase.rpc(function, &json!({ "p_source_id": "s" })).await?.json()
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

#[tokio::test]
async fn a_function_answers_with_the_value_as_it_came() {
    let scene = plain().await;
    let raw = r#"[{"amount":1.10,"big":9007199254740993}]"#;
    scene.fake.define("exact", |_| {
        Reply::json(&json!([{ "amount": 1.1, "big": 9_007_199_254_740_993_u64 }]))
    });
    let answer = scene.supabase.rpc("exact", &json!({})).await.expect("an answer");
    let kept: Box<RawValue> = answer.json().expect("json");
    assert_eq!(kept.get(), raw.replace("1.10", "1.1"));
    assert_eq!(scene.call(CALC).await.expect("rows"), Value::from(currency_rows("s")));
    let bad = SupabaseConfig::new(scene.fake.url(), SecretString::from("k"));
    assert_eq!(bad.max_answer_bytes, 8 << 20);
}

#[tokio::test]
async fn arguments_arrive_by_name_and_a_void_function_answers_null() {
    let scene = plain().await;
    scene.fake.define("void", |arguments| {
        assert_eq!(arguments["p_source_id"], "s");
        Reply::void()
    });
    assert_eq!(scene.call("void").await.expect("an answer"), Value::Null);
}

#[tokio::test]
async fn rows_are_selected_with_encoded_filters() {
    let scene = plain().await;
    let row = |id: &str, zone: Value| object(json!({ "id": id, "zone": zone, "other": 1 }));
    let rows = vec![row("a&b=c d", json!("UTC")), row("x", Value::Null), row("y", json!("Z"))];
    scene.fake.fill("merchant_master", rows);
    let select = |filter: &'static str| {
        let query = [("id", filter), ("select", "id,zone")];
        let supabase = scene.supabase.clone();
        async move { supabase.select("merchant_master", &query).await }
    };
    let found: Value = select("eq.a&b=c d").await.expect("an answer").json().expect("json");
    assert_eq!(found, json!([{ "id": "a&b=c d", "zone": "UTC" }]));
    let found: Value = select("in.(x,y)").await.expect("an answer").json().expect("json");
    assert_eq!(found, json!([{ "id": "x", "zone": null }, { "id": "y", "zone": "Z" }]));
    let none: Value = select("eq.nobody").await.expect("an answer").json().expect("json");
    assert_eq!(none, json!([]));
}

#[tokio::test]
async fn both_forms_of_keys_are_accepted_by_a_gateway_that_tells_them_apart() {
    for key in ["a.legacy.key", "sb_secret_of_this_test"] {
        let scene = scene(key, |_| {}).await;
        scene.call(CALC).await.expect("the key is right");
        scene.supabase.select("wallet_ledger", &[]).await.expect("the key is right");
    }
}

#[tokio::test]
async fn a_wrong_key_is_an_outage_that_does_not_repeat_the_key() {
    let key = "sb_secret_not_the_one";
    let scene = scene("sb_secret_the_one", |config| config.key = SecretString::from(key)).await;
    let error = scene.call(CALC).await.expect_err("refused");
    assert_eq!((error.is_outage(), error.kind()), (true, "supabase_setup"));
    let text = format!("{error} {error:?} {:?}", scene.supabase);
    assert!(text.contains("SUPABASE_SERVICE_ROLE_KEY"), "{text}");
    assert!(!text.contains(key), "{text}");
}

#[tokio::test]
async fn a_function_table_or_column_that_is_not_there_is_a_deploy_half_done() {
    let scene = plain().await;
    let error = scene.call("not_yet").await.expect_err("not there");
    assert_eq!((error.is_outage(), error.kind()), (true, "supabase_setup"));
    assert_eq!(error.code.as_deref(), Some("PGRST202"));
    assert!(error.to_string().contains("function not_yet"), "{error}");
    assert!(error.to_string().contains("is the migration"), "{error}");

    let error = scene.supabase.select("nowhere", &[]).await.expect_err("not there");
    assert_eq!((error.is_outage(), error.code.as_deref()), (true, Some("PGRST205")));
    assert!(error.to_string().contains("table nowhere"), "{error}");

    scene.fake.fill("merchant_master", vec![object(json!({ "id": 1 }))]);
    let query = [("select", "id,colour")];
    let error = scene.supabase.select("merchant_master", &query).await.expect_err("no column");
    assert_eq!((error.is_outage(), error.code.as_deref()), (true, Some("42703")));
}

#[tokio::test]
async fn what_a_function_raises_about_the_record_is_the_records_fault_and_no_outage() {
    let scene = plain().await;
    scene.fake.define("raise", |_| Reply::error(400, "P0001", "no such reward"));
    for _ in 0..5 {
        let error = scene.call("raise").await.expect_err("raised");
        assert_eq!((error.fault, error.kind()), (CallFault::Record, "supabase_refused"));
        assert!(error.to_string().contains("no such reward"), "{error}");
        assert!(error.latency.is_some());
    }
    let breaker = scene.breakers.get("supabase/rpc/raise");
    assert!(breaker.away().is_none());
    assert_eq!(breaker.successes(), 0, "nobody could use what it said");
}

#[tokio::test]
async fn every_kind_of_trouble_is_an_outage_with_the_right_signs() {
    for (fault, kind, overload) in [
        (Fault::Reset, "supabase_unreachable", false),
        (Fault::HandledThenReset, "supabase_unreachable", false),
        (Fault::Truncated, "supabase_unreachable", false),
        (Fault::Hang, "supabase_timeout", true),
        (Fault::OddSuccess, "supabase_answer", false),
        (Fault::status(429), "supabase_overload", true),
        (Fault::page(429), "supabase_overload", true),
        (Fault::status(503), "supabase_overload", true),
        (Fault::page(503), "supabase_overload", true),
        (Fault::status(504), "supabase_overload", true),
        (Fault::page(502), "supabase_transient", false),
        (Fault::page(521), "supabase_transient", false),
        (Fault::status(500), "supabase_setup", false),
        (Fault::page(500), "supabase_setup", false),
        (Fault::status(401), "supabase_setup", false),
        (Fault::page(400), "supabase_setup", false),
        (Fault::page(404), "supabase_setup", false),
        (Fault::page(407), "supabase_setup", false),
        (Fault::page(421), "supabase_setup", false),
        (Fault::page(422), "supabase_setup", false),
        (Fault::page(307), "supabase_setup", false),
        (Fault::page(540), "supabase_setup", false),
    ] {
        let short = Duration::from_millis(300);
        let scene = scene("k", |config| config.http.timeout = short).await;
        for endpoint in [Endpoint::Rpc, Endpoint::Rest] {
            scene.fake.fail(endpoint, fault.clone(), Lasting::Next(1));
        }
        let errors = [
            scene.call(CALC).await.expect_err("a fault"),
            scene.supabase.select("wallet_ledger", &[]).await.expect_err("a fault"),
        ];
        for error in errors {
            assert!(error.is_outage(), "{fault:?}: {error}");
            assert_eq!((error.kind(), error.overload), (kind, overload), "{fault:?}: {error}");
            assert!(error.latency.is_some(), "{fault:?}");
            let text = error.to_string();
            assert!(!text.contains('\n') && !text.contains('<'), "{text}");
            assert!(text.contains(CALC) || text.contains("wallet_ledger"), "{text}");
            let answered = matches!(fault, Fault::Status { page: true, .. });
            assert!(!answered || text.contains(scene.fake.url()), "{text}");
        }
        scene.call(CALC).await.expect("one failure does not open the breaker");
    }
}

#[tokio::test]
async fn a_statement_that_ran_into_its_time_out_is_an_overload() {
    let scene = plain().await;
    scene.fake.define("slow", |_| {
        Reply::error(500, "57014", "canceling statement due to statement timeout")
    });
    let error = scene.call("slow").await.expect_err("too slow");
    assert_eq!((error.is_outage(), error.overload), (true, true));
}

#[tokio::test]
async fn an_open_breaker_answers_at_once_and_only_for_its_own_function() {
    let scene = plain().await;
    scene.fake.define("well", |_| Reply::void());
    scene.fake.define("ill", |_| Reply::error(500, "XX000", "internal error"));
    for _ in 0..3 {
        scene.call("ill").await.expect_err("ill");
    }
    let error = scene.call("ill").await.expect_err("away");
    assert_eq!((error.kind(), error.latency), ("supabase_away", None));
    assert!(error.to_string().contains("internal error"), "{error}");
    let CallFault::Outage { retry_after: Some(wait) } = error.fault else {
        panic!("an outage with a time: {error:?}");
    };
    assert!(wait > Duration::from_secs(1000), "{wait:?}");
    scene.call("well").await.expect("another function is well");
    scene.supabase.select("wallet_ledger", &[]).await.expect("a table is well");
    assert_eq!(scene.fake.inspect(|log| log.calls["ill"]), 3);
    let away: Vec<String> = scene
        .breakers
        .all()
        .iter()
        .filter(|breaker| breaker.away().is_some())
        .map(|breaker| breaker.name().to_owned())
        .collect();
    assert_eq!(away, ["supabase/rpc/ill"]);
    let names: Vec<_> = scene.breakers.all().iter().map(|b| b.name().to_owned()).collect();
    assert_eq!(names, ["supabase/rpc/ill", "supabase/rpc/well", "supabase/wallet_ledger"]);
}

#[tokio::test]
async fn the_wait_that_the_server_asks_for_reaches_the_caller() {
    let scene = plain().await;
    scene.fake.fail(Endpoint::Rpc, Fault::too_many(1700), Lasting::Next(1));
    let error = scene.call(CALC).await.expect_err("too many");
    let wait = Some(Duration::from_secs(1700));
    assert_eq!(error.fault, CallFault::Outage { retry_after: wait });
    let error = scene.call(CALC).await.expect_err("the breaker keeps the wait");
    assert_eq!(error.kind(), "supabase_away");
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_not_read() {
    let scene = scene("k", |config| config.max_answer_bytes = 1000).await;
    scene.fake.define("large", |_| Reply::json(&"x".repeat(2000).into()));
    let error = scene.call("large").await.expect_err("too large");
    assert_eq!((error.is_outage(), error.kind()), (true, "supabase_too_large"));
}

#[tokio::test]
async fn an_answer_of_another_shape_is_a_deploy_half_done() {
    let scene = plain().await;
    let answer = scene.supabase.rpc(CALC, &json!({})).await.expect("rows");
    let error = answer.json::<u32>().expect_err("rows are no number");
    assert_eq!((error.is_outage(), error.kind()), (true, "supabase_answer"));
}
