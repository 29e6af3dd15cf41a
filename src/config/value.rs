//! The text form of values: durations, sizes, bounds, addresses.
//!
//! Every parser's error says what the value is not, so that a problem reads
//! `CURRENCY_CONCURRENCY: "abc" is not a bound (5 or 5..64)`.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use url::Url;

use super::address;
use super::settings::{DedupOutage, GroupProtocol, LogFormat, ReplayRecognition, SnapshotPolicy};
use super::spec::{Declared, Spec};
use super::start_at::OffsetReset;

/// `250ms`, `30s`, `5m`, `20h`, `1d`. A number without a unit is refused: half of those who write
/// one mean seconds, the other half milliseconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "is not a duration (250ms, 30s, 5m, 20h or 1d)".to_owned();
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)
}

/// A [`duration`] above zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// What webhooks are signed with: `whsec_...`, or `action=whsec_...` for one action, comma separated.
/// The text is not repeated: it is secret.
pub(super) fn webhook_secrets(text: &str) -> Result<Vec<(Option<String>, SecretString)>, String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let secret = |(index, entry): (usize, &str)| {
        let (action, secret) = match entry.split_once('=') {
            Some((action, secret)) if secret.starts_with("whsec_") => (Some(action.trim()), secret),
            _ => (None, entry),
        };
        let key = secret.strip_prefix("whsec_").and_then(|key| {
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).ok()
        });
        // Standard Webhooks 1.0 ask for 24 to 64 bytes.
        if !key.is_some_and(|key| (24..=64).contains(&key.len())) {
            return Err(format!(
                "has an entry (number {}) that is not whsec_ and the base64 of 24 to 64 bytes",
                index + 1
            ));
        }
        Ok((action.map(str::to_owned), SecretString::from(secret)))
    };
    entries.enumerate().map(secret).collect()
}

/// A [`positive_duration`] of at most an hour, the most that librdkafka takes.
pub(super) fn client_duration(text: &str) -> Result<Duration, String> {
    let duration = positive_duration(text)?;
    if duration <= Duration::from_secs(3_600) {
        Ok(duration)
    } else {
        Err("is longer than librdkafka takes (1h)".to_owned())
    }
}

/// Bytes: `65536`, `64KiB`, `16MiB` or `1GiB`, at least 1.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let wrong = || "is not a size (65536, 64KiB, 16MiB or 1GiB)".to_owned();
    let (number, unit) = split_unit(text);
    let number: usize = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start())
}

/// A whole number within `least..=most`.
pub(super) fn count<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    move |text| match text.parse() {
        Ok(number) if least <= number && number <= most => Ok(number),
        _ => Err(format!("is not a whole number between {least} and {most}")),
    }
}

/// As [`count`], or the word `off`.
pub(super) fn count_or_off(least: u32, most: u32) -> impl Fn(&str) -> Result<Option<u32>, String> {
    move |text| {
        if text.eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        count(least, most)(text).map(Some).map_err(|problem| format!("{problem}, nor off"))
    }
}

/// One of a few words, whatever their case.
fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words
        .iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(text))
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("is not one of {}", known.join(", "))
        })
}

pub(super) fn group_protocol(text: &str) -> Result<GroupProtocol, String> {
    choice(text, &[("classic", GroupProtocol::Classic), ("consumer", GroupProtocol::Consumer)])
}

pub(super) fn offset_reset(text: &str) -> Result<OffsetReset, String> {
    choice(text, &[("earliest", OffsetReset::Earliest), ("latest", OffsetReset::Latest)])
}

pub(super) fn dedup_outage(text: &str) -> Result<DedupOutage, String> {
    choice(text, &[("wait", DedupOutage::Wait), ("proceed", DedupOutage::Proceed)])
}

