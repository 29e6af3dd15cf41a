//! Removes keys from what a server answers: some repeat the request in their errors, key included.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

use super::http;

/// A shorter key is a dev server's, and removing it would garble every message.
const SHORTEST: usize = 8;

/// A key in every form in which it may come back.
#[derive(Clone)]
pub(super) struct KeyRedaction(Vec<SecretString>);

impl KeyRedaction {
    pub(super) fn new(key: &SecretString) -> Self {
        let key = key.expose_secret().trim();
        if key.len() < SHORTEST {
            return Self(Vec::new());
        }
        let in_query: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let in_path = http::endpoint("http://host", &[key]).map(|url| url.path()[1..].to_owned());
        let base64 = STANDARD.encode(key);
        let forms = [
            key.to_owned(),
            in_query,
            in_path.unwrap_or_else(|| key.to_owned()),
            base64.trim_end_matches('=').to_owned(),
            URL_SAFE_NO_PAD.encode(key),
            key.replace('/', "\\/"), // as some write it in JSON
        ];
        Self(forms.map(SecretString::from).into())
    }

    /// The body of an error without the key.
    pub(super) fn redact(&self, body: Bytes) -> Bytes {
        let text = String::from_utf8_lossy(&body);
        let found = self.0.iter().filter(|form| text.contains(form.expose_secret()));
        let redaction = found.fold(None, |redaction: Option<String>, form| {
            let text = redaction.as_deref().unwrap_or(&text);
            Some(text.replace(form.expose_secret(), "***"))
        });
        redaction.map_or_else(|| body.clone(), Bytes::from)
    }
}

impl fmt::Debug for KeyRedaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyRedaction")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_out_in_every_form_and_nothing_else() {
        let key = "so+secret/as a=key";
        let redaction = KeyRedaction::new(&SecretString::from(key));
        let forms = [
            key.to_owned(),
            "so%2Bsecret%2Fas+a%3Dkey".to_owned(),
            "so+secret%2Fas%20a=key".to_owned(),
            STANDARD.encode(key),
            "so+secret\\/as a=key".to_owned(),
        ];
        for form in forms {
            let body = Bytes::from(format!("{{\"error\":\"no {form}\"}}"));
            let shown = redaction.redact(body);
            let shown = std::str::from_utf8(&shown).expect("text");
            assert!(shown.starts_with("{\"error\":\"no ***"), "{form}: {shown}");
        }
        let body = Bytes::from_static(b"{\"error\":\"secret\"}");
        assert_eq!(redaction.redact(body.clone()), body);
        assert_eq!(KeyRedaction::new(&SecretString::from("e")).redact(body.clone()), body);
    }
}
