//! What both clients share: the connection pool, time-outs, `Retry-After`, bounded answers.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

/// A longer `Retry-After` is cut to this: asking once an hour harms nobody, and an absurd value
/// must not silence a dependency for good.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What to do about a certificate that is not trusted.
pub(super) const UNTRUSTED: &str =
    "SSL_CERT_FILE must name the authority of its certificate if the system does not know it";

/// The longest text of a server in a message, in characters.
const MAX_TEXT: usize = 240;

/// Time-outs of the HTTP clients.
#[derive(Debug, Clone, Copy)]
pub struct HttpConfig {
    /// For the connection alone, TLS included. Default 5 s.
    pub connect_timeout: Duration,
    /// For a whole request, from the first attempt to connect to the last byte of the answer.
    /// Default 30 s.
    pub timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), timeout: Duration::from_secs(30) }
    }
}

/// A client that cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The base address is not an `http` or `https` URL. The value is not repeated: it may hold
    /// credentials.
    #[error("the address of {service} is not an http or https url: check {setting}")]
    Address {
        /// Whose address it is.
        service: &'static str,
        /// The setting that holds it.
        setting: &'static str,
    },
    /// The key is empty or holds characters that cannot go into a request.
    #[error("the key of {service} is empty or not printable ascii: check {setting}")]
    Key {
        /// Whose key it is.
        service: &'static str,
        /// The setting that holds it.
        setting: &'static str,
    },
    /// TLS or the resolver cannot be set up.
    #[error("the http client of {service} cannot be set up: {reason}")]
    Client {
        /// Whose client it is.
        service: &'static str,
        /// What the HTTP library said.
        reason: String,
    },
}

/// Makes ring the process's TLS provider, once.
pub(super) fn install_tls() {
    // Err means that the process already has a provider, which is enough.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// A pooled client for one service.
pub(super) fn client(
    service: &'static str,
    config: &HttpConfig,
    base: &Url,
) -> Result<Client, SetupError> {
    install_tls();
    let mut builder = Client::builder()
        .user_agent(concat!("crm-event-processors/", env!("CARGO_PKG_VERSION")))
        // Inngest redirects an empty key to a page that answers 200, though nothing was sent.
        .redirect(Policy::none())
        .connect_timeout(config.connect_timeout)
        .timeout(config.timeout)
        // Below the usual 60 s of load balancers, so that a request rarely meets a closing socket.
        .pool_idle_timeout(Duration::from_secs(30));
    if is_loopback(base) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| SetupError::Client { service, reason: describe(error) })
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost" || host.starts_with("127.") || host == "[::1]"
}

/// Parses a base address and appends path segments, each percent-encoded.
pub(super) fn endpoint(base: &str, segments: &[&str]) -> Option<Url> {
    let mut url = Url::parse(base.trim()).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    url.set_query(None);
    url.set_fragment(None);
    url.path_segments_mut().ok()?.pop_if_empty().extend(segments);
    Some(url)
}

/// `Retry-After` as seconds or as an HTTP date, at most an hour. `now` is the wall clock.
pub(super) fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        let at = jiff::fmt::rfc2822::DateTimeParser::new()
            .relaxed_weekday(true)
            .parse_timestamp(value)
            .ok()?;
        Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Why an answer could not be read to its end.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The connection ended or stalled in the middle.
    Broken { timeout: bool, message: String },
    /// Longer than the limit.
    TooLarge,
}

/// Reads an answer, at most `limit` bytes.
pub(super) async fn read(mut response: Response, limit: usize) -> Result<Bytes, ReadError> {
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body.freeze()),
            Ok(Some(chunk)) if body.len() + chunk.len() > limit => return Err(ReadError::TooLarge),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Err(error) => {
                let timeout = error.is_timeout();
                return Err(ReadError::Broken { timeout, message: describe(error) });
            }
        }
    }
}

/// A transport error with its causes in one line, without the URL, which may hold a key.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            // Writing to a String cannot fail.
            write!(message, ": {cause_text}").unwrap_or_default();
        }
        source = cause.source();
    }
    if message.contains("certificate") {
        write!(message, ": {UNTRUSTED}").unwrap_or_default();
    }
    one_line(&message)
}

/// A server's text as part of a message: one line, no control characters, bounded.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_TEXT));
    for (count, word) in text.split(|c: char| c.is_whitespace() || c.is_control()).enumerate() {
        if count > 0 && !line.is_empty() && !word.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > MAX_TEXT * 4 {
            break;
        }
    }
    if let Some((cut, _)) = line.char_indices().nth(MAX_TEXT) {
        line.truncate(cut);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn header(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(value).expect("a header"));
        headers
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now: jiff::Timestamp = "1994-11-06T08:49:07Z".parse().expect("a time");
        let wait = |value| retry_after(&header(value), now);
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait(" 0 "), Some(Duration::ZERO));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO), "it has passed");
        assert_eq!(wait("99999999999999999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait("Fri, 06 Nov 2094 08:49:37 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-3"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_base_address_keeps_its_path_and_encodes_what_is_appended() {
        let joined = |base| endpoint(base, &["e", "a/b?c"]).map(String::from);
        assert_eq!(joined("https://h").as_deref(), Some("https://h/e/a%2Fb%3Fc"));
        assert_eq!(joined("http://h:1/x/").as_deref(), Some("http://h:1/x/e/a%2Fb%3Fc"));
        assert_eq!(joined("ftp://h"), None);
        assert_eq!(joined("h"), None);
    }

    #[test]
    fn a_servers_text_becomes_one_bounded_line() {
        assert_eq!(one_line(" a\r\n b\u{7}c\t "), "a b c");
        assert_eq!(one_line(&"x".repeat(5000)).chars().count(), MAX_TEXT + 3);
        assert_eq!(one_line(&"é ".repeat(5000)).chars().count(), MAX_TEXT + 3);
    }
}
