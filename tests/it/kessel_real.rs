//! Kessel from end to end: a real SpiceDB on PostgreSQL, the connector and the publication of
//! `config/` on a real Debezium, and the daemon (behaviour section 9).
//!
//! SpiceDB has one schema, and all scenes share it and its tables. So all of a scene's ids begin
//! with its name, which its helpers add and take away again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};
use redis::AsyncCommands as _;
use serde_json::{Value, json};
use test_support::daemon::{Daemon, Environment, Log};
use test_support::services::Spicedb;
use test_support::{kafka, services, unique, until_within};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};
use url::Url;

use crate::full_path::connector::{Connector, Login};

/// A connector starts, and Connect gives it a task, while other tests take the processors.
const PATIENCE: Duration = Duration::from_secs(240);
/// The role of `config/spicedb/publication.sql`.
const ROLE: &str = "kessel_cdc";
const SCHEMA: &str = "use expiration
definition user {}
definition group {
    relation member: user | group#member
}
definition document {
    relation viewer: user | group#member | user with expiration
    permission view = viewer
}";

/// A relationship, as its parts are written: `document:readme#viewer@group:eng#member`.
struct Relationship<'a> {
    resource: (&'a str, &'a str),
    relation: &'a str,
    subject: (&'a str, &'a str),
    subject_relation: &'a str,
}

impl<'a> Relationship<'a> {
    fn of(text: &'a str) -> Self {
        let parts = || {
            let (resource, subject) = text.split_once('@')?;
            let (resource, relation) = resource.split_once('#')?;
            let (subject, subject_relation) = subject.split_once('#').unwrap_or((subject, ""));
            let (resource, subject) = (resource.split_once(':')?, subject.split_once(':')?);
            Some(Self { resource, relation, subject, subject_relation })
        };
        parts().unwrap_or_else(|| panic!("no relationship: {text}"))
    }
}

/// A connector on the shared SpiceDB, with topics and consumer groups of its own.
struct Scene {
    name: String,
    spicedb: &'static Spicedb,
    store: Client,
    connector: Connector,
}

impl Scene {
    /// `None` where there can be no SpiceDB; the run has said so.
    async fn start() -> Option<Self> {
        let spicedb = services::spicedb()?;
        let store = connected(&spicedb.database).await;
        let password = prepared(spicedb, &store).await;
        let name = unique("kessel-real").replace('-', "_");
        kafka::create_topic(services::kafka(), &topic(&name), 6).await;
        let (host, port) = &services::connect().database;
        let url = Url::parse(&spicedb.database).expect("a URL");
        let database = url.path().trim_start_matches('/');
        let login = Login { host, port: *port, name: database, user: ROLE, password };
        let settings = [("slot.name", name.as_str())];
        let connector = Connector::start_kessel_as(&login, &name, &settings).await;
        Some(Self { name, spicedb, store, connector })
    }

    /// Writes a relationship that is not there yet.
    async fn write(&self, relationship: &str) {
        self.update("OPERATION_CREATE", relationship).await;
    }

    async fn delete(&self, relationship: &str) {
        self.update("OPERATION_DELETE", relationship).await;
    }

    /// Writes a relationship that expires.
    async fn write_until(&self, relationship: &str, expires: Timestamp) {
        let mut relationship = self.body(&Relationship::of(relationship), "relation");
        relationship["optionalExpiresAt"] = expires.to_string().into();
        let update = json!({"operation": "OPERATION_CREATE", "relationship": relationship});
        asked(self.spicedb, "/v1/relationships/write", &json!({"updates": [update]})).await;
    }

    /// What every store says about a document: lines of the view, entries of the audit by their action, and
    /// documents of the alias.
    async fn stored(&self, document: &str) -> Stored {
        let (id, client) = (self.id(document), connected(services::postgres()).await);
        let view = format!("select count(*) from {}_view where object_id = $1", self.name);
        let living: i64 = client.query_one(&view, &[&id]).await.map_or(-1, |row| row.get(0));
        let audit = format!(
            "select action from {}_audit where resource = 'document:' || $1 order by \"timestamp\"",
            self.name
        );
        let audited = client.query(&audit, &[&id]).await.unwrap_or_default();
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let index = self.name.replace('_', "-");
        let base = services::opensearch();
        http.post(format!("{base}/{index}/_refresh")).send().await.expect("an answer");
        let query = json!({"query": {"term": {"object_id": id}}});
        let request = http.post(format!("{base}/{index}-live/_count")).json(&query);
        let found: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        Stored {
            living,
            audited: audited.iter().map(|row| row.get(0)).collect(),
            indexed: found["count"].as_i64().unwrap_or(-1),
        }
    }

    async fn until_stored(&self, document: &str, living: i64, audited: &[&str]) {
        let expected = Stored {
            living,
            audited: audited.iter().map(|it| (*it).into()).collect(),
            indexed: living,
        };
        until_within(PATIENCE, &format!("{expected:?}"), async || {
            (self.stored(document).await == expected).then_some(())
        })
        .await;
    }

