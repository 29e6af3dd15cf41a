//! The signature of Standard Webhooks 1.0: `v1,` and the base64 of HMAC-SHA256 over id, time and body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};

/// Signs with every secret: while they rotate, a receiver knows one of them.
#[derive(Debug)]
pub(super) struct Signer(Vec<hmac::Key>);

impl Signer {
    /// `None` unless there is a secret, and each can be used: nothing goes out with a signature less.
    pub(super) fn new(secrets: &[SecretString]) -> Option<Self> {
        let key = |secret: &SecretString| {
            let encoded = secret.expose_secret().strip_prefix("whsec_")?;
            Some(hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(encoded).ok()?))
        };
        let keys = secrets.iter().map(key).collect::<Option<Vec<_>>>()?;
        (!keys.is_empty()).then_some(Self(keys))
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
