//! Claims on a real Redis (behaviour section 8.2): the protocol, its life times, and a server that
//! goes, comes back and forgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crm_event_processors::clients::redis::connect;
use crm_event_processors::dedup::{ClaimReply, Claims, OnOutage, RedisStore};
use crm_event_processors::outage::{Backoff, Breaker};
use futures::future::join_all;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use test_support::services::{Redis, redis};
use test_support::tcp_proxy::TcpProxy;
use test_support::{unique, until};

const WINDOW: Duration = Duration::from_secs(300);

/// The claims of one process on the server at `url`.
fn claims_for(url: &str, window: Duration, on_outage: OnOutage) -> Claims {
    let connection = connect(url).expect("a Redis address");
    let backoff = Backoff { base: Duration::from_millis(10), max: Duration::from_millis(50) };
    let breaker = Arc::new(Breaker::new("redis", 1, backoff));
    let store = RedisStore::new(connection, window);
    Claims::start(store, breaker, on_outage, window, Duration::from_secs(30))
}

fn claims(url: &str) -> Claims {
    claims_for(url, WINDOW, OnOutage::Wait)
}

async fn claim(claims: &Claims, key: &str, asker: &str) -> ClaimReply {
    claims.claim(key.to_owned(), asker.into()).await.expect("Redis answers")
}

async fn raw(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).expect("a Redis address");
    client.get_multiplexed_async_connection().await.expect("Redis answers")
}

#[tokio::test]
async fn a_claim_is_its_records_own_also_after_a_crash_and_held_against_others_until_done() {
    let (first, second) = (claims(redis()), claims(redis()));
    let key = unique("claim");
    assert_eq!(claim(&first, &key, "g/t/0/7").await, ClaimReply::Granted);
    assert_eq!(claim(&second, &key, "g/t/0/9").await, ClaimReply::Held);
    assert_eq!(second.read(key.clone()).await, Some(ClaimReply::Held));
    drop(first);
    assert_eq!(
        claim(&second, &key, "g/t/0/7").await,
        ClaimReply::Granted,
        "the same record, redelivered"
    );
    second.confirm(key.clone(), 42, 0).await.expect("Redis answers");
    let third = claims(redis());
    for asker in ["g/t/0/7", "g/t/0/9"] {
        assert_eq!(
            claim(&third, &key, asker).await,
            ClaimReply::Done { accepted_ms: 42, due_ms: 0 }
        );
    }
    assert_eq!(third.read(key).await, Some(ClaimReply::Done { accepted_ms: 42, due_ms: 0 }));
}

#[tokio::test]
async fn only_its_holder_gives_a_claim_back() {
    let claims = claims(redis());
    let key = unique("claim");
    assert_eq!(claim(&claims, &key, "holder").await, ClaimReply::Granted);
    claims.release(key.clone(), "other".into()).await;
    assert_eq!(claim(&claims, &key, "other").await, ClaimReply::Held);
    claims.release(key.clone(), "holder".into()).await;
    assert_eq!(claim(&claims, &key, "other").await, ClaimReply::Granted);
    claims.confirm(key.clone(), 1, 0).await.expect("Redis answers");
    claims.release(key.clone(), "other".into()).await;
    assert_eq!(claim(&claims, &key, "other").await, ClaimReply::Done { accepted_ms: 1, due_ms: 0 });
}

#[tokio::test]
async fn a_claim_runs_out_with_its_window_and_is_renewed_by_claiming_again() {
    let claims = claims(redis());
    let mut connection = raw(redis()).await;
    let key = unique("claim");
    assert_eq!(claim(&claims, &key, "holder").await, ClaimReply::Granted);
    let left: i64 = connection.ttl(&key).await.expect("Redis answers");
    assert!((1..=300).contains(&left), "{left} s");

    let _: () = connection.expire(&key, 2).await.expect("Redis answers");
    assert_eq!(claim(&claims, &key, "holder").await, ClaimReply::Granted);
    let left: i64 = connection.ttl(&key).await.expect("Redis answers");
    assert!(left > 2, "renewed, not {left} s");
    let _: () = connection.expire(&key, 100).await.expect("Redis answers");
    assert_eq!(claim(&claims, &key, "other").await, ClaimReply::Held);
    let left: i64 = connection.ttl(&key).await.expect("Redis answers");
    assert!(left <= 100, "asking renews nobody else's claim");

    let _: () = connection.pexpire(&key, 1).await.expect("Redis answers");
    until("the claim to run out", async || {
        (claim(&claims, &key, "other").await == ClaimReply::Granted).then_some(())
    })
    .await;
    claims.confirm(key.clone(), 5, 0).await.expect("Redis answers");
    let left: i64 = connection.ttl(&key).await.expect("Redis answers");
    assert!(left > 100, "done lives for a window of its own, not {left} s");
}

