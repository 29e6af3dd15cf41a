//! Kessel's actions that keep state, on real stores: the end is exactly what lives (behaviour section 9).

use std::collections::BTreeSet;

use crm_event_processors::cdc::{self, Decoded};
use crm_event_processors::consumers::kessel::row::{Reading, read};
use crm_event_processors::recording::Recorded;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use test_support::daemon::Environment;
use test_support::recordings::{recorded, unpacked};
use test_support::{feed, kafka, services, unique, until};
use tokio_postgres::NoTls;

const PARTITIONS: i32 = 6;
/// Where the stores of the recordings ended.
const ENDS: [Recording; 5] = [
    Recording { file: "spicedb2/xids", live: "spicedb2/live", xids: true },
    Recording { file: "spicedb2/xids_keyed", live: "spicedb2/live", xids: true },
    Recording {
        file: "spicedb2/replayed/replayed_xids",
        live: "spicedb2/replayed/live",
        xids: true,
    },
    Recording {
        file: "spicedb2/replayed/replayed_xids_keyed",
        live: "spicedb2/replayed/live",
        xids: true,
    },
    Recording { file: "spicedb2/default_living", live: "spicedb2/live_now", xids: false },
];
/// When the rows that had not expired in the end of the second set were read.
const END: &str = "2026-11-29T01:22:07.549355Z";

struct Recording {
    file: &'static str,
    live: &'static str,
    xids: bool,
}

impl Recording {
    fn records(&self) -> Vec<Recorded> {
        let all = recorded(&format!("{}.jsonl.gz", self.file));
        all.filter(|record| record.topic.ends_with(".relation_tuple")).collect()
    }

    /// The rows that live in the end: relationship and, where it is shown, `created_xid`.
    fn living(&self) -> BTreeSet<(String, i64)> {
        let text = unpacked(&format!("{}.jsonl.gz", self.live));
        let row = |line: &str| {
            let row: Living = serde_json::from_str(line).expect("a row");
            let xid = if self.xids { row.created_xid.parse().expect("an xid") } else { 0 };
            (row.to_string(), xid)
        };
        text.lines().map(row).collect()
    }

    /// How many different things happened.
    fn changes(&self, records: &[Recorded]) -> usize {
        let key = |record: &Recorded| {
            record.lend(|record| match cdc::decode(record, &cdc::Options::default()) {
                Ok(Decoded::Change(change)) => {
                    let trusting = Reading { trust_snapshot: true, ..Reading::default() };
                    let change = read(&change, trusting).expect("a sound row").ok()?;
                    Some(change.idempotency_key())
                }
                _ => None,
            })
        };
        records.iter().filter_map(key).collect::<BTreeSet<_>>().len()
    }
}

#[derive(Deserialize)]
struct Living {
    namespace: String,
    object_id: String,
    relation: String,
    userset_namespace: String,
    userset_object_id: String,
    userset_relation: String,
    created_xid: String,
}

impl std::fmt::Display for Living {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, object_id, relation, .. } = self;
        let (subject, id) = (&self.userset_namespace, &self.userset_object_id);
        write!(f, "{namespace}:{object_id}#{relation}@{subject}:{id}")?;
        match &*self.userset_relation {
            "" | "..." => Ok(()),
            relation => write!(f, "#{relation}"),
        }
    }
}

/// A topic with a recording, and stores, of one test.
struct Scene {
    name: String,
    topic: String,
    database: String,
}

impl Scene {
    async fn with(records: &[Recorded]) -> Self {
        let name = unique("kessel-stores").replace('-', "_");
        let topic = format!("{name}.relation_tuple");
        kafka::create_topic(services::kafka(), &topic, PARTITIONS).await;
        let mut url = url::Url::parse(services::postgres()).expect("a URL");
        let admin = connected(url.as_str()).await;
        admin.batch_execute(&format!("create database {name}")).await.expect("a database");
        url.set_path(&name);
        let scene = Self { name, topic, database: url.to_string() };
        scene.produce(records).await;
        scene
    }

