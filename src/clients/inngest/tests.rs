//! What batches remember of failures, against the fake.

use serde_json::json;

use super::*;
use crate::fakes::{Endpoint, Fake, Fault, Lasting, Options, Poison};

struct Scene {
    fake: Fake,
    inngest: Inngest,
    breaker: Arc<Breaker>,
}

async fn scene(change: impl FnOnce(&mut InngestConfig)) -> Scene {
    let fake = Fake::start(Options::default()).await.expect("the fake starts");
    let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(5) };
    let key = || SecretString::from("for-the-fake");
    let mut config = InngestConfig { backoff, ..InngestConfig::new(fake.url(), key()) };
    config.settle = Duration::from_millis(5);
    config.max_wait = Duration::from_millis(50);
    change(&mut config);
    let breaker = Arc::new(Breaker::new("inngest", 1_000, backoff));
    let inngest = Inngest::start(&config, Arc::clone(&breaker)).expect("a usable address");
    Scene { fake, inngest, breaker }
}

impl Scene {
    async fn send(&self, ids: &[&str]) -> Result<Accepted, SendError> {
        let mut events = Events::default();
        for id in ids {
            events.push("test/event", Some(id), &json!({ "id": id })).expect("a valid event");
        }
        self.inngest.send(events).await
    }

    fn posts(&self) -> usize {
        self.fake.inspect(|log| log.posts.len())
    }

    /// Sends a bad event with neighbours, while others pass, until it has come to an end.
    async fn send_with_neighbours(&self, round: u32) -> Result<Accepted, SendError> {
        let names: Vec<String> = (0..64).map(|id| format!("good-{round}-{id}")).collect();
        let good = names.iter().map(|id| async { self.send(&[id]).await });
        let bad = self.send(&["bad"]);
        let others = async {
            for id in 0.. {
                self.send(&[&format!("other-{round}-{id}")]).await.expect("accepted");
            }
        };
        let all = futures::future::join(bad, futures::future::join_all(good));
        tokio::select! {
            (bad, good) = all => {
                assert!(good.iter().all(Result::is_ok), "{good:?}");
                bad
            }
            () = others => panic!("the others never end"),
        }
    }
}

#[tokio::test]
async fn an_event_that_was_found_to_fail_alone_takes_no_neighbours_with_it_again() {
    let scene = scene(|_| {}).await;
    scene.fake.poison("bad", Some(Poison::Status(500)));
    assert!(matches!(scene.send_with_neighbours(0).await, Err(SendError::Outage { .. })));
    let failed = |scene: &Scene, from: usize| {
        scene.fake.inspect(|log| {
            let failed = log.posts[from..].iter().filter(|post| post.status != 200);
            failed.map(|post| post.bytes).collect::<Vec<_>>()
        })
    };
    let alone = *failed(&scene, 0).last().expect("it failed");
    let before = scene.posts();
    assert!(matches!(scene.send_with_neighbours(1).await, Err(SendError::Outage { .. })));
    let again = failed(&scene, before);
    assert!(!again.is_empty() && again.iter().all(|bytes| *bytes == alone), "{again:?}");
}

#[tokio::test]
async fn a_gateways_answers_and_those_of_another_shape_never_take_a_batch_apart() {
    for fault in [
        Fault::status(502),
        Fault::status(503),
        Fault::status(504),
        Fault::status(408),
        Fault::page(502),
        Fault::OddSuccess,
    ] {
        let scene = scene(|_| {}).await;
        scene.fake.fail(Endpoint::Post, fault.clone(), Lasting::Next(40));
        let ids: Vec<String> = (0..8).map(|id| format!("e-{id}")).collect();
        let sent =
            futures::future::join_all(ids.iter().map(|id| async { scene.send(&[id]).await }));
        assert!(sent.await.iter().all(Result::is_ok), "{fault:?}");
        let seeds = scene.fake.inspect(|log| {
            log.posts.iter().map(|post| (post.seed.clone(), post.body_hash)).collect::<Vec<_>>()
        });
        assert_eq!(seeds.len(), 41, "{fault:?}");
        assert!(seeds.iter().all(|seed| *seed == seeds[0]), "{fault:?}: one batch throughout");
    }
}

#[tokio::test]
async fn one_413_does_not_shrink_requests_for_good() {
    let scene = scene(|config| config.max_wait = Duration::from_millis(20)).await;
    let many: Vec<String> = (0..100).map(|id| format!("many-{id}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    scene.fake.fail(Endpoint::Post, Fault::status(413), Lasting::Next(1));
    scene.send(&many).await.expect("accepted in parts");
    let parts = scene.posts() - 1;
    assert!(parts >= 2, "in parts");
    for id in 0..200 {
        scene.send(&[&format!("one-{id}")]).await.expect("accepted");
    }
    let before = scene.posts();
    scene.send(&many).await.expect("accepted");
    assert_eq!(scene.posts() - before, 1, "whole again");
}

#[tokio::test]
async fn what_a_caller_was_served_itself_is_told_apart_from_what_others_were() {
    let scene = scene(|_| {}).await;
    scene.fake.poison("bad", Some(Poison::Refused("its queue is not there".to_owned())));
    let refused = scene.send(&["a", "b", "bad"]).await.expect_err("refused");
    assert!(matches!(refused, SendError::Refused { certain: false, .. }), "{refused:?}");
    assert_eq!((u64::from(refused.served()), scene.breaker.successes()), (1, 1), "its own");
    let (one, two) = futures::join!(scene.send(&["c"]), scene.send(&["d"]));
    let own = one.expect("accepted").served + two.expect("accepted").served;
    assert_eq!((own, scene.breaker.successes()), (2, 3), "each in one request with the other");
}
