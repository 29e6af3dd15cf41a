//! What an answer to a webhook says.

use std::error::Error;
use std::time::Duration;

use reqwest::header::HeaderValue;

use super::addresses::Forbidden;
use crate::clients::http;

/// Why a webhook was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// It was never sent: it is too large.
    #[error("the body has {bytes} bytes, of {most} that max_bytes allows")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        most: usize,
    },
    /// The receiver refused this one.
    #[error("{0}")]
    Refused(String),
    /// The receiver takes none, and will not until somebody changes something.
    #[error("{0}")]
    Held(String),
    /// The receiver takes none at present.
    #[error("{message}")]
    Away {
        /// What it said.
        message: String,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The receiver failed, or did not answer: this one may be the reason.
    #[error("{0}")]
    Failed(String),
}

/// Judges an answer that is no success. What it says is left out: many receivers repeat what they were sent.
pub(super) fn judge(
    status: u16,
    retry_after: Option<Duration>,
    location: Option<&HeaderValue>,
) -> PostError {
    let answered = format!("the receiver answered {status}");
    let held = |advice: &str| PostError::Held(format!("{answered}: {advice}"));
    match status {
        300..=399 => held(&format!(
            "redirects are not followed, set url to where it is now{}",
            host(location)
        )),
        401 | 403 | 407 => held("check the secrets and headers of the webhook"),
        402 => held("check the plan of the receiver's account"),
        // Every change has the same address, headers and form.
        404..=406 | 414 | 415 | 421 | 426 | 431 => held("check the url and headers of the webhook"),
        410 => held("it wants no more webhooks, remove the action or change its url"),
        408 | 425 | 429 | 502..=504 | 520..=524 => {
            PostError::Away { message: answered, retry_after }
        }
        // Whoever asks for a pause is unwell. With the other 4xx it does not make a refused change good.
        413 | 500.. if retry_after.is_some() => PostError::Away { message: answered, retry_after },
        500.. => PostError::Failed(answered),
        _ => PostError::Refused(answered),
    }
}

/// The host that a redirect leads to. The rest may hold a key.
fn host(location: Option<&HeaderValue>) -> String {
    let url = location.and_then(|value| reqwest::Url::parse(value.to_str().ok()?).ok());
    let host = url.and_then(|url| url.host_str().map(str::to_owned));
    host.map_or(String::new(), |host| format!(" (host {host})"))
}

/// Why there is no answer.
pub(super) fn of_transport(error: reqwest::Error) -> PostError {
    if let Some(forbidden) = forbidden(&error) {
        return PostError::Held(format!("the url leads to a forbidden address: {forbidden}"));
    }
    let connect = error.is_connect();
    let message = http::describe(error);
    if connect {
        // Nothing was sent, so it says nothing about what was to be sent.
        return PostError::Away { message, retry_after: None };
    }
    PostError::Failed(message)
}

fn forbidden(error: &reqwest::Error) -> Option<&Forbidden> {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        if let Some(forbidden) = error.downcast_ref() {
            return Some(forbidden);
        }
        cause = error.source();
    }
    None
}