    async fn produce(&self, records: &[Recorded]) {
        let futures = records.iter().map(|record| {
            let headers = record.headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value: value.as_deref() })
            });
            let mut future = FutureRecord::to(&self.topic).headers(headers);
            future.key = record.key.as_deref();
            future.payload = record.value.as_deref();
            future.timestamp = record.timestamp_ms;
            future.partition = Some(record.partition);
            future
        });
        kafka::produce(services::kafka(), futures).await;
    }

    fn environment(&self, actions: &Value) -> Environment {
        Environment::default()
            .with("KAFKA_BOOTSTRAP_SERVERS", services::kafka())
            .with("KAFKA_AUTO_OFFSET_RESET", "earliest")
            .with("CONSUMER_GROUP", &self.name)
            .with("DLQ_TOPIC", &format!("{}.dlq", self.name))
            .with("CONSUMERS", "relationships")
            .with("RELATIONSHIPS_TOPIC", &self.topic)
            .with("RELATIONSHIPS_SNAPSHOT", "trust")
            .with("RELATIONSHIPS_ACTIONS", &actions.to_string())
            .with("KESSEL_DATABASE_URL", &self.database)
            .with("KESSEL_SEARCH_URL", services::opensearch())
            .with("KAFKA_SESSION_TIMEOUT", "6s")
            .with("LOG_LEVEL", "warn")
    }

    /// The action with an index of its own.
    fn index(&self) -> Value {
        json!({"action": "search_index", "index": self.name.replace('_', "-"),
            "alias": format!("{}-live", self.name.replace('_', "-"))})
    }

    async fn search(&self, index: &str, query: &Value) -> Value {
        let base = format!("{}/{index}", services::opensearch());
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder().no_proxy().build().expect("a client");
        client.post(format!("{base}/_refresh")).send().await.expect("an answer");
        let body = json!({"size": 5_000, "query": query}).to_string();
        let request = client.post(format!("{base}/_search")).body(body);
        let request = request.header("content-type", "application/json");
        let text = request.send().await.expect("an answer").text().await.expect("text");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The rows of the index that live and had not expired at a time.
    async fn indexed(&self, at: &str) -> BTreeSet<(String, i64)> {
        let mut query = json!({"bool": {"filter": [{"term": {"alive": true}}]}});
        if !at.is_empty() {
            query["bool"]["must_not"] = json!([{"range": {"expiration": {"lte": at}}}]);
        }
        let found = self.search(&self.name.replace('_', "-"), &query).await;
        let hits = found["hits"]["hits"].as_array().expect("hits");
        let row = |hit: &Value| {
            let text = |field: &str| hit["_source"][field].as_str().expect(field).to_owned();
            let name = format!("{}#{}@{}", text("resource"), text("relation"), text("subject"));
            (name, hit["_source"]["created_xid"].as_i64().unwrap_or(0))
        };
        hits.iter().map(row).collect()
    }

    async fn caught_up(&self, action: &str) {
        let group = format!("{}-{action}", self.name);
        feed::caught_up(services::kafka(), &group, &self.topic).await;
    }
}

