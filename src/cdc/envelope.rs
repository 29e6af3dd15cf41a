//! Which form a record has, and its parts (contract section 2).

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::catalogue::Kind;
use super::error::{DecodeError, Part};
use super::row::{Columns, Row, string};
use super::schema::{Schema, Types};
use super::text::Text;
use super::{
    Change, Decoded, Nothing, Op, Options, Position, Record, Remark, Remarks, SourceId, position,
    wire,
};

/// All that Debezium puts beside the rows of an envelope.
const ENVELOPE: &[&str] =
    &["before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns", "transaction", "message"];

/// Decodes a record of a change topic.
///
/// # Errors
/// The record is no change in any form of contract section 2; the error says what it is instead.
pub fn decode<'a>(record: &Record<'a>, options: &Options) -> Result<Decoded<'a>, DecodeError> {
    let Some(bytes) = record.value else { return Ok(Decoded::Nothing(Nothing::Tombstone)) };
    let text = wire::text(bytes, Part::Value)?;
    let parts = Parts { record, options, key: key(record) };
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

/// The columns of a record's key, whatever its value is; none where it is no object.
#[must_use]
pub fn decode_key<'a>(record: &Record<'a>, options: &Options) -> Row<'a> {
    let Ok((columns, schema)) = key(record) else { return Row::default() };
    let schema = schema.map(|raw| Schema::new(raw, None));
    Row::new(columns, Types::new(table_of(record.topic), schema, options.default_scale))
}

/// The table that a topic is named after.
fn table_of(topic: &str) -> Cow<'_, str> {
    Cow::Borrowed(topic.rsplit_once('.').map_or(topic, |(_, last)| last))
}

/// The record's key: its columns, and its schema where it brings one. No key is no column.
fn key<'a>(record: &Record<'a>) -> Result<(Columns<'a>, Option<&'a RawValue>), DecodeError> {
    let malformed = DecodeError::Malformed { place: "key", expected: "a JSON object" };
    let Some(bytes) = record.key else { return Ok((Columns::default(), None)) };
    let text = wire::text(bytes, Part::Key)?;
    if text == "null" {
        return Ok((Columns::default(), None));
    }
    let top = wire::object(text, Part::Key)?.ok_or_else(|| malformed.clone())?;
    match wrapped(&top) {
        None => Ok((top, None)),
        Some((_, payload)) if payload.get() == "null" => Ok((Columns::default(), None)),
        Some((schema, payload)) => {
            Ok((wire::object(payload.get(), Part::Key)?.ok_or(malformed)?, Some(schema)))
        }
    }
}

fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

/// Schema and payload of `{schema, payload}`. A row that happens to have two such columns holds no
/// objects in them.
fn wrapped<'a>(top: &Columns<'a>) -> Option<(&'a RawValue, &'a RawValue)> {
    let (schema, payload) = (top.get("schema")?, top.get("payload")?);
    let sound = |raw: &RawValue| is_object(raw) || raw.get() == "null";
    (top.0.len() == 2 && sound(schema) && sound(payload)).then_some((schema, payload))
}

/// Whether the connector added members to a flattened row (`add.fields`, `__deleted`).
fn is_marked(top: &Columns<'_>) -> bool {
    top.0.iter().any(|(name, _)| {
        matches!(name.as_ref(), "__op" | "__deleted" | "__ts_ms" | "__lsn")
            || name.starts_with("__source_")
    })
}

/// A flattened row may have columns named `op`, `after` or `source` of its own. What gives an envelope
/// away is its `source` object; one written without it has no member that Debezium does not know.
fn is_envelope(top: &Columns<'_>) -> bool {
    let row_or_null = |name| top.get(name).is_none_or(|raw| is_object(raw) || raw.get() == "null");
    let alone = || {
        (top.has("before") || top.has("after"))
            && row_or_null("source")
            && top.0.iter().all(|(name, _)| ENVELOPE.contains(&name.as_ref()))
    };
    !is_marked(top)
        && top.has("op")
        && row_or_null("before")
        && row_or_null("after")
        && (top.get("source").is_some_and(is_object) || alone())
}

/// What a change says about where it comes from.
#[derive(Default, Deserialize)]
struct Source<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    db: Option<Text<'a>>,
    #[serde(borrow)]
    schema: Option<Text<'a>>,
    #[serde(borrow)]
    table: Option<Text<'a>>,
    #[serde(borrow)]
    sequence: Option<Text<'a>>,
    /// Text in present versions, a boolean in old ones.
    #[serde(borrow)]
    snapshot: Option<&'a RawValue>,
    ts_ms: Option<i64>,
    ts_us: Option<i64>,
    #[serde(rename = "txId")]
    tx_id: Option<u64>,
    lsn: Option<u64>,
}

