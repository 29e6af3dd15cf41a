//! Records `tests/fixtures/decimals.*` from a real Debezium, PostgreSQL and Kafka: every
//! `decimal.handling.mode` x column type x value, with and without schemas, enveloped and flattened.
//! `tests/run decimals::record -- --ignored` writes the files again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use rdkafka::Message as _;
use reqwest::Client;
use serde_json::{Map, Value, json};
use tokio_postgres::{Client as Sql, Config, NoTls};

use super::{MODES, TABLES};
use test_support::recordings::fixture;
use test_support::services::{Connect, connect, kafka, postgres};
use test_support::{kafka::read_topic, unique, until};

/// Written as in SQL. A column that cannot hold a value exactly gets NULL.
const VALUES: [&str; 40] = [
    "0",
    "1",
    "-1",
    "7.5",
    "-7.5",
    "0.01",
    "-0.01",
    "0.0001",
    "12.3456",
    "-12.3456",
    "100",
    "150",
    "-150",
    "999",
    "1000",
    "1234",
    "1500",
    "-1500",
    "9999",
    "-9999",
    "1500.5",
    "1234.56",
    "-1234.56",
    "15000000",
    "12345678",
    "2500.00",
    "9999999999",
    "-9999999999",
    "9999999999.99",
    "99999999.9999",
    // In base64 these are "1500" (with scale 0, 2 and 4), "12E5" and "0000".
    "-2646732",
    "-26467.32",
    "-264.6732",
    "-26620.87",
    "-29293.56",
    // More digits than any other number type has.
    "123456789012345678901234567890",
    "-98765432109876543210.0123456789",
    "0.000000000000000001",
    "100000000000000000000",
    "0.10",
];

/// Values that are not finite. Only some columns hold them: `numeric(p,s)` holds no infinity.
const SPECIAL: [(&str, &str); 4] = [
    ("final_amount", "NaN"),
    ("fx_rate", "NaN"),
    ("fx_rate", "Infinity"),
    ("fx_rate", "-Infinity"),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes fixtures again"]
async fn record() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let name = unique("decimals").replace('-', "_");
    let sql = database(&name).await;
    let truth = truth(&sql).await;
    let mut lines = Vec::new();
    for mode in MODES {
        for schemas in [false, true] {
            for form in ["envelope", "flattened"] {
                let schema = if schemas { "schemas" } else { "plain" };
                let setting =
                    Setting { mode, schemas, form, prefix: format!("{mode}-{schema}-{form}") };
                let special = !schemas && form == "envelope";
                record_one(&name, &sql, &setting, special, &mut lines).await;
            }
        }
    }
    let file = File::create(fixture("decimals.jsonl.gz")).expect("a file");
    let mut gzip = GzBuilder::new().mtime(0).write(file, Compression::best());
    for line in &lines {
        writeln!(gzip, "{line}").expect("room");
    }
    gzip.finish().expect("room");
    let text = serde_json::to_string_pretty(&truth).expect("json");
    fs::write(fixture("decimals.truth.json"), text + "\n").expect("room");
}

struct Setting {
    mode: &'static str,
    schemas: bool,
    form: &'static str,
    prefix: String,
}

/// A database with a schema for each kind of table, all of their tables called `purchase_ledger`.
async fn database(name: &str) -> Sql {
    let server: Config = postgres().parse().expect("a URL");
    let sql = open(&server).await;
    sql.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database");
    let mut config = server.clone();
    let sql = open(config.dbname(name)).await;
    for (schema, columns) in TABLES {
        let defined: Vec<_> =
            columns.iter().map(|(column, kind)| format!("{column} {kind}")).collect();
        let table = format!("{schema}.purchase_ledger");
        let ddl = format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {table} (id uuid PRIMARY KEY, note text, {})",
            defined.join(", ")
        );
        sql.batch_execute(&ddl).await.expect("a table");
        if schema == "special" {
            for (index, (column, value)) in SPECIAL.into_iter().enumerate() {
                let insert = format!(
                    "INSERT INTO {table} (id, {column}) VALUES ('{}', '{value}')",
                    id(index)
                );
                sql.batch_execute(&insert).await.expect("a row");
            }
            continue;
        }
        for (index, value) in VALUES.iter().enumerate() {
            let fitting: Vec<_> = columns.iter().map(|(_, kind)| fitting(value, kind)).collect();
            let names: Vec<_> = columns.iter().map(|(column, _)| *column).collect();
            let insert = format!(
                "INSERT INTO {table} (id, {}) SELECT '{}', {}",
                names.join(", "),
                id(index),
                fitting.join(", ")
            );
            sql.batch_execute(&insert).await.expect("a row");
        }
    }
    sql
}

fn id(index: usize) -> String {
    format!("00000000-0000-4000-8000-{index:012}")
}

/// The value, where the type holds it exactly.
fn fitting(value: &str, kind: &str) -> String {
    let Some((precision, scale)) =
        kind.strip_prefix("numeric(").and_then(|rest| rest.strip_suffix(')')?.split_once(','))
    else {
        return match kind {
            "money" => format!(
                "CASE WHEN abs({value}) < 1e12 AND {value} = round({value}, 2) THEN ({value})::numeric::money END"
            ),
            _ => format!("({value})::numeric"),
        };
    };
    format!(
        "CASE WHEN abs({value}) < 1e{precision}::numeric / 1e{scale}::numeric AND {value} = round({value}, {scale}) THEN ({value})::numeric END"
    )
}

