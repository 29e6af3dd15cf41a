use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

type Seen = Arc<Mutex<Vec<(HeaderMap, Vec<u8>)>>>;

/// A receiver that answers every post like this.
#[derive(Clone)]
struct Receiver {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    seen: Seen,
}

impl Receiver {
    fn answering(status: u16) -> Self {
        Self { status, headers: &[], body: "", seen: Seen::default() }
    }

    async fn start(&self) -> SocketAddr {
        async fn receive(State(me): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
            me.seen.lock().expect("a lock").push((headers, body.to_vec()));
            let mut response = me.body.into_response();
            *response.status_mut() = StatusCode::from_u16(me.status).expect("a status");
            for (name, value) in me.headers {
                response.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            response
        }
        let app = Router::new().fallback(receive).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        address
    }
}

fn secret(byte: u8) -> SecretString {
    format!("whsec_{}", STANDARD.encode([byte; 32])).into()
}

fn webhook(address: &str, secrets: Vec<SecretString>) -> Webhook {
    let config = WebhookConfig {
        url: format!("http://{address}/hooks?key=hidden"),
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer test".to_owned())]),
        secrets,
        max_bytes: 100,
        allowed: vec!["127.0.0.0/8".parse().expect("a network")],
        http: HttpConfig {
            timeout: Duration::from_millis(300),
            connect_timeout: Duration::from_secs(5),
        },
    };
    Webhook::new(&config).expect("a usable receiver")
}

async fn answer(receiver: &Receiver) -> Result<(), PostError> {
    let address = receiver.start().await.to_string();
    let post = webhook(&address, vec![secret(1)]);
    post.post("msg_1", b"{}".to_vec(), Timestamp::now()).await
}

#[tokio::test]
async fn a_receiver_verifies_with_any_of_the_secrets_and_with_no_other() {
    let receiver = Receiver::answering(204);
    let address = receiver.start().await.to_string();
    let post = webhook(&address, vec![secret(1), secret(2)]);
    let body = br#"{"relation":"viewer"}"#;
    post.post("msg_1", body.to_vec(), Timestamp::now()).await.expect("taken");
    let seen = receiver.seen.lock().expect("a lock").clone();
    let (headers, received) = &seen[0];
    assert_eq!(received, body);
    assert_eq!(headers["webhook-id"], "msg_1");
    assert_eq!(headers["authorization"], "Bearer test");
    assert_eq!(headers["content-type"], "application/json");
    let verified = |byte: u8| {
        use secrecy::ExposeSecret as _;
        let verifier = standardwebhooks::Webhook::new(secret(byte).expose_secret());
        verifier.expect("a secret").verify(received, headers).is_ok()
    };
    assert!(verified(1) && verified(2), "old and new");
    assert!(!verified(3));
}

#[tokio::test]
async fn an_answer_says_whether_to_wait_to_try_again_or_to_set_aside() {
    let kind = |error: &PostError| match error {
        PostError::TooLarge { .. } => "too large",
        PostError::Refused(_) => "refused",
        PostError::Held(_) => "held",
        PostError::Away { .. } => "away",
        PostError::Failed(_) => "failed",
    };
    for (status, expected) in [
        (301, "held"),
        (308, "held"),
        (400, "refused"),
        (401, "held"),
        (404, "held"),
        (408, "failed"),
        (409, "refused"),
        (410, "held"),
        (422, "refused"),
        (429, "away"),
        (500, "failed"),
        (502, "away"),
        (503, "away"),
        (504, "away"),
        (599, "failed"),
    ] {
        let error = answer(&Receiver::answering(status)).await.expect_err("not taken");
        assert_eq!(kind(&error), expected, "{status}: {error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    for status in [200, 201, 202, 204] {
        assert_eq!(answer(&Receiver::answering(status)).await, Ok(()), "{status}");
    }
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept_in_both_forms() {
    let pause = async |value: &'static [(&'static str, &'static str)]| {
        let receiver = Receiver { headers: value, ..Receiver::answering(429) };
        match answer(&receiver).await {
            Err(PostError::Away { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(pause(&[("retry-after", "7")]).await, Some(Duration::from_secs(7)));
    let date = pause(&[("retry-after", "Fri, 06 Nov 2094 08:49:37 GMT")]).await;
    assert_eq!(date, Some(Duration::from_secs(3600)), "an hour at most");
    assert_eq!(pause(&[]).await, None);
}

#[tokio::test]
async fn a_redirect_is_named_by_its_host_and_not_followed() {
    let headers = &[("location", "https://elsewhere.example/in?key=hidden")];
    let error = answer(&Receiver { headers, ..Receiver::answering(307) }).await;
    let error = error.expect_err("not followed").to_string();
    assert!(error.contains("elsewhere.example") && !error.contains("hidden"), "{error}");
    let error = answer(&Receiver::answering(410)).await.expect_err("gone").to_string();
    assert!(error.contains("remove the action or change its url"), "{error}");
}

#[tokio::test]
async fn a_receiver_that_hangs_or_hangs_up_may_have_done_so_because_of_the_change() {
    for hangs in [true, false] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                if hangs {
                    held.push(stream);
                } else {
                    stream.readable().await.expect("a request");
                }
            }
        });
        let post = webhook(&address, vec![secret(1)]);
        let error = post.post("msg_1", b"{}".to_vec(), Timestamp::now()).await;
        let error = error.expect_err("no answer");
        assert!(matches!(error, PostError::Failed(_)), "hangs {hangs}: {error:?}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_reached_says_nothing_about_the_change() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let post = webhook(&address, vec![secret(1)]);
    let error = post.post("msg_1", b"{}".to_vec(), Timestamp::now()).await;
    assert!(matches!(error, Err(PostError::Away { .. })), "{error:?}");
}

#[tokio::test]
async fn what_is_too_large_is_not_sent() {
    let receiver = Receiver::answering(204);
    let address = receiver.start().await.to_string();
    let post = webhook(&address, vec![secret(1)]);
    let error = post.post("msg_1", vec![b'x'; 101], Timestamp::now()).await;
    assert_eq!(error, Err(PostError::TooLarge { bytes: 101, most: 100 }));
    assert!(receiver.seen.lock().expect("a lock").is_empty());
}

#[test]
fn an_address_that_must_not_be_called_is_a_problem_of_the_configuration() {
    let wrong = |url: &str| check(url, &BTreeMap::new(), &[]).expect_err(url);
    assert!(wrong("http://169.254.169.254/latest").contains("not a public address"));
    assert!(wrong("http://[::1]:8080/").contains("not a public address"));
    assert!(wrong("http://2130706433/").contains("not a public address"), "127.0.0.1 as a number");
    assert!(wrong("https://me:pass@a.example/").contains("must not carry a user"));
    assert!(wrong("ftp://a.example/").contains("not a web address"));
    assert_eq!(check("https://a.example/hooks", &BTreeMap::new(), &[]), Ok(()));
    let headers = BTreeMap::from([("Webhook-Id".to_owned(), "mine".to_owned())]);
    assert!(check("https://a.example/", &headers, &[]).expect_err("its own").contains("itself"));
}