impl Source<'_> {
    fn position(&self) -> Result<Option<Position>, DecodeError> {
        let (first, lsn) = match &self.sequence {
            Some(Text(text)) => position::sequence(text)?,
            None => (None, None),
        };
        let (Some(lsn), Some(commit_us)) = (lsn.or(self.lsn), self.commit_us()) else {
            return Ok(None);
        };
        Ok(Some(Position { first, lsn, tx_id: self.tx_id, commit_us }))
    }

    fn commit_us(&self) -> Option<i64> {
        self.ts_us.or_else(|| self.ts_ms?.checked_mul(1000))
    }

    fn commit_ms(&self) -> Option<i64> {
        self.ts_ms.or_else(|| Some(self.ts_us?.div_euclid(1000)))
    }

    fn is_snapshot(&self) -> bool {
        self.snapshot.is_some_and(|raw| !matches!(raw.get(), "false" | "\"false\"" | "null"))
    }
}

/// What the forms have in common.
struct Parts<'r, 'a> {
    record: &'r Record<'a>,
    options: &'r Options,
    key: Result<(Columns<'a>, Option<&'a RawValue>), DecodeError>,
}

impl<'a> Parts<'_, 'a> {
    /// Heartbeats and transaction markers have topics of their own, whose names are configurable; so
    /// they are known by their members.
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

    /// The four bytes `null`: what a delete becomes when ExtractNewRecordState has taken the row away.
    fn deleted_key(self) -> Result<Decoded<'a>, DecodeError> {
        self.change(Op::Delete, Source::default(), None, None, None, None)
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
        let source = match top.get("source").filter(|raw| is_object(raw)) {
            Some(raw) => serde_json::from_str(raw.get()).map_err(|_| DecodeError::Malformed {
                place: "source",
                expected: "Debezium's (text in name, db, schema, table, sequence; whole numbers in \
                           lsn, txId, ts_ms, ts_us)",
            })?,
            None => Source::default(),
        };
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
        // `before` and `after` have one and the same type.
        let schema = schema.map(|raw| Schema::new(raw, Some("after")));
        let outer_ms = top.get("ts_ms").and_then(|raw| raw.get().parse().ok());
        self.change(op, source, outer_ms, row("before")?, after, schema)
    }

    /// ExtractNewRecordState or `after.state.only`: the row, and members beginning with `__` if the
    /// connector adds any. Without them only the key tells a row from any other JSON.
    fn flattened(
        self,
        top: Columns<'a>,
        schema: Option<&'a RawValue>,
    ) -> Result<Decoded<'a>, DecodeError> {
        let marked = is_marked(&top);
        let row_of_key = || {
            self.key.as_ref().is_ok_and(|(key, _)| {
                !key.0.is_empty()
                    && key.0.iter().all(|(name, raw)| {
                        top.get(name).is_some_and(|column| column.get() == raw.get())
                    })
            })
        };
        if !marked && self.header("__op").is_none() && !row_of_key() {
            return Err(DecodeError::NotAChange(
                "it has neither op, before and after, nor __op or __deleted, nor the columns of its key",
            ));
        }
        let (added, columns): (Vec<_>, Vec<_>) =
            top.0.into_iter().partition(|(name, _)| marked && name.starts_with("__"));
        let added = Columns(added);
        let deleted =
            added.get("__deleted").is_some_and(|raw| matches!(raw.get(), "true" | "\"true\""));
        let source = flattened_source(&added)?;
        let told = added.get("__op").and_then(string);
        let header = self.header("__op").and_then(|value| std::str::from_utf8(value).ok());
        let op = match told.as_deref().or(header.map(|text| text.trim_matches('"'))) {
            _ if deleted => Op::Delete,
            Some("c") => Op::Create,
            Some("d") => Op::Delete,
            Some("r") => Op::Read,
            Some("t") => return Ok(Decoded::Nothing(Nothing::Truncate)),
            Some("u") => Op::Update,
            None if source.is_snapshot() => Op::Read,
            // What happened is not told: an update without `before` is the most careful reading.
            None => Op::Update,
            Some(_) => return Err(DecodeError::UnknownOp),
        };
        let ms = number(&added, "__ts_ms")?;
        let schema = schema.map(|raw| Schema::new(raw, None));
        let columns = Some(Columns(columns));
        let (before, after) = if op == Op::Delete { (columns, None) } else { (None, columns) };
        self.change(op, source, ms, before, after, schema)
    }

    fn change(
        self,
        op: Op,
        source: Source<'a>,
        outer_ms: Option<i64>,
        before: Option<Columns<'a>>,
        after: Option<Columns<'a>>,
        schema: Option<Arc<Schema<'a>>>,
    ) -> Result<Decoded<'a>, DecodeError> {
        let key_change = ["__debezium.newkey", "__debezium.oldkey"]
            .iter()
            .any(|name| self.record.headers.iter().any(|header| header.name == *name));
        let commit_time = source
            .commit_ms()
            .or(outer_ms)
            .or(self.record.timestamp_ms)
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .ok_or(DecodeError::Malformed {
                place: "commit time",
                expected: "told by source.ts_ms, __ts_ms or the record's timestamp",
            })?;
        let remarks = Remarks::default();
        if key_change {
            remarks.add(Remark::KeyChange);
        }
        let position = source.position()?;
        let snapshot = op == Op::Read || source.is_snapshot();
        let text = |text: Option<Text<'a>>| text.map_or(Cow::Borrowed(""), |text| text.0);
        let table = match source.table {
            Some(Text(table)) if !table.is_empty() => table,
            _ => table_of(self.record.topic),
        };
        let types = |schema| Types::new(table.clone(), schema, self.options.default_scale);
        let key = match self.key {
            Ok((key, key_schema)) if !key.0.is_empty() => {
                Row::new(key, types(key_schema.map(|raw| Schema::new(raw, None))))
            }
            unknown => {
                let types = types(schema.clone());
                let image = before.as_ref().or(after.as_ref());
                let key = image.map(|row| row.only(types.primary_key())).unwrap_or_default();
                match unknown {
                    Err(error) if op == Op::Delete && key.0.is_empty() => {
                        return Err(DecodeError::DeleteWithoutKey(Box::new(error)));
                    }
                    _ => Row::new(key, types),
                }
            }
        };
        let mut before = before.map(|columns| Row::new(columns, types(schema.clone())));
        let before_invented = before.as_mut().is_some_and(|before| take_out_invented(before, &key));
        Ok(Decoded::Change(Change {
            op,
            snapshot,
            after: after.map(|columns| Row::new(columns, types(schema.clone()))),
            key,
            before,
            before_invented,
            position,
            commit_time,
            key_change,
            maybe_snapshot: false,
            remarks,
            source: SourceId {
                name: text(source.name),
                db: text(source.db),
                schema: text(source.schema),
                table: table.clone(),
            },
            table,
        }))
    }
}

