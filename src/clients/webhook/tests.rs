use std::collections::BTreeMap;

use super::testing::{Answer, Receiver, config};
use super::*;

const BODY: &[u8] = br#"{"relation":"viewer"}"#;

fn webhook(host: &str) -> Webhook {
    Webhook::new(&config(host, &[1])).expect("a usable receiver")
}

async fn post(webhook: &Webhook) -> Result<(), PostError> {
    webhook.post("msg_1", BODY.to_vec(), Timestamp::now()).await
}

async fn answer(answer: Answer) -> Result<(), PostError> {
    let receiver = Receiver::start([answer]).await;
    post(&webhook(&receiver.address.to_string())).await
}

#[tokio::test]
async fn a_receiver_verifies_with_any_of_the_secrets_and_with_no_other() {
    let receiver = Receiver::answering(204).await;
    let rotating = Webhook::new(&config(&receiver.address.to_string(), &[1, 2])).expect("usable");
    post(&rotating).await.expect("taken");
    let received = receiver.seen()[0].clone();
    assert_eq!(received.body, BODY);
    assert_eq!(received.header("webhook-id"), "msg_1");
    assert_eq!(received.header("authorization"), "Bearer test");
    assert_eq!(received.header("content-type"), "application/json");
    assert!(received.verifies(1) && received.verifies(2), "old and new");
    assert!(!received.verifies(3));
}

#[test]
fn nothing_is_posted_unsigned() {
    let without = |secrets: Vec<SecretString>| {
        let config = WebhookConfig { secrets, ..config("192.0.2.1", &[]) };
        let allowed = vec!["192.0.2.1/32".parse().expect("a network")];
        Webhook::new(&WebhookConfig { allowed, ..config }).err().map(|error| error.to_string())
    };
    for unusable in [vec![], vec![testing::secret(1), "whsec_!".to_owned().into()]] {
        let error = without(unusable).expect("refused");
        assert!(error.contains("KESSEL_WEBHOOK_SECRETS"), "{error}");
    }
    assert_eq!(without(vec![testing::secret(1)]), None);
}

