//! Values that must never be seen, and looking for them in every form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// A secret, by what it is.
#[derive(Debug, Clone)]
pub(crate) struct Canary {
    what: &'static str,
    halves: [String; 2],
}

impl Canary {
    /// A random value. The text between its halves looks different in every encoding, but the
    /// halves stay the same in text, in JSON and in percent-encoding.
    pub(crate) fn new(what: &'static str) -> Self {
        let half = || format!("{:016x}", fastrand::u64(..));
        Self { what, halves: [half(), half()] }
    }

    /// A value made elsewhere, of sixteen hexadecimal digits at least.
    pub(crate) fn known(what: &'static str, value: &str) -> Self {
        let (first, second) = value.split_at(value.len() / 2);
        Self { what, halves: [first.to_owned(), second.to_owned()] }
    }

    /// The value as it is set.
    pub(crate) fn value(&self) -> String {
        self.halves.join("+/")
    }

    /// The value as it stands in a URL.
    pub(crate) fn encoded(&self) -> String {
        self.halves.join("%2B%2F")
    }

    /// As an id.
    pub(crate) fn uuid(&self) -> String {
        let [a, b] = &self.halves;
        format!("{}-{}-{}-{}-{}", &a[..8], &a[8..12], &a[12..], &b[..4], &b[4..])
    }

    fn forms(&self) -> Vec<String> {
        let mut forms = vec![self.uuid()];
        for half in &self.halves {
            forms.push(half.clone());
            // Base64 depends on which of three places a text begins at, and its ends on the
            // neighbouring text.
            for before in 0..3 {
                let text = BASE64.encode([&vec![0; before], half.as_bytes()].concat());
                forms.push(text[4..text.len() - 4].to_owned());
            }
        }
        forms
    }

    /// Fails if the text holds any form of it.
    pub(crate) fn must_not_be_in(&self, place: &str, text: &str) {
        let lower = text.to_lowercase();
        for form in self.forms() {
            let at = text.find(&form).or_else(|| lower.find(&form));
            if let Some(at) = at {
                let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
                let line = text[line..].lines().next().unwrap_or_default();
                panic!("{} is in {place}, as {form}: {line}", self.what);
            }
        }
    }
}

/// Fails if the text holds any of them.
pub(crate) fn none_in<'a>(canaries: impl IntoIterator<Item = &'a Canary>, place: &str, text: &str) {
    for canaries in canaries {
        canaries.must_not_be_in(place, text);
    }
}

#[test]
fn a_planted_value_is_found_in_every_form() {
    let canaries = Canary::new("it");
    let forms = [
        canaries.value(),
        canaries.encoded(),
        canaries.uuid(),
        canaries.value().to_uppercase(),
        BASE64.encode(canaries.value()),
        BASE64.encode(format!("user:{}", canaries.value())),
        BASE64.encode(format!("xy{}", canaries.value())),
        serde_json::json!({ "a": canaries.value() }).to_string(),
        format!("{:?}", canaries.value().as_str()),
    ];
    for form in forms {
        let found = std::panic::catch_unwind(|| canaries.must_not_be_in("a test", &form));
        assert!(found.is_err(), "{form}");
    }
    canaries.must_not_be_in("a test", &Canary::new("another").value());
}
