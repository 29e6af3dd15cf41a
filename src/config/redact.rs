//! What may be shown of a value.

use super::properties::Properties;
use super::variables::{Kind, Variable};

/// The value as `check` shows it.
pub(super) fn shown(variable: &Variable, text: &str) -> String {
    if text.is_empty() {
        return "(not set)".to_owned();
    }
    match variable.kind {
        Kind::Secret => length(text),
        Kind::SecretUrl => secret_url(text).unwrap_or_else(|| length(text)),
        Kind::Properties => {
            Properties::parse(text).map_or_else(|_| length(text), |parsed| parsed.to_string())
        }
        Kind::Plain => plain(text),
        Kind::Tables => tables(text).unwrap_or_else(|| plain(text)),
    }
}

/// The value as a problem may quote it; `None` if it may be a secret.
pub(super) fn quoted(variable: &Variable, text: &str) -> Option<String> {
    match variable.kind {
        Kind::Plain => Some(format!("\"{}\"", plain(text).escape_debug())),
        Kind::Secret | Kind::SecretUrl | Kind::Properties | Kind::Tables => None,
    }
}

/// What each table of a list is called. Its other values may be anything.
fn tables(text: &str) -> Option<String> {
    let tables: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(text).ok()?;
    let name = |table: &serde_json::Map<String, serde_json::Value>| {
        let named = table.get("name").or(table.get("action"))?;
        named.as_str().map(str::to_owned)
    };
    let names = tables.iter().map(|table| name(table).unwrap_or_else(|| "?".to_owned()));
    Some(names.collect::<Vec<_>>().join(", "))
}

fn length(text: &str) -> String {
    format!("(set, {} characters)", text.chars().count())
}

/// Scheme, host and path, without user, password and query. `None` if it is not an address.
fn secret_url(text: &str) -> Option<String> {
    let mut url = url::Url::parse(text).ok().filter(url::Url::has_host)?;
    let credentials = !url.username().is_empty() || url.password().is_some();
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    let shown = url.to_string();
    Some(if credentials { shown.replacen("://", "://***@", 1) } else { shown })
}

/// Plain values should hold no secret. Should an address carry one by mistake, these parts are
/// hidden: user and password, what follows `?` or `#`, and the key after Inngest's `/e/`.
fn plain(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.rsplit_once('@').map_or(text.to_owned(), |(_, host)| format!("***@{host}"));
    };
    let (userinfo, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("***@", rest),
        None => ("", rest),
    };
    let mut shown = rest;
    let mut hidden = "";
    for mark in ["?", "#", "/e/"] {
        if let Some((before, after)) = shown.split_once(mark)
            && !after.is_empty()
        {
            (shown, hidden) = (&shown[..before.len() + mark.len()], "***");
        }
    }
    format!("{scheme}://{userinfo}{shown}{hidden}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(kind: Kind) -> Variable {
        Variable { path: "a.b", env: &["A_B"], kind, about: "", default: None }
    }

    #[test]
    fn a_secret_shows_its_length_alone() {
        assert_eq!(shown(&variable(Kind::Secret), "hunter2"), "(set, 7 characters)");
        assert_eq!(shown(&variable(Kind::Secret), ""), "(not set)");
        assert_eq!(quoted(&variable(Kind::Secret), "hunter2"), None);
    }

    #[test]
    fn an_address_is_shown_without_user_password_and_query() {
        let variable = variable(Kind::SecretUrl);
        assert_eq!(shown(&variable, "rediss://me:hunter2@a:6379/1?t=x"), "rediss://***@a:6379/1");
        assert_eq!(shown(&variable, "redis://a:6379"), "redis://a:6379");
        assert_eq!(shown(&variable, "me:hunter2@a:6379"), "(set, 17 characters)");
        assert_eq!(shown(&variable, "hunter2"), "(set, 7 characters)");
    }

    #[test]
    fn a_plain_address_given_with_a_password_does_not_show_it() {
        let variable = variable(Kind::Plain);
        assert_eq!(shown(&variable, "https://me:hunter2@a/b"), "https://***@a/b");
        assert_eq!(shown(&variable, "me:hunter2@a:9092"), "***@a:9092");
        assert_eq!(quoted(&variable, "https://me:hun@ter2@a"), Some("\"https://***@a\"".into()));
        assert_eq!(shown(&variable, "info,hyper=warn"), "info,hyper=warn");
    }

    #[test]
    fn a_key_inside_a_plain_address_is_not_shown() {
        let variable = variable(Kind::Plain);
        for (text, expected) in [
            ("https://a/rest/v1/?apikey=hunter2", "https://a/rest/v1/?***"),
            ("https://a/?x=hunter2#hunter2", "https://a/?***"),
            ("https://a/#hunter2?x", "https://a/#***"),
            ("https://a/e/hunter2", "https://a/e/***"),
            ("https://a/e/hunter2?x=hunter2", "https://a/e/***"),
            ("https://me:hunter2@a/e/hunter2", "https://***@a/e/***"),
            ("https://a/?hunter2@b", "https://***@b"),
            ("https://a/b", "https://a/b"),
        ] {
            assert_eq!(shown(&variable, text), expected);
            assert_eq!(quoted(&variable, text), Some(format!("\"{expected}\"")));
        }
    }
}