#[tokio::test]
async fn an_answer_says_whether_to_wait_to_try_again_or_to_set_aside() {
    let kind = |answer: &Result<(), PostError>| match answer {
        Ok(()) => "taken",
        Err(PostError::TooLarge { .. }) => "too large",
        Err(PostError::Refused(_)) => "refused",
        Err(PostError::Held(_)) => "held",
        Err(PostError::Away { .. }) => "away",
        Err(PostError::Failed(_)) => "failed",
    };
    let table: [(&[u16], &str); 5] = [
        (&[200, 201, 202, 204, 299], "taken"),
        (&[300, 301, 302, 303, 307, 308], "held"),
        (&[401, 402, 403, 404, 405, 406, 407, 410, 414, 415, 421, 426, 431], "held"),
        (&[408, 425, 429, 502, 503, 504, 520, 522, 524], "away"),
        (&[500, 501, 505, 530, 599], "failed"),
    ];
    let refused: (&[u16], _) =
        (&[400, 409, 411, 412, 413, 416, 417, 418, 422, 423, 428, 451], "refused");
    for (statuses, expected) in table.into_iter().chain([refused]) {
        for status in statuses {
            let answer = answer((*status, &[], "")).await;
            assert_eq!(kind(&answer), expected, "{status}: {answer:?}");
            let named = |error: PostError| error.to_string().contains(&status.to_string());
            assert!(answer.err().is_none_or(named), "{status}");
        }
    }
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept_in_both_forms() {
    let pause = async |status, headers| match answer((status, headers, "")).await {
        Err(PostError::Away { retry_after, .. }) => retry_after,
        other => panic!("{status}: {other:?}"),
    };
    for status in [408, 413, 425, 429, 500, 502, 503, 504, 599] {
        let seven = pause(status, &[("retry-after", "7")]).await;
        assert_eq!(seven, Some(Duration::from_secs(7)), "{status}");
    }
    let date = pause(429, &[("retry-after", "Fri, 06 Nov 2094 08:49:37 GMT")]).await;
    assert_eq!(date, Some(Duration::from_secs(3600)), "an hour at most");
    assert_eq!(pause(429, &[]).await, None);
}

#[tokio::test]
async fn a_change_that_is_refused_does_not_wait_for_ever_because_a_pause_was_asked_for() {
    for status in [400, 409, 422] {
        let refused = answer((status, &[("retry-after", "7")], "")).await;
        assert!(matches!(refused, Err(PostError::Refused(_))), "{status}: {refused:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_named_by_its_host_and_not_followed() {
    let elsewhere = Receiver::answering(204).await;
    let to = format!("http://me:pass@{}/in?key=hidden", elsewhere.address).leak();
    let location: &'static [_] = vec![("location", &*to)].leak();
    let error = answer((307, location, "")).await.expect_err("not followed").to_string();
    assert!(error.contains("(host 127.0.0.1)"), "{error}");
    assert!(!error.contains("hidden") && !error.contains("pass"), "{error}");
    assert!(elsewhere.seen().is_empty());
    let error = answer((410, &[], "")).await.expect_err("gone").to_string();
    assert!(error.contains("remove the action or change its url"), "{error}");
}

#[tokio::test]
async fn what_a_receiver_repeats_of_a_request_is_in_no_message() {
    for status in [301, 400, 401, 410, 422, 429, 500, 503] {
        let error = answer((status, &[], "viewer? key=hidden, Bearer test")).await;
        let error = error.expect_err("not taken").to_string();
        let said = ["viewer", "hidden", "Bearer"].into_iter().find(|part| error.contains(part));
        assert_eq!(said, None, "{error}");
    }
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
        let mut config = config(&address, &[1]);
        config.http.timeout = Duration::from_millis(300);
        let error = post(&Webhook::new(&config).expect("usable")).await.expect_err("no answer");
        assert!(matches!(error, PostError::Failed(_)), "hangs {hangs}: {error:?}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_reached_says_nothing_about_the_change() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let error = post(&webhook(&address)).await;
    assert!(matches!(error, Err(PostError::Away { .. })), "{error:?}");
}

#[tokio::test]
async fn a_name_that_leads_to_a_forbidden_address_holds_and_says_how_to_allow_it() {
    let receiver = Receiver::answering(204).await;
    let mut config = config(&format!("localhost:{}", receiver.address.port()), &[1]);
    let allowed = std::mem::take(&mut config.allowed);
    let error = post(&Webhook::new(&config).expect("the name alone is no problem")).await;
    let Err(PostError::Held(message)) = error else { panic!("{error:?}") };
    assert!(message.contains("is not a public address: name it in allow_addresses"), "{message}");
    assert!(receiver.seen().is_empty(), "nothing was sent");
    config.allowed = allowed;
    assert_eq!(post(&Webhook::new(&config).expect("usable")).await, Ok(()));
}

#[tokio::test]
async fn a_connection_is_used_again_after_answers_with_a_body() {
    let long = "x".repeat(3_000).leak();
    let receiver = Receiver::start([(200, &[][..], &*long), (503, &[][..], &*long)]).await;
    let webhook = webhook(&receiver.address.to_string());
    for _ in 0..6 {
        post(&webhook).await.ok();
    }
    assert_eq!(receiver.seen().len(), 6);
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn what_is_too_large_is_not_sent() {
    let receiver = Receiver::answering(204).await;
    let webhook = webhook(&receiver.address.to_string());
    let error = webhook.post("msg_1", vec![b'x'; 1_001], Timestamp::now()).await;
    assert_eq!(error, Err(PostError::TooLarge { bytes: 1_001, most: 1_000 }));
    assert!(receiver.seen().is_empty());
    assert_eq!(webhook.post("msg_1", vec![b'x'; 1_000], Timestamp::now()).await, Ok(()));
}

#[test]
fn an_address_that_must_not_be_called_is_a_problem_of_the_configuration() {
    let wrong = |url: &str| check(url, &BTreeMap::new(), &[]).expect_err(url);
    assert!(wrong("http://169.254.169.254/latest").contains("not a public address"));
    assert!(wrong("http://[::1]:8080/").contains("not a public address"));
    assert!(wrong("http://[::ffff:7f00:1]/").contains("not a public address"), "mapped");
    assert!(wrong("http://2130706433/").contains("not a public address"), "127.0.0.1 as a number");
    assert!(wrong("http://0x7f.1/").contains("not a public address"), "the same in hexadecimals");
    assert!(wrong("http://127.0.0.1./").contains("not a public address"), "with a final dot");
    assert!(wrong("https://me:pass@a.example/").contains("must not carry a user"));
    assert!(!wrong("https://me:pass@a.example/").contains("pass@"));
    assert!(wrong("ftp://a.example/").contains("not a web address"));
    assert_eq!(check("https://a.example/hooks", &BTreeMap::new(), &[]), Ok(()));
    for own in ["Webhook-Id", "Content-Encoding", "transfer-encoding"] {
        let headers = BTreeMap::from([(own.to_owned(), "mine".to_owned())]);
        let wrong = check("https://a.example/", &headers, &[]).expect_err("its own");
        assert!(wrong.contains("set by the action itself"), "{wrong}");
    }
}
