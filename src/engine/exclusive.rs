//! Work that one record at a time may be at, in all processes (contract section 4): unlike a step
//! behind [`Cx::once`] it is never done, and what comes next gets its turn.

use std::future::Future;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;

use super::work::{Cx, HELD_PAUSE};
use super::{Failure, Outcome};
use crate::dedup::Reply;

/// What is known of the claim that a record holds alone, across attempts at it.
#[derive(Debug)]
pub(super) struct Hold {
    name: String,
    owner: Arc<str>,
    /// From when a settle time counts.
    accepted_at: Option<Timestamp>,
    /// A send was begun; set for good when it was dropped half-way.
    sending: bool,
    /// How the work ended, and for how many merged records it was done.
    ended: Option<(Outcome, usize)>,
}

/// The claim while it is held.
#[derive(Clone, Copy)]
pub struct Held<'a>(&'a Cx);

impl Held<'_> {
    /// From when a settle time counts: an event of this claim was accepted then, or may have been
    /// (before a crash, by a send of unknown outcome, or before the partition's assignment where
    /// no claim can tell). `None` when there was none.
    #[must_use]
    pub fn accepted_at(&self) -> Option<Timestamp> {
        self.0.hold().as_ref().and_then(|hold| hold.accepted_at)
    }

    /// Sends what must settle before the next run of this work: notes when it was accepted, or
    /// may have been.
    ///
    /// # Errors
    /// Those of `send`.
    pub async fn settling(
        &self,
        send: impl Future<Output = Result<Timestamp, Failure>> + Send,
    ) -> Result<Timestamp, Failure> {
        self.note(|hold| hold.sending = true);
        let sent = send.await;
        let at = *sent.as_ref().unwrap_or(&Timestamp::now());
        self.note(|hold| {
            hold.accepted_at = hold.accepted_at.max(Some(at));
            hold.sending = false;
        });
        sent
    }

    fn note(&self, change: impl FnOnce(&mut Hold)) {
        if let Some(hold) = self.0.hold().as_mut() {
            change(hold);
        }
    }
}

impl Cx {
    /// Does `work` while this record alone holds the claim `name`, then gives it back with the
    /// time of the last acceptance. A claim that a crash left is known by its own record, also
    /// when that was merged into another; else it runs out with the window.
    ///
    /// `work` runs again when it ended and records were merged since, because giving the claim
    /// back had failed: those were not covered by it.
    ///
    /// # Errors
    /// What `work` returned; or that claims cannot be reached; or a wait, when another record
    /// holds the claim or has come to hold it.
    pub async fn alone<'a, F>(
        &'a self,
        name: &str,
        work: impl FnOnce(Held<'a>) -> F + Send,
    ) -> Result<Outcome, Failure>
    where
        F: Future<Output = Result<Outcome, Failure>> + Send,
    {
        let covered = self.merged().len();
        let ended = self.hold().as_ref().and_then(|hold| hold.ended);
        let outcome = match ended {
            Some((outcome, merged)) if merged == covered => outcome,
            _ => {
                self.acquire(name).await?;
                let outcome = tokio::select! {
                    biased;
                    outcome = work(Held(self)) => outcome?,
                    lost = self.keep(name) => return Err(lost),
                };
                if let Some(hold) = self.hold().as_mut() {
                    hold.ended = Some((outcome, covered));
                }
                outcome
            }
        };
        self.free().await?;
        Ok(outcome)
    }

    /// Gives back the claim that is held alone, if any.
    pub(super) async fn free(&self) -> Result<(), Failure> {
        let held = self.hold().as_ref().map(|hold| {
            let accepted_ms = hold.accepted_at.map_or(0, Timestamp::as_millisecond);
            (self.key(&hold.name), Arc::clone(&hold.owner), accepted_ms)
        });
        let Some((key, owner, accepted_ms)) = held else { return Ok(()) };
        let freed = self.claims().free(key, owner, accepted_ms);
        freed.await.map_err(|away| self.claims_away(&away))
    }

