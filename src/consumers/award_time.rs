//! When an award is due, by its merchant's settings (behaviour section 3, "Merchant settings").
//!
//! The first rule that applies: days of delay, minutes of delay, a time of day, at once.

use std::borrow::Cow;
use std::sync::LazyLock;

use jiff::civil::Time;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Span, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The longest delay in days and in minutes: ten years. A longer one is cut to this, so that every
/// consumer of the dates can represent them.
const MOST_DAYS: i64 = 3_650;
const MOST_MINUTES: i64 = MOST_DAYS * 24 * 60;

/// The zones that are built in, so that an award time does not depend on what the image ships.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// What a merchant has set about the time of awards: the columns of `merchant_master`.
///
/// Numbers may come as JSON numbers or as text; null, empty and missing all mean "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct MerchantSettings {
    /// Calendar days of delay; zero or less: none.
    #[serde(default, rename = "currency_award_delay_days", deserialize_with = "number")]
    pub delay_days: Option<i64>,
    /// Minutes of delay; zero or less: none.
    #[serde(default, rename = "currency_award_delay_minutes", deserialize_with = "number")]
    pub delay_minutes: Option<i64>,
    /// Time of day, `HH:MM` or `HH:MM:SS`.
    #[serde(default, rename = "currency_award_time", deserialize_with = "time")]
    pub time: Option<Time>,
    /// IANA name of the zone for days and times of day; none: UTC.
    #[serde(default, rename = "currency_award_timezone", deserialize_with = "text")]
    pub timezone: Option<String>,
}

/// When an award is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwardTime {
    /// The moment. A day's delay and a time of day never lie before the change they were
    /// computed for.
    pub at: Timestamp,
    /// The merchant's zone was needed and is not known: UTC was taken. This is to be logged and
    /// counted.
    pub zone_unknown: bool,
}

/// When the award of a change that was committed at `now` is due.
///
/// `now` is the commit time and not the clock's, so that a repeat and a backlog give the same time.
/// A time of day in a daylight-saving gap moves forward by the gap; one in an overlap is the earlier.
#[must_use]
pub fn award_time(settings: &MerchantSettings, now: Timestamp) -> AwardTime {
    let set = |number: Option<i64>| number.filter(|number| *number > 0);
    match (set(settings.delay_days), set(settings.delay_minutes), settings.time) {
        (Some(days), _, time) => {
            let (zone, zone_unknown) = zone(settings);
            let time = time.unwrap_or_else(Time::midnight);
            AwardTime { at: on_day(now, &zone, days.min(MOST_DAYS), time), zone_unknown }
        }
        (None, Some(minutes), _) => {
            let delay = SignedDuration::from_mins(minutes.min(MOST_MINUTES));
            AwardTime { at: now.saturating_add(delay).unwrap_or(now), zone_unknown: false }
        }
        (None, None, Some(time)) => {
            let (zone, zone_unknown) = zone(settings);
            let today = on_day(now, &zone, 0, time);
            let at = if today < now { on_day(now, &zone, 1, time) } else { today };
            AwardTime { at, zone_unknown }
        }
        (None, None, None) => AwardTime { at: now, zone_unknown: false },
    }
}

/// The longest that an award of a merchant with these settings can sleep; zero if it never does.
#[must_use]
pub fn longest_delay(settings: &MerchantSettings) -> SignedDuration {
    let set = |number: Option<i64>| number.filter(|number| *number > 0);
    // With changes of the clock a day may have 25 or 26 hours.
    const DAY: SignedDuration = SignedDuration::from_hours(26);
    match (set(settings.delay_days), set(settings.delay_minutes), settings.time) {
        (Some(days), ..) => SignedDuration::from_hours(days.min(MOST_DAYS) * 24) + DAY,
        (None, Some(minutes), _) => SignedDuration::from_mins(minutes.min(MOST_MINUTES)),
        (None, None, Some(_)) => DAY,
        (None, None, None) => SignedDuration::ZERO,
    }
}

/// RFC 3339 in UTC with `Z`; milliseconds where there are any, never less than three digits.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    let digits = if at.subsec_nanosecond() / 1_000_000 == 0 { 0 } else { 3 };
    DateTimePrinter::new().precision(Some(digits)).timestamp_to_string(&at)
}

/// `time` on the day that lies `days` after the local day of `now`.
fn on_day(now: Timestamp, zone: &TimeZone, days: i64, time: Time) -> Timestamp {
    let day = now.to_zoned_datetime(zone.clone()).date().saturating_add(Span::new().days(days));
    // "Compatible" is what behaviour.md asks of gaps and overlaps. It fails only at the ends of
    // jiff's time line, in the years -9999 and 9999.
    day.to_datetime(time).to_zoned_datetime(zone.clone()).map_or(now, |due| due.timestamp())
}

