//! The origin of a change: `source` of an envelope, or its members in a flattened row.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::position::{self, Position};
use super::row::Columns;

/// The origin that a change names. No member is required, and a member in an unknown form does not
/// keep the change from being handled.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Source<'a> {
    #[serde(borrow)]
    pub(super) name: Member<'a>,
    #[serde(borrow)]
    pub(super) db: Member<'a>,
    #[serde(borrow)]
    pub(super) schema: Member<'a>,
    #[serde(borrow)]
    pub(super) table: Member<'a>,
    #[serde(borrow)]
    sequence: Member<'a>,
    /// Text in present versions, a boolean in old ones.
    #[serde(borrow)]
    snapshot: Option<&'a RawValue>,
    #[serde(borrow)]
    ts_ms: Member<'a>,
    #[serde(borrow)]
    ts_us: Member<'a>,
    #[serde(borrow, rename = "txId")]
    tx_id: Member<'a>,
    #[serde(borrow)]
    lsn: Member<'a>,
    #[serde(skip)]
    form: Form,
}

/// The form of the record that this was read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    /// One that names no place in the log.
    #[default]
    None,
    Envelope,
    Flattened,
    /// One that could not be read at all.
    Unknown,
}

/// One member: text, a whole number that is not negative, or anything else.
#[derive(Debug, Default)]
pub(super) enum Member<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Number(u64),
    Other,
}

/// A place in the log in an unknown form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown;

impl<'a> Member<'a> {
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn is_text(&self) -> bool {
        matches!(self, Self::Absent | Self::Text(_))
    }

    fn number<T: TryFrom<u64>>(&self) -> Result<Option<T>, Unknown> {
        match self {
            Self::Absent => Ok(None),
            Self::Number(number) => T::try_from(*number).map(Some).map_err(|_| Unknown),
            Self::Text(_) | Self::Other => Err(Unknown),
        }
    }

    /// A member that is null counts as an unknown form: the connector was asked to add it.
    fn added(raw: Option<&'a RawValue>) -> Self {
        match raw {
            None => Self::Absent,
            Some(raw) => match raw.get().parse() {
                Ok(number) => Self::Number(number),
                Err(_) => match serde_json::from_str(raw.get()) {
                    Ok(Self::Absent) | Err(_) => Self::Other,
                    Ok(member) => member,
                },
            },
        }
    }
}

impl<'a> Source<'a> {
    /// Reads the member `source` of an envelope.
    pub(super) fn of_envelope(raw: Option<&'a RawValue>) -> Self {
        let Some(raw) = raw else { return Self::default() };
        match serde_json::from_str(raw.get()) {
            Ok(source) => Self { form: Form::Envelope, ..source },
            Err(_) => Self { form: Form::Unknown, ..Self::default() },
        }
    }

    /// Reads the members that `add.fields` adds. Only `source.*` fields place a change in the log:
    /// the plain `__ts_ms` is the time at which the connector handled it.
    pub(super) fn of_flattened(added: &Columns<'a>) -> Self {
        let text = |names: [&str; 2]| {
            let raw = names.iter().find_map(|name| added.get(name));
            raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Member::Absent)
        };
        let place = |name| Member::added(added.get(name));
        Self {
            name: text(["__source_name", "__name"]),
            db: text(["__source_db", "__db"]),
            schema: text(["__source_schema", "__schema"]),
            table: text(["__source_table", "__table"]),
            sequence: place("__source_sequence"),
            snapshot: added.get("__source_snapshot").or_else(|| added.get("__snapshot")),
            ts_ms: place("__source_ts_ms"),
            ts_us: place("__source_ts_us"),
            tx_id: place("__source_txId"),
            lsn: Member::added(added.get("__source_lsn").or_else(|| added.get("__lsn"))),
            form: Form::Flattened,
        }
    }

    /// The position, if it is in a known form.
    ///
    /// # Errors
    /// A part of it is in an unknown form.
    pub(super) fn position(&self) -> Result<Option<Position>, Unknown> {
        let place = self.place()?;
        let absent = |member: &Member<'_>| matches!(member, Member::Absent);
        let named = [&self.name, &self.db, &self.schema, &self.table].iter().all(|m| m.is_text());
        match self.form {
            _ if !named => Err(Unknown),
            Form::Unknown => Err(Unknown),
            Form::None => Ok(None),
            // An envelope has a place in the log, unless a snapshot read the row.
            Form::Envelope if place.is_none() && !self.is_snapshot() => Err(Unknown),
            Form::Envelope => Ok(place),
            // A position counts only with all three members (behaviour section 2).
            Form::Flattened => Ok(place
                .filter(|_| ![&self.sequence, &self.ts_us, &self.tx_id].into_iter().any(absent))),
        }
    }

    fn place(&self) -> Result<Option<Position>, Unknown> {
        let (first, in_sequence) = match &self.sequence {
            Member::Absent => (None, None),
            Member::Text(text) => position::sequence(text).ok_or(Unknown)?,
            Member::Number(_) | Member::Other => return Err(Unknown),
        };
        let (lsn, tx_id) = (self.lsn.number()?, self.tx_id.number()?);
        let (us, ms) = (self.ts_us.number::<i64>()?, self.ts_ms.number::<i64>()?);
        let commit_us = us.or_else(|| ms?.checked_mul(1000));
        let (Some(lsn), Some(commit_us)) = (in_sequence.or(lsn), commit_us) else {
            return Ok(None);
        };
        Ok(Some(Position { first, lsn, tx_id, commit_us }))
    }

    /// The commit time in milliseconds.
    pub(super) fn commit_ms(&self) -> Option<i64> {
        let told = |member: &Member<'_>| member.number::<i64>().ok().flatten();
        told(&self.ts_ms).or_else(|| Some(told(&self.ts_us)?.div_euclid(1000)))
    }

    pub(super) fn is_snapshot(&self) -> bool {
        self.snapshot.is_some_and(|raw| !matches!(raw.get(), "false" | "\"false\"" | "null"))
    }

    /// Whether it says if a snapshot read the row.
    pub(super) fn tells_snapshot(&self) -> bool {
        self.snapshot.is_some_and(|raw| raw.get() != "null")
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyMember)
    }
}

struct AnyMember;

impl<'de> Visitor<'de> for AnyMember {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Member::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Member::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Member::Number(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(u64::try_from(number).map_or(Member::Other, Member::Number))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Member::Other)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Member::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Member::Absent)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Member::Other)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Member::Other)
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
