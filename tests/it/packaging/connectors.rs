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
        // Set by Confluent, or by other names; no variables of a worker stand behind values.
        let refused = ["plugin.name", "key.converter", "value.converter", "poll.interval.ms"];
        assert!(!refused.contains(&name.as_str()), "{name}");
        assert!(!name.starts_with("topic.creation.default."), "{name}");
        // An alias that `after.state.only` has for itself.
        assert!(!name.starts_with("transforms.unwrap."), "{name}");
        assert!(value.as_str().is_some_and(|value| !value.contains("${")), "{name}: {value}");
    }
}