    /// Takes the claim, or renews it.
    async fn acquire(&self, name: &str) -> Result<(), Failure> {
        if self.drained() {
            return Err(Failure::GivenUp);
        }
        let (owner, mut left_by) = (self.owner(), None);
        loop {
            let ask = self.claims().acquire(self.key(name), Arc::clone(&owner), left_by.clone());
            match ask.await.map_err(|away| self.claims_away(&away))? {
                Reply::Acquired { accepted_ms, resumed } => {
                    self.acquired(name, owner, accepted_ms, resumed, left_by.is_some());
                    return Ok(());
                }
                // One of the records that were merged into this one held it when its process died.
                Reply::Taken { holder } if left_by.is_none() && self.works_on(&holder) => {
                    left_by = Some(holder);
                }
                _ => return Err(held_elsewhere()),
            }
        }
    }

    fn acquired(
        &self,
        name: &str,
        owner: Arc<str>,
        accepted_ms: Option<i64>,
        resumed: bool,
        taken_over: bool,
    ) {
        let mut guard = self.hold();
        // A holder that is gone may have sent something just before its partitions came here, and
        // where nothing is known anybody may have.
        let unknown = if guard.is_some() { taken_over } else { resumed || accepted_ms.is_none() };
        let hold = guard.get_or_insert_with(|| Hold {
            name: name.to_owned(),
            owner,
            accepted_at: None,
            sending: false,
            ended: None,
        });
        let told = accepted_ms.filter(|ms| *ms > 0);
        let told = told.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let assigned = unknown.then(|| self.assigned_at());
        let cut_off = std::mem::take(&mut hold.sending).then(Timestamp::now);
        hold.accepted_at = hold.accepted_at.max(told).max(assigned).max(cut_off);
        hold.ended = None;
    }

    /// Keeps the claim from running out while its work takes long. Ends when another record has
    /// it all the same: the work must then start again after that one.
    async fn keep(&self, name: &str) -> Failure {
        loop {
            tokio::time::sleep(self.claims().window() / 3).await;
            let ask = self.claims().acquire(self.key(name), self.owner(), None);
            // Claims that are away are no reason to break off.
            if let Ok(Reply::Taken { .. }) = ask.await {
                return held_elsewhere();
            }
        }
    }

    fn works_on(&self, holder: &str) -> bool {
        self.merged().iter().any(|origin| *self.name_of(origin) == *holder)
    }

    fn hold(&self) -> MutexGuard<'_, Option<Hold>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held_elsewhere() -> Failure {
    Failure::Wait { until: Instant::now() + HELD_PAUSE, reason: "claim_held" }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use futures::future::BoxFuture;
    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::dedup::{Claims, MemoryStore, OnOutage, Op, Store, StoreAway};
    use crate::engine::permits::{Limits, Permits};
    use crate::engine::work::{Origin, Shared};
    use crate::outage::{Backoff, Breaker};

    const NAME: &str = "tier:u:m";
    const SENT: Outcome = Outcome::Sent;

    /// A store that counts what it is asked, and refuses one kind of request while told to.
    #[derive(Default)]
    struct Watched {
        acquired: Mutex<usize>,
        asked: Notify,
        refuse_free: Mutex<bool>,
    }

    #[derive(Clone)]
    struct WatchedStore(Arc<MemoryStore>, Arc<Watched>);

    impl Store for WatchedStore {
        fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreAway>> {
            let watched = &self.1;
            for op in ops {
                match op {
                    Op::Acquire { .. } => {
                        *watched.acquired.lock().expect("not poisoned") += 1;
                        watched.asked.notify_one();
                    }
                    Op::Free { .. } if *watched.refuse_free.lock().expect("not poisoned") => {
                        return Box::pin(async { Err(StoreAway::new("connection refused")) });
                    }
                    _ => {}
                }
            }
            self.0.execute(ops)
        }
    }

    /// The processes of a group that share a store.
    struct Scene {
        store: WatchedStore,
        window: Duration,
    }

    impl Scene {
        fn new(window: Duration) -> Self {
            let store = WatchedStore(Arc::new(MemoryStore::new(window)), Arc::default());
            Self { store, window }
        }

