//! How the fake imitates oddities of the real services, seen without our clients.

use crm_event_processors::fakes::{Fake, Options, Poison, Reply};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

async fn fake() -> Fake {
    let event_key = Some("key".to_owned());
    Fake::start(Options { event_key, keep_data: true, ..Options::default() }).await.expect("a fake")
}

/// One request; the answer's status, type and body.
async fn ask(method: Method, url: String, seed: &str, body: &str) -> (u16, String, String) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = Client::builder().redirect(Policy::none()).no_proxy().build().expect("a client");
    let request = client.request(method, url).header("x-inngest-event-id-seed", seed);
    let response = request.body(body.to_owned()).send().await.expect("an answer");
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("text"));
    let kind = kind.unwrap_or_default().to_owned();
    (status, kind, response.text().await.expect("a body"))
}

async fn post(fake: &Fake, seed: &str, body: &str) -> (u16, Value) {
    let (status, kind, body) = ask(Method::POST, format!("{}/e/key", fake.url()), seed, body).await;
    assert!(kind.starts_with("text/plain"), "{kind}");
    (status, serde_json::from_str(&body).expect("json"))
}

#[tokio::test]
async fn one_object_or_an_array_is_stored_with_one_id_each() {
    let fake = fake().await;
    let (status, one) = post(&fake, "1,a", r#"{"name":"n","id":"x","data":{"a":1}}"#).await;
    assert_eq!((status, one["ids"].as_array().expect("ids").len()), (200, 1));
    let (_, two) = post(&fake, "1,a", r#"[{"name":"n","data":{}},{"name":"n"}]"#).await;
    assert_eq!(two["ids"].as_array().expect("ids").len(), 2);
    assert_eq!(one["ids"][0], two["ids"][0], "the same seed and index");
    assert_ne!(two["ids"][0], two["ids"][1]);
    let (_, other) = post(&fake, "", r#"{"name":"n"}"#).await;
    assert_ne!(one["ids"][0], other["ids"][0]);
    fake.inspect(|log| {
        assert_eq!(log.events.len(), 4, "copies are stored and listed");
        assert_eq!(log.events[0].data.as_deref(), Some(r#"{"a":1}"#));
    });
}

#[tokio::test]
async fn what_takes_nothing_is_answered_as_the_real_server_does() {
    let fake = fake().await;
    let nothing = json!({ "ids": [""], "status": 200 });
    assert_eq!(post(&fake, "", "[]").await, (200, nothing.clone()));
    assert_eq!(post(&fake, "", "").await, (200, nothing));
    let url = |path: &str| format!("{}{path}", fake.url());
    let (status, _, body) = ask(Method::POST, url("/e"), "", "{}").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(ask(Method::POST, url("/e/"), "", "{}").await.0, 303);
    assert_eq!(ask(Method::GET, url("/e/key"), "", "").await.0, 405);
    let (status, _, body) = ask(Method::POST, url("/e/other"), "", "{}").await;
    assert_eq!((status, body.contains("Event key not found")), (401, true));
    fake.inspect(|log| assert!(log.events.is_empty()));
}

#[tokio::test]
async fn events_are_taken_in_order_up_to_the_first_bad_one() {
    let fake = fake().await;
    fake.poison("bad", Some(Poison::Refused("no".to_owned())));
    for (bad, text) in [
        (r#"{"name":""}"#, "event name is empty"),
        (r#"{}"#, "event name is empty"),
        (r#"{"name":"inngest/x"}"#, "event name is reserved for internal use: inngest/x"),
        (r#"{"name":"n","data":"x"}"#, "json: cannot unmarshal string into Go struct field"),
        (r#"{"name":"n","data":{"x":1e400}}"#, "json: cannot unmarshal number"),
        (r#"{"name":"n","ts":1}"#, "timestamp is before Jan 1, 1980"),
        (r#"{"name":"n","id":"bad"}"#, "no"),
        ("nonsense", "invalid json"),
    ] {
        let before = fake.inspect(|log| log.events.len());
        let good = r#"{"name":"n"}"#;
        let (status, answer) = post(&fake, "", &format!("[{good},{good},{bad},{good}]")).await;
        assert_eq!((status, answer["status"].as_u64()), (400, Some(400)), "{bad}");
        assert_eq!(answer["ids"].as_array().expect("ids").len(), 2, "{bad}");
        let error = answer["error"].as_str().expect("a text");
        assert!(error.contains(text), "{bad}: {error}");
        assert_eq!(fake.inspect(|log| log.events.len()), before + 2, "{bad}");
        let (_, none) = post(&fake, "", &format!("[{bad},{good}]")).await;
        assert_eq!(none["ids"], json!([""]), "{bad}");
    }
}

#[tokio::test]
async fn a_table_or_function_that_is_not_there_is_answered_as_postgrest_does() {
    let fake = fake().await;
    let url = format!("{}/rest/v1/rpc/f", fake.url());
    let (status, kind, body) = ask(Method::POST, url.clone(), "", r#"{"p_a":1}"#).await;
    assert_eq!(status, StatusCode::NOT_FOUND.as_u16());
    assert!(kind.starts_with("application/json"), "{kind}");
    let body: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(body["code"], "PGRST202");
    assert_eq!(body["message"], "Could not find the function public.f(p_a) in the schema cache");
    fake.define("f", |_| Reply::void());
    assert_eq!(ask(Method::POST, url.clone(), "", "{}").await.0, 204);
    fake.drop_function("f");
    assert_eq!(ask(Method::POST, url, "", "{}").await.0, 404);
}
