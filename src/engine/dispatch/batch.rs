//! Jobs that need nothing but one send under one claim, many of them in one task: one request for
//! their claims, one submission, and a request that marks them done for each answer.
//!
//! Each ends for itself, as soon as it can. What does not go through at the first attempt goes on as
//! a job of its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use smallvec::SmallVec;
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use crate::dedup::{ClaimReply, KeyAndAsker};
use crate::engine::dispatch::TaskId;
use crate::engine::dispatch::job::{Job, Todo};
use crate::engine::dispatch::lanes::LaneId;
use crate::engine::dispatch::retry::Failure;
use crate::engine::dispatch::task::{Ended, Finished, TaskContext};
use crate::engine::dispatch::work::{Context, Memo};
use crate::engine::idempotency::once::claim_held;
use crate::engine::{Batched, Consumer, Outcome, Taken};

/// Jobs of a batch at most.
const MOST: usize = 512;

/// Bytes of a batch's records at most, unless one alone has more.
const MOST_BYTES: usize = 512 << 10;

/// When the event of a record was accepted, `None` where there was nothing to send; or why not.
pub type Sent = Result<Option<Timestamp>, Failure>;

/// What became of some of them, each with its number.
pub type SentOfMany = Vec<(usize, Sent)>;

/// What many records have sent, each numbered by its place.
pub trait Sends: Send {
    /// What has become of some of them; `None` once all have ended. Cancel safe.
    ///
    /// # Errors
    /// [`Failure::GivenUp`] when the partition is being given up: what is under way still may be
    /// accepted.
    fn next<'s>(
        &'s mut self,
        cx: &'s Context,
    ) -> BoxFuture<'s, Result<Option<SentOfMany>, Failure>>;

    /// The same, without waiting.
    fn ready(&mut self) -> SentOfMany;

    /// Withdraws what record number `index` sends, where that has not gone out yet.
    fn abandon(&mut self, index: usize);
}

/// Jobs of one partition that go through together.
pub(in crate::engine) struct Batch<W> {
    pub(in crate::engine) partition: u32,
    pub(in crate::engine) jobs: Vec<(LaneId, Box<Job<W>>)>,
    bytes: usize,
}

impl<W> Batch<W> {
    pub(in crate::engine) fn new(partition: u32) -> Self {
        Self { partition, jobs: Vec::new(), bytes: 0 }
    }

    /// Takes a job in; answers whether the batch is full.
    pub(in crate::engine) fn push(&mut self, lane: LaneId, job: Box<Job<W>>) -> bool {
        self.bytes += job.open_offsets.iter().map(|open_offset| open_offset.bytes).sum::<usize>();
        self.jobs.push((lane, job));
        self.jobs.len() >= MOST || self.bytes >= MOST_BYTES
    }
}

impl<W> Job<W> {
    /// Whether it may go through with others, as far as its past tells.
    pub(in crate::engine) fn may_be_batched(&self) -> bool {
        let Self { open_offsets, attempts, todo, .. } = self;
        open_offsets.len() == 1
            && attempts.failures == 0
            && !attempts.alone
            && matches!(todo, Todo::Process(_))
    }
}

/// A job of a batch on its way.
struct Member<W> {
    lane: LaneId,
    job: Box<Job<W>>,
    /// Its claim's key in the store, if it goes under one.
    key: Option<Arc<str>>,
    /// When its claim was last granted.
    granted: Option<Instant>,
}

/// Those of a batch that have not ended, by their places.
struct Open<W> {
    task: TaskId,
    members: Vec<Option<Member<W>>>,
    left: usize,
    /// What has ended, until the loop is told.
    ended: SmallVec<[Ended<W>; 1]>,
}

impl<W> Open<W> {
    fn iter(&self) -> impl Iterator<Item = (usize, &Member<W>)> {
        let members = self.members.iter().enumerate();
        members.filter_map(|(at, member)| Some((at, member.as_ref()?)))
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Member<W>> {
        self.members.get_mut(at)?.as_mut()
    }

    fn take(&mut self, at: usize) -> Option<Member<W>> {
        let member = self.members.get_mut(at)?.take()?;
        self.left -= 1;
        Some(member)
    }
}

/// What a batch that has sent something meets.
enum Met {
    /// Some have ended.
    Sent(SentOfMany),
    /// All have.
    Over,
    /// Its partition is given up, or its time is.
    GivenUp,
    /// These have lost their claims.
    Lost(Vec<usize>),
}

impl<C: Consumer> TaskContext<C> {
    /// Works on the jobs of `batch` until they end or `kill` is cancelled. `cx` stands for all of
    /// them: they are of one partition, and their lives are one.
    pub(crate) async fn run_batch(
        self: Arc<Self>,
        task: TaskId,
        cx: Context,
        batch: Batch<C::Work>,
        kill: CancellationToken,
    ) {
        let left = batch.jobs.len();
        let jobs = batch.jobs.into_iter();
        let member = |(lane, job)| Some(Member { lane, job, key: None, granted: None });
        let members = jobs.map(member).collect();
        let mut open = Open { task, members, left, ended: SmallVec::with_capacity(left) };
        let ended = AssertUnwindSafe(self.work_on_all(&cx, &mut open, &kill)).catch_unwind().await;
        // The one that panics shows alone.
        let rest = if ended.is_ok() { || Failure::GivenUp } else { || Failure::Alone };
        for at in 0..open.members.len() {
            self.end(&mut open, at, Err(rest()));
        }
        self.tell(&mut open);
    }

