//! Recorded records, spoilt at random, through decoding and every consumer's rules: whatever comes,
//! nothing panics, errors are labels and single lines without contents, and what is accepted means
//! what it says.
//!
//! `FUZZ_CASES=10000000 cargo test --release --test it fuzz -- --nocapture` for a long run;
//! `FUZZ_SEED` (printed) repeats one, `FUZZ_FROM` begins in its middle.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use crm_event_processors::app;
use crm_event_processors::cdc::{self, Change, DecodeError, Decoded, Field, Options, Row};
use crm_event_processors::consumers::entry::{AnyConsumer, Entry};
use crm_event_processors::consumers::refund::refund_percentage;
use crm_event_processors::consumers::registry::{self, CONSUMERS};
use crm_event_processors::engine::intake;
use crm_event_processors::engine::partition::metadata;
use crm_event_processors::recording::Recorded;
use fastrand::Rng;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use super::mutate::spoil;
use test_support::recordings::recorded;

const CASES: u64 = 20_000;

/// Every label that a dead letter of a bad record may carry (they are in metrics and alerts).
const KINDS: [&str; 12] = [
    "avro",
    "protobuf",
    "invalid_utf8",
    "invalid_json",
    "not_a_change",
    "unknown_op",
    "malformed",
    "delete_without_key",
    "column",
    "missing_column",
    "not_finite",
    "command",
];

/// The longest error text. It goes into a header and a log line.
const MAX_MESSAGE: usize = 1024;

