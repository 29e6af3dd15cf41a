//! What the tests of decoding share: records and changes of `purchase_ledger`.

use super::{Change, DecodeError, Decoded, Options, Record, Remark, decode};

const TOPIC: &str = "crm.public.purchase_ledger";
pub(super) const KEY: &str = r#"{"id":"a"}"#;

pub(super) fn record<'a>(key: Option<&'a str>, value: &'a str) -> Record<'a> {
    Record {
        topic: TOPIC,
        partition: 0,
        offset: 0,
        timestamp_ms: Some(1_700_000_000_000),
        key: key.map(str::as_bytes),
        value: Some(value.as_bytes()),
        headers: &[],
    }
}

pub(super) fn read(value: &str) -> Result<Decoded<'_>, DecodeError> {
    decode(&record(Some(KEY), value), &Options::default())
}

pub(super) fn change(value: &str) -> Change<'_> {
    match read(value) {
        Ok(Decoded::Change(change)) => change,
        other => panic!("{value}: {other:?}"),
    }
}

pub(super) fn remarks(change: &Change<'_>) -> Vec<Remark> {
    change.remarks.iter().collect()
}
