//! Times in every unit and notation (contract section 2).

use jiff::tz::Offset;
use jiff::{Timestamp, civil};

/// What an epoch number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// PostgreSQL's `infinity` as its driver hands it on, in whatever unit.
const INFINITY: i64 = 9_223_372_036_825_200_000;

/// Reads a column's JSON; `None` when it is no time. `infinity` and years that cannot be told become
/// the latest or earliest time.
pub(super) fn timestamp(json: &str, unit: Option<Unit>) -> Option<Timestamp> {
    if json.starts_with('"') { iso(inner(json)?) } else { epoch(json.parse().ok()?, unit) }
}

/// Reads a column's JSON: days since 1970 or an ISO date, perhaps with a `Z` (isostring mode).
pub(super) fn date(json: &str) -> Option<civil::Date> {
    if json.starts_with('"') {
        let text = inner(json)?;
        return text.strip_suffix('Z').unwrap_or(text).parse().ok();
    }
    let days: i32 = json.parse().ok()?;
    civil::date(1970, 1, 1).checked_add(jiff::Span::new().try_days(days).ok()?).ok()
}

/// Times and dates need no escapes, so a string that has some is none.
fn inner(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"')
}

fn iso(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if let Ok(local) = text.parse::<civil::DateTime>() {
        // Without a zone (or with a bare date) it is what PostgreSQL calls a timestamp: UTC here.
        return Offset::UTC.to_timestamp(local).ok();
    }
    let year_beyond = |rest: &str| {
        rest.split_once('-').is_some_and(|(year, _)| {
            year.len() > 4 && year.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    match (text, text.as_bytes().first()?) {
        ("infinity", _) => Some(Timestamp::MAX),
        ("-infinity", _) => Some(Timestamp::MIN),
        (_, b'+') if year_beyond(&text[1..]) => Some(Timestamp::MAX),
        (_, b'-') if year_beyond(&text[1..]) => Some(Timestamp::MIN),
        _ => None,
    }
}

/// Without a unit the magnitude tells: up to the year 5138 no number of milliseconds reaches 10^14,
/// and microseconds and nanoseconds lie below only within days of 1970.
fn epoch(number: i64, unit: Option<Unit>) -> Option<Timestamp> {
    if number >= INFINITY {
        return Some(Timestamp::MAX);
    }
    if number <= -INFINITY {
        return Some(Timestamp::MIN);
    }
    let unit = unit.unwrap_or(match number.unsigned_abs() {
        0..100_000_000_000_000 => Unit::Milliseconds,
        100_000_000_000_000..100_000_000_000_000_000 => Unit::Microseconds,
        _ => Unit::Nanoseconds,
    });
    let time = match unit {
        Unit::Milliseconds => Timestamp::from_millisecond(number),
        Unit::Microseconds => Timestamp::from_microsecond(number),
        Unit::Nanoseconds => Timestamp::from_nanosecond(number.into()),
    };
    Some(time.unwrap_or(if number > 0 { Timestamp::MAX } else { Timestamp::MIN }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, unit: Option<Unit>) -> Option<String> {
        timestamp(json, unit).map(|time| time.to_string())
    }

    #[test]
    fn every_notation_of_one_moment_is_the_same_time() {
        for json in [
            "\"2024-02-29T12:34:56.789Z\"",
            "\"2024-02-29T12:34:56.789000Z\"",
            "\"2024-02-29T19:34:56.789+07:00\"",
            "\"2024-02-29T12:34:56.789\"",
            "\"2024-02-29 12:34:56.789+00\"",
            "1709210096789",
            "1709210096789000",
            "1709210096789000000",
        ] {
            assert_eq!(read(json, None).as_deref(), Some("2024-02-29T12:34:56.789Z"), "{json}");
        }
    }

    #[test]
    fn a_known_unit_wins_over_the_magnitude() {
        let early = Some(Unit::Microseconds);
        assert_eq!(read("1000000", early).as_deref(), Some("1970-01-01T00:00:01Z"));
        assert_eq!(read("1000000", None).as_deref(), Some("1970-01-01T00:16:40Z"));
        assert_eq!(
            read("-1000000000", Some(Unit::Nanoseconds)).as_deref(),
            Some("1969-12-31T23:59:59Z")
        );
        assert_eq!(timestamp("253402300799000", Some(Unit::Milliseconds)), Some(Timestamp::MAX));
    }

    #[test]
    fn infinity_is_the_end_of_time() {
        for json in ["\"infinity\"", "9223372036825200000", "\"+292278994-08-17T00:00:00Z\""] {
            assert_eq!(timestamp(json, None), Some(Timestamp::MAX), "{json}");
        }
        for json in ["\"-infinity\"", "-9223372036832400000", "\"-292275055-05-16T00:00:00Z\""] {
            assert_eq!(timestamp(json, None), Some(Timestamp::MIN), "{json}");
        }
    }

    #[test]
    fn dates_are_days_or_iso_text() {
        for json in ["19782", "\"2024-02-29\"", "\"2024-02-29Z\""] {
            assert_eq!(date(json), Some(civil::date(2024, 2, 29)), "{json}");
        }
        assert_eq!(date("-1"), Some(civil::date(1969, 12, 31)));
        for json in ["\"\"", "\"x\"", "1.5", "true", "99999999999", "2147483647"] {
            assert_eq!(date(json), None, "{json}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for json in
            ["\"\"", "\"soon\"", "1.5", "true", "{}", "\"+\"", "\"ü\"", "\"", "\"12:00:00\""]
        {
            assert_eq!(timestamp(json, None), None, "{json}");
        }
    }
}