async fn open(config: &Config) -> Sql {
    let (client, connection) = config.connect(NoTls).await.expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}

/// SQL's values as text, by schema, row and column.
async fn truth(sql: &Sql) -> Value {
    let mut truth = Map::new();
    for (schema, columns) in TABLES {
        let mut rows = BTreeMap::new();
        let names: Vec<_> = columns
            .iter()
            .map(|(column, kind)| {
                if *kind == "money" {
                    format!("{column}::numeric::text")
                } else {
                    format!("{column}::text")
                }
            })
            .collect();
        let query = format!("SELECT id::text, {} FROM {schema}.purchase_ledger", names.join(", "));
        for row in sql.query(&query, &[]).await.expect("rows") {
            let cells: Map<_, _> = columns
                .iter()
                .enumerate()
                .map(|(index, (column, _))| {
                    let text: Option<String> = row.get(index + 1);
                    ((*column).to_owned(), json!(text))
                })
                .collect();
            rows.insert(row.get::<_, String>(0), Value::Object(cells));
        }
        truth.insert(schema.to_owned(), json!(rows));
    }
    Value::Object(truth)
}

/// Each row twice: read by the snapshot, and as an update captured from the log.
async fn record_one(
    database: &str,
    sql: &Sql,
    setting: &Setting,
    special: bool,
    lines: &mut Vec<Value>,
) {
    let ordinary: Vec<_> =
        TABLES.iter().map(|(schema, _)| *schema).filter(|schema| *schema != "special").collect();
    run(database, sql, setting, &setting.prefix, &ordinary, lines).await;
    if special {
        run(database, sql, setting, &format!("{}-special", setting.prefix), &["special"], lines)
            .await;
    }
}

async fn run(
    database: &str,
    sql: &Sql,
    setting: &Setting,
    prefix: &str,
    schemas: &[&str],
    lines: &mut Vec<Value>,
) {
    let http = Client::builder().no_proxy().build().expect("a client");
    let connector = unique("decimals");
    let url = format!("{}/connectors/{connector}", connect().url);
    let config = config(database, setting, prefix, &connector, schemas);
    let put = http.put(format!("{url}/config")).json(&config).send().await.expect("an answer");
    assert!(put.status().is_success(), "{}", put.text().await.expect("a body"));
    let failed = async || {
        let status = http.get(format!("{url}/status")).send().await.expect("an answer");
        let status: Value = status.json().await.expect("json");
        let task = &status["tasks"][0];
        (task["state"] == "FAILED").then(|| task["trace"].as_str().unwrap_or_default().to_owned())
    };
    let mut got = Vec::new();
    for round in 1..=2 {
        if round == 2 {
            for schema in schemas {
                let update = format!("UPDATE {schema}.purchase_ledger SET note = 'changed'");
                sql.batch_execute(&update).await.expect("rows are updated");
            }
        }
        let rows = |schema: &str| if schema == "special" { SPECIAL.len() } else { VALUES.len() };
        let wanted: usize = schemas.iter().map(|schema| rows(schema) * round).sum();
        got = until("the records", async || {
            if let Some(trace) = failed().await {
                println!("{prefix} failed: {trace}");
                return Some(Vec::new());
            }
            let records = read(prefix, schemas).await;
            (records.len() >= wanted).then_some(records)
        })
        .await;
    }
    println!("{prefix}: {} records", got.len());
    lines.extend(got);
    http.delete(&url).send().await.expect("an answer");
}

async fn read(prefix: &str, schemas: &[&str]) -> Vec<Value> {
    let mut lines = Vec::new();
    for schema in schemas {
        let topic = format!("{prefix}.{schema}.purchase_ledger");
        test_support::kafka::ensure_topic(kafka(), &topic, 1).await;
        for message in read_topic(kafka(), &topic).await {
            let text = |bytes: Option<&[u8]>| {
                bytes.map(|bytes| std::str::from_utf8(bytes).expect("text").to_owned())
            };
            lines.push(json!({
                "topic": topic,
                "partition": message.partition(),
                "offset": message.offset(),
                "timestamp_ms": message.timestamp().to_millis(),
                "key": text(message.key()),
                "value": text(message.payload()),
            }));
        }
    }
    lines
}

fn config(
    database: &str,
    setting: &Setting,
    prefix: &str,
    connector: &str,
    schemas: &[&str],
) -> Value {
    let Connect { database: (host, port), .. } = connect();
    let server = url::Url::parse(postgres()).expect("a URL");
    let tables: Vec<_> = schemas.iter().map(|schema| format!("{schema}.purchase_ledger")).collect();
    let slot = connector.replace('-', "_");
    let mut config = json!({
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": host,
        "database.port": port.to_string(),
        "database.dbname": database,
        "database.user": server.username(),
        "database.password": server.password().unwrap_or("none"),
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "slot.drop.on.stop": "true",
        "publication.name": slot,
        "publication.autocreate.mode": "filtered",
        "table.include.list": tables.join(","),
        "snapshot.mode": "initial",
        "poll.interval.ms": "50",
        "topic.prefix": prefix,
        "topic.creation.default.partitions": "1",
        "topic.creation.default.replication.factor": "-1",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": setting.schemas.to_string(),
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": setting.schemas.to_string(),
        "decimal.handling.mode": setting.mode,
    });
    if setting.form == "flattened" {
        config["transforms"] = json!("unwrap");
        config["transforms.unwrap.type"] = json!("io.debezium.transforms.ExtractNewRecordState");
        config["transforms.unwrap.add.fields"] = json!("op");
    }
    config
}
