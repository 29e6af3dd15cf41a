//! What a real database refuses, how PostgREST reports it, and how the daemon classifies it.

use crm_event_processors::clients::supabase::classify::{Fault, classify};
use crm_event_processors::fakes::{Fake, Options};
use reqwest::Client;
use serde_json::{Value, json};

use super::database::database;
use super::lives::uuid;
use super::postgrest::Postgrest;
use super::sample::NOODLES;

/// Fails in the way that it is told to; the other one says that it does not write.
const FAILING: &str = "
    CREATE TABLE taken (id integer PRIMARY KEY);
    INSERT INTO taken VALUES (1);
    GRANT INSERT ON taken TO service_role;
    CREATE FUNCTION failing(p_how text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
      CASE p_how
        WHEN 'raise' THEN RAISE EXCEPTION 'no' USING DETAIL = 'since', HINT = 'try';
        WHEN 'taken' THEN INSERT INTO taken VALUES (1);
        WHEN 'undefined' THEN PERFORM not_deployed_yet();
        WHEN 'denied' THEN DELETE FROM purchase_ledger;
        WHEN 'malformed' THEN PERFORM 'no uuid'::uuid;
        WHEN 'conflict' THEN RAISE SQLSTATE '40001';
        WHEN 'slow' THEN RAISE SQLSTATE '57014';
        WHEN 'nothing' THEN NULL;
      END CASE;
    END $$;
    CREATE FUNCTION writing(p_how text) RETURNS void LANGUAGE sql STABLE AS 'SELECT failing(p_how)';";

struct Api {
    http: Client,
    fake: Fake,
}

impl Api {
    async fn start() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = Client::builder().no_proxy().build().expect("a client");
        let fake = Fake::start(Options::default()).await.expect("a fake");
        fake.delegate(Postgrest::new(database().await.as_authenticator()));
        Self { http, fake }
    }

    async fn call(&self, function: &str, arguments: Value) -> (u16, Value) {
        let url = format!("{}/rest/v1/rpc/{function}", self.fake.url());
        Self::answer(self.http.post(url).body(arguments.to_string())).await
    }

    async fn read(&self, query: &str) -> (u16, Value) {
        let url = format!("{}/rest/v1/{query}", self.fake.url());
        Self::answer(self.http.get(url)).await
    }

    async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.send().await.expect("an answer");
        let (status, body) = (answer.status().as_u16(), answer.text().await.expect("a body"));
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }
}

fn judged(status: u16, body: &Value) -> Fault {
    classify(status, body["code"].as_str(), body["message"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn what_a_real_database_refuses_is_told_apart_into_outage_and_record() {
    let api = Api::start().await;
    database().await.crm().await.batch_execute(FAILING).await.expect("functions that fail");
    for (how, status, code, fault) in [
        ("raise", 400, "P0001", Fault::Record),
        ("taken", 409, "23505", Fault::Record),
        ("malformed", 400, "22P02", Fault::Record),
        ("undefined", 404, "42883", Fault::Setup),
        ("denied", 403, "42501", Fault::Setup),
        ("conflict", 500, "40001", Fault::Transient),
        ("slow", 500, "57014", Fault::Transient),
    ] {
        let (found, body) = api.call("failing", json!({"p_how": how})).await;
        assert_eq!((found, &body["code"]), (status, &json!(code)), "{how}: {body}");
        assert_eq!(judged(found, &body), fault, "{how}: {body}");
    }
    let (_, body) = api.call("failing", json!({"p_how": "raise"})).await;
    assert_eq!(body, json!({"code": "P0001", "message": "no", "details": "since", "hint": "try"}));
    assert_eq!(api.call("failing", json!({"p_how": "nothing"})).await, (204, Value::Null));

    let (status, body) = api.call("writing", json!({"p_how": "taken"})).await;
    assert_eq!((status, &body["code"]), (405, &json!("25006")), "{body}");
    assert_eq!(judged(status, &body), Fault::Setup);
}

#[tokio::test]
async fn what_is_not_in_the_schema_is_a_deploy_that_is_half_done() {
    let api = Api::start().await;
    let (user, merchant) = (uuid(), NOODLES);
    for (answer, status, code) in [
        (api.call("not_deployed_yet", json!({})).await, 404, "PGRST202"),
        (api.call("apply_tier_upgrade", json!({"p_user": user})).await, 404, "PGRST202"),
        (api.call("apply_tier_upgrade", json!({"p_user_id": user})).await, 404, "PGRST202"),
        (api.read("not_deployed_yet?id=eq.1").await, 404, "PGRST205"),
        (api.read("codes?not_deployed_yet=eq.1").await, 400, "42703"),
        (api.read(&format!("codes?merchant_id=eq.{merchant}&select=x")).await, 400, "42703"),
    ] {
        assert_eq!((answer.0, &answer.1["code"]), (status, &json!(code)), "{answer:?}");
        assert_eq!(judged(answer.0, &answer.1), Fault::Setup);
    }
}

#[tokio::test]
async fn the_functions_of_config_refuse_what_is_not_there_and_repeat_their_answers() {
    let api = Api::start().await;
    let (user, other) = (uuid(), uuid());
    let tier = json!({"p_user_id": user, "p_merchant_id": NOODLES, "p_to_tier_id": other});
    let (status, body) = api.call("apply_tier_upgrade", tier).await;
    assert_eq!((status, &body["code"]), (400, &json!("P0001")), "{body}");

    let arguments = json!({"p_reward_id": other, "p_quantity": 1, "p_user_id": user,
        "p_merchant_id": NOODLES, "p_event_id": other});
    let first = api.call("redeem_reward_with_points", arguments.clone()).await;
    assert_eq!((first.0, &first.1["error_code"]), (200, &json!("REWARD_NOT_FOUND")));
    assert_eq!(api.call("redeem_reward_with_points", arguments).await, first);

    let nothing = json!({"p_source_type": "purchase", "p_source_id": other, "p_user_id": user,
        "p_merchant_id": NOODLES});
    assert_eq!(api.call("calc_currency_for_source", nothing).await, (200, json!([])));
    let (status, body) = api
        .call("evaluate_user_tier_status", json!({"p_user_id": user, "p_merchant_id": NOODLES}))
        .await;
    assert_eq!((status, &body["recommended_action"]), (200, &json!("assign_entry")));
}
