use serde_json::json;

use super::*;
use crate::clients::webhook::testing::{self, Receiver};
use crate::config::Environment;
use crate::consumers::kessel::actions::configured::of_relationships;
use crate::consumers::kessel::actions::item::testing::created;
use crate::consumers::kessel::row::{Operation, RowChange};
use crate::consumers::registry::load;
use crate::outage::Backoff;

/// Posts to `receiver`, refusals tried `retries` times.
fn posts(receiver: &Receiver, secrets: &[u8], retries: u32) -> Posts {
    let backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO };
    Posts {
        webhook: Webhook::new(&testing::config(&receiver.address.to_string(), secrets))
            .expect("a usable receiver"),
        body: None,
        breaker: Arc::new(Breaker::new("webhook/hooks", 5, backoff)),
        retries,
    }
}

async fn apply(posts: &Posts) -> Applied {
    let mut applied = posts.apply(&[&created()]).await;
    assert_eq!(applied.len(), 1);
    applied.remove(0)
}

fn body(value: Value) -> Result<Body, String> {
    Body::try_from(value)
}

#[test]
fn a_body_has_the_receivers_shape_and_escapes_what_it_is_filled_with() {
    let Item::Row(change) = created();
    let mut change = change;
    change.relationship.object_id = "a\"b\n".into();
    let shape = json!({"text": "{resource} {operation}", "parts": ["{relation}", 7], "on": true});
    let filled = body(shape).expect("a body").fill(&Item::Row(change)).to_string();
    let read: Value = serde_json::from_str(&filled).expect("JSON");
    assert_eq!(read["text"], "document:a\"b\n CREATE");
    assert_eq!((&read["parts"], &read["on"]), (&json!(["viewer", 7]), &json!(true)));
}

#[test]
fn a_field_that_is_not_known_is_found_wherever_it_stands() {
    let wrong = body(json!({"a": [{"b": "{relatoin}"}]})).expect_err("not known");
    assert!(wrong.contains("did you mean {relation}?"), "{wrong}");
    let table = json!({"url": "https://a.example", "body": {"a": "{relatoin}"}});
    let wrong = (KIND.check)(table.as_object().expect("a table")).expect_err("not known");
    assert!(wrong.contains("did you mean {relation}?"), "{wrong}");
}

#[test]
fn an_id_is_the_same_for_a_repeat_and_no_other_change() {
    let Item::Row(change) = created();
    let repeat = Item::Row(RowChange { at: (5, 9_000), ..change.clone() });
    let deleted = Item::Row(RowChange { operation: Operation::Delete, ..change });
    assert_eq!(id(&created()), id(&repeat));
    assert_ne!(id(&created()), id(&deleted));
    // In every build: receivers remember it.
    assert_eq!(id(&created()), "msg_41248e2e10694713a014260fb2a1914b");
}

#[test]
fn options_that_cannot_work_are_refused() {
    for (table, said) in [
        (json!({}), "missing field `url`"),
        (json!({"url": "https://a.example", "urll": 1}), "unknown field `urll`"),
        (json!({"url": "https://a.example", "timeout": "5"}), "timeout is not a duration"),
        (json!({"url": "https://a.example", "allow_addresses": ["here"]}), "allow_addresses"),
        (json!({"url": "https://a.example", "max_bytes": 0}), "max_bytes must be more than 0"),
        (json!({"url": "https://a.example", "headers": "Bearer hidden"}), "a table of texts"),
        (json!({"url": "https://a.example", "headers": {"a": ["hidden"]}}), "a table of texts"),
        (json!({"url": "http://10.0.0.1"}), "not a public address"),
    ] {
        let wrong = (KIND.check)(table.as_object().expect("a table")).expect_err(said);
        assert!(wrong.contains(said) && !wrong.contains("hidden"), "{table}: {wrong}");
    }
    let allowed = json!({"url": "http://10.0.0.1", "allow_addresses": ["10.0.0.1"]});
    assert_eq!((KIND.check)(allowed.as_object().expect("a table")), Ok(()));
}

