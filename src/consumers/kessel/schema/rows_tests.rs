use super::super::testing::{TRUSTING, read, records};
use super::*;
use crate::recording::Recorded;

const RESTRICTED: Reading = Reading { hard_deletes: false, trust_snapshot: false };
const HARD: Reading = Reading { hard_deletes: true, trust_snapshot: true };

/// A change of `caveat`, `schema` or another table, with `op` and images as JSON.
fn record(table: &str, op: &str, before: &str, after: &str) -> Recorded {
    let value = format!(
        r#"{{"op":"{op}","before":{before},"after":{after},
            "source":{{"table":"{table}","lsn":70,"txId":7,"ts_us":7000,"ts_ms":7,
            "sequence":"[\"60\",\"70\"]"}}}}"#
    );
    Recorded {
        topic: format!("kessel.cdc.public.{table}"),
        partition: 0,
        offset: 3,
        timestamp_ms: Some(7),
        key: Some(br#"{"name":"x"}"#.to_vec()),
        value: Some(value.into_bytes()),
        headers: Vec::new(),
    }
}

const CHUNK: &str = r#"{"name":"unified_schema","chunk_index":1,"chunk_data":"AAA="}"#;
const MARKED: &str = r#"{"name":"unified_schema","chunk_index":1,
    "chunk_data":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==","created_xid":"NQ==","deleted_xid":"Nw=="}"#;

fn chunk(record: &Recorded, reading: Reading) -> Result<bool, &'static str> {
    read(record, reading).map(|row| match row.part {
        Part::Chunk(1, content) => content.is_some(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_row_that_is_marked_is_dead_whatever_stands_for_its_content() {
    let row = read(&record("schema", "u", "null", MARKED), RESTRICTED).expect("a row");
    assert_eq!((row.part, row.created_xid), (Part::Chunk(1, None), Some(5)));
    assert_eq!(row.commit, Commit::Xid(7), "the marking is the later commit");
    let plain = MARKED.replace("NQ==", "5").replace("\"Nw==\"", "\"7\"");
    assert_eq!(chunk(&record("schema", "r", "null", &plain), RESTRICTED), Ok(false));
    let text =
        MARKED.replace("X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==", "__debezium_unavailable_value");
    assert_eq!(chunk(&record("schema", "u", "null", &text), RESTRICTED), Ok(false));
}

#[test]
fn a_content_that_is_not_told_never_overwrites_one() {
    let living = MARKED.replace("Nw==", "OTIyMzM3MjAzNjg1NDc3NTgwNw==");
    let record = record("schema", "u", "null", &living);
    assert_eq!(chunk(&record, RESTRICTED), Err("content_not_told"));
}

#[test]
fn without_transactions_an_update_is_a_marking_and_a_delete_is_collection() {
    assert_eq!(chunk(&record("schema", "c", "null", CHUNK), RESTRICTED), Ok(true));
    assert_eq!(chunk(&record("schema", "u", "null", CHUNK), RESTRICTED), Ok(false));
    let delete = record("schema", "d", CHUNK, "null");
    assert_eq!(chunk(&delete, RESTRICTED), Err("garbage_collected"));
    assert_eq!(
        chunk(&record("schema", "r", "null", CHUNK), RESTRICTED),
        Err("snapshot_not_trusted")
    );
    assert_eq!(chunk(&record("schema", "r", "null", CHUNK), TRUSTING), Ok(true));
    assert_eq!(chunk(&delete, HARD), Ok(false));
    assert_eq!(chunk(&record("schema", "u", "null", CHUNK), HARD), Ok(true));
}

#[test]
fn a_commit_lies_behind_the_one_before_it_and_a_snapshot_before_all_that_is_streamed() {
    let streamed = read(&record("schema", "c", "null", CHUNK), TRUSTING).expect("a row");
    assert_eq!(streamed.commit, Commit::Place { at: 60, streamed: true });
    assert_eq!((streamed.written_by, streamed.offset), (7000, 3));
    let snapshot = read(&record("schema", "r", "null", CHUNK), TRUSTING).expect("a row");
    assert_eq!(snapshot.commit, Commit::Place { at: 60, streamed: false });
    assert!(snapshot.commit < streamed.commit && streamed.commit < Commit::Xid(1));
}

#[test]
fn the_collection_of_a_caveat_whose_writer_is_invented_is_no_error() {
    let before = r#"{"name":"x","definition":"","created_xid":"","deleted_xid":"Nw=="}"#;
    let read = read(&record("caveat", "d", before, "null"), RESTRICTED);
    assert_eq!(read, Err("garbage_collected"));
}

#[test]
fn a_definition_that_is_collected_is_dead_although_its_marking_was_missed() {
    let before =
        r#"{"namespace":"x","serialized_config":"","created_xid":"NQ==","deleted_xid":"Nw=="}"#;
    let row = read(&record("namespace_config", "d", before, "null"), RESTRICTED).expect("a row");
    assert_eq!((row.part, row.created_xid), (Part::Definition("x".into(), None), Some(5)));
}

#[test]
fn other_names_and_tables_are_left_alone() {
    let other = CHUNK.replace("unified_schema", "draft");
    assert_eq!(chunk(&record("schema", "c", "null", &other), RESTRICTED), Err("another_name"));
    assert_eq!(chunk(&record("metadata", "c", "null", CHUNK), RESTRICTED), Err("another_table"));
}

#[test]
fn what_is_no_definition_is_an_error_that_names_the_column() {
    let after = r#"{"namespace":"x","serialized_config":"/////w=="}"#;
    let error = record("namespace_config", "c", "null", after).lend(|record| {
        let options = crate::cdc::Options::default();
        match crate::cdc::decode(record, &options).expect("a sound record") {
            crate::cdc::Decoded::Change(change) => {
                super::read(&change, TRUSTING).expect_err("none")
            }
            crate::cdc::Decoded::Nothing(nothing) => panic!("{nothing:?}"),
        }
    });
    assert!(error.to_string().contains("serialized_config"), "{error}");
}

#[test]
fn a_recorded_key_change_is_told_once() {
    let records = records("spicedb2/xids.jsonl.gz");
    let markings = records
        .iter()
        .filter_map(|record| read(record, RESTRICTED).ok())
        .filter(|row| matches!(row.part, Part::Caveat(_, None)));
    let mut markings: Vec<_> = markings.map(|row| (row.created_xid, row.commit)).collect();
    let all = markings.len();
    markings.sort_unstable();
    markings.dedup();
    assert!(all > 0 && markings.len() <= all);
    let skipped = records.iter().filter(|record| read(record, RESTRICTED) == Err("key_change"));
    assert!(skipped.count() > 0, "the other half of each is left out");
}
