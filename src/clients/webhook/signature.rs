//! The signature of Standard Webhooks 1.0: `v1,` and the base64 of HMAC-SHA256 over id, time and body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};

/// Signs with every secret: while they rotate, a receiver knows one of them.
#[derive(Debug)]
pub(super) struct Signer(Vec<hmac::Key>);

impl Signer {
    /// The secrets have been checked when the configuration was loaded.
    pub(super) fn new(secrets: &[SecretString]) -> Self {
        let key = |secret: &SecretString| {
            let encoded = secret.expose_secret().strip_prefix("whsec_")?;
            Some(hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(encoded).ok()?))
        };
        Self(secrets.iter().filter_map(key).collect())
    }

    /// The header's value: a signature for each secret, with spaces between.
    pub(super) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let signature = |key: &hmac::Key| {
            let mut context = hmac::Context::with_key(key);
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                context.update(part);
            }
            format!("v1,{}", STANDARD.encode(context.sign()))
        };
        self.0.iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}