async fn connected(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// The rows of the replica that live and had not expired at a time.
async fn in_replica(client: &tokio_postgres::Client, at: &str) -> BTreeSet<(String, i64)> {
    let query = "select namespace || ':' || object_id || '#' || relation || '@' || subject_namespace || ':'
                || subject_id || case subject_relation when '' then '' else '#' || subject_relation end,
                created_xid
         from kessel_rows
         where deleted_xid = 9223372036854775807
           and ($1::text = '' or expiration is null or expiration > nullif($1::text, '')::timestamptz)";
    let rows = client.query(query, &[&at]).await.expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn count(client: &tokio_postgres::Client, what: &str) -> i64 {
    client.query_one(&format!("select count(*) from {what}"), &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_and_index_end_with_what_lives_and_the_audit_with_each_change_once() {
    for recording in ENDS {
        let records = recording.records();
        let scene = Scene::with(&records).await;
        let actions = json!([{"action": "replica"}, {"action": "audit"}, scene.index()]);
        let killed = scene.environment(&actions).start();
        let client = connected(&scene.database).await;
        until("some rows", async || {
            let made = client.query_one("select to_regclass('kessel_rows')::text", &[]).await;
            let made: Option<String> = made.expect("an answer").get(0);
            made.as_ref()?;
            (count(&client, "kessel_rows").await > 20).then_some(())
        })
        .await;
        killed.kill();
        // What the killed one had not committed comes again, and so does all of it.
        let daemon = scene.environment(&actions).start();
        scene.caught_up("replica").await;
        scene.produce(&records).await;
        for action in ["replica", "audit", "search_index"] {
            scene.caught_up(action).await;
        }
        assert!(daemon.stop().success(), "a clean stop");
        let at = if recording.xids { "" } else { END };
        assert_eq!(in_replica(&client, at).await, recording.living(), "{}", recording.file);
        let audited = count(&client, "kessel_audit").await;
        assert_eq!(audited, recording.changes(&records) as i64, "{}", recording.file);
        let indexed = scene.indexed(at).await;
        assert_eq!(indexed, recording.living(), "{} in the index", recording.file);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_database_refuses_is_a_dead_letter_and_the_others_are_kept() {
    let recording = &ENDS[1];
    let mut records = recording.records();
    let spoilt = records.iter_mut().find(|record| {
        record
            .value
            .as_ref()
            .is_some_and(|value| String::from_utf8_lossy(value).contains("\"op\":\"c\""))
    });
    let spoilt = spoilt.expect("a creation");
    let text = String::from_utf8(spoilt.value.take().expect("a value")).expect("text");
    let at = text.find("\"after\":").expect("a row");
    let (before, after) = text.split_at(at);
    let after = after.replacen("\"object_id\":\"", "\"object_id\":\"\\u0000", 1);
    spoilt.value = Some(format!("{before}{after}").into_bytes());
    let scene = Scene::with(&records).await;
    let daemon = scene
        .environment(&json!([{"action": "replica", "retries": 1}]))
        .with("BACKOFF_BASE", "20ms")
        .start();
    scene.caught_up("replica").await;
    assert!(daemon.stop().success(), "a clean stop");
    let letters = kafka::read_topic(services::kafka(), &format!("{}.dlq", scene.name)).await;
    assert_eq!(letters.len(), 1);
    let client = connected(&scene.database).await;
    let missing = recording.living().len() - in_replica(&client, "").await.len();
    assert!(missing <= 1, "{missing} rows are missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_ends_the_same_in_whatever_order_its_changes_come_even_in_one_batch() {
    let recording = &ENDS[0];
    let mut records = recording.records();
    // Every partition from its end: deletions before creations, in the batches of a backlog.
    records.reverse();
    let scene = Scene::with(&records).await;
    let daemon = scene.environment(&json!([{"action": "replica"}, scene.index()])).start();
    scene.caught_up("replica").await;
    scene.caught_up("search_index").await;
    assert!(daemon.stop().success(), "a clean stop");
    let client = connected(&scene.database).await;
    assert_eq!(in_replica(&client, "").await, recording.living());
    let alias = format!("{}-live", scene.name.replace('_', "-"));
    let found = scene.search(&alias, &json!({"match_all": {}})).await;
    let view = count(&client, "kessel_relationships").await;
    let at = jiff::Timestamp::now().to_string();
    let relationships: BTreeSet<String> =
        in_replica(&client, &at).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(view, relationships.len() as i64, "a line each");
    let alive = in_replica(&client, &at).await.len();
    assert_eq!(found["hits"]["total"]["value"], alive, "the alias hides what has expired");
}