fn corpus() -> Vec<Recorded> {
    let files = [
        "A_json_precise_adaptive",
        "B_json_schemas_enabled_precise",
        "C_json_string_isostring",
        "C2_json_string_connect",
        "D_json_double_microseconds",
        "E_unwrapped_precise_tombstone",
        "E2_unwrapped_string_rewrite",
        "F_json_sr_framed",
        "G_avro_registry",
        "H_json_precise_unknown_types",
        "I_json_decimal_numeric",
        "J_restart_replay",
        "life/default",
        "life/full",
        "spicedb/default",
        "spicedb/xids",
    ];
    let mut records: Vec<Recorded> =
        files.iter().flat_map(|name| recorded(&format!("{name}.jsonl.gz"))).collect();
    let commands = [
        (
            "reward_redemptions",
            r#"{"event_id":"e","user_id":"u","reward_id":"r","merchant_id":"m","quantity":2,"timestamp":1795405012}"#,
        ),
        (
            "marketplace.orders",
            r#"{"platform":"lazada","shop_id":7,"order_sn":"A1","order_status":"PAID"}"#,
        ),
    ];
    // Repeated, so that there is one command for every ten other records.
    for (topic, value) in commands.iter().cycle().take(records.len() / 10) {
        records.push(Recorded {
            topic: (*topic).to_owned(),
            partition: 0,
            offset: 0,
            timestamp_ms: Some(0),
            key: Some(b"k".to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        });
    }
    records
}

/// Every consumer with its topics of commands, and clients that are never asked.
fn consumers() -> Vec<(Vec<String>, Arc<dyn AnyConsumer>)> {
    let environment = [
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka.invalid:9092"),
        ("REDIS_URL", "redis://redis.invalid"),
        ("SUPABASE_URL", "http://supabase.invalid"),
        ("SUPABASE_SERVICE_ROLE_KEY", "not-needed"),
        ("INNGEST_EVENT_KEY", "not-needed"),
        ("SNAPSHOT_POLICY", "all"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let loaded = registry::load(&environment, std::path::Path::new(""));
    let settings = loaded.settings.expect("settings");
    let parts = app::unasked(&settings).expect("clients");
    let commands = |entry: &Entry| settings.command_topics_of(entry.spec);
    CONSUMERS.iter().map(|entry| (commands(entry), (entry.build)(&parts).expect("built"))).collect()
}

/// Counts that show whether the cases are worth something.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<&'static str, u64>,
    processed: u64,
    skipped: u64,
    decimals: u64,
    slowest: (Duration, u64),
}

impl Tally {
    fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }
}

/// The record of one case.
fn make(records: &[Recorded], rng: &mut Rng) -> Recorded {
    let other = &records[rng.usize(..records.len())];
    let mut record = records[rng.usize(..records.len())].clone();
    if rng.u8(..8) == 0 {
        record.topic.clone_from(&other.topic);
    }
    if rng.u8(..8) == 0 {
        record.headers.clone_from(&other.headers);
    }
    if rng.u8(..16) == 0 {
        record.timestamp_ms = *rng
            .choice([None, Some(i64::MIN), Some(-1), Some(i64::MAX)].iter())
            .expect("four to choose from");
    }
    let bytes = other.value.as_deref().unwrap_or_default();
    for _ in 0..rng.usize(..4) {
        spoil(record.value.get_or_insert_default(), bytes, rng);
    }
    if rng.u8(..4) == 0 {
        let bytes = other.key.as_deref().unwrap_or_default();
        spoil(record.key.get_or_insert_default(), bytes, rng);
    }
    record
}

fn check_error(error: &DecodeError) {
    assert!(KINDS.contains(&error.kind()), "a label that nobody knows: {}", error.kind());
    check_message(&error.to_string());
}

fn check_message(message: &str) {
    assert!(!message.contains(char::is_control), "one line: {message:?}");
    assert!(message.len() <= MAX_MESSAGE, "a message of {} bytes", message.len());
}

fn check(record: &Recorded, consumers: &[(Vec<String>, Arc<dyn AnyConsumer>)], tally: &mut Tally) {
    let now = Timestamp::UNIX_EPOCH;
    record.lend(|lent| {
        let decoded = cdc::decode(lent, &Options::default());
        match &decoded {
            Err(error) => {
                check_error(error);
                tally.count(error.kind());
            }
            Ok(Decoded::Nothing(nothing)) => tally.count(nothing.as_str()),
            Ok(Decoded::Change(change)) => {
                tally.count(change.op.as_str());
                for row in change.before.iter().chain(&change.after).chain([&change.key]) {
                    check_row(row, tally);
                }
                check_amounts(change);
                let placed = change.position.is_some() && !change.snapshot;
                assert_eq!(intake::logged(change, lent.key).is_some(), placed);
                check_packaging(record, change);
            }
        }
        for (topics, consumer) in consumers {
            let commands = topics.iter().any(|topic| topic == lent.topic);
            let decision = match &decoded {
                Ok(Decoded::Change(change)) => consumer.explain_change(change, now),
                _ if commands => consumer.explain_command(lent),
                _ => continue,
            };
            check_decision(&decision, tally);
        }
    });
}

fn check_decision(decision: &Value, tally: &mut Tally) {
    match decision["decision"].as_str() {
        Some("skip") => {
            check_message(decision["reason"].as_str().expect("a reason"));
            tally.skipped += 1;
        }
        Some("process") => {
            assert!(!decision["claim"].as_str().expect("a claim").is_empty());
            assert!(!decision["plan"].as_array().expect("steps").is_empty());
            tally.processed += 1;
        }
        other => panic!("no decision: {other:?}"),
    }
}

/// Reads everything that a row offers.
fn check_row(row: &Row<'_>, tally: &mut Tally) {
    let columns: Vec<String> = row.columns().map(|(name, _)| name.to_owned()).collect();
    // Looking a column up takes as long as there are columns, and no rule asks for all of them.
    for column in columns.iter().take(64) {
        let errors = [
            row.text(column).err(),
            row.bool(column).err(),
            row.integer(column).err(),
            row.timestamp(column).err(),
            row.date(column).err(),
            row.bytes(column).err(),
        ];
        errors.iter().flatten().for_each(check_error);
        match row.decimal(column) {
            Ok(Field::Value(number)) => {
                let raw = row.raw(column).expect("it has a value").get();
                assert!(means(raw, &number), "{raw:.200} became {number}");
                tally.decimals += 1;
            }
            Ok(_) => {}
            Err(error) => check_error(&error),
        }
    }
    let whole = |json: &RawValue| {
        let object: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(json.get()).expect("a JSON object");
        object
    };
    whole(&row.explained());
    for (column, value) in whole(&row.event_data()) {
        if value.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            let sent = BigDecimal::from_str(value.get()).expect("a number");
            // The number as the receiver will read it.
            let taken: f64 = value.get().parse().expect("a number");
            let taken = BigDecimal::from_str(&format!("{taken:?}")).expect("a finite number");
            assert_eq!(sent, taken, "{column:.40}: a double changes it");
        }
    }
}

