//! Which form a record has, and its parts (behaviour section 2).

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::catalogue::{Kind, Table};
use super::error::{DecodeError, Part};
use super::row::{Columns, Row, string};
use super::schema::{Schema, Types};
use super::source::{Source, Unknown};
use super::{
    Change, Decoded, Nothing, Op, Options, Record, Remark, Remarks, SourceId, Tombstones, wire,
};

/// Every member that Debezium writes in an envelope.
const ENVELOPE: &[&str] =
    &["before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns", "transaction", "message"];

/// Decodes a record of a change topic.
///
/// # Errors
/// The record is not a change in any form of behaviour section 2; the error says what it is.
pub fn decode<'a>(record: &Record<'a>, options: &Options) -> Result<Decoded<'a>, DecodeError> {
    let parts = Parts { record, options, key: key(record) };
    let Some(bytes) = wire::value(record)? else { return parts.tombstone() };
    let text = wire::text(bytes, Part::Value)?;
    let Some(mut top) = wire::object(text, Part::Value)? else {
        return if text == "null" {
            parts.deleted_key()
        } else {
            Err(DecodeError::NotAChange("it is neither an object nor null"))
        };
    };
    let mut schema = None;
    if let Some((around, payload)) = wrapped(&top) {
        schema = Some(around);
        match wire::object(payload.get(), Part::Value)? {
            Some(inner) => top = inner,
            None => return parts.deleted_key(),
        }
    }
    if let Some(nothing) = parts.sign_of_life(&top) {
        return Ok(Decoded::Nothing(nothing));
    }
    if is_envelope(&top) { parts.envelope(&top, schema) } else { parts.flattened(top, schema) }
}

/// The columns of a record's key, whatever its value holds. Empty if the key is not an object.
#[must_use]
pub fn decode_key<'a>(record: &Record<'a>, options: &Options) -> Row<'a> {
    let Ok((columns, schema)) = key(record) else { return Row::default() };
    let schema = schema.map(|raw| Schema::new(raw, None));
    Row::new(columns, Types::new(Cow::Borrowed(table_of(record.topic)), options).with(schema))
}

/// The table that a topic is named after.
fn table_of(topic: &str) -> &str {
    topic.rsplit_once('.').map_or(topic, |(_, last)| last)
}

/// The table of a change. The topic's table wins if a rule knows it but not the table that the
/// change names: that one is a partition, routed to its parent's topic.
fn table<'a>(told: Option<Cow<'a, str>>, topic: &'a str) -> Cow<'a, str> {
    let of_topic = table_of(topic);
    let is_known = |table: &str| Table::named(table).is_some();
    match told {
        Some(told) if !told.is_empty() && (is_known(&told) || !is_known(of_topic)) => told,
        _ => Cow::Borrowed(of_topic),
    }
}

/// The columns of the record's key, and its schema if it has one. A null key has no columns. The
/// fields that Debezium adds to tell the tables of one topic apart are not columns.
fn key<'a>(record: &Record<'a>) -> Result<(Columns<'a>, Option<&'a RawValue>), DecodeError> {
    let malformed = DecodeError::Malformed { place: "key", expected: "a JSON object" };
    let Some(bytes) = record.key else { return Ok((Columns::default(), None)) };
    let text = wire::text(bytes, Part::Key)?;
    if text == "null" {
        return Ok((Columns::default(), None));
    }
    let top = wire::object(text, Part::Key)?.ok_or_else(|| malformed.clone())?;
    let (mut columns, schema) = match wrapped(&top) {
        None => (top, None),
        Some((_, payload)) if payload.get() == "null" => (Columns::default(), None),
        Some((schema, payload)) => {
            (wire::object(payload.get(), Part::Key)?.ok_or(malformed)?, Some(schema))
        }
    };
    columns.0.retain(|(name, _)| !name.starts_with("__dbz__"));
    Ok((columns, schema))
}

fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

