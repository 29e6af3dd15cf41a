//! Every recorded record decodes to what SQL said, or is skipped for its documented reason.

use std::collections::{HashMap, HashSet};

use bigdecimal::BigDecimal;
use crm_event_processors::cdc::{self, Change, Decoded, Field, Nothing, Op, Options, Row};
use crm_event_processors::recording::Recorded;
use jiff::{Timestamp, civil, tz::Offset};
use serde::Deserialize;
use serde_json::Value;

use test_support::recordings::{fixture, known, unpacked};

type SqlRow = HashMap<String, Option<String>>;

#[derive(Deserialize)]
struct Truth {
    truth_id: String,
    table: String,
    op: String,
    replica_identity: Option<String>,
    primary_key: Option<Vec<String>>,
    before: Option<SqlRow>,
    after: Option<SqlRow>,
    unavailable_in_event: Vec<String>,
}

#[derive(Deserialize)]
struct Label {
    line: usize,
    what: String,
    truth_id: Option<String>,
}

/// How one recording differs from the others.
#[derive(Clone, Copy)]
struct Variant {
    file: &'static str,
    /// Records in the file, by its README.
    records: usize,
    /// Records that hold a change.
    changes: usize,
    /// xid8 and pg_snapshot columns are there (`include.unknown.datatypes=true`).
    unknown_types: bool,
    /// `schemas.enable=true`: types of tables outside the catalogue are known too.
    schemas: bool,
    /// Numerics went through a double: only 15 digits are left.
    doubles: bool,
    /// `time.precision.mode=connect`: timestamps without time zone are cut to milliseconds.
    milliseconds: bool,
    /// `replace.null.with.default=true`, the converter's default.
    null_is_default: bool,
    /// ExtractNewRecordState: no `before`, no log position.
    flattened: bool,
}

const PLAIN: Variant = Variant {
    file: "A_json_precise_adaptive",
    records: 598,
    changes: 249,
    unknown_types: false,
    schemas: false,
    doubles: false,
    milliseconds: false,
    null_is_default: true,
    flattened: false,
};

const VARIANTS: &[Variant] = &[
    PLAIN,
    Variant { file: "B_json_schemas_enabled_precise", records: 596, schemas: true, ..PLAIN },
    Variant { file: "C_json_string_isostring", records: 278, ..PLAIN },
    Variant { file: "C2_json_string_connect", records: 278, milliseconds: true, ..PLAIN },
    Variant { file: "D_json_double_microseconds", records: 278, doubles: true, ..PLAIN },
    Variant { file: "E_unwrapped_precise_tombstone", records: 266, flattened: true, ..PLAIN },
    Variant { file: "E2_unwrapped_string_rewrite", records: 584, flattened: true, ..PLAIN },
    Variant { file: "F_json_sr_framed", records: 598, ..PLAIN },
    Variant {
        file: "H_json_precise_unknown_types",
        records: 286,
        changes: 253,
        unknown_types: true,
        ..PLAIN
    },
    Variant { file: "I_json_decimal_numeric", records: 278, null_is_default: false, ..PLAIN },
];

fn truths() -> HashMap<String, Truth> {
    unpacked("truth.jsonl.gz")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a truth"))
        .map(|truth: Truth| (truth.truth_id.clone(), truth))
        .collect()
}

fn column_types() -> HashMap<String, HashMap<String, String>> {
    let text = std::fs::read_to_string(fixture("column_types.json")).expect("the fixture is there");
    serde_json::from_str(&text).expect("tables with their columns")
}

/// Compares one recording with the truth.
struct Walk<'t> {
    variant: Variant,
    types: &'t HashMap<String, HashMap<String, String>>,
    compared: usize,
}

