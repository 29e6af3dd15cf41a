//! Inputs that others met in public, through `explain` as a user runs it: `tests/fixtures/cases`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use test_support::recordings::fixture;

/// What `explain` says of a case, line by line.
fn explained(case: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .args(["explain", "--json"])
        .arg(fixture(&format!("cases/{case}.jsonl")))
        .env_clear()
        // By now a row that may come from a snapshot is old.
        .env("SNAPSHOT_POLICY", "all")
        .stdin(Stdio::null())
        .output()
        .expect("explain runs");
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

fn is_awarded(report: &Value) {
    let plan = &report["consumers"]["currency"]["plan"];
    let id = report["key"]["id"].as_str().expect("an id");
    let event = format!("event currency/award currency/award:purchase:{id}");
    assert_eq!(report["consumers"]["currency"]["decision"], "process", "{report}");
    assert!(plan.as_array().expect("a plan").contains(&json!(event)), "{plan}");
}

#[test]
fn a_partition_routed_to_its_parent_s_topic_is_the_parent_s() {
    let reports = explained("partition_routed_to_parent");
    let told: Vec<_> = reports.iter().map(|report| (&report["table"], &report["op"])).collect();
    let table = json!("purchase_ledger");
    // The third record does not name its operation.
    assert_eq!(told, [(&table, &json!("c")), (&table, &json!("d")), (&table, &json!("u"))]);
    for report in &reports {
        assert_eq!(report["key"], json!({"id": "aaaaaaaa-0000-4000-8000-000000000001"}));
    }
    is_awarded(&reports[0]);
    is_awarded(&reports[2]);
}

#[test]
fn times_at_the_ends_are_read() {
    let reports = explained("times_at_the_ends");
    assert_eq!(reports[0]["consumers"]["mission"]["decision"], "process", "a time became non-null");
    assert_eq!(reports[0]["after"]["signed_up_at"], "9999-12-31T23:59:59.999999Z");
    is_awarded(&reports[1]);
    is_awarded(&reports[2]);
}

#[test]
fn placeholders_of_every_type_are_unavailable_and_left_out() {
    let [report] = &explained("toast_placeholders")[..] else { panic!("one record") };
    let columns = ["tags", "note", "c_hstore", "c_uuids", "c_ints"];
    assert_eq!(report["unavailable"], json!(columns));
    let after = report["after"].as_object().expect("a row");
    assert!(columns.iter().all(|column| !after.contains_key(*column)), "{report}");
}

#[test]
fn what_can_be_read_over_is() {
    for case in ["envelope_with_an_added_member", "kcat_line", "byte_order_mark"] {
        let [report] = &explained(case)[..] else { panic!("{case}: one record") };
        assert_eq!((&report["kind"], &report["op"]), (&json!("change"), &json!("c")), "{case}");
        is_awarded(report);
    }
}

#[test]
fn explain_with_a_bad_setting_names_it_and_exits_as_the_daemon_does() {
    let output = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .args(["explain", "-"])
        .env_clear()
        .env("CDC_NUMERIC_SCALE", "two")
        .stdin(Stdio::null())
        .output()
        .expect("explain runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("CDC_NUMERIC_SCALE"), "{said}");
}

#[test]
fn the_head_of_the_input_may_be_a_byte_order_mark() {
    let case = std::fs::read_to_string(fixture("cases/kcat_line.jsonl")).expect("the fixture");
    let file = std::env::temp_dir().join(format!("crm-{}-mark.jsonl", std::process::id()));
    std::fs::write(&file, format!("\u{feff}{case}")).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .args(["explain", "--json"])
        .arg(&file)
        .env_clear()
        .output()
        .expect("explain runs");
    std::fs::remove_file(&file).expect("it was written above");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"kind\":\"change\""));
}

/// What `explain` says of one record of `purchase_ledger`, with these settings.
fn said_of(value: &Value, settings: &[(&str, &str)]) -> Value {
    let line = json!({"topic": "crm.public.purchase_ledger", "timestamp_ms": 1_795_860_000_000_i64,
        "key": "{\"id\":\"a\"}", "value": value});
    let mut explain = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .args(["explain", "--json"])
        .env_clear()
        .envs(settings.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("explain runs");
    let mut input = explain.stdin.take().expect("a pipe");
    writeln!(input, "{line}").expect("it reads");
    drop(input);
    let output = explain.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{value}");
    serde_json::from_slice(&output.stdout).expect("an object")
}

#[test]
fn what_decoding_is_told_is_configured() {
    let row = |amount: &str| {
        json!(json!({"op": "c", "after": {"id": "a", "final_amount": amount}}).to_string())
    };
    let amount = |text, settings| said_of(&row(text), settings)["after"]["final_amount"].take();
    assert_eq!(amount("1500", &[]), "1500");
    assert_eq!(amount("1500", &[("CDC_DECIMAL_MODE", "precise")]), "-26467.32");
    assert_eq!(amount("1500", &[("CDC_DECIMAL_MODE", "string")]), "1500");
    assert_eq!(amount("JxA=", &[]), "100.00");
    assert_eq!(amount("JxA=", &[("CDC_NUMERIC_SCALE", "3")]), "10.000");
    let scales = ("CDC_NUMERIC_SCALES", "purchase_ledger.final_amount=4,codes.face_value=0");
    assert_eq!(amount("JxA=", &[scales, ("CDC_NUMERIC_SCALE", "3")]), "1.0000");

    let tombstone = said_of(&Value::Null, &[]);
    assert_eq!((&tombstone["kind"], &tombstone["reason"]), (&json!("none"), &json!("tombstone")));
    let deleted = said_of(&Value::Null, &[("CDC_TOMBSTONES", "delete")]);
    assert_eq!((&deleted["kind"], &deleted["op"]), (&json!("change"), &json!("d")));
    assert_eq!((&deleted["key"], &deleted["before"]), (&json!({"id": "a"}), &Value::Null));
    assert_eq!(
        deleted["consumers"]["currency"],
        said_of(&json!("null"), &[])["consumers"]["currency"]
    );
}

#[test]
fn a_needed_column_that_is_not_there_is_named_and_null_is_anonymous() {
    let reports = explained("missing_column");
    let [user, status, null] = &reports[..] else { panic!("three records") };
    for consumer in ["currency", "mission", "tier"] {
        let reason = |report: &Value| {
            assert_eq!(report["consumers"][consumer]["decision"], "skip", "{report}");
            report["consumers"][consumer]["reason"].as_str().expect("a reason").to_owned()
        };
        for (report, column) in [(user, "user_id"), (status, "status")] {
            let expected = format!("dead letter: column purchase_ledger.{column} is not there");
            assert!(reason(report).starts_with(&expected), "{consumer}: {}", reason(report));
        }
        assert_eq!(reason(null), "anonymous");
    }
}