    /// Tells the loop what has ended.
    fn tell(&self, open: &mut Open<C::Work>) {
        if !open.ended.is_empty() {
            let jobs = std::mem::take(&mut open.ended);
            self.finished(Finished { task: open.task, jobs, task_ends: open.left == 0 });
        }
    }

    /// One of them has ended.
    fn end(&self, open: &mut Open<C::Work>, at: usize, result: Result<Outcome, Failure>) {
        let Some(Member { lane, job, key, granted }) = open.take(at) else { return };
        // What it has claimed and not used is known when it comes again, and given back when it is
        // set aside.
        if let (Err(_), Some(granted), Some(key)) = (&result, granted, key) {
            job.cx.remember(job.cx.name_of_key(&key), Memo::Claimed(granted));
        }
        job.cx.keep_nothing();
        open.ended.push(Ended { lane, job, result });
    }

    async fn work_on_all(&self, cx: &Context, open: &mut Open<C::Work>, kill: &CancellationToken) {
        tokio::select! {
            biased;
            () = self.claim_all(cx, open) => {}
            () = kill.cancelled() => return,
        }
        let window = cx.claims().window() / 3;
        let mut renewal = tokio::time::interval_at(tokio::time::Instant::now() + window, window);
        let Some((places, mut sends)) = self.send(cx, open, kill, &mut renewal).await else {
            return;
        };
        loop {
            self.tell(open);
            let met = self.meet(cx, open, kill, &mut renewal, &mut *sends).await;
            // What was accepted meanwhile is done.
            let (sent, over, lost) = match met {
                Met::Sent(sent) => (sent, false, Vec::new()),
                Met::Over => return,
                Met::GivenUp => (sends.ready(), true, Vec::new()),
                Met::Lost(lost) => (sends.ready(), false, lost),
            };
            let sent = sent.into_iter();
            let sent = sent.filter_map(|(index, sent)| Some((*places.get(index)?, sent))).collect();
            self.mark_all(cx, open, sent, kill).await;
            for at in lost {
                if let Ok(index) = places.binary_search(&at) {
                    sends.abandon(index);
                }
                self.end(open, at, Err(claim_held()));
            }
            if over {
                return;
            }
        }
    }

    /// Sends for those that are claimed, and renews their claims while there is no room for that.
    /// Answers their places too.
    async fn send(
        &self,
        cx: &Context,
        open: &mut Open<C::Work>,
        kill: &CancellationToken,
        renewal: &mut Interval,
    ) -> Option<(Vec<usize>, Box<dyn Sends>)> {
        loop {
            self.tell(open);
            let works = open.iter().filter_map(|(at, member)| Some((at, member.job.work()?)));
            let (places, works): (Vec<usize>, Vec<&C::Work>) = works.unzip();
            if works.is_empty() {
                return None;
            }
            let sends = tokio::select! {
                biased;
                sends = self.consumer.send_all(cx, &works) => Some(sends),
                () = kill.cancelled() => return None,
                _ = renewal.tick() => None,
            };
            match sends {
                Some(Ok(sends)) => return Some((places, sends)),
                Some(Err(Failure::GivenUp)) => return None,
                Some(Err(_)) => {
                    places.iter().for_each(|at| self.end(open, *at, Err(Failure::Alone)));
                    return None;
                }
                None => {
                    for at in self.renew_all(cx, open, kill).await {
                        self.end(open, at, Err(claim_held()));
                    }
                }
            }
        }
    }

    /// Waits for answers, and renews the claims of those that wait.
    async fn meet(
        &self,
        cx: &Context,
        open: &mut Open<C::Work>,
        kill: &CancellationToken,
        renewal: &mut Interval,
        sends: &mut dyn Sends,
    ) -> Met {
        // Kept across renewals: how long it has waited shows whether it hangs.
        let mut next = sends.next(cx);
        loop {
            tokio::select! {
                biased;
                sent = &mut next => return match sent {
                    Ok(Some(sent)) => Met::Sent(sent),
                    Ok(None) => Met::Over,
                    Err(_) => Met::GivenUp,
                },
                () = kill.cancelled() => return Met::GivenUp,
                _ = renewal.tick() => {
                    let lost = self.renew_all(cx, open, kill).await;
                    if !lost.is_empty() {
                        return Met::Lost(lost);
                    }
                }
            }
        }
    }

