//! Relationships: what happens to the rows of `relation_tuple` (behaviour section 9).

use std::sync::Arc;

use super::acting::{Acting, Source};
use super::actions::configured::{self, ActionList};
use super::actions::{Configured, Item, Parts};
use super::row::{self, Reading};
use crate::cdc::{Change, DecodeError};
use crate::config::{Family, Setting, Spec, value};
use crate::consumers::entry::{Dependencies, Entry};
use crate::engine::Lane;

const TABLE: &str = "relation_tuple";

/// The topic of the table's changes (`RELATIONSHIPS_TOPIC`).
static TOPIC: Setting<String> = Setting {
    key: "topic",
    variable: "RELATIONSHIPS_TOPIC",
    default: "kessel.cdc.public.relation_tuple",
    about: "the topic of relation_tuple",
    parse: value::topic,
};

/// The store deletes rows for good (`RELATIONSHIPS_HARD_DELETES`).
static HARD_DELETES: Setting<bool> = Setting {
    key: "hard_deletes",
    variable: "RELATIONSHIPS_HARD_DELETES",
    default: "false",
    about: "true where the store deletes rows instead of marking them, else false",
    parse: hard_deletes,
};

/// Whether a snapshot's rows count as living where no transactions are shown
/// (`RELATIONSHIPS_SNAPSHOT`).
static SNAPSHOT: Setting<bool> = Setting {
    key: "snapshot",
    variable: "RELATIONSHIPS_SNAPSHOT",
    default: "skip",
    about: "trust where the connector's snapshot reads living rows alone, else skip",
    parse: trusted,
};

fn hard_deletes(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "is neither true nor false".to_owned())
}

fn trusted(text: &str) -> Result<bool, String> {
    match text {
        "trust" => Ok(true),
        "skip" => Ok(false),
        _ => Err("is neither trust nor skip".to_owned()),
    }
}

/// What is done about every change (`RELATIONSHIPS_ACTIONS`).
static ACTIONS: ActionList = ActionList(Setting {
    key: "actions",
    variable: "RELATIONSHIPS_ACTIONS",
    default: "log",
    about: "the actions, by name, or a table each in a file",
    parse: configured::of_relationships,
});

/// What it declares.
pub static SPEC: Spec = Spec {
    name: "relationships",
    family: Family::Kessel,
    by_default: false,
    tables: &[],
    changes: &[&TOPIC],
    commands: &[],
    concurrency: "5",
    needs: &[],
    settings: &[&TOPIC, &HARD_DELETES, &SNAPSHOT, &ACTIONS],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        let (rows, configured) = settings(parts);
        let parts = Parts { spec: &SPEC, shared: parts };
        Ok(Arc::new(Acting::shared(rows, configured, &parts)?))
    },
    branches: |parts| {
        let (rows, configured) = settings(parts);
        Acting::branches(&rows, configured, &Parts { spec: &SPEC, shared: parts })
    },
};

fn settings(parts: &Dependencies<'_>) -> (Rows, Vec<Configured>) {
    let settings = parts.settings;
    let reading = Reading {
        hard_deletes: settings.of(&SPEC, &HARD_DELETES),
        trust_snapshot: settings.of(&SPEC, &SNAPSHOT),
    };
    (Rows { reading }, settings.of(&SPEC, &ACTIONS.0))
}

/// The changes of rows.
#[derive(Debug, Clone, Copy)]
struct Rows {
    reading: Reading,
}

impl Source for Rows {
    fn read(&self, change: &Change<'_>) -> Result<Result<Item, &'static str>, DecodeError> {
        if change.table != TABLE {
            return Ok(Err("other_table"));
        }
        Ok(row::read(change, self.reading)?.map(Item::Row))
    }

    fn lane(item: &Item) -> Lane {
        let Item::Row(change) = item;
        Lane::in_partition(&change.relationship)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::{self, Decoded};
    use crate::consumers::kessel::row::RowChange;
    use crate::recording::Recorded;

    fn explained(
        line: &str,
        reading: Reading,
    ) -> Result<Result<RowChange, &'static str>, DecodeError> {
        Recorded::from_line(line).expect("a record").lend(|record| {
            match cdc::decode(record, &cdc::Options::default()) {
                Ok(Decoded::Change(change)) => Ok(Rows { reading }.read(&change)?.map(|item| {
                    let Item::Row(change) = item;
                    change
                })),
                other => panic!("{other:?}"),
            }
        })
    }

    fn skip(read: Result<Result<RowChange, &'static str>, DecodeError>) -> &'static str {
        match read {
            Ok(Err(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn line(table: &str, op: &str, before: &str, after: &str) -> String {
        let value = format!(
            r#"{{"op":"{op}","before":{before},"after":{after},"source":{{"table":"{table}","ts_ms":1}}}}"#
        );
        let value = serde_json::Value::from(value);
        format!(r#"{{"topic":"kessel.cdc.public.{table}","key":"{{}}","value":{value}}}"#)
    }

    const ROW: &str = r#"{"namespace":"document","object_id":"1","relation":"viewer","userset_namespace":"user","userset_object_id":"a","userset_relation":"..."}"#;

    #[test]
    fn a_store_that_deletes_rows_is_read_as_it_says() {
        let hard = Reading { hard_deletes: true, trust_snapshot: false };
        let operation = |op: &str, before: &str, after: &str| match explained(
            &line(TABLE, op, before, after),
            hard,
        ) {
            Ok(Ok(change)) => change.operation.as_str(),
            other => panic!("{other:?}"),
        };
        assert_eq!(operation("d", ROW, "null"), "DELETE");
        assert_eq!(operation("u", "null", ROW), "UPDATE");
        let with_xids =
            ROW.replace('}', r#","created_xid":"5","deleted_xid":"9223372036854775807"}"#);
        let key = |lsn: &str| {
            let updated = line(TABLE, "u", "null", &with_xids);
            let updated =
                updated.replace(r#"\"ts_ms\":1"#, &format!(r#"\"ts_ms\":1,\"lsn\":{lsn}"#));
            match explained(&updated, hard) {
                Ok(Ok(change)) => change.idempotency_key(),
                other => panic!("{other:?}"),
            }
        };
        assert_ne!(key("7"), key("8"), "each change in place");
        let soft = Reading::default();
        assert_eq!(skip(explained(&line(TABLE, "d", ROW, "null"), soft)), "garbage_collected");
    }

    #[test]
    fn a_row_without_a_part_of_its_name_is_refused_and_another_table_is_not_its_own() {
        let row = ROW.replace("userset_object_id", "other");
        let error = explained(&line(TABLE, "c", "null", &row), Reading::default());
        let error = error.expect_err("a column is missing").to_string();
        assert!(error.contains("relation_tuple.userset_object_id"), "{error}");
        let other = explained(&line("caveat", "c", "null", ROW), Reading::default());
        assert_eq!(skip(other), "other_table");
    }
}