/// Whether a number is what its JSON says, by rules of this test's own.
fn means(raw: &str, number: &BigDecimal) -> bool {
    let (digits, scale) = number.as_bigint_and_exponent();
    let base64 = |text: &str, told: Option<i64>| {
        let bytes = BASE64.decode(text).ok()?;
        let negative = bytes.first()? & 0x80 != 0;
        let mut unsigned = BigInt::from_bytes_be(bigdecimal::num_bigint::Sign::Plus, &bytes);
        if negative {
            unsigned -= BigInt::from(1) << (8 * bytes.len());
        }
        match told {
            Some(told) => Some(*number == BigDecimal::new(unsigned, told)),
            None => Some(digits == unsigned && scale >= 0),
        }
    };
    match raw.as_bytes()[0] {
        b'"' => {
            let text: String = serde_json::from_str(raw).expect("text");
            let as_text = BigDecimal::from_str(&text).is_ok_and(|meant| meant == *number);
            as_text || (!text.contains('.') && base64(&text, None) == Some(true))
        }
        b'{' => {
            let object: Value = serde_json::from_str(raw).expect("an object");
            let value = object["value"].as_str().expect("a value");
            base64(value, object["scale"].as_i64()) == Some(true)
        }
        _ => BigDecimal::from_str(raw).is_ok_and(|meant| meant == *number),
    }
}

/// A share of a refund lies between nothing and all of it, whatever the amounts.
fn check_amounts(change: &Change<'_>) {
    let amount = |row: &Option<Row<'_>>| {
        row.as_ref().and_then(|row| row.decimal("final_amount").ok()?.value())
    };
    let (before, after) = (amount(&change.before), amount(&change.after));
    for original in [&before, &after] {
        if let Ok(share) = refund_percentage(after.as_ref(), original.as_ref()) {
            let share = BigDecimal::from_str(&share).expect("a number");
            assert!(share >= 0, "{share}");
            assert!(share <= 100, "{share}");
        }
    }
}

/// The same change bare, with a schema around it, and behind the wire prefix.
fn check_packaging(record: &Recorded, change: &Change<'_>) {
    let Some(value) = record.value.as_deref().filter(|value| value[0] != 0) else { return };
    let prefixed = [&b"\0\0\0\0\x07"[..], value].concat();
    let mut packages = vec![prefixed];
    if !is_wrapped(value) {
        packages.push([&b"{\"schema\":null,\"payload\":"[..], value, b"}"].concat());
    }
    for package in packages {
        let packed = Recorded { value: Some(package), ..record.clone() };
        packed.lend(|lent| match cdc::decode(lent, &Options::default()) {
            Ok(Decoded::Change(again)) => assert_eq!(fingerprint(change), fingerprint(&again)),
            other => panic!("packed it is {other:?}"),
        });
    }
}

fn is_wrapped(value: &[u8]) -> bool {
    let top: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_slice(value);
    // Names that are not text are ignored, and a row of only `null` cannot be wrapped.
    top.map_or(true, |top| top.contains_key("schema") && top.contains_key("payload"))
}

