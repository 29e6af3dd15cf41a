//! Rows: columns by name, decoded when asked for.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use jiff::{Timestamp, civil};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::catalogue::Kind;
use super::decimal::{self, Fault, Reading};
use super::options::DecimalMode;
use super::schema::Types;
use super::text::Text;
use super::unavailable::is_placeholder;
use super::{DecodeError, time};

/// What a row says about one column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<T> {
    /// The row does not have the column: another table layout, or an invented value that was taken
    /// out.
    Missing,
    /// SQL NULL. A NULL that the converter replaced by the column's default does not show up here.
    Null,
    /// An unchanged value stored out of line, so it is not known.
    Unavailable,
    /// A value.
    Value(T),
}

impl<T> Field<T> {
    /// The value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Missing | Self::Null | Self::Unavailable => None,
        }
    }

    /// Whether there is a value.
    pub fn is_value(&self) -> bool {
        matches!(self, Self::Value(_))
    }

    /// Whether the row tells what the column held: a value or NULL.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Value(_) | Self::Null)
    }

    /// Changes the value, if there is one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Missing => Field::Missing,
            Self::Null => Field::Null,
            Self::Unavailable => Field::Unavailable,
            Self::Value(value) => Field::Value(change(value)),
        }
    }

    /// Borrows the value.
    pub fn as_ref(&self) -> Field<&T> {
        match self {
            Self::Missing => Field::Missing,
            Self::Null => Field::Null,
            Self::Unavailable => Field::Unavailable,
            Self::Value(value) => Field::Value(value),
        }
    }

    fn try_map<U, E>(self, change: impl FnOnce(T) -> Result<U, E>) -> Result<Field<U>, E> {
        Ok(match self {
            Self::Missing => Field::Missing,
            Self::Null => Field::Null,
            Self::Unavailable => Field::Unavailable,
            Self::Value(value) => Field::Value(change(value)?),
        })
    }
}

/// A row, or the part of one that a record holds. Columns keep the order they came in.
#[derive(Debug, Clone, Default)]
pub struct Row<'a> {
    pub(super) columns: Columns<'a>,
    pub(super) types: Types<'a>,
}

impl<'a> Row<'a> {
    pub(super) fn new(columns: Columns<'a>, types: Types<'a>) -> Self {
        Self { columns, types }
    }