/// The merchant's zone, and whether it is an unknown one.
fn zone(settings: &MerchantSettings) -> (TimeZone, bool) {
    match &settings.timezone {
        None => (TimeZone::UTC, false),
        Some(name) => match ZONES.get(name) {
            Ok(zone) => (zone, false),
            Err(_) => (TimeZone::UTC, true),
        },
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar<'a> {
    Integer(i64),
    Float(f64),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

/// A whole number; a fraction is cut off.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let float = |number: f64| {
        // `as` saturates, which the bounds on delays absorb.
        if number.is_nan() { None } else { Some(number as i64) }
    };
    match Option::<Scalar<'_>>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Scalar::Integer(number)) => Ok(Some(number)),
        Some(Scalar::Float(number)) => Ok(float(number)),
        Some(Scalar::Text(text)) => match text.trim() {
            "" => Ok(None),
            text => text
                .parse()
                .ok()
                .or_else(|| text.parse().ok().and_then(float))
                .map(Some)
                .ok_or_else(|| D::Error::custom("a delay of the merchant is not a number")),
        },
    }
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let Some(text) = text(deserializer)? else { return Ok(None) };
    let padded = if text.find(':') == Some(1) { format!("0{text}") } else { text };
    let looks_right = padded.find(':') == Some(2)
        && padded.chars().all(|c| c.is_ascii_digit() || matches!(c, ':' | '.'));
    match padded.parse() {
        Ok(time) if looks_right => Ok(Some(time)),
        _ => Err(D::Error::custom("currency_award_time is not a time of day (HH:MM or HH:MM:SS)")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(json: &str) -> MerchantSettings {
        serde_json::from_str(json).expect("a row")
    }

    /// The award time of a change at `now`, as text.
    fn due(days: i64, minutes: i64, time: &str, zone: &str, now: &str) -> String {
        let row = serde_json::json!({
            "currency_award_delay_days": days, "currency_award_delay_minutes": minutes,
            "currency_award_time": time, "currency_award_timezone": zone,
        });
        rfc3339(award_time(&settings(&row.to_string()), now.parse().expect("a time")).at)
    }

    #[test]
    fn nothing_set_means_at_once() {
        assert_eq!(due(0, 0, "", "", "2026-03-01T10:00:00.25Z"), "2026-03-01T10:00:00.250Z");
        assert_eq!(due(-3, -1, "", "Mars/Base", "2026-03-01T10:00:00Z"), "2026-03-01T10:00:00Z");
    }

    #[test]
    fn days_are_calendar_days_in_the_zone_of_the_merchant() {
        let bangkok = |time, now| due(1, 5, time, "Asia/Bangkok", now);
        // 18:30 in UTC is 01:30 of the next day in Bangkok.
        assert_eq!(bangkok("", "2026-03-01T18:30:00Z"), "2026-03-02T17:00:00Z");
        assert_eq!(bangkok("", "2026-03-01T10:00:00Z"), "2026-03-01T17:00:00Z");
        assert_eq!(bangkok("09:00", "2026-03-01T10:00:00Z"), "2026-03-02T02:00:00Z");
        assert_eq!(due(3, 0, "09:00:30", "", "2026-02-27T10:00:00Z"), "2026-03-02T09:00:30Z");
    }

    #[test]
    fn minutes_count_when_there_are_no_days() {
        let now = "2026-03-08T06:30:00Z";
        assert_eq!(due(0, 90, "09:00", "America/New_York", now), "2026-03-08T08:00:00Z");
    }

    #[test]
    fn a_time_alone_is_today_or_tomorrow() {
        let bangkok = |now| due(0, 0, "09:00", "Asia/Bangkok", now);
        assert_eq!(bangkok("2026-03-01T01:59:59Z"), "2026-03-01T02:00:00Z");
        assert_eq!(bangkok("2026-03-01T02:00:00Z"), "2026-03-01T02:00:00Z");
        assert_eq!(bangkok("2026-03-01T02:00:00.001Z"), "2026-03-02T02:00:00Z");
    }

    #[test]
    fn a_time_in_a_gap_moves_forward() {
        let tomorrow = |time, zone, now| due(1, 0, time, zone, now);
        let new_york = tomorrow("02:30", "America/New_York", "2026-03-07T17:00:00Z");
        assert_eq!(new_york, "2026-03-08T07:30:00Z", "03:30 in summer time");
        let berlin = tomorrow("02:15", "Europe/Berlin", "2026-03-28T12:00:00Z");
        assert_eq!(berlin, "2026-03-29T01:15:00Z", "03:15 in summer time");
        let lord_howe = tomorrow("02:10", "Australia/Lord_Howe", "2026-10-03T00:00:00Z");
        assert_eq!(lord_howe, "2026-10-03T15:40:00Z", "02:40, for the gap is half an hour");
        let midnight = tomorrow("", "America/Santiago", "2026-09-05T12:00:00Z");
        assert_eq!(midnight, "2026-09-06T04:00:00Z", "01:00: the day has no midnight");
    }

    #[test]
    fn a_time_in_an_overlap_is_the_earlier() {
        let tomorrow = |time, zone, now| due(1, 0, time, zone, now);
        let new_york = tomorrow("01:30", "America/New_York", "2026-10-31T12:00:00Z");
        assert_eq!(new_york, "2026-11-01T05:30:00Z");
        let berlin = tomorrow("02:30", "Europe/Berlin", "2026-10-24T12:00:00Z");
        assert_eq!(berlin, "2026-10-25T00:30:00Z");
        let lord_howe = tomorrow("01:45", "Australia/Lord_Howe", "2026-04-04T00:00:00Z");
        assert_eq!(lord_howe, "2026-04-04T14:45:00Z");
        // Between the two 02:30 the earlier has passed.
        let between = due(0, 0, "02:30", "Europe/Berlin", "2026-10-25T01:00:00Z");
        assert_eq!(between, "2026-10-26T01:30:00Z");
    }

    #[test]
    fn an_unknown_zone_is_utc_and_flagged_where_a_zone_is_needed() {
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().expect("a time");
        let row =
            |more: &str| settings(&format!("{{{more}\"currency_award_timezone\":\"Mars/X\"}}"));
        let flagged = award_time(&row("\"currency_award_delay_days\":1,"), now);
        assert_eq!(rfc3339(flagged.at), "2026-03-02T00:00:00Z");
        assert!(flagged.zone_unknown);
        assert!(award_time(&row("\"currency_award_time\":\"09:00\","), now).zone_unknown);
        assert!(!award_time(&row("\"currency_award_delay_minutes\":1,"), now).zone_unknown);
        assert!(!award_time(&row(""), now).zone_unknown);
    }

    #[test]
    fn rows_are_read_in_every_form_in_which_they_come() {
        let full = settings(
            r#"{"currency_award_delay_days":"2","currency_award_delay_minutes":30.0,
                "currency_award_time":"9:05:00","currency_award_timezone":" asia/bangkok ","id":1}"#,
        );
        assert_eq!((full.delay_days, full.delay_minutes), (Some(2), Some(30)));
        assert_eq!(full.time, Some(jiff::civil::time(9, 5, 0, 0)));
        assert_eq!(full.timezone.as_deref(), Some("asia/bangkok"));
        assert!(!award_time(&full, Timestamp::UNIX_EPOCH).zone_unknown, "whatever the case");
        let empty = r#"{"currency_award_delay_days":null,"currency_award_time":""}"#;
        assert_eq!(settings(empty), MerchantSettings::default());
        assert_eq!(settings("{}"), MerchantSettings::default());
        for wrong in ["25:00", "9am", "09", "2026-01-01T09:00", "09:00+07:00", "0900"] {
            let row = format!("{{\"currency_award_time\":\"{wrong}\"}}");
            assert!(serde_json::from_str::<MerchantSettings>(&row).is_err(), "{wrong}");
        }
        let wrong = r#"{"currency_award_delay_days":"soon"}"#;
        assert!(serde_json::from_str::<MerchantSettings>(wrong).is_err());
    }

    #[test]
    fn a_delay_beyond_reason_is_ten_years() {
        let ten_years = due(3_650, 0, "", "", "2026-03-01T10:00:00Z");
        assert_eq!(due(i64::MAX, 0, "", "", "2026-03-01T10:00:00Z"), ten_years);
        assert_eq!(due(0, i64::MAX, "", "", "2026-03-01T10:00:00Z"), "2036-02-27T10:00:00Z");
    }

    proptest! {
        #[test]
        fn a_day_rule_gives_the_local_time_or_the_end_of_its_gap(
            now in 1_500_000_000_i64..2_000_000_000,
            days in 0_i64..800,
            minute in 0_i8..60,
            hour in 0_i8..24,
            zone in prop::sample::select(vec![
                "UTC", "Asia/Bangkok", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe",
                "America/Santiago", "Asia/Kathmandu", "Africa/Casablanca", "Pacific/Kiritimati",
            ]),
        ) {
            let now = Timestamp::from_second(now).expect("in range");
            let time = jiff::civil::time(hour, minute, 0, 0);
            let settings = MerchantSettings {
                delay_days: Some(days), time: Some(time), timezone: Some(zone.to_owned()),
                ..MerchantSettings::default()
            };
            let (due, longest) = (award_time(&settings, now), longest_delay(&settings));
            prop_assert!(!due.zone_unknown);
            prop_assert!(due.at >= now);
            prop_assert!(due.at.duration_since(now) <= longest);
            let zone = ZONES.get(zone).expect("a real zone");
            let local = due.at.to_zoned_datetime(zone.clone());
            let gap = local.date().to_datetime(time).to_zoned_datetime(zone.clone()).expect("in range");
            prop_assert!(local.time() == time || (gap == local && gap.time() > time));
            let day = now.to_zoned_datetime(zone).date();
            let passed = if days == 0 { 0..=1 } else { days..=days };
            let went = day.until(local.date()).expect("in range").get_days();
            prop_assert!(passed.contains(&i64::from(went)), "{} days", went);
        }

        #[test]
        fn minutes_lie_exactly_ahead(now in 0_i64..2_000_000_000, minutes in 1_i64..1_000_000) {
            let now = Timestamp::from_second(now).expect("in range");
            let due = award_time(
                &MerchantSettings { delay_minutes: Some(minutes), ..MerchantSettings::default() },
                now,
            );
            prop_assert_eq!(due.at.as_second() - now.as_second(), minutes * 60);
        }
    }
}