/// The members that `add.fields` adds. Only `source.*` fields place a change in the log: the plain
/// `__ts_ms` is when the connector handled it.
fn flattened_source<'a>(added: &Columns<'a>) -> Result<Source<'a>, DecodeError> {
    let text =
        |names: [&str; 2]| names.iter().find_map(|name| added.get(name)).and_then(string).map(Text);
    let mut source = Source {
        name: text(["__source_name", "__name"]),
        db: text(["__source_db", "__db"]),
        schema: text(["__source_schema", "__schema"]),
        table: text(["__source_table", "__table"]),
        sequence: text(["__source_sequence", "__sequence"]),
        snapshot: added.get("__source_snapshot").or_else(|| added.get("__snapshot")),
        ts_ms: number(added, "__source_ts_ms")?,
        ts_us: number(added, "__source_ts_us")?,
        tx_id: number(added, "__source_txId")?,
        lsn: None,
    };
    // A position counts only with all three (contract section 2).
    if source.ts_us.is_none() || source.tx_id.is_none() {
        source.sequence = None;
    }
    Ok(source)
}

fn number<T: std::str::FromStr>(
    added: &Columns<'_>,
    name: &'static str,
) -> Result<Option<T>, DecodeError> {
    match added.get(name).map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(DecodeError::Malformed { place: name, expected: "a whole number" }),
        },
    }
}

/// Under REPLICA IDENTITY DEFAULT a `before` holds the key, and for all other columns null, defaults
/// or zeros that were never in the row (contract section 2). An empty text in a uuid column gives that
/// away, and so does a row in which nothing but the key says anything. Then only the key stays.
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