    async fn epoch(&self) -> u64 {
        let client = redis::Client::open(services::redis()).expect("a URL");
        let mut redis = client.get_multiplexed_async_connection().await.expect("a connection");
        let epoch: Option<u64> =
            redis.get(format!("{}:document", self.name)).await.expect("an answer");
        epoch.unwrap_or(0)
    }

    async fn update(&self, operation: &str, relationship: &str) {
        let relationship = self.body(&Relationship::of(relationship), "relation");
        let update = json!({"operation": operation, "relationship": relationship});
        asked(self.spicedb, "/v1/relationships/write", &json!({"updates": [update]})).await;
    }

    /// Whether the subject has the permission that stands in the place of the relation:
    /// `document:readme#view@user:alice`.
    async fn check(&self, question: &str) -> bool {
        let mut question = self.body(&Relationship::of(question), "permission");
        question["consistency"] = json!({"fullyConsistent": true});
        let answer = asked(self.spicedb, "/v1/permissions/check", &question).await;
        answer["permissionship"] == "PERMISSIONSHIP_HAS_PERMISSION"
    }

    fn body(&self, relationship: &Relationship<'_>, relation: &str) -> Value {
        let object = |(of, id): (&str, &str)| json!({"objectType": of, "objectId": self.id(id)});
        json!({
            "resource": object(relationship.resource),
            relation: relationship.relation,
            "subject": {
                "object": object(relationship.subject),
                "optionalRelation": relationship.subject_relation,
            },
        })
    }

    /// A scene's own id.
    fn id(&self, id: &str) -> String {
        format!("{}/{id}", self.name)
    }

    /// How many rows SpiceDB keeps of a document, dead ones too.
    async fn rows(&self, document: &str) -> i64 {
        let query = "SELECT count(*) FROM relation_tuple WHERE object_id = $1";
        let row = self.store.query_one(query, &[&self.id(document)]).await.expect("a count");
        row.get(0)
    }

    /// A daemon of its own group, without Redis; without actions it has the default ones.
    fn environment(&self, actions: Option<&Value>) -> Environment {
        let environment = Environment::default()
            .with("KAFKA_BOOTSTRAP_SERVERS", services::kafka())
            .with("KAFKA_AUTO_OFFSET_RESET", "earliest")
            .with("CONSUMER_GROUP", &self.name)
            .with("DLQ_TOPIC", &self.dead_letters())
            .with("CONSUMERS", "relationships")
            .with("RELATIONSHIPS_TOPIC", &topic(&self.name))
            .with("LOG_LEVEL", "warn");
        match actions {
            Some(actions) => environment.with("RELATIONSHIPS_ACTIONS", &actions.to_string()),
            None => environment,
        }
    }

    /// Starts the daemon; its standard output is read.
    fn daemon(&self, actions: Option<&Value>) -> (Daemon, Log) {
        self.environment(actions).start_reading_output()
    }

    /// Waits until the action `log` has told exactly this of the scene's relationships. What is told
    /// of one of them is in order; of several it may not be.
    async fn told(&self, log: &Log, expected: &[&str]) {
        let expected = by_relationship(expected.iter().map(|line| (*line).to_owned()));
        until_within(PATIENCE, &format!("{expected:?}"), async || {
            let told = log.lines();
            let told = by_relationship(told.iter().filter_map(|line| self.change(line)));
            (told == expected).then_some(())
        })
        .await;
    }

    /// A line of the action `log` in the words of this file, where it is about this scene.
    fn change(&self, line: &str) -> Option<String> {
        let mut words = line.split_whitespace();
        let mut next = || words.next();
        let (operation, resource, relation, subject) = (next()?, next()?, next()?, next()?);
        resource.contains(&self.id("")).then(|| {
            let all = format!("{operation} {resource}#{relation}@{subject}");
            all.replace(&self.id(""), "")
        })
    }

    fn dead_letters(&self) -> String {
        format!("{}.dlq", self.name)
    }

    /// Stops everything and frees the slot. Nothing may have been set aside.
    async fn end(self, daemon: Daemon) {
        assert!(daemon.stop().success(), "a clean stop");
        let letters = kafka::read_topic(services::kafka(), &self.dead_letters()).await;
        assert!(letters.is_empty(), "{} dead letters", letters.len());
        self.connector.remove().await;
        // A server has few, and each keeps the log. Connect lets go of it a moment later.
        until_within(PATIENCE, "the slot to be free", async || {
            let drop = "SELECT pg_drop_replication_slot($1::text::name)";
            self.store.execute(drop, &[&self.name]).await.ok()
        })
        .await;
    }
}

/// What the stores say about a document.
#[derive(Debug, PartialEq, Eq)]
struct Stored {
    living: i64,
    audited: Vec<String>,
    indexed: i64,
}

fn topic(prefix: &str) -> String {
    format!("{prefix}.public.relation_tuple")
}