        /// One process.
        fn process(&self) -> Arc<Shared> {
            let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
            let breaker = Arc::new(Breaker::new("redis", 1_000, backoff));
            let settle = Duration::from_secs(30);
            let claims =
                Claims::start(self.store.clone(), breaker, OnOutage::Wait, self.window, settle);
            let permits = Permits::new(Limits { min: 1, max: 1 });
            Arc::new(Shared { group: "g".to_owned(), claims, permits })
        }
    }

    fn origin(offset: i64) -> Origin {
        Origin { topic: "t".into(), partition: 0, offset }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A record whose partition was assigned at that second.
    fn record(process: &Arc<Shared>, offset: i64, assigned_at: i64) -> Cx {
        let drain = CancellationToken::new();
        Cx::new(Arc::clone(process), origin(offset), at(assigned_at), drain)
    }

    async fn when(held: Held<'_>) -> Option<Timestamp> {
        held.accepted_at()
    }

    /// Runs work that only tells from when a settle time counts.
    async fn since(cx: &Cx) -> Option<Timestamp> {
        let told = Mutex::new(None);
        let tell = async |held| {
            *told.lock().expect("not poisoned") = Some(when(held).await);
            Ok(SENT)
        };
        let outcome = cx.alone(NAME, |held| tell(held)).await;
        assert_eq!(outcome.expect("it runs"), SENT);
        told.into_inner().expect("not poisoned").expect("it ran")
    }

    async fn send(cx: &Cx, accepted: i64) {
        let work = async |held: Held<'_>| {
            held.settling(async { Ok(at(accepted)) }).await?;
            Ok(SENT)
        };
        assert_eq!(cx.alone(NAME, |held| work(held)).await.expect("it runs"), SENT);
    }

    /// Begins work that never ends by itself, and drops it with its process once it holds the claim.
    async fn crash(cx: &Cx) {
        let began = Notify::new();
        let work = cx.alone(NAME, |_| async {
            began.notify_one();
            std::future::pending().await
        });
        tokio::select! {
            _ = work => panic!("it does not end"),
            () = began.notified() => {}
        }
    }

    fn is_held(result: &Result<Outcome, Failure>) -> bool {
        matches!(result, Err(Failure::Wait { reason: "claim_held", .. }))
    }

    #[tokio::test]
    async fn one_record_at_a_time_is_at_it_and_the_next_is_no_duplicate() {
        let scene = Scene::new(Duration::from_secs(300));
        let (one, other) = (record(&scene.process(), 1, 100), record(&scene.process(), 2, 100));
        let nested = one.alone(NAME, |_| async {
            let meanwhile = other.alone(NAME, |_| async { Ok(SENT) }).await;
            assert!(is_held(&meanwhile), "{meanwhile:?}");
            Ok(SENT)
        });
        assert_eq!(nested.await.expect("it runs"), SENT);
        assert_eq!(since(&other).await, Some(at(100)));
    }

    #[tokio::test]
    async fn every_process_knows_when_an_event_was_last_accepted() {
        let scene = Scene::new(Duration::from_secs(300));
        let (one, other) = (scene.process(), scene.process());
        assert_eq!(since(&record(&one, 1, 100)).await, Some(at(100)), "no claim can tell");
        send(&record(&one, 2, 100), 500).await;
        assert_eq!(since(&record(&other, 3, 100)).await, Some(at(500)));
        assert_eq!(since(&record(&one, 4, 900)).await, Some(at(500)), "its own claim tells");
        scene.store.0.clear();
        assert_eq!(since(&record(&one, 5, 100)).await, Some(at(500)), "the process remembers");
    }

    #[tokio::test]
    async fn a_claim_that_a_crash_left_is_known_by_its_own_record_alone() {
        let scene = Scene::new(Duration::from_secs(300));
        crash(&record(&scene.process(), 1, 100)).await;
        let process = scene.process();
        let other = record(&process, 2, 200);
        let refused = other.alone(NAME, |_| async { Ok(SENT) }).await;
        assert!(is_held(&refused), "{refused:?}");
        let own = record(&process, 1, 300);
        assert_eq!(since(&own).await, Some(at(300)), "it may have sent just before it crashed");
        assert_eq!(since(&other).await, Some(at(300)));
    }

