//! Requests are few, full, in order, and each caller learns about its own events.

use std::collections::HashSet;

use crm_event_processors::clients::SetupError;
use crm_event_processors::clients::inngest::{Inngest, InngestConfig, SendError};
use crm_event_processors::fakes::{Endpoint, Fake, Fault, Lasting, Options, Poison};
use futures::future::join_all;
use secrecy::SecretString;

use super::*;

const NAME_IS_EMPTY: &str = "event name is empty";

fn is_refused(outcome: &Result<(), SendError>, expected: bool) -> bool {
    matches!(outcome, Err(SendError::Refused { certain, .. }) if *certain == expected)
}

#[tokio::test]
async fn the_events_of_many_callers_share_few_requests() {
    let scene = scene().await;
    let ids: Vec<String> = (0..1000).map(|id| id.to_string()).collect();
    let outcomes = scene.send_each(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let posts = scene.fake.inspect(|log| log.posts.len());
    assert!(posts <= 50, "{posts} requests for 1000 events");
    assert_eq!(scene.copies().len(), 1000);
    assert!(scene.copies().values().all(|copies| *copies == 1));
}

#[tokio::test]
async fn a_full_batch_does_not_wait() {
    let forever = Duration::from_secs(3600);
    let scene = scene_with(|config| (config.max_wait, config.max_events) = (forever, 10)).await;
    let outcomes = scene.send_each(&["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(scene.fake.inspect(|log| log.posts.len()), 1);
}

#[tokio::test]
async fn a_batch_is_full_at_its_bytes_too() {
    let forever = Duration::from_secs(3600);
    let scene = scene_with(|config| (config.max_wait, config.max_bytes) = (forever, 300)).await;
    let sends = (0..40).map(|id| scene.inngest.send(events([id.to_string()])));
    let first_thirty =
        within(futures::stream::StreamExt::collect::<Vec<_>>(futures::stream::StreamExt::take(
            sends.collect::<futures::stream::FuturesUnordered<_>>(),
            30,
        )));
    assert!(first_thirty.await.iter().all(Result::is_ok));
    let largest = scene.fake.inspect(|log| log.requests(Endpoint::Post).largest);
    assert!(largest <= 300, "{largest} bytes");
}

#[tokio::test]
async fn only_a_few_requests_are_under_way_at_a_time() {
    let scene = scene_with(|config| (config.max_events, config.requests) = (1, 2)).await;
    scene.fake.set_latency(Endpoint::Post, Duration::from_millis(2));
    let ids: Vec<String> = (0..40).map(|id| id.to_string()).collect();
    scene.send_each(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(scene.fake.inspect(|log| log.requests(Endpoint::Post).most_under_way), 2);
}

#[tokio::test]
async fn the_events_of_one_send_arrive_in_order_within_one_request() {
    let scene = scene().await;
    scene.send(&["c", "a", "b"]).await.expect("accepted");
    scene.fake.inspect(|log| {
        assert_eq!(log.ids().collect::<Vec<_>>(), ["c", "a", "b"]);
        assert_eq!(log.posts.len(), 1);
        assert_eq!(&*log.events[0].name, "test/event");
    });
}

#[tokio::test]
async fn no_events_are_no_request() {
    let scene = scene().await;
    scene.send(&[]).await.expect("nothing to accept");
    assert_eq!(scene.fake.inspect(|log| log.posts.len()), 0);
}

#[tokio::test]
async fn more_than_the_server_takes_at_a_time_goes_on_with_the_rest_in_order() {
    let scene = scene_with(|config| config.max_events = 6000).await;
    let ids: Vec<String> = (0..5_500).map(|id| id.to_string()).collect();
    within(scene.inngest.send(events(&ids))).await.expect("accepted");
    scene.fake.inspect(|log| {
        assert!(log.ids().eq(ids.iter()), "in order and each once");
        assert_eq!(log.posts[0].status, 400);
        assert_eq!(log.posts[0].stored, 5000);
    });
}

#[tokio::test]
async fn after_a_partial_400_only_the_poison_is_refused_and_nothing_is_sent_twice() {
    let scene = scene_with(|config| config.max_wait = Duration::from_millis(50)).await;
    scene.fake.poison("3", Some(Poison::Refused(NAME_IS_EMPTY.to_owned())));
    let outcomes = scene.send_each(&["1", "2", "3", "4", "5"]).await;
    assert!(is_refused(&outcomes[2], true), "{:?}", outcomes[2]);
    for index in [0, 1, 3, 4] {
        assert!(outcomes[index].is_ok(), "{:?}", outcomes[index]);
    }
    assert_eq!(scene.copies().len(), 4);
    assert!(scene.copies().values().all(|copies| *copies == 1), "{:?}", scene.copies());
    assert!(scene.breaker.away().is_none(), "a poisoned event is no outage");
}

#[tokio::test]
async fn a_poisoned_event_stops_only_the_rest_of_its_own_send() {
    let scene = scene().await;
    scene.fake.poison("b", Some(Poison::Refused(NAME_IS_EMPTY.to_owned())));
    let outcome = scene.send(&["a", "b", "c"]).await;
    assert!(is_refused(&outcome, true), "{outcome:?}");
    scene.fake.inspect(|log| {
        assert_eq!(log.ids().collect::<Vec<_>>(), ["a"]);
        assert_eq!(log.posts.len(), 2, "the suspect was tried alone");
    });
}

#[tokio::test]
async fn a_400_that_takes_nothing_is_not_held_against_events_that_pass_alone() {
    let scene = scene_with(|config| config.max_wait = Duration::from_millis(50)).await;
    scene.fake.fail(Endpoint::Post, Fault::status(400), Lasting::Next(1));
    let outcomes = scene.send_each(&["1", "2", "3"]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(scene.copies().len(), 3);
    assert!(scene.copies().values().all(|copies| *copies == 1));
    assert!(scene.breaker.away().is_none());
}

#[tokio::test]
async fn a_400_for_an_unknown_reason_is_refused_without_certainty() {
    let scene = scene().await;
    scene.fake.poison("a", Some(Poison::Refused("the queue is not there".to_owned())));
    let outcome = scene.send(&["a"]).await;
    assert!(is_refused(&outcome, false), "{outcome:?}");
    let error = outcome.expect_err("refused");
    assert_eq!(error.kind(), "inngest_unsure");
    assert!(error.to_string().contains("the queue is not there"), "{error}");
}

#[tokio::test]
async fn a_server_that_refuses_everything_for_an_unknown_reason_counts_as_away() {
    let scene = scene().await;
    scene.fake.fail(Endpoint::Post, Fault::status(400), Lasting::UntilHealed);
    let many: Vec<String> = (0..20).map(|id| id.to_string()).collect();
    let sends = join_all(many.iter().map(|id| scene.inngest.send(events([id]))));
    within(futures::future::join(scene.breaker.until_away(), sends)).await;
}

#[tokio::test]
async fn a_413_is_halved_until_the_event_that_is_too_large_is_alone() {
    let scene = scene_with(|config| config.max_wait = Duration::from_millis(50)).await;
    scene.fake.poison("4", Some(Poison::Status(413)));
    let outcomes = scene.send_each(&["1", "2", "3", "4", "5", "6", "7"]).await;
    for (index, outcome) in outcomes.iter().enumerate() {
        assert_eq!(is_refused(outcome, true), index == 3, "{index}: {outcome:?}");
        assert_eq!(outcome.is_ok(), index != 3, "{index}: {outcome:?}");
    }
    assert!(scene.copies().len() == 6 && scene.copies().values().all(|copies| *copies == 1));
}

#[tokio::test]
async fn what_cannot_be_accepted_is_refused_without_asking() {
    let scene = scene_with(|config| config.max_event_bytes = 100).await;
    let mut large = events(["small"]);
    large.push("test/event", None, &json!({ "x": "x".repeat(100) })).expect("valid");
    let outcome = within(scene.inngest.send(large)).await.map(|_| ());
    assert!(is_refused(&outcome, true), "{outcome:?}");
    assert_eq!(scene.fake.inspect(|log| log.posts.len()), 0);
}

#[tokio::test]
async fn an_event_of_the_largest_size_passes_and_one_byte_more_does_not() {
    let most = 3 << 20;
    let scene = scene_with(|config| config.max_event_bytes = most + 1).await;
    let empty = Events::one("n", None, &json!({ "x": "" })).expect("valid").bytes();
    let sized = |bytes: usize| {
        Events::one("n", None, &json!({ "x": "x".repeat(bytes - empty) })).expect("valid")
    };
    within(scene.inngest.send(sized(most))).await.expect("accepted");
    let outcome = within(scene.inngest.send(sized(most + 1))).await.map(|_| ());
    assert!(is_refused(&outcome, true), "{outcome:?}");
    let text = outcome.expect_err("refused").to_string();
    assert!(text.contains("Size 3145729"), "{text}");
}

#[tokio::test]
async fn a_number_beyond_a_double_is_the_events_fault() {
    let scene = scene().await;
    let raw = serde_json::value::RawValue::from_string(r#"{"x":1e400}"#.to_owned());
    let event = Events::one("n", None, &raw.expect("json")).expect("valid");
    let outcome = within(scene.inngest.send(event)).await.map(|_| ());
    assert!(is_refused(&outcome, true), "{outcome:?}");
}

#[tokio::test]
async fn the_environment_and_a_fresh_seed_go_with_every_request() {
    let scene = scene_with(|config| config.environment = Some("branch/x".to_owned())).await;
    scene.send(&["1"]).await.expect("accepted");
    scene.send(&["2"]).await.expect("accepted");
    scene.fake.inspect(|log| {
        let mut seeds = HashSet::new();
        for post in &log.posts {
            assert_eq!(post.environment.as_deref(), Some("branch/x"));
            let seed = post.seed.clone().expect("a seed");
            let (millis, random) = seed.split_once(',').expect("two parts");
            assert!(millis.parse::<u64>().expect("a number") > 1_700_000_000_000, "{seed}");
            let engine = base64::engine::general_purpose::STANDARD;
            let random = base64::Engine::decode(&engine, random).expect("base64");
            assert_eq!(random.len(), 10);
            assert!(seeds.insert(seed), "a seed of its own");
        }
        assert_eq!(seeds.len(), 2);
    });
}

#[tokio::test]
async fn a_base_address_may_carry_a_path_and_must_be_http() {
    let fake = Fake::start(Options::default()).await.expect("a fake");
    let breaker = || Arc::new(Breaker::new("inngest", 3, scene_backoff()));
    for base in ["ftp://127.0.0.1", "inn.gs", ""] {
        let config = InngestConfig::new(base, SecretString::from("key"));
        let error = Inngest::start(&config, breaker()).expect_err("no address");
        assert!(matches!(error, SetupError::Address { .. }), "{error}");
    }
    for key in ["", "  ", "a b", "ü"] {
        let config = InngestConfig::new(fake.url(), SecretString::from(key));
        let error = Inngest::start(&config, breaker()).expect_err("no key");
        assert!(matches!(error, SetupError::Key { .. }), "{error}");
    }
}

fn scene_backoff() -> Backoff {
    Backoff { base: Duration::from_millis(1), max: Duration::from_millis(10) }
}

#[tokio::test]
async fn every_caller_gets_its_own_outcome_under_random_batches_poison_and_faults() {
    for round in 0..8_u64 {
        let mut random = fastrand::Rng::with_seed(round);
        let (max_events, requests) = (random.usize(1..40), random.usize(1..5));
        let scene = scene_with(|config| {
            config.max_events = max_events;
            config.requests = requests;
        })
        .await;
        // Faults at random moments: they leave the outcome open, or nothing is accepted.
        for _ in 0..random.usize(0..10) {
            let fault = match random.u8(0..4) {
                0 => Fault::Reset,
                1 => Fault::HandledThenReset,
                2 => Fault::Truncated,
                _ => Fault::status(429),
            };
            scene.fake.fail(Endpoint::Post, fault, Lasting::Next(1));
        }
        let callers: Vec<Vec<String>> = (0..200)
            .map(|caller| (0..random.usize(1..5)).map(|i| format!("{caller}-{i}")).collect())
            .collect();
        let mut bad = HashMap::new();
        for id in callers.iter().flatten() {
            if random.u8(0..25) > 0 {
                continue;
            }
            let certain = random.bool();
            let text = if certain { NAME_IS_EMPTY } else { "no idea" };
            scene.fake.poison(id, Some(Poison::Refused(text.to_owned())));
            bad.insert(id.clone(), certain);
        }
        let sends = callers.iter().map(|ids| scene.inngest.send(events(ids)));
        let outcomes = within(join_all(sends)).await;
        for (ids, outcome) in callers.iter().zip(outcomes) {
            let fault = ids.iter().position(|id| bad.contains_key(id));
            match (fault, outcome) {
                (None, Ok(_)) => {}
                (Some(index), Err(SendError::Refused { certain, .. })) => {
                    assert_eq!(certain, bad[&ids[index]], "round {round}: {ids:?}");
                }
                (_, outcome) => panic!("round {round}: {ids:?} got {outcome:?}"),
            }
            let taken = fault.unwrap_or(ids.len());
            for (index, id) in ids.iter().enumerate() {
                assert_eq!(scene.internal_ids(id), usize::from(index < taken), "{round}: {id}");
            }
            scene.fake.inspect(|log| {
                let mut first_copies = Vec::new();
                for id in log.ids().filter(|id| ids.iter().any(|own| own == id)) {
                    if !first_copies.contains(&id) {
                        first_copies.push(id);
                    }
                }
                assert_eq!(first_copies, ids[..taken], "round {round}: in order");
            });
        }
    }
}