/// Operations in their order, by relationship.
fn by_relationship(changes: impl Iterator<Item = String>) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for change in changes {
        let (operation, relationship) = change.split_once(' ').expect("two words");
        all.entry(relationship.to_owned()).or_default().push(operation.to_owned());
    }
    all
}

async fn connected(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// Brings schema, role and publication once, and answers the role's password.
async fn prepared(spicedb: &Spicedb, store: &Client) -> &'static str {
    static PASSWORD: OnceCell<String> = OnceCell::const_new();
    let prepare = async || {
        asked(spicedb, "/v1/schema/write", &json!({"schema": SCHEMA})).await;
        let password = unique("p");
        let (role, publication) = ("pg_roles WHERE rolname", "pg_publication WHERE pubname");
        // A given SpiceDB may have been used before.
        if !exists(store, role, ROLE).await {
            run(store, &format!("CREATE ROLE {ROLE} LOGIN REPLICATION")).await;
        }
        run(store, &format!("ALTER ROLE {ROLE} PASSWORD '{password}'")).await;
        if !exists(store, publication, "kessel_cdc_publication").await {
            run(store, include_str!("../../config/spicedb/publication.sql")).await;
        }
        password
    };
    PASSWORD.get_or_init(prepare).await
}

async fn exists(store: &Client, what: &str, name: &str) -> bool {
    let query = format!("SELECT EXISTS (SELECT FROM {what} = $1)");
    store.query_one(&query, &[&name]).await.expect("an answer").get(0)
}

async fn run(store: &Client, sql: &str) {
    store.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// What SpiceDB answers; a refusal ends the test.
async fn asked(spicedb: &Spicedb, path: &str, body: &Value) -> Value {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.post(format!("{}{path}", spicedb.url)).bearer_auth(&spicedb.key);
    let answer = request.json(body).send().await.expect("SpiceDB answers");
    let (status, text) = (answer.status(), answer.text().await.expect("a body"));
    assert!(status.is_success(), "{path} {body}: {status} {text}");
    serde_json::from_str(&text).expect("json")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_real_spicedb_is_told_is_logged_and_its_collections_are_not() {
    let Some(scene) = Scene::start().await else { return };
    let (daemon, log) = scene.daemon(None);
    let (viewers, alice) =
        ("document:readme#viewer@group:eng#member", "group:eng#member@user:alice");
    let question = "document:readme#view@user:alice";
    scene.write(viewers).await;
    scene.write(alice).await;
    assert!(scene.check(question).await, "a member of the group views");
    let created = [format!("CREATE {viewers}"), format!("CREATE {alice}")];
    scene.told(&log, &created.each_ref().map(String::as_str)).await;

    scene.delete(viewers).await;
    assert!(!scene.check(question).await, "the group no longer views");
    let deleted = [&created[..], &[format!("DELETE {viewers}")]].concat();
    let deleted: Vec<&str> = deleted.iter().map(String::as_str).collect();
    scene.told(&log, &deleted).await;

    until_within(PATIENCE, "the collection", async || {
        (scene.rows("readme").await == 0).then_some(())
    })
    .await;
    // Of the same relationship, so its records lie behind those of the collection.
    scene.write(viewers).await;
    let again = format!("CREATE {viewers}");
    scene.told(&log, &[&deleted[..], &[&again]].concat()).await;
    scene.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_real_spicedb_is_told_reaches_every_store_and_leaves_it_again() {
    let Some(scene) = Scene::start().await else { return };
    let (name, index) = (&scene.name, scene.name.replace('_', "-"));
    let actions = json!([
        {"action": "cache_invalidate", "epoch": format!("{name}:{{namespace}}")},
        {"action": "replica", "table": format!("{name}_rows"), "view": format!("{name}_view")},
        {"action": "audit", "table": format!("{name}_audit")},
        {"action": "search_index", "index": index, "alias": format!("{index}-live")}]);
    let daemon = scene
        .environment(Some(&actions))
        .with("REDIS_URL", services::redis())
        .with("REDIS_KEY_PREFIX", &format!("{name}:"))
        .with("KESSEL_DATABASE_URL", services::postgres())
        .with("KESSEL_SEARCH_URL", services::opensearch())
        .start();
    let alice = "document:plan#viewer@user:alice";
    scene.write(alice).await;
    scene.until_stored("plan", 1, &["CREATE"]).await;
    let created = scene.epoch().await;
    assert!(created > 0, "caches were told");
    scene.delete(alice).await;
    scene.until_stored("plan", 0, &["CREATE", "DELETE"]).await;
    let deleted = scene.epoch().await;
    assert!(deleted > created, "caches were told");
    // It is over when its time comes, whoever collects it.
    scene.write_until("document:note#viewer@user:alice", Timestamp::now() + 5.seconds()).await;
    scene.until_stored("note", 0, &["CREATE", "EXPIRE"]).await;
    until_within(PATIENCE, "caches are told of both", async || {
        (scene.epoch().await >= deleted + 2).then_some(())
    })
    .await;
    scene.end(daemon).await;
}