#[tokio::test]
async fn many_are_marked_done_whether_their_claims_are_fresh_old_or_gone() {
    let claims = claims(redis());
    let mut connection = raw(redis()).await;
    let [fresh, old, gone] = ["fresh", "old", "gone"].map(|name| Arc::from(unique(name)));
    let now = Instant::now();
    for key in [&fresh, &old] {
        assert_eq!(claim(&claims, key, "holder").await, ClaimReply::Granted);
        let _: () = connection.expire(&**key, 100).await.expect("Redis answers");
    }
    let long_ago = now.checked_sub(Duration::from_secs(60)).expect("a time");
    let all = [
        (Arc::clone(&fresh), 1, Some(now)),
        (Arc::clone(&old), 2, Some(long_ago)),
        (Arc::clone(&gone), 3, Some(now)),
    ];
    claims.confirm_all(&all).await.expect("Redis answers");
    for (key, accepted_ms, whole_window) in [(fresh, 1, false), (old, 2, true), (gone, 3, true)] {
        let done = ClaimReply::Done { accepted_ms, due_ms: 0 };
        assert_eq!(claim(&claims, &key, "another").await, done);
        let left: i64 = connection.ttl(&*key).await.expect("Redis answers");
        assert_eq!(left > 100, whole_window, "{key}: {left} s");
        assert!(left > 0, "{key}: {left} s");
    }
}

#[tokio::test]
async fn hundreds_at_a_time_each_get_their_own_answer() {
    let claims = claims(redis());
    let prefix = unique("claim");
    let everyone = async |asker: fn(usize) -> String| {
        let each = (0..1_000).map(|number| {
            let claims = &claims;
            let key = format!("{prefix}:{number}");
            async move { claim(claims, &key, &asker(number)).await }
        });
        join_all(each).await
    };
    // Odd claims are requested again by their holder, even ones by another.
    let first = everyone(|_| "holder".to_owned()).await;
    assert!(first.iter().all(|reply| *reply == ClaimReply::Granted));
    let again = everyone(|number| ["other", "holder"][number % 2].to_owned()).await;
    for (number, reply) in again.into_iter().enumerate() {
        assert_eq!(reply, [ClaimReply::Held, ClaimReply::Granted][number % 2], "{number}");
    }
}

#[tokio::test]
async fn scripts_need_not_be_known_to_the_server() {
    let redis = Redis::own();
    let claims = claims(redis.url());
    let mut connection = raw(redis.url()).await;
    for round in 0..2 {
        let key = format!("claim:{round}");
        assert_eq!(claim(&claims, &key, "holder").await, ClaimReply::Granted);
        assert_eq!(claim(&claims, &key, "other").await, ClaimReply::Held);
        let _: () = redis::cmd("SCRIPT")
            .arg("FLUSH")
            .query_async(&mut connection)
            .await
            .expect("Redis answers");
        claims.release(key.clone(), "holder".into()).await;
        assert_eq!(claim(&claims, &key, "other").await, ClaimReply::Granted);
    }
}

#[tokio::test]
async fn while_it_is_away_claims_wait_and_go_on_when_it_is_back() {
    let redis = Redis::own();
    let waiting = claims(redis.url());
    assert_eq!(claim(&waiting, "before", "holder").await, ClaimReply::Granted);
    redis.stop();
    let refused = waiting.claim("during".to_owned(), "holder".into()).await;
    assert!(refused.expect_err("away").to_string().contains("REDIS_URL"));
    assert!(waiting.breaker().away().is_some());
    assert!(waiting.confirm("before".to_owned(), 7, 0).await.is_err());
    redis.start();
    until("claims to be answered again", async || {
        waiting.claim("after".to_owned(), "holder".into()).await.ok()
    })
    .await;
    assert!(waiting.breaker().away().is_none());
}

