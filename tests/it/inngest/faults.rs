//! Outages are waited out. Requests of unknown outcome are repeated so that nothing runs twice.

use crm_event_processors::clients::inngest::SendError;
use crm_event_processors::fakes::{Endpoint, Fault, Lasting, Poison};

use super::*;

/// The fake's POSTs so far: seed and hash of the body.
fn requests(scene: &Scene) -> Vec<(Option<String>, u64)> {
    scene
        .fake
        .inspect(|log| log.posts.iter().map(|post| (post.seed.clone(), post.body_hash)).collect())
}

#[tokio::test]
async fn a_request_of_unknown_outcome_is_repeated_with_the_same_bytes_and_seed() {
    for (fault, copies) in [
        (Fault::HandledThenReset, 2),
        (Fault::Truncated, 2),
        (Fault::Reset, 1),
        (Fault::Hang, 1),
        (Fault::OddSuccess, 1),
        (Fault::status(500), 1),
        (Fault::page(500), 1),
        (Fault::page(502), 1),
        (Fault::status(503), 1),
        (Fault::status(429), 1),
    ] {
        let scene = scene_with(|config| config.http.timeout = Duration::from_millis(300)).await;
        scene.fake.fail(Endpoint::Post, fault.clone(), Lasting::Next(1));
        scene.send(&["a", "b"]).await.expect("accepted in the end");
        let requests = requests(&scene);
        assert_eq!(requests.len(), 2, "{fault:?}");
        assert!(requests[0].0.is_some(), "{fault:?}");
        assert_eq!(requests[0], requests[1], "{fault:?}");
        assert_eq!(scene.copies()["a"], copies, "{fault:?}");
        assert_eq!(scene.internal_ids("a"), 1, "{fault:?}: one event to Inngest");
        assert_eq!(scene.internal_ids("b"), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_truncated_partial_400_is_of_unknown_outcome_too() {
    let scene = scene().await;
    scene.fake.poison("b", Some(Poison::Refused("event name is empty".to_owned())));
    scene.fake.fail(Endpoint::Post, Fault::Truncated, Lasting::Next(1));
    let outcome = scene.send(&["a", "b"]).await;
    assert!(matches!(outcome, Err(SendError::Refused { certain: true, .. })), "{outcome:?}");
    let requests = requests(&scene);
    assert_eq!(requests[0], requests[1]);
    assert_eq!(requests.len(), 3, "the suspect alone is the third");
    assert_ne!(requests[1].0, requests[2].0, "other bytes, another seed");
    assert_eq!(scene.internal_ids("a"), 1);
}

#[tokio::test]
async fn an_outage_is_waited_out_for_as_long_as_it_takes() {
    for fault in [
        Fault::Reset,
        Fault::status(429),
        Fault::status(500),
        Fault::page(502),
        Fault::status(401),
        Fault::status(402),
        Fault::status(403),
        Fault::status(404),
        Fault::status(405),
        Fault::status(406),
        Fault::status(409),
        Fault::status(412),
        Fault::status(301),
        Fault::status(303),
    ] {
        let scene = scene().await;
        scene.fake.fail(Endpoint::Post, fault.clone(), Lasting::UntilHealed);
        let outage = async {
            within(scene.breaker.until_away()).await;
            within(scene.fake.until(|log| log.posts.len() >= 8)).await;
            assert!(scene.breaker.away().is_some(), "{fault:?} must show");
            scene.fake.heal(Endpoint::Post);
        };
        let (sent, ()) = futures::join!(scene.send(&["a"]), outage);
        sent.expect("accepted after the outage");
        assert!(scene.breaker.away().is_none(), "{fault:?}");
        assert_eq!(scene.copies(), HashMap::from([("a".to_owned(), 1)]), "{fault:?}");
        let requests = requests(&scene);
        assert!(requests.iter().all(|request| *request == requests[0]), "{fault:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_an_outage_that_says_what_to_check_and_not_the_key() {
    let secret = "a-key-nobody-knows";
    let scene = scene_with(|config| config.event_key = SecretString::from(secret)).await;
    let sending = scene.inngest.send(events(["a"]));
    tokio::select! {
        outcome = sending => panic!("it waits: {outcome:?}"),
        () = within(scene.breaker.until_away()) => {}
    }
    let error = scene.breaker.away().expect("away").error.clone();
    assert!(error.contains("Event key not found"), "{error}");
    assert!(error.contains("INNGEST_EVENT_KEY"), "{error}");
    assert!(!error.contains(secret), "{error}");
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_an_outage_that_does_not_name_the_key() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("an address");
    drop(nobody);
    let scene = scene_with(|config| config.base_url = format!("http://{address}/base")).await;
    let sending = scene.inngest.send(events(["a"]));
    tokio::select! {
        outcome = sending => panic!("it waits: {outcome:?}"),
        () = within(scene.breaker.until_away()) => {}
    }
    let error = scene.breaker.away().expect("away").error.clone();
    assert!(error.contains("did not answer"), "{error}");
    assert!(!error.contains("of-this-test") && !error.contains("/e/"), "{error}");
}

#[tokio::test]
async fn the_wait_that_the_server_asks_for_wins() {
    let scene = scene().await;
    scene.fake.fail(Endpoint::Post, Fault::too_many(1800), Lasting::Next(1));
    let sending = scene.inngest.send(events(["a"]));
    tokio::select! {
        outcome = sending => panic!("it waits: {outcome:?}"),
        () = within(scene.breaker.until_away()) => {}
    }
    let away = scene.breaker.away().expect("away");
    let wait = away.until - away.since;
    assert_eq!(wait, Duration::from_secs(1800));
    assert_eq!(scene.fake.inspect(|log| log.posts.len()), 1);
}

#[tokio::test]
async fn events_whose_caller_has_gone_are_not_sent_after_the_outage() {
    let scene = scene().await;
    // The pause is an hour: anything sent before the breaker closes below is sent wrongly.
    scene.fake.fail(Endpoint::Post, Fault::too_many(3600), Lasting::Next(1));
    let tried = scene.inngest.send(events(["tried"]));
    tokio::select! {
        outcome = tried => panic!("it waits: {outcome:?}"),
        () = within(scene.breaker.until_away()) => {}
    }
    let untried = scene.inngest.send(events(["untried"]));
    assert!(futures::FutureExt::now_or_never(untried).is_none(), "it waits, then is dropped");
    scene.breaker.succeeded();
    scene.send(&["later"]).await.expect("accepted");
    scene.send(&["last"]).await.expect("accepted");
    scene.fake.inspect(|log| assert_eq!(log.ids().collect::<Vec<_>>(), ["later", "last"]));
}

#[tokio::test]
async fn a_request_whose_callers_have_gone_is_not_repeated() {
    let scene = scene().await;
    scene.fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    let tried = scene.inngest.send(events(["tried"]));
    tokio::select! {
        outcome = tried => panic!("it waits: {outcome:?}"),
        () = within(scene.breaker.until_away()) => {}
    }
    let posts = scene.fake.inspect(|log| log.posts.len());
    let outage = async {
        within(scene.fake.until(|log| log.posts.len() >= posts + 5)).await;
        scene.fake.heal(Endpoint::Post);
    };
    let (sent, ()) = futures::join!(scene.send(&["later"]), outage);
    sent.expect("accepted");
    scene.send(&["last"]).await.expect("accepted");
    scene.fake.inspect(|log| assert_eq!(log.ids().collect::<Vec<_>>(), ["later", "last"]));
}

#[tokio::test]
async fn a_batch_keeps_the_wait_it_was_given_while_others_pass() {
    let scene = scene().await;
    scene.fake.fail(Endpoint::Post, Fault::too_many(3600), Lasting::Next(1));
    let told_to_wait = scene.inngest.send(events(["told to wait"]));
    tokio::pin!(told_to_wait);
    tokio::select! {
        outcome = &mut told_to_wait => panic!("it waits: {outcome:?}"),
        () = within(scene.breaker.until_away()) => {}
    }
    scene.breaker.succeeded();
    scene.send(&["another"]).await.expect("accepted");
    scene.send(&["last"]).await.expect("accepted");
    assert!(futures::FutureExt::now_or_never(told_to_wait).is_none(), "it still waits");
    scene.fake.inspect(|log| assert_eq!(log.ids().collect::<Vec<_>>(), ["another", "last"]));
}

#[tokio::test]
async fn a_batch_lives_on_while_one_of_its_callers_waits() {
    let scene = scene_with(|config| config.max_wait = Duration::from_millis(50)).await;
    scene.fake.fail(Endpoint::Post, Fault::status(503), Lasting::UntilHealed);
    let staying = scene.send(&["stays"]);
    let leaving = async {
        let sending = scene.inngest.send(events(["leaves"]));
        tokio::select! {
            outcome = sending => panic!("it waits: {outcome:?}"),
            () = within(scene.breaker.until_away()) => {}
        }
        scene.fake.heal(Endpoint::Post);
    };
    let (stayed, ()) = futures::join!(staying, leaving);
    stayed.expect("accepted");
    let requests = requests(&scene);
    assert!(requests.iter().all(|request| *request == requests[0]), "the same bytes throughout");
}

#[tokio::test]
async fn a_batch_that_keeps_failing_while_others_pass_is_narrowed_down_to_its_culprit() {
    narrowed_down(Poison::Status(500)).await;
}

#[tokio::test]
async fn an_event_that_is_never_answered_does_not_hold_its_neighbours_and_is_told_as_an_outage() {
    narrowed_down(Poison::Reset).await;
}

async fn narrowed_down(poison: Poison) {
    let scene = scene_with(|config| config.max_wait = Duration::from_millis(20)).await;
    for event in ["bad-1", "bad-2", "bad-3", "bad-4", "bad-5"] {
        scene.fake.poison(event, Some(poison.clone()));
    }
    let outcomes = async {
        let mut ids = vec!["bad-1", "bad-2", "bad-3", "bad-4", "bad-5"];
        ids.extend(["good-1", "good-2", "good-3"]);
        scene.send_each(&ids).await
    };
    // Other senders' requests pass in between. Without them it would look like an outage.
    let others = async {
        // They must not share that request, or they would wait with it.
        within(scene.fake.until(|log| !log.posts.is_empty())).await;
        for id in 0.. {
            within(scene.inngest.send(events([format!("other-{id}")]))).await.expect("accepted");
        }
    };
    let outcomes = tokio::select! {
        outcomes = outcomes => outcomes,
        () = others => panic!("the others never end"),
    };
    for outcome in &outcomes[..5] {
        assert!(matches!(outcome, Err(SendError::Outage { .. })), "{outcome:?}");
    }
    for outcome in &outcomes[5..] {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    assert!(scene.copies().values().all(|copies| *copies == 1));
}

#[tokio::test]
async fn only_an_event_that_was_accepted_counts_as_an_answer_to_others() {
    let scene = scene().await;
    scene.fake.poison("bad", Some(Poison::Refused("event name is empty".to_owned())));
    scene.fake.poison("large", Some(Poison::Status(413)));
    for id in ["bad", "large"] {
        let outcome = scene.send(&[id]).await;
        assert!(matches!(outcome, Err(SendError::Refused { certain: true, .. })), "{outcome:?}");
        assert_eq!(scene.breaker.successes(), 0, "{id}: a refusal is no sign that others pass");
    }
    scene.send(&["good"]).await.expect("accepted");
    assert_eq!(scene.breaker.successes(), 1);
}

#[tokio::test]
async fn one_bad_event_at_a_quiet_time_does_not_hold_its_neighbours() {
    let scene = scene_with(|config| config.max_wait = Duration::from_millis(50)).await;
    scene.fake.poison("bad", Some(Poison::Status(500)));
    let bad = scene.inngest.send(events(["bad"]));
    let good = scene.send_each(&["1", "2", "3", "4", "5", "6", "7"]);
    // With nothing else to compare it with, the bad one may go on waiting.
    tokio::pin!(bad, good);
    let outcomes = match futures::future::select(bad, good).await {
        futures::future::Either::Right((outcomes, _)) => outcomes,
        futures::future::Either::Left((outcome, good)) => {
            let outcome = outcome.map(|_| ());
            assert!(matches!(outcome, Err(SendError::Outage { .. })), "{outcome:?}");
            good.await
        }
    };
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(scene.copies().values().all(|copies| *copies == 1));
}

#[tokio::test]
async fn when_the_client_goes_its_collector_goes() {
    let scene = scene().await;
    scene.send(&["a"]).await.expect("accepted");
    let Scene { inngest, breaker, .. } = scene;
    let observer = Arc::downgrade(&breaker);
    drop((inngest, breaker));
    within(async {
        while observer.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