    /// Whether it has no column at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.0.is_empty()
    }

    /// Names and raw JSON of all columns.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.columns.0.iter().map(|(name, raw)| (name.as_ref(), *raw))
    }

    /// The column's JSON as it came.
    #[must_use]
    pub fn raw(&self, column: &str) -> Option<&'a RawValue> {
        self.columns.get(column)
    }

    /// The column's JSON as it came, told apart from NULL and unavailable.
    #[must_use]
    pub fn field(&self, column: &str) -> Field<&'a RawValue> {
        match self.raw(column) {
            None => Field::Missing,
            Some(raw) => self.classify(column, raw),
        }
    }

    /// Names of the columns whose value is unavailable.
    pub fn unavailable(&self) -> impl Iterator<Item = &str> {
        self.columns()
            .filter(|(name, raw)| matches!(self.classify(name, raw), Field::Unavailable))
            .map(|(name, _)| name)
    }

    /// Text of a text, uuid or enum column, and the digits of a number.
    ///
    /// # Errors
    /// The column holds an object or an array.
    pub fn text(&self, column: &str) -> Result<Field<Cow<'a, str>>, DecodeError> {
        self.field(column).try_map(|raw| match raw.get().as_bytes().first() {
            Some(b'"') => string(raw).ok_or_else(|| self.error(column, "text")),
            Some(b'{' | b'[') => Err(self.error(column, "text")),
            _ => Ok(Cow::Borrowed(raw.get())),
        })
    }

    /// As [`Row::text`], for a column that a rule needs: a missing column is not NULL (behaviour
    /// section 2).
    ///
    /// # Errors
    /// As [`Row::text`]; or the row does not have the column.
    pub fn needed(&self, column: &str) -> Result<Field<Cow<'a, str>>, DecodeError> {
        match self.text(column)? {
            Field::Missing => Err(DecodeError::MissingColumn {
                table: identifier(self.types.table_name()),
                column: identifier(column),
            }),
            field => Ok(field),
        }
    }

    /// A word of a fixed vocabulary, such as a status: compared without case and surrounding space.
    ///
    /// # Errors
    /// As [`Row::text`].
    pub fn word(&self, column: &str) -> Result<Field<Cow<'a, str>>, DecodeError> {
        Ok(self.text(column)?.map(word))
    }

    /// The text of a column, if there is one that is not empty.
    ///
    /// # Errors
    /// As [`Row::text`].
    pub fn filled(&self, column: &str) -> Result<Option<String>, DecodeError> {
        Ok(self.text(column)?.value().filter(|text| !text.is_empty()).map(Into::into))
    }

    /// As [`Row::filled`], for a column that a rule needs.
    ///
    /// # Errors
    /// As [`Row::needed`].
    pub fn needed_filled(&self, column: &str) -> Result<Option<String>, DecodeError> {
        Ok(self.needed(column)?.value().filter(|text| !text.is_empty()).map(Into::into))
    }

    /// A boolean.
    ///
    /// # Errors
    /// The column holds neither true nor false.
    pub fn bool(&self, column: &str) -> Result<Field<bool>, DecodeError> {
        self.field(column).try_map(|raw| match raw.get().trim_matches('"') {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.error(column, "true or false")),
        })
    }

    /// A whole number of any integer column, exact beyond 2^53, and an xid in any of its forms.
    ///
    /// # Errors
    /// The column holds no whole number.
    pub fn integer(&self, column: &str) -> Result<Field<i128>, DecodeError> {
        self.field(column)
            .try_map(|raw| integer(raw).ok_or_else(|| self.error(column, "a whole number")))
    }

    /// An exact decimal in any of the forms of behaviour section 2.
    ///
    /// # Errors
    /// The column holds no number in a form that its type can have, or one that is not finite.
    pub fn decimal(&self, column: &str) -> Result<Field<BigDecimal>, DecodeError> {
        self.field(column).try_map(|raw| {
            let form = self.types.decimal_form(column);
            decimal::decode(raw.get(), form, || self.reading(column)).map_err(|fault| match fault {
                Fault::NotFinite(value) => DecodeError::NotFinite {
                    table: identifier(self.types.table_name()),
                    column: identifier(column),
                    value,
                },
                Fault::Unknown => {
                    self.error(column, "a decimal number in a form its type can have")
                }
            })
        })
    }

    /// A point in time; a column without time zone counts as UTC.
    ///
    /// # Errors
    /// The column holds no time.
    pub fn timestamp(&self, column: &str) -> Result<Field<Timestamp>, DecodeError> {
        self.field(column).try_map(|raw| {
            time::timestamp(raw.get(), self.types.time_unit(column))
                .ok_or_else(|| self.error(column, "a time (ISO 8601 or an epoch number)"))
        })
    }

    /// A calendar date.
    ///
    /// # Errors
    /// The column holds no date.
    pub fn date(&self, column: &str) -> Result<Field<civil::Date>, DecodeError> {
        self.field(column).try_map(|raw| {
            time::date(raw.get())
                .ok_or_else(|| self.error(column, "a date (ISO 8601 or days since 1970)"))
        })
    }

    /// Bytes of a bytea column.
    ///
    /// # Errors
    /// The column holds no base64.
    pub fn bytes(&self, column: &str) -> Result<Field<Vec<u8>>, DecodeError> {
        self.field(column).try_map(|raw| {
            string(raw)
                .and_then(|text| BASE64.decode(text.as_bytes()).ok())
                .ok_or_else(|| self.error(column, "base64"))
        })
    }

    pub(super) fn classify(&self, column: &str, raw: &'a RawValue) -> Field<&'a RawValue> {
        match raw.get() {
            "null" => Field::Null,
            json if is_placeholder(json, || self.types.kind(column)) => Field::Unavailable,
            _ => Field::Value(raw),
        }
    }

    /// How to read this row's text that could be a decimal or base64. The connector's mode decides,
    /// else the first other numeric that is unambiguous. Else it is decimal text, since base64 of a
    /// positive number never begins with a digit.
    fn reading(&self, column: &str) -> Reading {
        let others = || {
            self.columns()
                .filter(|(name, _)| *name != column)
                .filter(|(name, _)| matches!(self.types.kind(name), Some(Kind::Decimal(_))))
                .find_map(|(_, raw)| decimal::form_of(raw.get()))
        };
        match self.types.decimal_mode() {
            DecimalMode::Precise => Reading::Base64,
            DecimalMode::String | DecimalMode::Double => Reading::Decimal,
            DecimalMode::Auto => others().unwrap_or(Reading::Decimal),
        }
    }

    fn error(&self, column: &str, expected: &'static str) -> DecodeError {
        DecodeError::Column {
            table: identifier(self.types.table_name()),
            column: identifier(column),
            expected,
        }
    }
}

/// A word in lower case without surrounding space. Borrowed if it is so already.
#[must_use]
pub fn word(text: Cow<'_, str>) -> Cow<'_, str> {
    let plain = text.trim().len() == text.len() && !text.bytes().any(|b| b.is_ascii_uppercase());
    if plain && text.is_ascii() { text } else { Cow::Owned(text.trim().to_lowercase()) }
}

/// A name from the record, made safe for a message: one line, no longer than a PostgreSQL name.
fn identifier(name: &str) -> String {
    name.chars().take(63).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The text of a JSON string.
pub(super) fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

/// Whole numbers come as JSON numbers, xids also as digits in a string or as base64 of such digits.
fn integer(raw: &RawValue) -> Option<i128> {
    if !raw.get().starts_with('"') {
        return raw.get().parse().ok();
    }
    let text = string(raw)?;
    // Base64 of digits begins with M, N or O, so the two cannot be taken for each other.
    text.parse().ok().or_else(|| {
        let digits = BASE64.decode(text.as_bytes()).ok()?;
        std::str::from_utf8(&digits).ok()?.parse().ok()
    })
}

/// The members of a JSON object in their order, values unparsed.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Columns<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(column, _)| column == name).map(|(_, raw)| *raw)
    }

    /// The columns of these names.
    pub(super) fn only(&self, names: &[&str]) -> Self {
        let named = self.0.iter().filter(|(name, _)| names.contains(&name.as_ref()));
        Self(named.cloned().collect())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Columns<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Columns<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                // The widest table known has 23 columns: one allocation for nearly every row.
                let mut columns = Vec::with_capacity(24);
                while let Some((Text(name), raw)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    columns.push((name, raw));
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
#[path = "row_tests.rs"]
mod tests;