impl Walk<'_> {
    fn change(&mut self, what: &str, truth: &Truth, change: &Change<'_>) {
        // The connector sees a key change only in columns that it reads.
        let key_change = moved(truth, |column| self.has(&truth.table, column));
        if !self.variant.flattened {
            assert_eq!(matches!(what, "d_key_change" | "c_after_key_change"), key_change, "label");
        }
        let op = match what {
            "c" | "c_after_key_change" => Op::Create,
            "u" => Op::Update,
            "d" | "d_key_change" | "tombstone_as_literal_null" => Op::Delete,
            "r" | "r_incremental" => Op::Read,
            other => panic!("{other} is no change"),
        };
        assert_eq!(change.op, op);
        assert_eq!(change.key_change, key_change, "key change");
        assert_eq!(change.snapshot, op == Op::Read, "snapshot");
        assert_eq!(change.table, truth.table);
        assert_eq!(change.source.table, truth.table);
        if self.variant.flattened {
            assert_eq!(change.position, None);
        } else {
            let position = change.position.expect("every envelope here has a position");
            assert_eq!(change.commit_time.as_millisecond(), position.commit_us.div_euclid(1000));
            assert_eq!((change.source.name.as_ref(), change.source.db.as_ref()), ("crm", "crm"));
        }

        let image = if op == Op::Delete { &truth.before } else { &truth.after };
        let image = image.as_ref().expect("the truth has the image of the row");
        let key: HashSet<&str> = truth
            .primary_key
            .iter()
            .flatten()
            .map(String::as_str)
            .filter(|column| self.has(&truth.table, column))
            .collect();
        assert_eq!(names(&change.key), key, "columns of the key");
        self.row(truth, "key", image, &change.key);

        match &change.after {
            None => assert_eq!(op, Op::Delete),
            Some(after) => {
                assert_eq!(names(after), self.columns(truth, image), "columns of after");
                self.row(truth, "after", image, after);
            }
        }
        self.before(what, truth, change, &key);
    }

    fn before(&mut self, what: &str, truth: &Truth, change: &Change<'_>, key: &HashSet<&str>) {
        let full = truth.replica_identity.as_deref() == Some("full");
        let held = match change.op {
            Op::Create | Op::Read => false,
            // PostgreSQL sends the old key when it changed, also where the connector leaves the changed
            // column out.
            Op::Update => (full || moved(truth, |_| true)) && !self.variant.flattened,
            Op::Delete => what != "tombstone_as_literal_null",
        };
        let Some(before) = &change.before else {
            assert!(!held, "before is missing");
            return;
        };
        assert!(held, "before should not be there");
        let image = truth.before.as_ref().expect("the truth has the image before");
        if full {
            assert!(!change.before_invented);
            assert_eq!(names(before), self.columns(truth, image), "columns of before");
        } else {
            assert_eq!(&names(before), key, "only the key of an invented row is true");
        }
        self.row(truth, "before", image, before);
    }

    fn has(&self, table: &str, column: &str) -> bool {
        let unknown = matches!(self.types[table][column].as_str(), "xid8" | "pg_snapshot");
        self.variant.unknown_types || !unknown
    }

    fn columns<'i>(&self, truth: &Truth, image: &'i SqlRow) -> HashSet<&'i str> {
        image.keys().map(String::as_str).filter(|column| self.has(&truth.table, column)).collect()
    }

    fn row(&mut self, truth: &Truth, part: &str, image: &SqlRow, row: &Row<'_>) {
        for column in names(row) {
            let unavailable = truth.unavailable_in_event.contains(&format!("{part}.{column}"));
            let sql = image[column].as_deref();
            let place = format!("{} {part}.{column}", truth.table);
            match (row.field(column), sql) {
                (Field::Unavailable, _) => {
                    assert!(unavailable, "{place} is said to be unavailable")
                }
                _ if unavailable => panic!("{place} should be unavailable"),
                (Field::Null, None) => {}
                (Field::Value(raw), None) => {
                    // SQL NULL arrives as the column's default (fixtures/README.md, 2).
                    let defaulted =
                        (truth.table.as_str(), column) == ("purchase_ledger", "discount_amount");
                    assert!(defaulted && self.variant.null_is_default, "{place}: NULL, not {raw}");
                    assert_eq!(row.decimal(column), Ok(Field::Value(0.into())));
                }
                (Field::Value(_), Some(sql)) => {
                    self.value(truth, row, column, sql, &place);
                    continue;
                }
                (Field::Null | Field::Missing, Some(_)) | (Field::Missing, None) => {
                    panic!("{place} should hold a value")
                }
            }
            self.compared += 1;
        }
    }

    fn value(&mut self, truth: &Truth, row: &Row<'_>, column: &str, sql: &str, place: &str) {
        let sql_type = self.types[&truth.table][column].as_str();
        match sql_type {
            // Without catalogue and schema the scale of base64 is not known.
            "numeric" | "numeric(38,10)" | "numeric(9,0)"
                if truth.table == "type_zoo" && !self.variant.schemas =>
            {
                return;
            }
            numeric if numeric.starts_with("numeric") && !numeric.ends_with("[]") => {
                let said: BigDecimal = sql.parse().expect("a numeric");
                let got = known(row.decimal(column), place);
                if self.variant.doubles {
                    assert_eq!(got.with_prec(15), said.with_prec(15), "{place}");
                } else {
                    assert_eq!(got, said, "{place}");
                }
            }
            "timestamp with time zone" | "timestamp(0) with time zone" => {
                let said: Timestamp = sql.parse().expect("a timestamptz");
                assert_eq!(known(row.timestamp(column), place), said, "{place}");
            }
            local if local.starts_with("timestamp") && local.ends_with("without time zone") => {
                let said: civil::DateTime = sql.parse().expect("a timestamp");
                let said = Offset::UTC.to_timestamp(said).expect("in range");
                let got = known(row.timestamp(column), place);
                if self.variant.milliseconds {
                    assert_eq!(got.as_millisecond(), said.as_millisecond(), "{place}");
                } else {
                    assert_eq!(got, said, "{place}");
                }
            }
            "date" => assert_eq!(known(row.date(column), place).to_string(), sql, "{place}"),
            "bigint" | "integer" | "smallint" | "oid" | "xid8" => {
                assert_eq!(known(row.integer(column), place).to_string(), sql, "{place}");
            }
            "boolean" => assert_eq!(known(row.bool(column), place).to_string(), sql, "{place}"),
            "bytea" => {
                let hex: String = known(row.bytes(column), place)
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                assert_eq!(format!("\\x{hex}"), sql, "{place}");
            }
            "text[]" => {
                let raw = row.raw(column).expect("it was there just now");
                let [got, said]: [Value; 2] =
                    [raw.get(), sql].map(|text| serde_json::from_str(text).expect("an array"));
                assert_eq!(got, said, "{place}");
            }
            text if text.starts_with("character")
                || matches!(text, "text" | "uuid" | "jsonb" | "inet" | "tstzrange")
                || (!text.ends_with("[]")
                    && (text.ends_with("_status") || text.starts_with("wallet_")))
                || text == "ledger_side" =>
            {
                assert_eq!(known(row.text(column), place), sql, "{place}");
            }
            // No consumer reads these types, and tables that consumers read may not hold them. So
            // only NULL or not is compared.
            other => {
                let unread = ["type_zoo", "relation_tuple_transaction"];
                assert!(unread.contains(&truth.table.as_str()), "{place} is {other}");
                return;
            }
        }
        self.compared += 1;
    }
}

