//! No bytes make decoding panic, however real records are cut, mixed and spoilt.

use std::collections::HashMap;
use std::sync::OnceLock;

use crm_event_processors::cdc::{self, Decoded, Options, Row};
use crm_event_processors::recording::Recorded;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::value::RawValue;

use test_support::recordings::recorded;

fn records() -> &'static [Recorded] {
    static RECORDS: OnceLock<Vec<Recorded>> = OnceLock::new();
    RECORDS.get_or_init(|| {
        let files = [
            "A_json_precise_adaptive",
            "B_json_schemas_enabled_precise",
            "E2_unwrapped_string_rewrite",
            "F_json_sr_framed",
            "G_avro_registry",
            "H_json_precise_unknown_types",
        ];
        files.iter().flat_map(|name| recorded(&format!("{name}.jsonl.gz"))).collect()
    })
}

#[derive(Debug, Clone)]
enum Spoil {
    Flip(Index, u8),
    Cut(Index),
    Drop(Index, Index),
    Insert(Index, Vec<u8>),
    /// Puts a value of another kind where some value ends.
    Replace(Index, &'static str),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let values = [
        "null",
        "true",
        "1e9999",
        "-",
        "\"\"",
        "{}",
        "[]",
        "{\"scale\":-9,\"value\":\"AA==\"}",
        "9223372036854775808",
        "\"\\ud800\"",
        "\"1500\"",
        "\"__debezium_unavailable_value\"",
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Spoil::Flip(at, byte)),
        any::<Index>().prop_map(Spoil::Cut),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Spoil::Drop(from, to)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Spoil::Insert(at, bytes)),
        (any::<Index>(), prop::sample::select(values.to_vec()))
            .prop_map(|(at, value)| Spoil::Replace(at, value)),
    ]
}

fn apply(bytes: &mut Vec<u8>, spoil: &Spoil) {
    let length = bytes.len();
    let at = |index: &Index| index.index(length + 1);
    match spoil {
        Spoil::Flip(_, _) if length == 0 => {}
        Spoil::Flip(index, byte) => bytes[index.index(length)] ^= byte,
        Spoil::Cut(index) => bytes.truncate(at(index)),
        Spoil::Drop(from, to) => {
            let (from, to) = (at(from), at(to));
            bytes.drain(from.min(to)..from.max(to));
        }
        Spoil::Insert(index, more) => {
            let index = at(index);
            bytes.splice(index..index, more.iter().copied());
        }
        Spoil::Replace(index, value) => {
            let colons: Vec<_> = (0..length).filter(|at| bytes[*at] == b':').collect();
            if colons.is_empty() {
                return;
            }
            let start = colons[index.index(colons.len())] + 1;
            let ends = |byte: &u8| matches!(byte, b',' | b'}');
            let end = bytes[start..].iter().position(ends).map_or(length, |end| start + end);
            bytes.splice(start..end, value.bytes());
        }
    }
}

/// Reads everything that a row offers.
fn read_all(row: &Row<'_>) {
    let columns: Vec<_> = row.columns().map(|(name, _)| name.to_owned()).collect();
    for column in &columns {
        let errors = [
            row.text(column).err(),
            row.bool(column).err(),
            row.integer(column).err(),
            row.decimal(column).err(),
            row.timestamp(column).err(),
            row.date(column).err(),
            row.bytes(column).err(),
        ];
        assert!(errors.iter().flatten().all(|error| error.kind() == "column"));
    }
    for json in [row.explained(), row.event_data()] {
        // Raw values may hold half a surrogate pair: valid JSON, but no text.
        let object: HashMap<String, &RawValue> =
            serde_json::from_str(json.get()).expect("a JSON object");
        assert!(object.len() <= columns.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn decoding_never_panics(
        which in any::<Index>(),
        value in prop::collection::vec(spoil(), 0..4),
        key in prop::collection::vec(spoil(), 0..2),
    ) {
        let mut record = which.get(records()).clone();
        for (part, spoils) in [(&mut record.value, value), (&mut record.key, key)] {
            for spoil in spoils {
                apply(part.get_or_insert_default(), &spoil);
            }
        }
        record.lend(|record| match cdc::decode(record, &Options::default()) {
            Ok(Decoded::Change(change)) => {
                read_all(&change.key);
                change.before.iter().chain(&change.after).for_each(read_all);
            }
            Ok(Decoded::Nothing(_)) => {}
            Err(error) => {
                assert!(!error.kind().is_empty());
                assert!(!error.to_string().contains('\n'), "one line: {error}");
            }
        });
    }

    #[test]
    fn any_bytes_are_a_change_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let record = Recorded {
            topic: "crm.public.codes".to_owned(),
            partition: 0,
            offset: 0,
            timestamp_ms: Some(0),
            key: None,
            value: Some(bytes),
            headers: Vec::new(),
        };
        record.lend(|record| {
            let decoded = cdc::decode(record, &Options::default());
            // Random bytes may spell `null`, but nothing else that is accepted.
            assert!(decoded.is_err() || record.value == Some(b"null"), "{decoded:?}");
        });
    }
}