    /// Claims for all of them, in one request, and ends those whose claims are not theirs.
    async fn claim_all(&self, cx: &Context, open: &mut Open<C::Work>) {
        #[cfg(debug_assertions)]
        cx.declare_all(open.iter().filter_map(|(_, it)| Some(self.consumer.steps(it.job.work()?))));
        for at in 0..open.members.len() {
            let Some(member) = open.get_mut(at) else { continue };
            match member.job.work().and_then(|work| self.consumer.batched(work)) {
                Some(Batched::Claimed(claim)) => {
                    cx.step(Taken::Claim(&claim));
                    member.key = Some(cx.key(&claim));
                }
                Some(Batched::Repeatable) => {}
                None => self.end(open, at, Err(Failure::Alone)),
            }
        }
        if cx.drained() {
            return (0..open.members.len())
                .for_each(|at| self.end(open, at, Err(Failure::GivenUp)));
        }
        let now = Instant::now();
        let (places, keys) = keys(open);
        if keys.is_empty() {
            return;
        }
        let replies = match cx.claims().claim_all(keys).await {
            Ok(Some(replies)) => replies,
            // It goes on without: nothing was granted.
            Ok(None) => return,
            Err(away) => {
                return places
                    .into_iter()
                    .for_each(|at| self.end(open, at, Err(cx.claims_away(&away))));
            }
        };
        for (at, reply) in places.into_iter().zip(replies) {
            match (reply, open.get_mut(at)) {
                (ClaimReply::Granted, Some(member)) => member.granted = Some(now),
                (ClaimReply::Done { .. }, _) => self.end(open, at, Ok(Outcome::Duplicate)),
                (ClaimReply::TakenBack { .. }, _) => self.end(open, at, Err(Failure::Alone)),
                _ => self.end(open, at, Err(claim_held())),
            }
        }
    }

    /// Keeps the claims of those that still wait from running out. Answers which of them another
    /// record has got all the same.
    async fn renew_all(
        &self,
        cx: &Context,
        open: &mut Open<C::Work>,
        kill: &CancellationToken,
    ) -> Vec<usize> {
        let now = Instant::now();
        let (places, keys) = keys(open);
        if keys.is_empty() {
            return Vec::new();
        }
        let replies = tokio::select! {
            biased;
            replies = cx.claims().claim_all(keys) => replies,
            () = kill.cancelled() => return Vec::new(),
        };
        // Claims that are away are no reason to break off.
        let Ok(Some(replies)) = replies else { return Vec::new() };
        let mut lost = Vec::new();
        for (at, reply) in places.into_iter().zip(replies) {
            let Some(member) = open.get_mut(at) else { continue };
            member.granted = (reply == ClaimReply::Granted).then_some(now);
            if member.granted.is_none() {
                lost.push(at);
            }
        }
        lost
    }

    /// Marks those done that were sent, in one request, and ends all of `sent`.
    async fn mark_all(
        &self,
        cx: &Context,
        open: &mut Open<C::Work>,
        sent: SentOfMany,
        kill: &CancellationToken,
    ) {
        let done = |(at, sent): &(usize, Sent)| {
            let accepted_ms = sent.as_ref().ok()?.map_or(0, Timestamp::as_millisecond);
            let member = open.get_mut(*at)?;
            Some((member.key.clone()?, accepted_ms, member.granted))
        };
        let done: Vec<(Arc<str>, i64, Option<Instant>)> = sent.iter().filter_map(done).collect();
        if !done.is_empty() {
            // Killed or not: what was accepted is done, and its claim runs out by itself.
            tokio::select! {
                biased;
                _ = cx.second_phase(|| cx.claims().confirm_all(&done)) => {}
                () = kill.cancelled() => {}
            }
        }
        for (at, sent) in sent {
            let nothing = || Outcome::Skipped(self.consumer.nothing_to_send());
            let outcome = sent.map(|accepted| accepted.map_or_else(nothing, |_| Outcome::Sent));
            self.end(open, at, outcome);
        }
    }
}

/// The places of those that are open and go under claims, and these with those who ask.
fn keys<W>(open: &Open<W>) -> (Vec<usize>, Vec<KeyAndAsker>) {
    let claimed = open
        .iter()
        .filter_map(|(at, member)| Some((at, (member.key.clone()?, member.job.cx.asker()))));
    claimed.unzip()
}