/// `host:port` of a server's URL.
fn address(url: &str) -> &str {
    url.strip_prefix("redis://").and_then(|rest| rest.strip_suffix('/')).expect("a plain URL")
}

/// Asks until a claim is answered.
async fn answered(claims: &Claims, key: &str) {
    until("claims to be answered", async || {
        claims.claim(key.to_owned(), "holder".into()).await.ok()
    })
    .await;
    assert!(claims.breaker().away().is_none());
}

#[tokio::test]
async fn an_account_that_is_refused_is_an_outage_that_ends_when_the_account_is_there() {
    let redis = Redis::own();
    let password = unique("account");
    let url = redis.url().replace("redis://", &format!("redis://claims:{password}@"));
    let waiting = claims(&url);
    for _ in 0..2 {
        let refused = waiting.claim("early".to_owned(), "holder".into()).await;
        let refused = refused.expect_err("no such account").to_string();
        assert!(refused.contains("check user and password"), "{refused}");
        assert!(!refused.contains(&password), "{refused}");
        // The second request asks the server again, and does not repeat the first answer.
        until("the breaker to let a request through", async || {
            let until = waiting.breaker().away().expect("away").until;
            (std::time::Instant::now() >= until).then_some(())
        })
        .await;
    }
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "claims", "on", &format!(">{password}"), "~*", "+@all"])
        .query_async(&mut raw(redis.url()).await)
        .await
        .expect("an account");
    answered(&waiting, "late").await;
}

#[tokio::test]
async fn a_connection_that_has_gone_silent_is_replaced() {
    let proxy = TcpProxy::to(address(redis())).await;
    let claims = claims(&format!("redis://{}/", proxy.address()));
    let key = unique("claim");
    assert_eq!(claim(&claims, &key, "holder").await, ClaimReply::Granted);
    proxy.silence();
    let silent = claims.claim(key.clone(), "holder".into()).await;
    assert!(silent.expect_err("no answer").to_string().contains("REDIS_URL"));
    answered(&claims, &key).await;
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_left_for_the_one_that_took_over() {
    let (old, new) = (Redis::own(), Redis::own());
    let proxy = TcpProxy::to(address(old.url())).await;
    let claims = claims(&format!("redis://{}/", proxy.address()));
    assert_eq!(claim(&claims, "before", "holder").await, ClaimReply::Granted);
    proxy.lead_to(address(new.url()));
    let (host, port) = address(new.url()).split_once(':').expect("host and port");
    let _: () = redis::cmd("REPLICAOF")
        .arg(&[host, port])
        .query_async(&mut raw(old.url()).await)
        .await
        .expect("it becomes a replica");
    let refused = claims.claim("during".to_owned(), "holder".into()).await;
    let refused = refused.expect_err("read only").to_string();
    assert!(refused.contains("read only replica"), "{refused}");
    answered(&claims, "after").await;
}

#[tokio::test]
async fn while_it_is_away_a_consumer_that_may_proceeds() {
    let redis = Redis::own();
    redis.stop();
    let proceeding = claims_for(redis.url(), WINDOW, OnOutage::Proceed);
    assert_eq!(claim(&proceeding, "during", "holder").await, ClaimReply::Granted);
    proceeding.confirm("during".to_owned(), 7, 0).await.expect("goes on");
    assert_eq!(claim(&proceeding, "during", "other").await, ClaimReply::Granted);
    redis.start();
    until("claims to be kept again", async || {
        claim(&proceeding, "after", "holder").await;
        (claim(&proceeding, "after", "other").await == ClaimReply::Held).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_has_forgotten_gives_claims_anew_and_acceptances_are_remembered_here() {
    let redis = Redis::own();
    let claims = claims(redis.url());
    assert_eq!(claim(&claims, "award", "holder").await, ClaimReply::Granted);
    claims.confirm("award".to_owned(), 1_000, 0).await.expect("Redis answers");
    redis.restart_empty();
    until("an answer", async || claims.claim("other".to_owned(), "holder".into()).await.ok()).await;
    assert_eq!(claim(&claims, "award", "other").await, ClaimReply::Granted, "forgotten");
    let known = claims.read("award".to_owned()).await;
    assert_eq!(
        known,
        Some(ClaimReply::Done { accepted_ms: 1_000, due_ms: 0 }),
        "for the cancel's settle time"
    );
}