fn names<'r>(row: &'r Row<'_>) -> HashSet<&'r str> {
    row.columns().map(|(name, _)| name).collect()
}

/// Whether the change moved the row to another key, as far as `seen` columns show.
fn moved(truth: &Truth, seen: impl Fn(&str) -> bool) -> bool {
    match (&truth.before, &truth.after, &truth.primary_key) {
        (Some(before), Some(after), Some(key)) => {
            key.iter().any(|column| seen(column) && before[column] != after[column])
        }
        _ => false,
    }
}

fn skip_reason(what: &str) -> Option<(Nothing, Option<&'static str>)> {
    Some(match what {
        "tombstone" => (Nothing::Tombstone, None),
        "t" => (Nothing::Truncate, Some("t")),
        "message" => (Nothing::Message, Some("m")),
        "heartbeat" => (Nothing::Heartbeat, None),
        "transaction_begin" | "transaction_end" => (Nothing::TransactionMarker, None),
        _ => return None,
    })
}

#[test]
fn every_json_record_decodes_to_the_truth_or_is_skipped_for_its_reason() {
    let (truths, types) = (truths(), column_types());
    for variant in VARIANTS {
        let mut walk = Walk { variant: *variant, types: &types, compared: 0 };
        let (mut changes, mut skipped) = (0, 0);
        let mut seen = HashSet::new();
        for line in unpacked(&format!("{}.jsonl.gz", variant.file)).lines() {
            let label: Label = serde_json::from_str(line).expect("a label");
            eprintln!("{} line {} ({})", variant.file, label.line, label.what); // shown on failure
            let truth = label.truth_id.as_ref().map(|id| &truths[id]);
            Recorded::from_line(line).expect("a record").lend(|record| {
                let decoded = cdc::decode(record, &Options::default()).expect("it decodes");
                match (skip_reason(&label.what), decoded) {
                    (Some((reason, op)), Decoded::Nothing(nothing)) => {
                        assert_eq!(nothing, reason);
                        if op.is_some() {
                            assert_eq!(truth.map(|truth| truth.op.as_str()), op);
                        }
                        skipped += 1;
                    }
                    (None, Decoded::Change(change)) => {
                        let truth = truth.expect("every change has a truth");
                        seen.insert(truth.truth_id.clone());
                        walk.change(&label.what, truth, &change);
                        changes += 1;
                    }
                    (_, decoded) => panic!("decoded to {decoded:?}"),
                }
            });
        }
        assert_eq!(changes + skipped, variant.records, "{}", variant.file);
        assert_eq!(changes, variant.changes, "{}", variant.file);
        let rows = truths.values().filter(|truth| !matches!(truth.op.as_str(), "t" | "m"));
        let missed: Vec<_> = rows.filter(|truth| !seen.contains(&truth.truth_id)).collect();
        assert!(missed.is_empty(), "{}: {:?} never came", variant.file, missed.len());
        assert!(walk.compared > 4000, "{}: {} values", variant.file, walk.compared);
    }
}

#[test]
fn avro_gets_an_error_that_names_the_format_and_the_setting() {
    let mut records = 0;
    for line in unpacked("G_avro_registry.jsonl.gz").lines() {
        let label: Label = serde_json::from_str(line).expect("a label");
        Recorded::from_line(line).expect("a record").lend(|record| {
            match cdc::decode(record, &Options::default()) {
                Ok(Decoded::Nothing(Nothing::Tombstone)) => assert_eq!(label.what, "tombstone"),
                Ok(decoded) => panic!("line {} decoded to {decoded:?}", label.line),
                Err(error) => {
                    assert_eq!(error.kind(), "avro", "line {}", label.line);
                    let text = error.to_string();
                    assert!(
                        text.contains("Avro") && text.contains("output.data.format=JSON"),
                        "{text}"
                    );
                }
            }
        });
        records += 1;
    }
    assert_eq!(records, 278);
}
