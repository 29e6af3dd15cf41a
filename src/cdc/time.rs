//! Times in every unit and notation (behaviour section 2).

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

/// Reads a column's JSON; `None` if it is not a time. `infinity` and years that cannot be
/// represented become the latest or earliest time.
pub(super) fn timestamp(json: &str, unit: Option<Unit>) -> Option<Timestamp> {
    if json.starts_with('"') { iso(inner(json)?) } else { epoch(whole(json)?, unit) }
}

/// Reads a column's JSON: days since 1970 or an ISO date, perhaps with a `Z` (isostring mode).
/// Dates that cannot be represented become the latest or earliest one.
pub(super) fn date(json: &str) -> Option<civil::Date> {
    if json.starts_with('"') {
        let text = inner(json)?;
        let text = text.strip_suffix('Z').unwrap_or(text);
        return text.parse().ok().or_else(|| match beyond(text)? {
            End::Latest => Some(civil::Date::MAX),
            End::Earliest => Some(civil::Date::MIN),
        });
    }
    let days = whole(json)?;
    let end = if days > 0 { civil::Date::MAX } else { civil::Date::MIN };
    let span = jiff::Span::new().try_days(days).ok();
    Some(span.and_then(|days| civil::date(1970, 1, 1).checked_add(days).ok()).unwrap_or(end))
}

/// A whole number. One beyond 64 bits becomes the largest or smallest that they hold.
fn whole(json: &str) -> Option<i64> {
    json.parse().ok().or_else(|| {
        let digits = json.strip_prefix('-').unwrap_or(json);
        let sound = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        sound.then_some(if json.starts_with('-') { i64::MIN } else { i64::MAX })
    })
}

/// Times and dates need no escapes, so a string with escapes is not one of them.
fn inner(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"')
}

fn iso(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    // Text without a zone, or a bare date, is what PostgreSQL calls a timestamp: UTC here.
    let local = text.parse::<civil::DateTime>().ok();
    if let Some(time) = local.and_then(|local| Offset::UTC.to_timestamp(local).ok()) {
        return Some(time);
    }
    Some(match beyond(text)? {
        End::Latest => Timestamp::MAX,
        End::Earliest => Timestamp::MIN,
    })
}

enum End {
    Latest,
    Earliest,
}

/// The end of time for a well-formed date that cannot be represented: `infinity`, a year of more
/// than four digits, the last day of 9999, a year before 1 (with a minus or `BC`).
fn beyond(text: &str) -> Option<End> {
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (date, minus) = match text.as_bytes().first()? {
        b'+' => (&text[1..], false),
        b'-' => (&text[1..], true),
        _ => (text, false),
    };
    if date == "infinity" {
        return Some(if minus { End::Earliest } else { End::Latest });
    }
    let (year, rest) = date.split_once('-')?;
    let sound = year.len() >= 4 && year.bytes().all(|byte| byte.is_ascii_digit());
    // Any other year is in the calendar, so text that cannot be read is not a date.
    let outside =
        minus || before_christ || year.len() > 4 || year == "9999" && rest.starts_with("12-3");
    if !(sound && outside && is_rest_of_time(rest)) {
        return None;
    }
    Some(if minus || before_christ { End::Earliest } else { End::Latest })
}

/// Month and day, then perhaps a time with a fraction and a zone. The leap year 2000 stands in for
/// years that cannot be represented.
fn is_rest_of_time(rest: &str) -> bool {
    let time = format!("2000-{rest}");
    time.parse::<Timestamp>().is_ok() || time.parse::<civil::DateTime>().is_ok()
}

/// Without a unit the magnitude decides. Milliseconds do not reach 10^14 before the year 5138.
/// Microseconds below 10^14 and nanoseconds below 10^17 lie within 1,158 days of 1970.
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
        for json in ["\"\"", "\"x\"", "1.5", "true", "-", "\"12024-13-01\"", "\"-\""] {
            assert_eq!(date(json), None, "{json}");
        }
    }

    #[test]
    fn dates_beyond_the_calendar_are_its_ends() {
        for json in [
            "99999999999",
            "2147483647",
            "\"infinity\"",
            "\"+292278994-08-17\"",
            "\"12024-01-01Z\"",
        ] {
            assert_eq!(date(json), Some(civil::Date::MAX), "{json}");
        }
        for json in ["-2147483648", "\"-infinity\"", "\"0044-03-15 BC\"", "\"-0043-03-15\""] {
            assert_eq!(date(json), Some(civil::Date::MIN), "{json}");
        }
        assert_eq!(date("\"0001-01-01\""), Some(civil::date(1, 1, 1)));
    }

    #[test]
    fn well_formed_times_beyond_what_can_be_reckoned_with_are_its_ends() {
        for json in [
            "\"9999-12-31T23:59:59.999999Z\"",
            "\"9999-12-31T23:59:59Z\"",
            "\"9999-12-31T23:59:59.999999\"",
            "\"9999-12-31 23:59:59.999999+00\"",
            "\"9999-12-31\"",
            "\"+10000-01-01T00:00:00Z\"",
            "\"294276-12-31T23:59:59.999999Z\"",
            "253402300799999999",
            "99999999999999999999999",
        ] {
            let unit = (json.len() == 18).then_some(Unit::Microseconds);
            assert_eq!(timestamp(json, unit), Some(Timestamp::MAX), "{json}");
        }
        for json in [
            "\"-0043-03-15T00:00:00Z\"",
            "\"-4712-01-01T00:00:00.000000Z\"",
            "\"-4713-11-24T00:00:00Z\"",
            "\"0044-03-15 00:00:00 BC\"",
            "\"0044-03-15 00:00:00+00 BC\"",
            "-99999999999999999999999",
        ] {
            assert_eq!(timestamp(json, None), Some(Timestamp::MIN), "{json}");
        }
        // Years of the calendar are read as they are.
        assert_eq!(read("\"0001-01-01T00:00:00Z\"", None).as_deref(), Some("0001-01-01T00:00:00Z"));
        assert_eq!(read("\"0000-12-31T23:59:59Z\"", None).as_deref(), Some("0000-12-31T23:59:59Z"));
        for json in [
            "\"12024-13-01T00:00:00Z\"",
            "\"9999-12-31T25:00:00Z\"",
            "\"-0043\"",
            "\"99999-01-01 and more\"",
            "\"123-01-01\"",
            "\"2023-02-29T00:00:00Z\"",
            "\"9999-02-29T00:00:00Z\"",
        ] {
            assert_eq!(timestamp(json, None), None, "{json}");
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