    #[tokio::test]
    async fn a_claim_that_a_crash_left_is_known_by_its_record_when_that_was_merged() {
        let scene = Scene::new(Duration::from_secs(300));
        crash(&record(&scene.process(), 1, 100)).await;
        let mut newer = record(&scene.process(), 2, 200);
        newer.covers(vec![origin(7), origin(1)], at(300));
        assert_eq!(since(&newer).await, Some(at(300)));
        let after = record(&scene.process(), 3, 200);
        assert_eq!(since(&after).await, Some(at(300)), "it was given back");
    }

    #[tokio::test]
    async fn what_was_merged_after_the_work_ended_is_not_covered_by_it() {
        let scene = Scene::new(Duration::from_secs(300));
        let mut cx = record(&scene.process(), 1, 100);
        let runs = Mutex::new(0);
        let work = async || {
            *runs.lock().expect("not poisoned") += 1;
            Ok(SENT)
        };
        *scene.store.1.refuse_free.lock().expect("not poisoned") = true;
        for _ in 0..2 {
            let refused = cx.alone(NAME, |_| work()).await;
            assert!(matches!(refused, Err(Failure::Outage { kind: "claims_away", .. })));
        }
        assert_eq!(*runs.lock().expect("not poisoned"), 1, "only giving back is repeated");
        cx.covers(vec![origin(2)], at(100));
        *scene.store.1.refuse_free.lock().expect("not poisoned") = false;
        assert_eq!(cx.alone(NAME, |_| work()).await.expect("it runs"), SENT);
        assert_eq!(*runs.lock().expect("not poisoned"), 2);
    }

    #[tokio::test]
    async fn a_claim_is_renewed_while_its_work_takes_long() {
        let scene = Scene::new(Duration::from_millis(30));
        let cx = record(&scene.process(), 1, 100);
        let watched = Arc::clone(&scene.store.1);
        let renewed = async {
            while *watched.acquired.lock().expect("not poisoned") < 4 {
                watched.asked.notified().await;
            }
            Ok(SENT)
        };
        assert_eq!(cx.alone(NAME, |_| renewed).await.expect("it ends"), SENT);
    }

    #[tokio::test]
    async fn work_whose_claim_another_record_took_is_broken_off_and_counts_as_sent() {
        let scene = Scene::new(Duration::from_millis(30));
        let cx = record(&scene.process(), 1, 100);
        let thief = Op::Acquire { key: format!("g:{NAME}"), owner: "thief".into(), left_by: None };
        let store = &scene.store.0;
        let work = async |held: Held<'_>| {
            store.clear();
            store.execute(std::slice::from_ref(&thief)).await.expect("answered");
            held.settling(std::future::pending()).await?;
            Ok(SENT)
        };
        let before = Timestamp::now();
        let lost = cx.alone(NAME, |held| work(held)).await;
        assert!(is_held(&lost), "{lost:?}");
        store.clear();
        assert!(since(&cx).await > Some(before), "its send may have been accepted");
    }

    #[tokio::test]
    async fn a_send_that_failed_may_have_been_accepted() {
        let scene = Scene::new(Duration::from_secs(300));
        let cx = record(&scene.process(), 1, 100);
        let before = Timestamp::now();
        let failing = async |held: Held<'_>| {
            held.settling(async { Err(Failure::GivenUp) }).await?;
            Ok(SENT)
        };
        let failed = cx.alone(NAME, |held| failing(held)).await;
        assert!(matches!(failed, Err(Failure::GivenUp)));
        assert!(since(&cx).await >= Some(before));
    }

    #[tokio::test]
    async fn a_record_that_is_set_aside_gives_its_claim_back() {
        let scene = Scene::new(Duration::from_secs(300));
        let cx = record(&scene.process(), 1, 100);
        let poison = || Failure::Poison { kind: "no_tier", message: String::new() };
        let failed = cx.alone(NAME, |_| async { Err(poison()) }).await;
        assert!(matches!(failed, Err(Failure::Poison { .. })));
        cx.release_claims().await;
        assert_eq!(since(&record(&scene.process(), 2, 50)).await, Some(at(100)));
    }
}