/// `on`, `off`, or a span `<first commit time>..<end>` of RFC 3339 times.
pub(super) fn replay_recognition(text: &str) -> Result<ReplayRecognition, String> {
    let wrong = || {
        "is neither on, off nor a span of commit times \
         (2026-01-05T10:00:00Z..2026-01-05T10:05:00Z)"
            .to_owned()
    };
    let words = [("on", ReplayRecognition::On), ("off", ReplayRecognition::Off)];
    if let Ok(word) = choice(text, &words) {
        return Ok(word);
    }
    let (from, until) = text.split_once("..").ok_or_else(wrong)?;
    let time = |text: &str| text.trim().parse::<Timestamp>().map_err(|_| wrong());
    let (from, until) = (time(from)?, time(until)?);
    if from >= until {
        return Err("is a span that ends before it begins".to_owned());
    }
    Ok(ReplayRecognition::Except { from, until })
}

pub(super) fn snapshot_policy(text: &str) -> Result<SnapshotPolicy, String> {
    choice(
        text,
        &[
            ("skip", SnapshotPolicy::Skip),
            ("all", SnapshotPolicy::All),
            ("recent", SnapshotPolicy::Recent),
        ],
    )
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    choice(
        text,
        &[("auto", LogFormat::Auto), ("json", LogFormat::Json), ("human", LogFormat::Human)],
    )
}

/// Consumers' names, comma separated; one named twice counts once.
pub(super) fn consumers(text: &str, declared: &Declared) -> Result<Vec<&'static Spec>, String> {
    let known = || declared.names();
    let mut consumers = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let named = declared.specs.iter().find(|spec| spec.name.eq_ignore_ascii_case(name));
        let spec =
            named.ok_or_else(|| format!("names an unknown consumer (known: {})", known()))?;
        if !consumers.contains(spec) {
            consumers.push(*spec);
        }
    }
    if consumers.is_empty() {
        return Err(format!("names no consumer (known: {})", known()));
    }
    Ok(consumers)
}

/// Brokers, each `host:port`, with or without `SASL_SSL://` before it as some consoles show them.
pub(super) fn brokers(text: &str) -> Result<String, String> {
    let wrong = || "is not a list of brokers (host:port, comma separated)".to_owned();
    let brokers: Vec<_> = text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    let valid = |broker: &&str| {
        let (protocol, address) = broker.split_once("://").unwrap_or(("plaintext", broker));
        let protocols = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "9092"));
        protocols.iter().any(|known| known.eq_ignore_ascii_case(protocol))
            && !host.is_empty()
            && !host.contains(['/', '@', ' '])
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if brokers.is_empty() || !brokers.iter().all(valid) {
        return Err(wrong());
    }
    Ok(brokers.join(","))
}

/// A topic's name, or the start of one.
pub fn topic(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.len() <= 249 && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("is not a topic's name (at most 249 letters, digits, dots, dashes and underscores)"
            .to_owned())
    }
}

/// A readable file. One found missing at the first connection would look like an outage.
pub(super) fn readable_file(text: &str) -> Result<String, String> {
    match std::fs::File::open(text).and_then(|file| file.metadata()) {
        Ok(found) if found.is_file() => Ok(text.to_owned()),
        Ok(_) => Err("is not a file".to_owned()),
        Err(error) => Err(format!("cannot be read ({})", error.kind())),
    }
}

/// Address of a Redis server, as the client reads it. Says nothing of the value, which may carry a
/// password.
pub(super) fn redis_url(text: &str) -> Result<String, String> {
    let valid = Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys")
            && url.host_str().is_some_and(|host| !host.is_empty())
    });
    if valid && redis::Client::open(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err("is not a Redis address (redis://host:6379/0 with the database's number, or rediss:// \
             for TLS; special characters of the password percent-encoded)"
            .to_owned())
    }
}

/// A header's value: only letters, digits, signs and spaces of ASCII.
pub(super) fn header(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must be printable ASCII".to_owned())
    }
}

/// A key of a web service. The error does not quote the value.
pub(super) fn key(text: &str) -> Result<SecretString, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err("must be printable ASCII without spaces or line breaks".to_owned())
    }
}

