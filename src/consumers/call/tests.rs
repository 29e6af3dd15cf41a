use std::future::ready;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;
use crate::consumers::testing::Bench;
use crate::fakes::{Backend, Reply};

const TABLE: &str = "purchase_ledger";

#[derive(Debug, Deserialize, PartialEq)]
struct Row {
    id: u32,
}

/// A server with rows of `TABLE`, the last first; odd numbers belong to another merchant.
async fn with_rows(count: u32) -> Bench {
    let bench = Bench::start().await;
    let row = |id: u32| match json!({ "id": id, "external_ref": if id.is_multiple_of(2) { "a" } else { "b" } })
    {
        Value::Object(row) => row,
        _ => Map::new(),
    };
    bench.fake.fill(TABLE, (0..count).rev().map(row).collect());
    bench
}

async fn read(bench: &Bench) -> Result<Vec<u32>, Failure> {
    let query = [("external_ref", "eq.a"), ("select", "id")];
    let rows: Vec<Row> = bench.calls.select_all(&bench.cx(1), TABLE, &query, "id").await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

fn requests(bench: &Bench) -> u64 {
    bench.fake.inspect(|log| log.calls[TABLE])
}

#[tokio::test]
async fn all_rows_are_read_where_the_server_cuts() {
    let bench = with_rows(5_001).await;
    let all: Vec<u32> = (0..=2_500).map(|half| half * 2).collect();
    assert_eq!(read(&bench).await.expect("rows"), all);
    assert_eq!(requests(&bench), 3, "two whole pages and a short one");
}

#[tokio::test]
async fn one_page_is_one_request_and_nothing_is_an_answer() {
    for (rows, found) in [(0, 0), (1, 1), (2_000, 1_000)] {
        let bench = with_rows(rows).await;
        assert_eq!(read(&bench).await.expect("rows").len(), found);
        assert_eq!(requests(&bench), 1, "{rows}");
    }
}

#[tokio::test]
async fn a_server_that_cuts_earlier_is_asked_until_all_are_there() {
    let bench = with_rows(201).await;
    bench.fake.cut_at(7);
    assert_eq!(read(&bench).await.expect("rows").len(), 101);
    assert_eq!(requests(&bench), 15);
}

/// A server of the caller's own.
struct Server(Answers);

/// Answers to the first page, or to a later one.
type Answers = fn(after: bool) -> Reply;

impl Backend for Server {
    fn call<'a>(&'a self, _: &'a str, _: &'a Map<String, Value>) -> BoxFuture<'a, Reply> {
        ready(Reply::void()).boxed()
    }

    fn read<'a>(
        &'a self,
        _: &'a str,
        query: &'a [(String, String)],
        _: bool,
    ) -> BoxFuture<'a, Reply> {
        ready(self.0(query.iter().any(|(_, filter)| filter.starts_with("gt.")))).boxed()
    }
}

#[tokio::test]
async fn all_rows_or_an_outage_and_never_a_part_of_them() {
    fn page() -> Reply {
        Reply::page_of_rows(r#"[{"id":0},{"id":2}]"#.to_owned(), 2, 0, None)
    }
    let servers: [(&str, Answers); 3] = [
        ("supabase_transient", |after| if after { Reply::page(502) } else { page() }),
        ("supabase_answer", |_| page()),
        ("supabase_answer", |_| Reply::json(&json!([{ "id": null }]))),
    ];
    for (expected, server) in servers {
        let bench = Bench::start().await;
        bench.fake.delegate(Server(server));
        match read(&bench).await {
            Err(Failure::Outage { kind, .. }) => assert_eq!(kind, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_in_another_shape_is_an_outage_that_is_named_and_no_sign_of_life() {
    fn odd(_: bool) -> Reply {
        Reply::json(&json!({ "rows": "none" }))
    }
    let bench = Bench::start().await;
    bench.fake.delegate(Server(odd));
    let dependency = bench.calls.breaker(&format!("supabase/{TABLE}"));
    for _ in 0..1_000 {
        let rows = bench.calls.select::<Row>(&bench.cx(1), TABLE, &[]).await;
        let Err(Failure::Outage { kind: "supabase_answer", attempted, .. }) = rows else {
            panic!("{rows:?}");
        };
        assert!(!attempted, "it says nothing about the record");
    }
    assert_eq!(dependency.successes(), 0);
    assert!(dependency.away().is_some_and(|away| away.error.contains("another shape")));
}

#[tokio::test]
async fn a_refusal_is_no_sign_that_others_are_served() {
    fn refuses(_: bool) -> Reply {
        Reply::error(400, "22P02", "no such thing")
    }
    let bench = Bench::start().await;
    bench.fake.delegate(Server(refuses));
    let rows = bench.calls.select::<Row>(&bench.cx(1), TABLE, &[]).await;
    assert!(matches!(rows, Err(Failure::Poison { .. })), "{rows:?}");
    assert_eq!(bench.calls.breaker(&format!("supabase/{TABLE}")).successes(), 0);
}

#[tokio::test]
async fn a_refused_connection_says_nothing_about_the_record() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", nobody.local_addr().expect("an address"));
    drop(nobody);
    let backoff = crate::outage::Backoff { base: Duration::ZERO, max: Duration::ZERO };
    let breakers = Arc::new(Breakers::new(1_000, backoff));
    let config = crate::clients::supabase::SupabaseConfig::new(address, "k".to_owned().into());
    let supabase = Supabase::new(&config, Arc::clone(&breakers)).expect("a usable address");
    let bench = Bench::start().await;
    let rows = Calls::new(supabase, breakers).select::<Row>(&bench.cx(1), TABLE, &[]).await;
    let Err(Failure::Outage { attempted, .. }) = rows else { panic!("{rows:?}") };
    assert!(!attempted);
}

#[test]
fn a_fast_failure_is_no_good_latency() {
    let mut error = CallError::too_many_rows("t", 1);
    assert_eq!(sample(Err(&error)), None);
    error.overload = true;
    assert_eq!(sample(Err(&error)), Some(Sample::Overloaded));
    let latency = Duration::from_millis(7);
    assert_eq!(sample(Ok(latency)), Some(Sample::Answered(latency)));
}
