use super::*;
use crate::outage::Backoff;

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(2) };

struct Away;

impl Store for Away {
    fn execute<'a>(&'a self, _: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        Box::pin(async { Err(StoreUnavailable::new("connection refused")) })
    }
}

fn claims(store: impl Store, on_outage: OnOutage) -> Claims {
    let breaker = Arc::new(Breaker::new("redis", 1, BACKOFF));
    Claims::start(store, breaker, on_outage, Duration::from_secs(300), Duration::from_secs(30))
}

#[tokio::test]
async fn while_the_store_is_away_the_consumer_waits_or_goes_on_as_configured() {
    let asker: Arc<str> = "g/t/0/1".into();
    let waiting = claims(Away, OnOutage::Wait);
    let error = waiting.claim("k", Arc::clone(&asker)).await.expect_err("away");
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert!(waiting.breaker().away().is_some());
    let proceeding = claims(Away, OnOutage::Proceed);
    assert_eq!(proceeding.claim("k", asker).await.expect("goes on"), ClaimReply::Granted);
    proceeding.confirm("k", 5, 0).await.expect("goes on");
}

/// A store that answers once it is let.
struct Slow(Arc<MemoryStore>, Arc<tokio::sync::Semaphore>);

impl Store for Slow {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        Box::pin(async {
            self.1.acquire().await.expect("never closed").forget();
            self.0.execute(ops).await
        })
    }
}

#[tokio::test]
async fn what_is_done_is_noted_although_its_caller_has_gone() {
    let store = Arc::new(MemoryStore::new(Duration::from_secs(300)));
    let let_in = Arc::new(tokio::sync::Semaphore::new(0));
    let claims = claims(Slow(Arc::clone(&store), Arc::clone(&let_in)), OnOutage::Wait);
    let asker: Arc<str> = "g/t/0/1".into();
    // Two pipelines are under way: what comes next waits in the queue.
    let busy = (0..2).map(|id| claims.claim(format!("busy-{id}"), Arc::clone(&asker)));
    let mut busy = busy.map(Box::pin).collect::<Vec<_>>();
    for each in &mut busy {
        assert!(futures::poll!(each).is_pending());
        tokio::task::yield_now().await;
    }
    {
        let mut confirm = Box::pin(claims.confirm("done", 5, 0));
        let mut claim = Box::pin(claims.claim("wanted", Arc::clone(&asker)));
        assert!(futures::poll!(&mut confirm).is_pending());
        assert!(futures::poll!(&mut claim).is_pending());
    }
    let_in.add_permits(10);
    let done = ClaimReply::Done { accepted_ms: 5, due_ms: 0 };
    assert_eq!(claims.look("done", Arc::clone(&asker)).await.expect("answered"), done);
    let wanted = claims.look("wanted", asker).await.expect("answered");
    assert_eq!(wanted, ClaimReply::Free, "nobody wanted it any more");
}

#[tokio::test]
async fn an_acceptance_is_remembered_when_the_store_forgets() {
    let claims = claims(Away, OnOutage::Proceed);
    assert_eq!(claims.read("award").await, None);
    claims.confirm("award", 1_000, 0).await.expect("goes on");
    assert_eq!(
        claims.read("award").await,
        Some(ClaimReply::Done { accepted_ms: 1_000, due_ms: 0 })
    );
}