/// Schema and payload of `{schema, payload}`. A row with two such columns is not mistaken for it:
/// its columns hold no objects.
fn wrapped<'a>(top: &Columns<'a>) -> Option<(&'a RawValue, &'a RawValue)> {
    let (schema, payload) = (top.get("schema")?, top.get("payload")?);
    let sound = |raw: &RawValue| is_object(raw) || raw.get() == "null";
    (top.0.len() == 2 && sound(schema) && sound(payload)).then_some((schema, payload))
}

/// Whether the connector added members to a flattened row (`add.fields`, `__deleted`).
fn is_marked(top: &Columns<'_>) -> bool {
    top.0.iter().filter_map(|(name, _)| name.strip_prefix("__")).any(|name| {
        matches!(
            name,
            "op" | "deleted" | "ts_ms" | "ts_us" | "ts_ns" | "lsn" | "table" | "db" | "snapshot"
        ) || name.starts_with("source_")
    })
}

/// A flattened row may have columns of its own named `op`, `after` or `source`. A `source` object
/// marks an envelope, whatever else was added to it. An envelope without `source` has only members
/// that Debezium knows.
fn is_envelope(top: &Columns<'_>) -> bool {
    let row_or_null = |name| top.get(name).is_none_or(|raw| is_object(raw) || raw.get() == "null");
    let images = || top.has("before") || top.has("after");
    let alone = || {
        images()
            && row_or_null("source")
            && top.0.iter().all(|(name, _)| ENVELOPE.contains(&name.as_ref()))
    };
    top.has("op")
        && row_or_null("before")
        && row_or_null("after")
        && match top.get("source").is_some_and(is_object) {
            true => images() || top.has("message") || !is_marked(top),
            false => alone(),
        }
}

/// What the forms have in common.
struct Parts<'r, 'a> {
    record: &'r Record<'a>,
    options: &'r Options,
    key: Result<(Columns<'a>, Option<&'a RawValue>), DecodeError>,
}

