//! From a SpiceDB's tables to the daemon's log: the connector and the publication of `config/`, on tables
//! laid out as SpiceDB 1.56 does. What SpiceDB itself writes to them is in the recordings.

use std::collections::BTreeSet;

use test_support::daemon::Environment;
use test_support::{kafka, services, unique, until_within};
use tokio_postgres::Client;

use super::SNAPSHOT;
use super::connector::Connector;
use super::database;

const TABLES: &str = "
CREATE TABLE relation_tuple (
    namespace varchar NOT NULL, object_id varchar NOT NULL, relation varchar NOT NULL,
    userset_namespace varchar NOT NULL, userset_object_id varchar NOT NULL,
    userset_relation varchar NOT NULL,
    created_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    deleted_xid xid8 NOT NULL DEFAULT '9223372036854775807',
    caveat_name varchar, caveat_context jsonb, expiration timestamptz,
    PRIMARY KEY (namespace, object_id, relation, userset_namespace, userset_object_id,
        userset_relation, created_xid, deleted_xid));
CREATE TABLE relation_tuple_transaction (
    xid xid8 PRIMARY KEY DEFAULT pg_current_xact_id(), snapshot pg_snapshot,
    timestamp timestamp NOT NULL DEFAULT now(), metadata jsonb NOT NULL DEFAULT '{}');
CREATE TABLE namespace_config (
    namespace varchar NOT NULL, serialized_config bytea NOT NULL,
    created_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    deleted_xid xid8 NOT NULL DEFAULT '9223372036854775807',
    PRIMARY KEY (namespace, created_xid, deleted_xid));
CREATE TABLE caveat (
    name varchar NOT NULL, definition bytea NOT NULL,
    created_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    deleted_xid xid8 NOT NULL DEFAULT '9223372036854775807', PRIMARY KEY (name, deleted_xid));
CREATE TABLE schema (
    name varchar NOT NULL, chunk_index int NOT NULL, chunk_data bytea NOT NULL,
    created_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    deleted_xid xid8 NOT NULL DEFAULT '9223372036854775807',
    PRIMARY KEY (name, chunk_index, created_xid));
CREATE TABLE schema_revision (
    name varchar NOT NULL, hash bytea NOT NULL,
    created_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    deleted_xid xid8 NOT NULL DEFAULT '9223372036854775807', PRIMARY KEY (name, created_xid));";

const LIVING: &str = "deleted_xid = '9223372036854775807'::xid8";

/// Writes a row of `document:<id>#viewer@user:alice`.
async fn write(store: &Client, id: &str) {
    run(
        store,
        &format!(
            "INSERT INTO relation_tuple (namespace, object_id, relation, userset_namespace, \
             userset_object_id, userset_relation) \
             VALUES ('document', '{id}', 'viewer', 'user', 'alice', '...')"
        ),
    )
    .await;
}

async fn mark(store: &Client, id: &str) {
    let marked = "UPDATE relation_tuple SET deleted_xid = pg_current_xact_id()";
    run(store, &format!("{marked} WHERE object_id = '{id}' AND {LIVING}")).await;
}

async fn run(store: &Client, sql: &str) {
    store.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_the_rows_of_a_spicedb_is_logged_as_it_is_meant() {
    let (database, prefix) = (database::another().await, unique("kessel"));
    let store = database.crm().await;
    run(&store, TABLES).await;
    let publication = include_str!("../../../config/spicedb/publication.sql");
    run(&store, &publication.replace("TO kessel_cdc;", "TO debezium;")).await;
    for id in ["old", "dead"] {
        write(&store, id).await;
    }
    mark(&store, "dead").await;

    let topic = format!("{prefix}.public.relation_tuple");
    kafka::create_topic(services::kafka(), &topic, 6).await;
    let slot = prefix.replace('-', "_");
    let settings = [("slot.name", slot.as_str())];
    let connector = Connector::start_kessel(&database, &prefix, &settings).await;
    let environment = Environment::default()
        .with("KAFKA_BOOTSTRAP_SERVERS", services::kafka())
        .with("KAFKA_AUTO_OFFSET_RESET", "earliest")
        .with("CONSUMER_GROUP", &prefix)
        .with("DLQ_TOPIC", &format!("{prefix}.dlq"))
        .with("CONSUMERS", "relationships")
        .with("RELATIONSHIPS_TOPIC", &topic)
        .with("LOG_LEVEL", "warn");
    let (daemon, log) = environment.start_reading_output();
    let seen = || operations(&log.lines());
    let is = |expected: &[&str]| {
        let expected: BTreeSet<String> = expected.iter().map(|it| (*it).to_owned()).collect();
        (seen() == expected).then_some(())
    };
    // The marked row is not among them: the snapshot leaves it out.
    until_within(SNAPSHOT, "the snapshot", async || is(&["READ old"])).await;

    write(&store, "new").await;
    mark(&store, "old").await;
    write(&store, "old").await;
    run(&store, &format!("DELETE FROM relation_tuple WHERE NOT {LIVING}")).await;
    // Collected while it lives: it had expired.
    run(&store, "DELETE FROM relation_tuple WHERE object_id = 'new'").await;
    let all = ["READ old", "CREATE new", "DELETE old", "CREATE old", "EXPIRE new"];
    until_within(SNAPSHOT, "all changes", async || is(&all)).await;
    assert!(daemon.stop().success(), "a clean stop");
    connector.remove().await;
    let letters = kafka::read_topic(services::kafka(), &format!("{prefix}.dlq")).await;
    assert!(letters.is_empty(), "{} dead letters", letters.len());
}

/// Operations and documents in what a daemon has logged.
fn operations(lines: &[String]) -> BTreeSet<String> {
    let words = ["CREATE", "READ", "DELETE", "EXPIRE"];
    let change = |line: &String| {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let at = parts.iter().position(|part| words.contains(part))?;
        let document = parts.get(at + 1)?.strip_prefix("document:")?;
        Some(format!("{} {document}", parts[at]))
    };
    lines.iter().filter_map(change).collect()
}
