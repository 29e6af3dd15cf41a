//! Every `decimal.handling.mode` x column type x value, as a real Debezium wrote them, decodes to
//! what SQL said.

mod record;

use bigdecimal::BigDecimal;
use crm_event_processors::cdc::{self, DecimalMode, Decoded, Field, Options, Record, Row};
use serde_json::Value;

use test_support::recordings::{fixture, recorded};

/// `decimal.handling.mode`.
const MODES: [&str; 3] = ["precise", "string", "double"];

/// By schema the columns of its `purchase_ledger`, and their types.
const TABLES: [(&str, &[(&str, &str)]); 4] = [
    // As in the catalogue, except for two scales.
    (
        "exact",
        &[
            ("final_amount", "numeric(12,2)"),
            ("total_amount", "numeric(12,4)"),
            ("discount_amount", "numeric(10,0)"),
            ("fx_rate", "numeric"),
            ("cash", "money"),
        ],
    ),
    // No amount shows its scale.
    ("unconstrained", &[("final_amount", "numeric"), ("total_amount", "numeric")]),
    // No other column shows how numbers are written.
    ("alone", &[("final_amount", "numeric(12,2)")]),
    ("special", &[("final_amount", "numeric(12,2)"), ("fx_rate", "numeric")]),
];

/// Values whose base64 could be decimal text. If nothing in the row tells, `auto` takes it for
/// that.
const EITHER: [&str; 3] = ["-26467.32", "-26620.87", "-29293.56"];

/// Scales that no schema brings, and perhaps the mode.
fn options(mode: DecimalMode) -> Options {
    let scales = "purchase_ledger.total_amount=4,purchase_ledger.discount_amount=0";
    Options { scales: scales.parse().expect("a list"), decimal_mode: mode, ..Options::default() }
}

#[test]
fn every_decimal_of_every_mode_is_what_sql_said() {
    let text = std::fs::read_to_string(fixture("decimals.truth.json")).expect("the fixture");
    let truth: Value = serde_json::from_str(&text).expect("json");
    let (mut cells, mut either) = (0, 0);
    for record in recorded("decimals.jsonl.gz") {
        let [setting, schema, _] = record.topic.split('.').collect::<Vec<_>>()[..] else {
            panic!("{}", record.topic)
        };
        let mode = setting.split('-').next().expect("a mode");
        let told: DecimalMode = mode.parse().expect("a mode");
        let (_, columns) = TABLES.iter().find(|(name, _)| *name == schema).expect("a schema");
        for reading in [DecimalMode::Auto, told] {
            record.lend(|record| {
                let row = row(record, &options(reading));
                let id = row.filled("id").expect("text").expect("an id");
                for (column, _) in *columns {
                    let place = format!("{setting} {schema} {column} {id} {reading:?}");
                    let said = truth[schema][&id][column].as_str();
                    // The only cells that only CDC_DECIMAL_MODE can get right.
                    let untold = (schema, setting.starts_with("precise-plain"), reading)
                        == ("alone", true, DecimalMode::Auto);
                    if untold && said.is_some_and(|said| EITHER.contains(&said)) {
                        either += 1;
                        continue;
                    }
                    check(&row, column, said, mode, &place);
                    cells += 1;
                }
            });
        }
    }
    // 40 rows of 8 columns and 4 of 2, each twice, in 4 settings (or one) of 3 modes, read twice.
    assert_eq!((cells + either, either), (40 * 8 * 2 * 4 * 3 * 2 + 4 * 2 * 2 * 3 * 2, 3 * 2 * 2));
}

fn row<'a>(record: &Record<'a>, options: &Options) -> Row<'a> {
    match cdc::decode(record, options).expect("it decodes") {
        Decoded::Change(change) => change.after.expect("a row"),
        Decoded::Nothing(nothing) => panic!("{nothing:?}"),
    }
}

fn check(row: &Row<'_>, column: &str, said: Option<&str>, mode: &str, place: &str) {
    let read = row.decimal(column);
    match said {
        None => assert_eq!(read, Ok(Field::Null), "{place}"),
        // Debezium writes NULL for it, so the value is lost.
        Some("NaN" | "Infinity" | "-Infinity") if mode == "precise" => {
            assert_eq!(read, Ok(Field::Null), "{place}");
        }
        Some(value @ ("NaN" | "Infinity" | "-Infinity")) => {
            let error = read.expect_err(place);
            assert_eq!(error.kind(), "not_finite", "{place}");
            assert!(error.to_string().contains(&format!("{column} is {value},")), "{error}");
            let passed_on: Value = serde_json::from_str(row.event_data().get()).expect("json");
            assert!(passed_on[column].is_string(), "{place}: {passed_on}");
        }
        Some(said) if mode == "double" => {
            let written: BigDecimal = row.raw(column).expect(place).get().parse().expect(place);
            assert_eq!(read, Ok(Field::Value(written)), "{place}");
            let fake = |text: &str| text.parse::<f64>().expect("a number");
            assert_eq!(fake(row.raw(column).expect(place).get()), fake(said), "{place}");
        }
        Some(said) => assert_eq!(read, Ok(Field::Value(said.parse().expect(said))), "{place}"),
    }
}
