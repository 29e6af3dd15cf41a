//! What a real server does not do on demand.

use std::sync::Mutex as Locked;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::*;
use crate::consumers::kessel::actions::item::testing::created;
use crate::outage::Backoff;

/// A server that answers bulk requests one after another like this, and makes every index.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Locked<Vec<(u16, Value)>>>,
    requests: Arc<Locked<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<(u16, Value)>) -> (Self, Index) {
        async fn answer(
            State(me): State<Server>,
            uri: Uri,
            headers: HeaderMap,
            body: String,
        ) -> Response {
            // "me:p@ss", as base64.
            assert_eq!(headers["authorization"], "Basic bWU6cEBzcw==");
            me.requests.lock().expect("a lock").push(format!("{} {body}", uri.path()));
            if !uri.path().ends_with("/_bulk") {
                return (StatusCode::OK, "{}").into_response();
            }
            let (status, body) = me.answers.lock().expect("a lock").remove(0);
            let headers = [("retry-after", "7")];
            let status = StatusCode::from_u16(status).expect("a status");
            match status.as_u16() {
                429 => (status, headers, body.to_string()).into_response(),
                _ => (status, body.to_string()).into_response(),
            }
        }
        let me = Self { answers: Arc::new(Locked::new(answers)), ..Self::default() };
        let app = Router::new().fallback(answer).with_state(me.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
        let breaker = Arc::new(Breaker::new("search", 100, backoff));
        let url = format!("http://me:p%40ss@{address}").into();
        let search = Search::new(&url, breaker, &HttpConfig::default()).expect("usable");
        let given = Options::default();
        let (created, dead_rows) = (Mutex::new(false), Duration::from_secs(60));
        let shared = Shared { search, given, created, retries: 3, dead_rows };
        (me, Index(Arc::new(shared)))
    }
}

fn item(status: u16) -> Value {
    let error = json!({"type": "some_exception", "reason": "some reason"});
    match status {
        200..=299 => json!({"index": {"status": status}}),
        _ => json!({"index": {"status": status, "error": error}}),
    }
}

fn kind(applied: &Applied) -> &'static str {
    match applied {
        Ok(()) => "ok",
        Err(Failure::Outage { .. }) => "away",
        Err(Failure::Refused { .. }) => "refused",
        Err(Failure::Alone) => "alone",
        Err(_) => "else",
    }
}

/// What becomes of this many changes, answered like this.
async fn kinds(count: usize, status: u16, body: Value) -> Vec<&'static str> {
    let (_, index) = Server::start(vec![(status, body)]).await;
    let item = created();
    index.apply(&vec![&item; count]).await.iter().map(kind).collect()
}

#[tokio::test]
async fn of_an_answer_that_is_a_success_every_item_is_looked_at() {
    let blocked = json!({"index": {"status": 400, "error":
        {"type": "cluster_block_exception", "reason": "index is read-only: disk usage exceeded"}}});
    let items = [item(201), item(409), item(400), item(429), item(503), item(403), blocked];
    let expected = ["ok", "ok", "refused", "away", "away", "away", "away"];
    assert_eq!(kinds(7, 200, json!({"items": items})).await, expected);
}

#[tokio::test]
async fn an_answer_of_outages_alone_is_an_outage_that_everybody_sees() {
    let items = json!({"items": [item(429), item(503)]});
    let answers = (0..100).map(|_| (200, items.clone())).collect();
    let (_, index) = Server::start(answers).await;
    let item = created();
    for _ in 0..100 {
        index.apply(&[&item, &item]).await;
    }
    assert!(index.breaker().expect("a server").away().is_some(), "readiness names it");
}

#[tokio::test]
async fn an_answer_that_does_not_speak_of_every_change_is_an_outage() {
    assert_eq!(kinds(2, 200, json!({"items": [item(201)]})).await, ["away", "away"]);
    assert_eq!(kinds(1, 200, json!({"took": 1})).await, ["away"]);
}

#[tokio::test]
async fn a_request_that_is_turned_down_waits_or_goes_in_parts() {
    for status in [401, 403, 429, 500, 502, 503, 504] {
        assert_eq!(kinds(2, status, json!({})).await, ["away", "away"], "{status}");
    }
    assert_eq!(kinds(2, 413, json!({})).await, ["alone", "alone"]);
    assert_eq!(kinds(1, 413, json!({})).await, ["refused"]);
    let error = json!({"error": {"type": "x_content_parse_exception", "reason": "y"}});
    assert_eq!(kinds(2, 400, error).await, ["alone", "alone"]);
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept() {
    let (_, index) = Server::start(vec![(429, json!({}))]).await;
    match index.apply(&[&created()]).await.pop() {
        Some(Err(Failure::Outage { retry_after, .. })) => {
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_index_that_somebody_removed_is_made_again() {
    let gone = json!({"items": [{"index": {"status": 404, "error":
        {"type": INDEX_MISSING, "reason": "no such index"}}}]});
    let answers = vec![(200, gone), (200, json!({"items": [item(201)]}))];
    let (server, index) = Server::start(answers).await;
    assert_eq!(kind(&index.apply(&[&created()]).await[0]), "away");
    assert_eq!(kind(&index.apply(&[&created()]).await[0]), "ok");
    let requests = server.requests.lock().expect("a lock").clone();
    let made = requests.iter().filter(|it| it.starts_with("/kessel-relationships {")).count();
    assert_eq!(made, 2, "{requests:#?}");
    assert!(requests.iter().any(|it| it.starts_with("/kessel-relationships-write/_bulk")));
}

#[test]
fn names_that_a_server_would_refuse_are_problems_of_the_configuration() {
    let check = |table: Value| (KIND.check)(table.as_object().expect("a table"));
    assert!(check(json!({"index": "Upper"})).is_err());
    assert!(check(json!({"index": "a/b"})).is_err());
    assert!(check(json!({"index": "same", "alias": "same"})).is_err());
    assert_eq!(check(json!({"index": "kessel-2", "alias": "kessel-2-live"})), Ok(()));
}

#[tokio::test]
async fn only_rows_that_have_been_dead_for_long_are_cleaned_up() {
    let (server, index) = Server::start(Vec::new()).await;
    index.0.clean_up().await.expect("asked");
    let requests = server.requests.lock().expect("a lock").clone();
    let (path, query) = requests[0].split_once(' ').expect("a path");
    assert_eq!(path, "/kessel-relationships/_delete_by_query");
    let query: Value = serde_json::from_str(query).expect("JSON");
    let expected =
        json!([{"term": {"alive": false}}, {"range": {"dead_since": {"lt": "now-60s"}}}]);
    assert_eq!(query["query"]["bool"]["filter"], expected);
}
