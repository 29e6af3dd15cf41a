//! A connector that has lost its place for good: the log that it should go on with is gone.

use rdkafka::Message as _;
use serde_json::Value;

use super::SNAPSHOT;
use super::connector::Connector;
use super::database;
use test_support::feed;
use test_support::kafka::{create_topic, read_topic};
use test_support::{services, unique, until, until_within};

/// How many rows of a snapshot, and how many of them with this status, a topic holds.
async fn snapshot_rows(topic: &str, status: &str) -> (usize, usize) {
    let records = read_topic(services::kafka(), topic).await;
    let changes = records.iter().filter_map(|record| record.payload());
    let changes = changes.map(|value| serde_json::from_slice::<Value>(value).expect("json"));
    let rows: Vec<_> = changes.filter(|change| change["op"] == "r").collect();
    let with = rows.iter().filter(|row| row["after"]["status"] == status).count();
    (rows.len(), with)
}

/// If the slot was dropped, or the log behind it removed (`max_slot_wal_keep_size`), only the
/// tables hold what was committed since. `snapshot.mode=initial` fails then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connector_whose_log_is_gone_reads_the_tables_again() {
    let (database, prefix) = (database::another().await, unique("lost"));
    let crm = database.crm().await;
    let slot = prefix.replace('-', "_");
    let settings = [("slot.name", slot.as_str()), ("topic.creation.default.partitions", "1")];
    for table in feed::TABLES {
        create_topic(services::kafka(), &format!("{prefix}.public.{table}"), 1).await;
    }
    let topic = format!("{prefix}.public.purchase_ledger");
    let rows = crm.query_one("SELECT count(*) FROM purchase_ledger", &[]).await.expect("a number");
    let rows = usize::try_from(rows.get::<_, i64>(0)).expect("a few");

    let connector = Connector::start_with(&database, &prefix, &settings).await;
    let read = async |times: usize, voided: usize| {
        let found = snapshot_rows(&topic, "cancelled").await;
        (found == (times * rows, voided)).then_some(())
    };
    until_within(SNAPSHOT, "the first snapshot", async || read(1, 0).await).await;
    connector.remove().await;

    until("the slot to go", async || {
        let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
        crm.batch_execute(&drop).await.ok() // not while it is in use
    })
    .await;
    crm.batch_execute("UPDATE purchase_ledger SET status = 'cancelled'").await.expect("an update");

    let connector = Connector::start_with(&database, &prefix, &settings).await;
    until_within(SNAPSHOT, "the second snapshot", async || read(2, rows).await).await;
    connector.remove().await;
}