/// What `INNGEST_DEV` means: the dev server's address, or none.
pub(super) fn inngest_dev(text: &str) -> Result<Option<String>, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(Some("http://localhost:8288".to_owned())),
        "0" | "false" => Ok(None),
        _ => address::inngest(text).map(Some).map_err(|_| {
            "is neither 1, 0 nor the dev server's address (http://localhost:8288)".to_owned()
        }),
    }
}

/// `address:port`, or a port on every address.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let port = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    text.parse()
        .or_else(|_| text.strip_prefix(':').unwrap_or(text).parse().map(port))
        .map_err(|_| "is not an address to listen on (0.0.0.0:9464 or 9464)".to_owned())
}

/// A level, or directives as tracing-subscriber reads them. Level names of other loggers are
/// translated, since existing deployments may have set them.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    let wrong = || {
        "is not a log level (error, warn, info, debug, trace, off, or info,target=debug)".to_owned()
    };
    let mut directives = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let level = |level: &str| match level.to_ascii_lowercase().as_str() {
            "warning" => Some("warn"),
            "fatal" | "critical" => Some("error"),
            "silent" => Some("off"),
            "error" => Some("error"),
            "warn" => Some("warn"),
            "info" => Some("info"),
            "debug" => Some("debug"),
            "trace" | "verbose" => Some("trace"),
            "off" => Some("off"),
            _ => None,
        };
        directives.push(match part.rsplit_once('=') {
            Some((target, to)) => format!("{target}={}", level(to).ok_or_else(wrong)?),
            None => level(part).ok_or_else(wrong)?.to_owned(),
        });
    }
    let directives = directives.join(",");
    let filter = tracing_subscriber::EnvFilter::builder().parse(&directives);
    if directives.is_empty() || filter.is_err() {
        return Err(wrong());
    }
    Ok(directives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumers::registry::DECLARED;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("20h"), Ok(Duration::from_secs(72_000)));
        for wrong in ["", "30", "s", "-5s", "1.5s", "5 minutes", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(duration("18446744073709551615h").is_err(), "does not overflow");
        assert!(positive_duration("0s").is_err());
        assert!(client_duration("1h").is_ok() && client_duration("3600001ms").is_err());
    }

    #[test]
    fn sizes_are_bytes_or_binary_units() {
        assert_eq!(size("65536"), Ok(65_536));
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("64 KiB"), Ok(64 << 10));
        for wrong in ["", "0", "16MB", "-1", "MiB", "99999999999999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn brokers_may_name_their_protocol_but_no_password() {
        assert_eq!(brokers("a:9092, b:9093"), Ok("a:9092,b:9093".to_owned()));
        assert_eq!(brokers("SASL_SSL://a:9092"), Ok("SASL_SSL://a:9092".to_owned()));
        assert_eq!(brokers("[::1]:9092"), Ok("[::1]:9092".to_owned()));
        for wrong in [",", "http://a:9092", "a:port", "a:0", ":9092", "user:word@a:9092"] {
            assert!(brokers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn web_addresses_lose_their_slash_and_carry_no_password() {
        assert_eq!(address::http("https://a.example/"), Ok("https://a.example".to_owned()));
        assert_eq!(
            address::http("http://localhost:8288/x/"),
            Ok("http://localhost:8288/x".to_owned())
        );
        for wrong in ["a.example", "ftp://a", "https://u:p@a", "https://a/?k=1", "https://a/#x"] {
            assert!(address::http(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_redis_address_is_one_that_the_client_takes_too() {
        for right in ["redis://h", "rediss://u:p%C3%BC@h:6380/15", "redis://h:6379/"] {
            assert!(redis_url(right).is_ok(), "{right}");
        }
        for wrong in ["h:6379", "http://h", "redis://h:6379/crm", "redis://u:p%FF@h"] {
            let error = redis_url(wrong).expect_err(wrong);
            assert!(error.contains("redis://host:6379/0") && !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn what_goes_into_a_header_is_printable_ascii() {
        assert!(key("sb_secret_x+/=.-~").is_ok());
        for wrong in ["a b", "a\u{fc}", "a\nb", "a\u{7f}"] {
            assert!(key(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(header("feature/a b"), Ok("feature/a b".to_owned()));
        for wrong in ["a\u{fc}", "a\tb", "a\u{7f}"] {
            assert!(header(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn inngests_base_holds_no_key() {
        assert_eq!(address::inngest("https://inn.gs/"), Ok("https://inn.gs".to_owned()));
        assert!(address::inngest("https://proxy.example/events/e-1").is_ok());
        for wrong in
            ["https://inn.gs/e/", "https://inn.gs/e/k", "https://a/b/e/k/", "https://a/b/../e/k"]
        {
            assert!(address::inngest(wrong).is_err(), "{wrong}");
            assert!(inngest_dev(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn inngest_dev_is_a_switch_or_an_address() {
        assert_eq!(inngest_dev("1"), Ok(Some("http://localhost:8288".to_owned())));
        assert_eq!(inngest_dev("false"), Ok(None));
        assert_eq!(inngest_dev("http://inngest:8288"), Ok(Some("http://inngest:8288".to_owned())));
        assert!(inngest_dev("yes").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_noticed_before_the_start() {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert_eq!(readable_file(here), Ok(here.to_owned()));
        let missing = readable_file("/no/such/file").expect_err("missing");
        assert!(missing.contains("entity not found"), "{missing}");
        assert!(readable_file(env!("CARGO_MANIFEST_DIR")).is_err(), "a directory");
    }

    #[test]
    fn a_bare_port_listens_everywhere() {
        assert_eq!(listen("9464"), Ok(SocketAddr::from(([0, 0, 0, 0], 9464))));
        assert_eq!(listen("127.0.0.1:80"), Ok(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(listen("localhost").is_err());
    }

    #[test]
    fn log_levels_of_other_loggers_are_understood_and_nonsense_is_not_a_target() {
        assert_eq!(log_level("WARNING"), Ok("warn".to_owned()));
        assert_eq!(log_level("info,rdkafka=DEBUG"), Ok("info,rdkafka=debug".to_owned()));
        for wrong in ["", ",", "loud", "info,rdkafka=loud"] {
            assert!(log_level(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn replays_are_recognised_always_never_or_but_for_a_span() {
        assert_eq!(replay_recognition("On"), Ok(ReplayRecognition::On));
        assert_eq!(replay_recognition("off"), Ok(ReplayRecognition::Off));
        let span = replay_recognition("2026-01-05T10:00:00Z .. 2026-01-05T13:05:00+03:00");
        let span = span.expect("five minutes");
        let at = |time: &str| time.parse::<Timestamp>().expect("a time").as_microsecond();
        assert!(span.compares(at("2026-01-05T09:59:59.999999Z")));
        assert!(!span.compares(at("2026-01-05T10:00:00Z")));
        assert!(!span.compares(at("2026-01-05T10:04:59.999999Z")));
        assert!(span.compares(at("2026-01-05T10:05:00Z")));
        for wrong in [
            "",
            "no",
            "2026-01-05T10:00:00Z",
            "2026-01-05..2026-01-06",
            "2026-01-05T10:00:00Z..2026-01-05T10:00:00Z",
        ] {
            assert!(replay_recognition(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_consumer_is_answered_with_the_known_ones() {
        let consumers = |text: &str| {
            consumers(text, &DECLARED)
                .map(|specs| specs.iter().map(|spec| spec.name).collect::<Vec<_>>())
        };
        assert_eq!(consumers("tier, currency,tier"), Ok(vec!["tier", "currency"]));
        let error = consumers("currency,curency").expect_err("a typo");
        assert!(error.contains("known: currency, tier, mission, reward, marketplace"), "{error}");
        assert!(consumers(" , ").is_err());
    }
}
