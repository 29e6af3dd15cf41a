//! Webhooks: signed posts to somebody else's server, as Standard Webhooks 1.0 ask.

mod addresses;
mod answer;
mod signature;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use secrecy::SecretString;

pub use self::answer::PostError;
use self::signature::Signer;
use super::http::{self, HttpConfig, SetupError};

/// The most that is read of an answer, and for how long: only so that its connection can be used again.
const MAX_ANSWER: usize = 4 << 10;
const READING: Duration = Duration::from_secs(1);
/// Headers that are set here and nowhere else, and those that would change how the body is sent.
const OWN_HEADERS: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// Where and how to post. It has no `Debug`: address and headers may hold keys.
#[derive(Clone)]
pub struct WebhookConfig {
    /// The address.
    pub url: String,
    /// What every request carries besides.
    pub headers: BTreeMap<String, String>,
    /// `whsec_...`; each signs.
    pub secrets: Vec<SecretString>,
    /// Bytes of a body at most.
    pub max_bytes: usize,
    /// Networks that may be called although they are not public.
    pub allowed: Vec<IpNet>,
    /// Time-outs.
    pub http: HttpConfig,
}

/// One receiver of webhooks.
#[derive(Clone)]
pub struct Webhook {
    client: Client,
    url: Url,
    headers: HeaderMap,
    signer: Arc<Signer>,
    max_bytes: usize,
}

impl Webhook {
    /// A client of this receiver.
    ///
    /// # Errors
    /// When there is no secret to sign with, or when the address or a header cannot be used; of these
    /// [`check`] says why.
    pub fn new(config: &WebhookConfig) -> Result<Self, SetupError> {
        let address = SetupError::Address { service: "a webhook", setting: "its url" };
        let url = checked(&config.url, &config.allowed).map_err(|_| address)?;
        let header = SetupError::Key { service: "a webhook", setting: "its headers" };
        let headers = headers(&config.headers).map_err(|_| header)?;
        let secret = SetupError::Key { service: "a webhook", setting: "KESSEL_WEBHOOK_SECRETS" };
        let signer = Arc::new(Signer::new(&config.secrets).ok_or(secret)?);
        let HttpConfig { connect_timeout, timeout } = config.http;
        http::install_tls();
        let client = Client::builder()
            .user_agent(concat!("crm-event-processors/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            // A proxy would look the name up itself, and call whatever it finds.
            .no_proxy()
            .dns_resolver(addresses::Guard::new(config.allowed.clone()))
            .connect_timeout(connect_timeout)
            .timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| SetupError::Client {
                service: "a webhook",
                reason: http::describe(error),
            })?;
        Ok(Self { client, url, headers, signer, max_bytes: config.max_bytes })
    }

    /// Posts a body under an id that is the same for every attempt. `now` is the wall clock.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn post(&self, id: &str, body: Vec<u8>, now: Timestamp) -> Result<(), PostError> {
        if body.len() > self.max_bytes {
            return Err(PostError::TooLarge { bytes: body.len(), most: self.max_bytes });
        }
        let timestamp = now.as_second().to_string();
        let signature = self.signer.sign(id, &timestamp, &body);
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body);
        let response = request.send().await.map_err(answer::of_transport)?;
        let status = response.status().as_u16();
        let headers = response.headers();
        let retry_after = http::retry_after(headers, now);
        let location = headers.get(reqwest::header::LOCATION).cloned();
        // Its status has decided already.
        drop(tokio::time::timeout(READING, http::read(response, MAX_ANSWER)).await);
        if (200..300).contains(&status) {
            return Ok(());
        }
        Err(answer::judge(status, retry_after, location.as_ref()))
    }
}

/// What is wrong with a receiver, if anything: for the check of the configuration.
///
/// # Errors
/// What is wrong.
pub fn check(url: &str, named: &BTreeMap<String, String>, allowed: &[IpNet]) -> Result<(), String> {
    checked(url, allowed)?;
    headers(named).map(drop)
}

fn checked(url: &str, allowed: &[IpNet]) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|_| "url is not a web address (https://...)".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("url is not a web address (https://...)".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url must not carry a user or password: use headers".to_owned());
    }
    // The resolver does not see an address that stands there as it is.
    if let Some(address) = addresses::literal(&url) {
        addresses::may_call(address, allowed).map_err(|why| format!("url: {why}"))?;
    }
    Ok(url)
}

fn headers(named: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in named {
        if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(format!("headers: {name} is set by the action itself"));
        }
        let wrong = || format!("headers: {name:?} is no header that can be sent");
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(HeaderName::try_from(name).map_err(|_| wrong())?, value);
    }
    Ok(headers)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