#[tokio::test]
async fn a_change_is_posted_as_it_is_under_one_id_until_it_is_taken() {
    let answers = [(503, &[][..], ""), (500, &[][..], ""), (422, &[][..], ""), (204, &[][..], "")];
    let receiver = Receiver::start(answers).await;
    let before_rotation = posts(&receiver, &[1], 3);
    assert!(matches!(apply(&before_rotation).await, Err(Failure::Outage { attempted: false, .. })));
    assert!(matches!(apply(&before_rotation).await, Err(Failure::Outage { attempted: true, .. })));
    // After a restart, with another secret beside the old one.
    let rotating = posts(&receiver, &[1, 2], 3);
    let refused = apply(&rotating).await;
    let Err(Failure::Refused { kind: "webhook_refused", message, retries: 3 }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(message, format!("the receiver answered 422 (webhook-id {})", id(&created())));
    assert!(apply(&rotating).await.is_ok());
    let seen = receiver.seen();
    for (number, received) in seen.iter().enumerate() {
        assert_eq!(received.header("webhook-id"), id(&created()));
        assert_eq!(received.body, created().json().to_string().into_bytes());
        assert_eq!((received.verifies(1), received.verifies(2)), (true, number >= 2));
        assert!(!received.verifies(3));
    }
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn a_receiver_that_wants_none_is_held_at_once_and_asked_again() {
    for status in [301, 401, 404, 410] {
        let receiver = Receiver::start([(status, &[][..], ""), (204, &[][..], "")]).await;
        let posts = posts(&receiver, &[1], 3);
        let held = apply(&posts).await;
        let Err(Failure::Outage { kind: "webhook_away", message, attempted: false, .. }) = held
        else {
            panic!("{status}: {held:?}")
        };
        let away = posts.breaker.away().expect("named as away from the first answer on");
        assert_eq!(away.error, message);
        assert!(apply(&posts).await.is_ok(), "{status}: once somebody has put it right");
        assert!(posts.breaker.away().is_none());
    }
}

#[tokio::test]
async fn a_pause_that_is_asked_for_keeps_all_requests_back() {
    let receiver = Receiver::start([(429, &[("retry-after", "60")][..], "")]).await;
    let posts = posts(&receiver, &[1], 3);
    let asked = apply(&posts).await;
    let sixty = Some(Duration::from_secs(60));
    assert!(matches!(&asked, Err(Failure::Outage { retry_after, .. }) if *retry_after == sixty));
    assert!(matches!(apply(&posts).await, Err(Failure::Outage { attempted: false, .. })));
    assert_eq!(receiver.seen().len(), 1);
}

#[tokio::test]
async fn what_is_too_large_is_set_aside_and_says_nothing_about_the_receiver() {
    let receiver = Receiver::answering(204).await;
    let mut posts = posts(&receiver, &[1], 3);
    posts.body = Some(Arc::new(body("x".repeat(2_000).into()).expect("a body")));
    let applied = apply(&posts).await;
    assert!(matches!(applied, Err(Failure::Poison { kind: "webhook_too_large", .. })));
    assert_eq!((posts.breaker.failures(), posts.breaker.successes()), (0, 0));
    assert!(receiver.seen().is_empty());
}

fn settings(secrets: &str) -> Result<Box<Settings>, String> {
    let hooks = |name| json!({"action": "webhook", "name": name, "start": "latest", "url": "https://a.example"});
    let actions = json!([hooks("own"), hooks("other")]).to_string();
    let env: Environment = [
        ("CONSUMERS", "relationships"),
        ("KAFKA_BROKERS", "broker:9092"),
        ("RELATIONSHIPS_ACTIONS", &actions),
        ("KESSEL_WEBHOOK_SECRETS", secrets),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into();
    load(&env, std::path::Path::new("no/such/file")).settings.map_err(|error| error.to_string())
}

fn shown(number: u8) -> String {
    use secrecy::ExposeSecret as _;
    testing::secret(number).expose_secret().to_owned()
}

#[test]
fn an_action_signs_with_its_own_secrets_or_else_with_those_of_all() {
    let secrets = format!("own={},{},own={}", shown(1), shown(2), shown(3));
    let settings = settings(&secrets).expect("sound");
    let of = |name: &str| {
        use secrecy::ExposeSecret as _;
        let given: Options =
            serde_json::from_value(json!({"url": "https://a.example"})).expect("options");
        let secrets = given.config(name, &settings).secrets;
        secrets.iter().map(|secret| secret.expose_secret().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("own"), [shown(1), shown(3)]);
    assert_eq!(of("other"), [shown(2)]);
}

#[test]
fn an_action_for_which_there_is_no_secret_is_a_problem_of_the_configuration() {
    let wrong = settings("").expect_err("none at all");
    assert!(wrong.contains("KESSEL_WEBHOOK_SECRETS: missing"), "{wrong}");
    let wrong = settings(&format!("own={}", shown(1))).expect_err("none for the other");
    assert!(wrong.contains("has none for the action other: add"), "{wrong}");
    assert!(!wrong.contains(&shown(1)) && !wrong.contains("for the action own"), "{wrong}");
}

#[test]
fn a_snapshots_rows_are_posted_only_where_the_filter_names_them() {
    let Item::Row(change) = created();
    let read = Item::Row(RowChange { operation: Operation::Read, ..change });
    for (filter, taken) in [("{}", false), (r#"{"operation": ["READ", "CREATE"]}"#, true)] {
        let text = format!(
            r#"[{{"action": "webhook", "url": "https://a.example", "start": "latest", "filter": {filter}}}]"#
        );
        let action = of_relationships(&text).expect("an action").remove(0);
        assert_eq!((action.takes(&read), action.takes(&created())), (taken, true), "{filter}");
    }
    let without = r#"[{"action": "webhook", "url": "https://a.example"}]"#;
    let wrong = of_relationships(without).expect_err("it must say where it begins");
    assert!(wrong.contains("start is missing"), "{wrong}");
}
