//! The connectors of `config/debezium`: one for Kafka Connect, one for Confluent's managed one.

use serde_json::{Map, Value};

use super::file;

type Config = Map<String, Value>;

fn config(name: &str) -> Config {
    serde_json::from_str(&file(&format!("config/debezium/{name}.json"))).expect("json")
}

fn both() -> [Config; 2] {
    [config("connector"), config("confluent-managed")]
}

#[test]
fn a_connector_whose_log_is_gone_reads_the_tables_again_and_an_idle_one_lets_go_of_the_log() {
    for config in both() {
        assert_eq!(config["snapshot.mode"], "when_needed");
        let beats: u32 =
            config["heartbeat.interval.ms"].as_str().expect("text").parse().expect("ms");
        assert!(beats > 0, "Debezium's default is none");
    }
}

/// What behaviour section 9 asks of the connector of a SpiceDB's store.
#[test]
fn kessels_connector_shows_transactions_keeps_a_row_in_one_partition_and_reads_living_rows() {
    let config = config("kessel");
    assert_eq!(config["include.unknown.datatypes"], "true");
    assert_eq!(config["skipped.operations"], "none", "a truncate must be seen");
    assert_eq!(config["topic.creation.default.cleanup.policy"], "delete", "no row may be lost");
    let keys = config["message.key.columns"].as_str().expect("text");
    let of_tuples = keys.split(';').find_map(|key| key.strip_prefix("public.relation_tuple:"));
    assert!(of_tuples.is_some_and(|columns| !columns.contains("xid")), "{keys}");
    let marked = ["relation_tuple", "namespace_config", "caveat", "schema", "schema_revision"];
    let tables: Vec<String> = marked.iter().map(|table| format!("public.{table}")).collect();
    let overridden = config["snapshot.select.statement.overrides"].as_str().expect("text");
    assert_eq!(overridden, tables.join(","));
    let included = config["table.include.list"].as_str().expect("text");
    for table in &tables {
        assert!(included.split(',').any(|name| name == table), "{table}");
        let select = &config[&format!("snapshot.select.statement.overrides.{table}")];
        let select = select.as_str().expect("text");
        assert!(select.ends_with("WHERE deleted_xid = '9223372036854775807'::xid8"), "{select}");
    }
}

#[test]
fn both_connectors_write_the_same_records_to_the_same_topics() {
    let [own, managed] = both();
    for same in [
        "slot.name",
        "publication.name",
        "publication.autocreate.mode",
        "table.include.list",
        "topic.prefix",
        "decimal.handling.mode",
        "value.converter.replace.null.with.default",
    ] {
        assert_eq!(own[same], managed[same], "{same}");
    }
    let publication = file("config/postgres/30-publication.sql");
    let publication = publication.split_once("FOR TABLE").expect("tables").1;
    let published: Vec<_> = publication.split([',', ';']).map(str::trim).collect();
    let included = own["table.include.list"].as_str().expect("text");
    assert_eq!(published.join(",").trim_end_matches(','), included);
}

#[test]
fn the_managed_connector_is_given_only_what_it_takes() {
    let managed = config("confluent-managed");
    assert_eq!(managed["connector.class"], "PostgresCdcSourceV2");
    assert_eq!(managed["output.data.format"], "JSON");
    assert_eq!(managed["after.state.only"], "false");
    for (name, value) in &managed {
        // Confluent sets or renames these. Its values cannot use a worker's variables.
        let refused = ["plugin.name", "key.converter", "value.converter", "poll.interval.ms"];
        assert!(!refused.contains(&name.as_str()), "{name}");
        assert!(!name.starts_with("topic.creation.default."), "{name}");
        // `after.state.only` uses this alias itself.
        assert!(!name.starts_with("transforms.unwrap."), "{name}");
        assert!(value.as_str().is_some_and(|value| !value.contains("${")), "{name}: {value}");
    }
}
