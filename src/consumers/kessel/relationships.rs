//! Relationships: what happens to the rows of `relation_tuple` (behaviour section 9).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::log::{Console, Line};
use super::row::{self, Reading, RowChange};
use crate::cdc::{Change, DecodeError};
use crate::config::{Family, Setting, Spec, value};
use crate::consumers::call::outcome;
use crate::consumers::entry::Entry;
use crate::engine::{Consumer, Context, Failure, Lane, Outcome, Route, Step, Steps, Taken};
use crate::metric_names::KESSEL_EVENTS;

const TABLE: &str = "relation_tuple";
const LOG: &str = "log";

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
    settings: &[&TOPIC, &HARD_DELETES, &SNAPSHOT],
};

/// How it is built.
pub const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        let settings = parts.settings;
        let reading = Reading {
            hard_deletes: settings.of(&SPEC, &HARD_DELETES),
            trust_snapshot: settings.of(&SPEC, &SNAPSHOT),
        };
        Arc::new(Relationships::new(reading))
    },
};

/// The relationships consumer.
pub struct Relationships {
    reading: Reading,
    console: Console,
    namespaces: Namespaces,
}

impl Relationships {
    fn new(reading: Reading) -> Self {
        Self { reading, console: Console::new(), namespaces: Namespaces::default() }
    }

    fn count(&self, change: &RowChange) {
        let operation = change.operation.as_str();
        let namespace = self.namespaces.label(&change.relationship.namespace);
        metrics::counter!(KESSEL_EVENTS, "operation" => operation, "namespace" => namespace)
            .increment(1);
    }
}

/// The types that have a label of their own. A store may have any number of them, and labels must not.
#[derive(Default)]
struct Namespaces(Mutex<HashSet<Box<str>>>);

impl Namespaces {
    const MOST: usize = 100;

    fn label(&self, namespace: &str) -> String {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < Self::MOST {
            known.insert(namespace.into());
        }
        if known.contains(namespace) { namespace.to_owned() } else { "other".to_owned() }
    }
}

impl Consumer for Relationships {
    type Work = RowChange;

    fn route(&self, change: &Change<'_>, _: Timestamp) -> Result<Route<RowChange>, DecodeError> {
        if change.table != TABLE {
            return Ok(Route::Skip("other_table"));
        }
        Ok(match row::read(change, self.reading)? {
            Ok(work) => {
                let lane = Lane::in_partition(&work.relationship);
                Route::Process { work, lane }
            }
            Err(reason) => Route::Skip(reason),
        })
    }

    fn reads_key_changes(&self) -> bool {
        true
    }

    fn steps(&self, change: &RowChange) -> Steps {
        Steps {
            lane: change.relationship.to_string(),
            steps: vec![Step::claim(change.idempotency_key()), Step::action(LOG)],
        }
    }

    async fn process(&self, cx: &Context, change: &RowChange) -> Result<Outcome, Failure> {
        let log = || async {
            cx.step(Taken::Action(LOG));
            self.console.write(&Line::new(change, cx.origin()));
            self.count(change);
            Ok(Some(Timestamp::now()))
        };
        Ok(outcome(&[cx.once(&change.idempotency_key(), log).await?], "nothing_to_log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::{self, Decoded};
    use crate::recording::Recorded;

    fn explained(line: &str, reading: Reading) -> Result<Route<RowChange>, DecodeError> {
        Recorded::from_line(line).expect("a record").lend(|record| {
            match cdc::decode(record, &cdc::Options::default()) {
                Ok(Decoded::Change(change)) => {
                    Relationships::new(reading).route(&change, Timestamp::UNIX_EPOCH)
                }
                other => panic!("{other:?}"),
            }
        })
    }

    fn skip(route: Result<Route<RowChange>, DecodeError>) -> &'static str {
        match route {
            Ok(Route::Skip(reason)) => reason,
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
    fn a_store_with_many_types_has_a_bounded_number_of_labels() {
        let namespaces = Namespaces::default();
        let types: Vec<String> = (0..150).map(|number| format!("type{number}")).collect();
        let labels = || types.iter().map(|name| namespaces.label(name)).collect::<Vec<_>>();
        let first = labels();
        assert_eq!(first[..100], types[..100]);
        assert!(first[100..].iter().all(|label| label == "other"));
        assert_eq!(labels(), first, "a label stays what it is");
    }

    #[test]
    fn a_store_that_deletes_rows_is_read_as_it_says() {
        let hard = Reading { hard_deletes: true, trust_snapshot: false };
        let operation = |op: &str, before: &str, after: &str| match explained(
            &line(TABLE, op, before, after),
            hard,
        ) {
            Ok(Route::Process { work, .. }) => work.operation.as_str(),
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
                Ok(Route::Process { work, .. }) => work.idempotency_key(),
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