impl<'a> Parts<'_, 'a> {
    /// Heartbeats and transaction markers are recognised by their members, since the names of their
    /// topics are configurable.
    fn sign_of_life(&self, top: &Columns<'a>) -> Option<Nothing> {
        let key_has = |name| self.key.as_ref().is_ok_and(|(key, _)| key.has(name));
        let heartbeat = top.0.len() == 1
            && top.has("ts_ms")
            && (key_has("serverName") || self.record.topic.starts_with("__debezium-heartbeat"));
        let marker = top.has("id")
            && top.has("event_count")
            && top.has("data_collections")
            && top.get("status").is_some_and(|raw| matches!(raw.get(), "\"BEGIN\"" | "\"END\""));
        if heartbeat {
            Some(Nothing::Heartbeat)
        } else {
            marker.then_some(Nothing::TransactionMarker)
        }
    }

    fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.record.headers.iter().find(|header| header.name == name)?.value
    }

    /// A null value: nothing, or a delete of the key, as configured. Without a key it names no row.
    fn tombstone(self) -> Result<Decoded<'a>, DecodeError> {
        let names_row = self.key.as_ref().map_or(true, |(key, _)| !key.0.is_empty());
        match self.options.tombstones {
            Tombstones::Delete if names_row => self.deleted_key(),
            Tombstones::Delete | Tombstones::Ignore => Ok(Decoded::Nothing(Nothing::Tombstone)),
        }
    }

    /// The value is the four bytes `null`, which ExtractNewRecordState writes for a delete.
    fn deleted_key(self) -> Result<Decoded<'a>, DecodeError> {
        self.change(Op::Delete, Source::default(), Ok(None), None, None, None)
    }

    fn envelope(
        self,
        top: &Columns<'a>,
        schema: Option<&'a RawValue>,
    ) -> Result<Decoded<'a>, DecodeError> {
        let op = match top.get("op").map_or("", RawValue::get) {
            "\"c\"" => Op::Create,
            "\"u\"" => Op::Update,
            "\"d\"" => Op::Delete,
            "\"r\"" => Op::Read,
            "\"t\"" => return Ok(Decoded::Nothing(Nothing::Truncate)),
            "\"m\"" => return Ok(Decoded::Nothing(Nothing::Message)),
            _ => return Err(DecodeError::UnknownOp),
        };
        let source = Source::of_envelope(top.get("source").filter(|raw| is_object(raw)));
        let row = |name: &'static str| match top.get(name).filter(|raw| is_object(raw)) {
            Some(raw) => wire::object(raw.get(), Part::Value),
            None => Ok(None),
        };
        let after = if op == Op::Delete { None } else { row("after")? };
        if op != Op::Delete && after.is_none() {
            return Err(DecodeError::Malformed {
                place: "after",
                expected: "the row, which a create, update or read must have",
            });
        }
        // One schema is enough: `before` and `after` have the same type.
        let schema = schema.map(|raw| Schema::new(raw, Some("after")));
        self.change(op, source, milliseconds(top.get("ts_ms")), row("before")?, after, schema)
    }

    /// A row as ExtractNewRecordState or `after.state.only` writes it, with members beginning with
    /// `__` if the connector adds any. Without them only the key distinguishes a row from other
    /// JSON.
    fn flattened(
        self,
        top: Columns<'a>,
        schema: Option<&'a RawValue>,
    ) -> Result<Decoded<'a>, DecodeError> {
        let marked = is_marked(&top);
        if !marked && self.header("__op").is_none() && !self.is_row_of_key(&top) {
            return Err(DecodeError::NotAChange(
                "it has neither op, before and after, nor __op or __deleted, nor the columns of its key",
            ));
        }
        let (added, columns): (Vec<_>, Vec<_>) =
            top.0.into_iter().partition(|(name, _)| marked && name.starts_with("__"));
        let added = Columns(added);
        let deleted =
            added.get("__deleted").is_some_and(|raw| matches!(raw.get(), "true" | "\"true\""));
        let source = Source::of_flattened(&added);
        let told = added.get("__op").and_then(string);
        let header = self.header("__op").and_then(|value| std::str::from_utf8(value).ok());
        let told = told.as_deref().or(header.map(|text| text.trim_matches('"')));
        let op = match told {
            _ if deleted => Op::Delete,
            Some("c") => Op::Create,
            Some("d") => Op::Delete,
            Some("r") => Op::Read,
            Some("t") => return Ok(Decoded::Nothing(Nothing::Truncate)),
            Some("u") => Op::Update,
            None if source.is_snapshot() => Op::Read,
            // The operation is unknown: an update without `before` is the most careful reading.
            None => Op::Update,
            Some(_) => return Err(DecodeError::UnknownOp),
        };
        let ms = milliseconds(added.get("__ts_ms"));
        let untold = op == Op::Update && told.is_none() && !source.tells_snapshot();
        let schema = schema.map(|raw| Schema::new(raw, None));
        let columns = Some(Columns(columns));
        let (before, after) = if op == Op::Delete { (columns, None) } else { (None, columns) };
        let mut decoded = self.change(op, source, ms, before, after, schema)?;
        if let Decoded::Change(change) = &mut decoded
            && untold
        {
            change.maybe_snapshot = true;
            change.remark(Remark::UnknownOperation);
        }
        Ok(decoded)
    }

    /// Whether the row has the columns of the record's key, or at least those of the primary key,
    /// since the connector may add others to the key.
    fn is_row_of_key(&self, top: &Columns<'_>) -> bool {
        let Ok((key, _)) = &self.key else { return false };
        let same = |name: &str, raw: &RawValue| {
            top.get(name).is_some_and(|column| column.get() == raw.get())
        };
        let primary_key = || {
            Table::named(table_of(self.record.topic)).is_some_and(|table| {
                let mut columns = table.primary_key.iter();
                columns.all(|name| key.get(name).is_some_and(|raw| same(name, raw)))
            })
        };
        !key.0.is_empty() && (key.0.iter().all(|(name, raw)| same(name, raw)) || primary_key())
    }

    fn change(
        self,
        op: Op,
        source: Source<'a>,
        outer_ms: Result<Option<i64>, Unknown>,
        before: Option<Columns<'a>>,
        after: Option<Columns<'a>>,
        schema: Option<Arc<Schema<'a>>>,
    ) -> Result<Decoded<'a>, DecodeError> {
        let key_change = ["__debezium.newkey", "__debezium.oldkey"]
            .iter()
            .any(|name| self.record.headers.iter().any(|header| header.name == *name));
        let remarks = Remarks::default();
        if key_change {
            remarks.add(Remark::KeyChange);
        }
        let position = source.position();
        let commit_ms = source.commit_ms();
        if position.is_err() || (commit_ms.is_none() && outer_ms.is_err()) {
            remarks.add(Remark::UnknownPosition);
        }
        let times = [commit_ms, outer_ms.ok().flatten(), self.record.timestamp_ms];
        let commit_time = first_time(times)?;
        let snapshot = op == Op::Read || source.is_snapshot();
        let table = table(source.table.text(), self.record.topic);
        let types = Types::new(table.clone(), self.options);
        let key = match self.key {
            Ok((key, key_schema)) if !key.0.is_empty() => {
                Row::new(key, types.with(key_schema.map(|raw| Schema::new(raw, None))))
            }
            unknown => {
                let image = before.as_ref().or(after.as_ref());
                key_of_row(op, unknown.err(), image, types.with(schema.clone()))?
            }
        };
        let mut before = before.map(|columns| Row::new(columns, types.with(schema.clone())));
        let before_invented = before.as_mut().is_some_and(|before| take_out_invented(before, &key));
        Ok(Decoded::Change(Change {
            at: (self.record.partition, self.record.offset),
            op,
            snapshot,
            after: after.map(|columns| Row::new(columns, types.with(schema))),
            key,
            before,
            before_invented,
            position: position.ok().flatten(),
            commit_time,
            key_change,
            maybe_snapshot: false,
            remarks,
            source: SourceId {
                name: source.name.text().unwrap_or_default(),
                db: source.db.text().unwrap_or_default(),
                schema: source.schema.text().unwrap_or_default(),
                table: table.clone(),
            },
            table,
        }))
    }
}

