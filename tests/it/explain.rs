//! `explain` says what records are, one object a record, in order (behaviour section 11).

use crm_event_processors::cdc::Options;
use crm_event_processors::commands::explain::{self, Args, Context, Subject};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Map, Value, json};

fn args() -> Args {
    Args { file: None, topic: None, partition: None, offset: None, count: 1, json: true }
}

fn fixture(name: &str) -> Args {
    Args { file: Some(test_support::recordings::fixture(name)), ..args() }
}

fn output(args: &Args, kafka: ClientConfig) -> anyhow::Result<String> {
    let decide = |record: &crm_event_processors::cdc::Record<'_>, subject: &Subject<'_>| {
        let decision = match subject {
            Subject::Change(change) => json!({"decision": "process", "reason": null,
                "lane": change.table, "plan": ["event a b"]}),
            _ => json!({"decision": "skip", "reason": "no change"}),
        };
        Map::from_iter([(format!("consumer of {}", record.topic), decision)])
    };
    let context = Context {
        options: Options::default(),
        command_topics: &["reward_redemptions".to_owned()],
        decide: &decide,
        kafka,
    };
    let mut out = Vec::new();
    explain::run(args, &context, &mut out)?;
    Ok(String::from_utf8(out)?)
}

fn reports(args: &Args) -> Vec<Value> {
    output(args, ClientConfig::new())
        .expect("the fixture is explained")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect()
}

#[test]
fn every_recording_is_explained_record_by_record() {
    for (file, records) in [
        ("A_json_precise_adaptive", 598),
        ("E_unwrapped_precise_tombstone", 266),
        ("G_avro_registry", 278),
        ("J_restart_replay", 33),
        ("life/full", 319),
        ("spicedb/xids", 722),
    ] {
        let reports = reports(&fixture(&format!("{file}.jsonl.gz")));
        assert_eq!(reports.len(), records, "{file}");
        for report in reports {
            let (kind, reason) = (report["kind"].as_str().expect("text"), &report["reason"]);
            assert_eq!(kind == "change", report["op"].is_string());
            assert_eq!(matches!(kind, "none" | "error"), reason.is_string(), "{report}");
            assert_eq!(
                kind == "error",
                file.starts_with("G_") && reason != "tombstone",
                "{report}"
            );
            let purchase = report["topic"] == "crm.public.purchase_ledger";
            if reason == "tombstone" && purchase && !file.starts_with("G_") {
                assert!(!report["key"].as_object().expect("an object").is_empty(), "{report}");
            }
            assert_eq!(report["consumers"].as_object().map(Map::len), Some(1));
        }
    }
}

#[test]
fn the_object_has_the_fields_of_behaviour_md_in_its_order() {
    let text = output(&fixture("A_json_precise_adaptive.jsonl.gz"), ClientConfig::new())
        .expect("the fixture is explained");
    let line = text.lines().find(|line| line.contains("\"op\":\"d\"")).expect("a delete");
    let mut at = 0;
    for field in [
        "topic",
        "partition",
        "offset",
        "kind",
        "reason",
        "table",
        "op",
        "snapshot",
        "key",
        "before",
        "after",
        "unavailable",
        "position",
        "consumers",
    ] {
        let found = line.find(&format!("\"{field}\":")).expect(field);
        assert!(found >= at, "{field} in {line}");
        at = found;
    }
    let delete: Value = serde_json::from_str(line).expect("an object");
    assert_eq!(delete["before"], delete["key"], "what was invented is left out");
    assert_eq!(delete["after"], Value::Null);
    assert_eq!(delete["position"]["lsn"], 137_401_856);
}

#[test]
fn decimals_and_times_are_decoded_and_unavailable_columns_listed() {
    let reports = reports(&fixture("A_json_precise_adaptive.jsonl.gz"));
    let purchase = reports.iter().find(|report| report["op"] == "c").expect("an insert");
    let purchase = &purchase["after"];
    assert_eq!(purchase["final_amount"], "100.00");
    assert_eq!(purchase["transaction_date"], "2026-11-20T03:15:00Z");
    assert_eq!(purchase["metadata"], r#"{"channel": "pos", "terminal": 4}"#);
    let toast = reports.iter().find(|report| report["unavailable"][0].is_string());
    let toast = toast.expect("a row with a value that is not there");
    assert_eq!(toast["unavailable"], json!(["metadata", "note"]));
    assert_eq!(toast["after"].get("note"), None);
}

#[test]
fn for_people_it_shows_what_changed_and_what_follows() {
    let text = output(&Args { json: false, ..fixture("life/full.jsonl.gz") }, ClientConfig::new())
        .expect("the fixture is explained");
    assert!(text.contains("update in purchase_ledger, committed 2026-11-23T"), "{text}");
    assert!(text.contains("\"completed\" -> \"refunded\""), "{text}");
    assert!(text.contains(
        "=> consumer of crm.public.purchase_ledger: process, lane purchase_ledger\n       event a b"
    ));
}

#[test]
fn a_broken_line_stops_with_its_number_and_a_broken_record_does_not() {
    let directory = std::env::temp_dir().join(format!("explain-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the test");
    let file = directory.join("records.jsonl");
    let lines = concat!(
        r#"{"topic":"crm.public.codes","value":"{\"a\":"}"#,
        "\n",
        r#"{"topic":"reward_redemptions","value":"{\"event_id\":1}"}"#,
        "\n",
        "no record\n",
    );
    std::fs::write(&file, lines).expect("the file is written");
    let args = Args { file: Some(file), ..args() };
    let error = output(&args, ClientConfig::new()).expect_err("the third line is none");
    assert!(error.to_string().starts_with("line 3 is not a record"), "{error}");

    std::fs::write(args.file.as_ref().expect("set above"), &lines[..lines.len() - 10])
        .expect("the file is written");
    let kinds: Vec<_> =
        reports(&args).into_iter().map(|mut report| report["kind"].take()).collect();
    assert_eq!(kinds, ["error", "command"]);
    std::fs::remove_dir_all(directory).expect("the directory was made above");
}

#[test]
fn records_are_read_from_kafka_by_offset_up_to_the_end() {
    let cluster = MockCluster::new(1).expect("a cluster in this process");
    cluster.create_topic("crm.public.codes", 1, 1).expect("a topic");
    let mut kafka = ClientConfig::new();
    kafka.set("bootstrap.servers", cluster.bootstrap_servers());
    let producer: BaseProducer = kafka.create().expect("a producer");
    for id in 0..5 {
        let value = format!(r#"{{"id":{id},"status":"redeemed","__op":"c"}}"#);
        let record = BaseRecord::to("crm.public.codes").partition(0).payload(&value).key("{}");
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(std::time::Duration::from_secs(30)).expect("delivered");

    let mut args = Args {
        topic: Some("crm.public.codes".to_owned()),
        partition: Some(0),
        offset: Some(3),
        ..args()
    };
    let lines = |args: &Args| {
        let text = output(args, kafka.clone()).expect("explained");
        let ids = text.lines().map(|line| {
            let report: Value = serde_json::from_str(line).expect("an object");
            (report["offset"].clone(), report["after"]["id"].clone())
        });
        ids.collect::<Vec<_>>()
    };
    assert_eq!(lines(&args), [(json!(3), json!(3))]);
    args.count = 10;
    assert_eq!(lines(&args), [(json!(3), json!(3)), (json!(4), json!(4))]);
    args.offset = Some(5);
    let error = output(&args, kafka.clone()).expect_err("nothing is there yet");
    assert!(error.to_string().contains("holds no record yet"), "{error}");
}
