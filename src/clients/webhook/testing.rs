//! A receiver of webhooks for tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

use super::WebhookConfig;
use crate::clients::HttpConfig;

/// What a receiver was sent.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    from: SocketAddr,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().expect("text")
    }

    /// Whether it verifies with the secret of this number, by the official library.
    pub(crate) fn verifies(&self, number: u8) -> bool {
        let verifier = standardwebhooks::Webhook::new(secret(number).expose_secret());
        verifier.expect("a secret").verify(&self.body, &self.headers).is_ok()
    }
}

/// An answer: status, headers, body.
pub(crate) type Answer = (u16, &'static [(&'static str, &'static str)], &'static str);

/// A receiver that answers with each of these in turn, and with the last one from then on.
#[derive(Clone)]
pub(crate) struct Receiver {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    seen: Arc<Mutex<Vec<Received>>>,
    pub(crate) address: SocketAddr,
}

impl Receiver {
    pub(crate) async fn answering(status: u16) -> Self {
        Self::start([(status, &[][..], "")]).await
    }

    pub(crate) async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let me = Self {
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            seen: Arc::default(),
            address: listener.local_addr().expect("an address"),
        };
        let app = Router::new().fallback(receive).with_state(me.clone());
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        me
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<Received>> {
        self.seen.lock().expect("not poisoned")
    }

    /// On how many connections it was sent what it has seen.
    pub(crate) fn connections(&self) -> usize {
        self.seen().iter().map(|received| received.from).collect::<BTreeSet<_>>().len()
    }
}

async fn receive(
    State(me): State<Receiver>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    me.seen().push(Received { headers, body: body.to_vec(), from });
    let mut answers = me.answers.lock().expect("not poisoned");
    let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
    let (status, headers, body) = next.expect("an answer");
    let mut response = body.into_response();
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in headers {
        response.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    response
}

pub(crate) fn secret(number: u8) -> SecretString {
    format!("whsec_{}", STANDARD.encode([number; 32])).into()
}

/// Posts to `host` (and port), signed with the secrets of these numbers.
pub(crate) fn config(host: &str, secrets: &[u8]) -> WebhookConfig {
    WebhookConfig {
        url: format!("http://{host}/hooks?key=hidden"),
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer test".to_owned())]),
        secrets: secrets.iter().map(|number| secret(*number)).collect(),
        max_bytes: 1_000,
        allowed: vec!["127.0.0.0/8".parse().expect("a network")],
        http: HttpConfig {
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
        },
    }
}