fn fingerprint(change: &Change<'_>) -> String {
    let columns = |row: &Row<'_>| {
        let columns = row.columns().map(|(name, raw)| (name.to_owned(), raw.get().to_owned()));
        columns.collect::<Vec<_>>()
    };
    format!(
        "{:?}",
        (
            (change.op, &change.table, change.snapshot, columns(&change.key)),
            (change.before.as_ref().map(columns), change.after.as_ref().map(columns)),
            (change.before_invented, change.position, change.commit_time, change.key_change),
            &change.source,
        )
    )
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// The largest resident memory of this process so far, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test]
async fn spoilt_records_neither_panic_nor_mean_something_else() {
    let (cases, from) = (setting("FUZZ_CASES").unwrap_or(CASES), setting("FUZZ_FROM").unwrap_or(0));
    let seed = setting("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("FUZZ_SEED={seed}, {cases} cases");
    let (records, consumers) = (corpus(), consumers());
    let mut tally = Tally::default();
    let (start, memory) = (Instant::now(), peak_memory());
    for case in from..from + cases {
        let mut rng = Rng::with_seed(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let record = make(&records, &mut rng);
        let began = Instant::now();
        let checked = catch_unwind(AssertUnwindSafe(|| check(&record, &consumers, &mut tally)));
        let took = began.elapsed();
        if took > tally.slowest.0 {
            tally.slowest = (took, case);
        }
        if checked.is_err() {
            let shown = |bytes: &Option<Vec<u8>>| {
                bytes.as_deref().map(|bytes| {
                    String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned()
                })
            };
            panic!(
                "case FUZZ_SEED={seed} FUZZ_FROM={case} FUZZ_CASES=1 of {}: key {:?}, value {:?}",
                record.topic,
                shown(&record.key),
                shown(&record.value)
            );
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let (slowest, case) = tally.slowest;
    println!(
        "{cases} cases in {seconds:.0} s; {:?}; decisions: {} process, {} skip; {} decimals; \
         slowest case {slowest:?} ({case}); peak memory {} MiB, of them {} MiB before",
        tally.outcomes,
        tally.processed,
        tally.skipped,
        tally.decimals,
        peak_memory() / 1024,
        memory / 1024,
    );
    // Other tests run beside this one. A length in a record could demand far more.
    assert!(peak_memory() < memory + 512 * 1024, "no record makes the process large");
    if cases >= CASES {
        assert!(tally.processed > cases / 50, "enough of them are worth deciding about");
        assert!(KINDS.iter().filter(|kind| tally.outcomes.contains_key(*kind)).count() >= 7);
    }
}

#[test]
fn whatever_stands_in_a_commits_metadata_is_read_or_ignored() {
    let seed = setting("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("FUZZ_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    for _ in 0..setting("FUZZ_CASES").unwrap_or(CASES) {
        let mut bytes = vec![0; rng.usize(..200)];
        rng.fill(&mut bytes);
        // It begins like real metadata, so that more than the first check is reached.
        let committable = rng.i64(0..1 << 62);
        let (log, replay_index, completed) = Default::default();
        let own = metadata::encode(committable, log, &replay_index, &completed);
        let text =
            format!("{}{}", &own[..own.len().min(rng.usize(..=own.len()))], BASE64.encode(&bytes));
        check_metadata(committable, &text);
        let mut text = text.into_bytes();
        spoil(&mut text, &bytes, &mut rng);
        check_metadata(committable, &String::from_utf8_lossy(&text));
    }
}

/// Whatever is read can be written and read again.
fn check_metadata(committable: i64, text: &str) {
    if let Ok(kept) = metadata::decode(committable, text) {
        let again = metadata::encode(committable, kept.log, &kept.replay_index, &kept.completed);
        assert!(
            again.len() <= metadata::MAX_BYTES && metadata::decode(committable, &again).is_ok()
        );
    }
}
