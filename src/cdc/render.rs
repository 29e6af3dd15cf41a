//! Rows as JSON: for `explain` (behaviour section 11) and as `event_data` of an event (section 5).

use bigdecimal::{BigDecimal, Zero as _};
use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::Value;
use serde_json::value::RawValue;

use super::catalogue::Kind;
use super::decimal;
use super::row::{Field, Row};

#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Explain,
    Event,
}

impl Row<'_> {
    /// The row for `explain`: decimals as exact strings, times in RFC 3339 and UTC, dates in ISO 8601,
    /// xids as digits; the rest as it came. Unavailable columns are left out (see [`Row::unavailable`]).
    #[must_use]
    pub fn explained(&self) -> Box<RawValue> {
        self.render(For::Explain)
    }

    /// The row as `event_data` of `mission/evaluate` (behaviour section 5): as `explained`, but numbers
    /// as JSON numbers with their exact digits, and as strings where a double would change them.
    #[must_use]
    pub fn event_data(&self) -> Box<RawValue> {
        self.render(For::Event)
    }

    fn render(&self, purpose: For) -> Box<RawValue> {
        let mut json = String::with_capacity(32 * self.columns.0.len() + 2);
        for (name, raw) in self.columns() {
            let Some(value) = self.rendered(name, raw, purpose) else { continue };
            json.push(if json.is_empty() { '{' } else { ',' });
            json.push_str(&quoted(name));
            json.push(':');
            json.push_str(&value);
        }
        json.push_str(if json.is_empty() { "{}" } else { "}" });
        RawValue::from_string(json)
            .expect("an object was written, of names and values that are JSON")
    }

    /// One column of [`Row::event_data`]; `None` where it is missing or unavailable.
    #[must_use]
    pub fn event_value(&self, column: &str) -> Option<Box<RawValue>> {
        let json = self.rendered(column, self.raw(column)?, For::Event)?;
        Some(RawValue::from_string(json).expect("values are written as JSON"))
    }

    fn rendered(&self, name: &str, raw: &RawValue, purpose: For) -> Option<String> {
        Some(match self.classify(name, raw) {
            Field::Missing | Field::Unavailable => return None,
            Field::Null => "null".to_owned(),
            Field::Value(raw) => self.value(name, purpose).unwrap_or_else(|| {
                match (purpose, raw.get().as_bytes().first()) {
                    (For::Event, Some(b'-' | b'0'..=b'9')) => number(raw.get().to_owned()),
                    _ => raw.get().to_owned(),
                }
            }),
        })
    }

    /// A decoded value, or the value as it came if it cannot be decoded (`NaN`, `infinity`).
    fn value(&self, column: &str, purpose: For) -> Option<String> {
        match self.types.kind(column)? {
            Kind::Decimal(_) => {
                let text = self.decimal(column).ok()?.value()?.to_plain_string();
                Some(if purpose == For::Event { number(text) } else { quoted(&text) })
            }
            Kind::Timestamp(_) => self
                .timestamp(column)
                .ok()?
                .value()
                .filter(|time| *time != Timestamp::MIN && *time != Timestamp::MAX)
                .map(|time| quoted(&time.to_string())),
            Kind::Date => self
                .date(column)
                .ok()?
                .value()
                .filter(|date| *date != Date::MIN && *date != Date::MAX)
                .map(|date| quoted(&date.to_string())),
            Kind::Bool => self.bool(column).ok()?.value().map(|value| value.to_string()),
            Kind::Xid8 => self.integer(column).ok()?.value().map(|xid| quoted(&xid.to_string())),
            Kind::Text | Kind::Uuid | Kind::Integer | Kind::Json | Kind::Bytes | Kind::Other => {
                None
            }
        }
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Writes a number as a string if Inngest's doubles would change it: beyond 2^53, more than 15
/// significant digits, or so small that 0 would be left (behaviour section 5).
fn number(text: String) -> String {
    let kept = decimal::from_text(&text).is_some_and(|number| {
        let exact_integers = BigDecimal::from(1_u64 << 53);
        let whole = number.is_integer();
        let fits = number.is_zero() || text.parse().is_ok_and(f64::is_normal);
        fits && number.normalized().digits() <= 15 && !(whole && number.abs() > exact_integers)
    });
    if kept { text } else { quoted(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits_and_become_strings_where_a_double_would_change_them() {
        for text in [
            "100.00",
            "0",
            "-0.01",
            "9999999999.99",
            "9007199254740",
            "0.000000000000000001",
            "9.99999999999E9",
            "999999999999999",
        ] {
            assert_eq!(number(text.to_owned()), text);
        }
        for text in [
            "9007199254740993",
            "-9223372036854775808",
            "0.1234567890123456",
            "123456789012345678.9",
            "100000000000000000000",
            "1e400",
            "1e-400",
            "-1.5e-310",
        ] {
            assert_eq!(number(text.to_owned()), format!("\"{text}\""));
        }
    }
}