/// The first of these times in milliseconds that is valid.
fn first_time(times: [Option<i64>; 3]) -> Result<Timestamp, DecodeError> {
    let mut times = times.into_iter().flatten();
    times.find_map(|ms| Timestamp::from_millisecond(ms).ok()).ok_or(DecodeError::Malformed {
        place: "commit time",
        expected: "given by source.ts_ms, __ts_ms or the record's timestamp",
    })
}

/// The key of a record that has none, or whose key is unreadable for the reason `unread`: the
/// primary key's columns of its row.
fn key_of_row<'a>(
    op: Op,
    unread: Option<DecodeError>,
    image: Option<&Columns<'a>>,
    types: Types<'a>,
) -> Result<Row<'a>, DecodeError> {
    let key = image.map(|row| row.only(types.primary_key())).unwrap_or_default();
    match unread {
        Some(error) if op == Op::Delete && key.0.is_empty() => {
            Err(DecodeError::DeleteWithoutKey(Box::new(error)))
        }
        _ => Ok(Row::new(key, types)),
    }
}

fn milliseconds(raw: Option<&RawValue>) -> Result<Option<i64>, Unknown> {
    match raw.map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| Unknown),
    }
}

/// Under REPLICA IDENTITY DEFAULT a `before` holds the key, and in all other columns nulls,
/// defaults or zeros that were never in the row (behaviour section 2). Two signs reveal this: an
/// empty text in a uuid column, or no value outside the key. Then only the key is kept.
fn take_out_invented(before: &mut Row<'_>, key: &Row<'_>) -> bool {
    let primary_key = before.types.primary_key();
    let real = |name: &str| key.columns.has(name) || primary_key.contains(&name);
    let (mut others, mut all_blank, mut no_uuid) = (false, true, false);
    for (name, raw) in before.columns().filter(|(name, _)| !real(name)) {
        others = true;
        all_blank &= matches!(raw.get(), "null" | "\"\"");
        no_uuid |= raw.get() == "\"\"" && before.types.kind(name) == Some(Kind::Uuid);
    }
    let invented = others && (all_blank || no_uuid);
    if invented {
        before.columns.0.retain(|(name, _)| real(name));
    }
    invented
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
