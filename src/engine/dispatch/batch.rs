//! Jobs that need nothing but one send under one claim, many of them in one task: one request for
//! their claims, one send, one request that marks them done.
//!
//! What does not go through at the first attempt goes on as a job of its own.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::dedup::Reply;
use crate::engine::dispatch::lanes::LaneId;
use crate::engine::dispatch::retry::Failure;
use crate::engine::dispatch::task::{Finished, TaskContext};
use crate::engine::dispatch::work::{Context, Job, Memo};
use crate::engine::idempotency::once::claim_held;
use crate::engine::{Consumer, Outcome, Taken};

/// Jobs of a batch at most.
pub(in crate::engine) const MOST: usize = 512;

/// Bytes of a batch's records at most, unless one alone has more.
pub(in crate::engine) const MOST_BYTES: usize = 512 << 10;

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
        let Self { open_offsets, attempts, set_aside, .. } = self;
        open_offsets.len() == 1 && attempts.failures == 0 && !attempts.alone && set_aside.is_none()
    }
}

type Results = Vec<Result<Outcome, Failure>>;

impl<C: Consumer> TaskContext<C> {
    /// Works on the jobs of `batch` until they end or `kill` is cancelled.
    pub(crate) async fn run_batch(self: Arc<Self>, batch: Batch<C::Work>, kill: CancellationToken) {
        let jobs = batch.jobs;
        let failed = |failure: fn() -> Failure| jobs.iter().map(|_| Err(failure())).collect();
        let results: Results = tokio::select! {
            biased;
            results = AssertUnwindSafe(self.work_on_all(&jobs)).catch_unwind() => {
                // The one at fault shows alone.
                results.unwrap_or_else(|_| failed(|| Failure::Alone))
            }
            () = kill.cancelled() => failed(|| Failure::GivenUp),
        };
        for ((lane, job), result) in jobs.into_iter().zip(results) {
            job.cx.keep_nothing();
            self.finished(Finished { lane, job, result });
        }
    }

    async fn work_on_all(&self, jobs: &[(LaneId, Box<Job<C::Work>>)]) -> Results {
        let mut members: Vec<Member<'_, C::Work>> = Vec::with_capacity(jobs.len());
        for (_, job) in jobs {
            let claim =
                job.work.as_ref().and_then(|work| Some((work, self.consumer.batched(work)?)));
            members.push(match claim {
                Some((work, claim)) => Member { cx: &job.cx, work: Some(work), claim, ended: None },
                None => Member::alone(&job.cx),
            });
        }
        // It stands for all of them: they are of one partition, and their lives are one.
        let Some(first) = jobs.first().map(|(_, job)| &job.cx) else { return Vec::new() };
        #[cfg(debug_assertions)]
        first.declare_all(
            members.iter().filter_map(|member| Some(self.consumer.steps(member.work?))),
        );
        claim(first, &mut members).await;
        self.send(first, &mut members).await;
        members.into_iter().map(|member| member.ended.unwrap_or(Err(Failure::Alone))).collect()
    }

    /// Sends what was claimed, and marks it done.
    async fn send(&self, first: &Context, members: &mut [Member<'_, C::Work>]) {
        let mut open: Vec<&mut Member<'_, C::Work>> =
            members.iter_mut().filter(|member| member.ended.is_none()).collect();
        let works: Vec<&C::Work> = open.iter().filter_map(|member| member.work).collect();
        if works.is_empty() {
            return;
        }
        let sent = tokio::select! {
            biased;
            sent = self.consumer.send_all(first, &works) => sent,
            () = renewed_in_vain(first, &open) => Err(Failure::Alone),
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(Failure::GivenUp) => open.iter().map(|_| Err(Failure::GivenUp)).collect(),
            Err(_) => open.iter().map(|_| Err(Failure::Alone)).collect(),
        };
        let mut accepted = Vec::with_capacity(open.len());
        for (member, sent) in open.iter_mut().zip(sent) {
            member.ended = Some(match sent {
                Ok(at) => {
                    accepted
                        .push((first.key(&member.claim), at.map_or(0, Timestamp::as_millisecond)));
                    let nothing = Outcome::Skipped(self.consumer.nothing_to_send());
                    Ok(at.map_or(nothing, |_| Outcome::Sent))
                }
                Err(failure) => {
                    // It is still this record's, and given back when that is set aside.
                    member.cx.remember(&member.claim, Memo::Claimed(Instant::now()));
                    Err(failure)
                }
            });
        }
        if !accepted.is_empty() {
            first.second_phase(|| first.claims().confirm_all(accepted.clone())).await;
        }
    }
}

/// A job of a batch on its way.
struct Member<'j, W> {
    cx: &'j Context,
    work: Option<&'j W>,
    claim: Cow<'j, str>,
    ended: Option<Result<Outcome, Failure>>,
}

impl<'j, W> Member<'j, W> {
    /// One that a batch can do nothing for.
    fn alone(cx: &'j Context) -> Self {
        Self { cx, work: None, claim: "".into(), ended: Some(Err(Failure::Alone)) }
    }
}

/// Claims what is not ended yet, all in one request.
async fn claim<W>(first: &Context, members: &mut [Member<'_, W>]) {
    let mut open: Vec<_> = members.iter_mut().filter(|member| member.ended.is_none()).collect();
    if first.drained() {
        open.iter_mut().for_each(|member| member.ended = Some(Err(Failure::GivenUp)));
        return;
    }
    let keys = open.iter().map(|member| {
        first.step(Taken::Claim(&member.claim));
        (first.key(&member.claim), member.cx.asker())
    });
    match first.claims().claim_all(keys.collect()).await {
        Ok(replies) => {
            for (member, reply) in open.iter_mut().zip(replies) {
                member.ended = match reply {
                    Reply::Granted => None,
                    Reply::Done { .. } => Some(Ok(Outcome::Duplicate)),
                    Reply::TakenBack { .. } => Some(Err(Failure::Alone)),
                    _ => Some(Err(claim_held())),
                };
            }
        }
        Err(away) => {
            open.iter_mut()
                .for_each(|member| member.ended = Some(Err(member.cx.claims_away(&away))));
        }
    }
}

/// Keeps the claims from running out while the send waits. Ends when another record has one of them
/// all the same.
async fn renewed_in_vain<W>(first: &Context, open: &[&mut Member<'_, W>]) {
    loop {
        tokio::time::sleep(first.claims().window() / 3).await;
        let keys = open.iter().map(|member| (first.key(&member.claim), member.cx.asker()));
        // Claims that are away are no reason to break off.
        if let Ok(replies) = first.claims().claim_all(keys.collect()).await
            && replies.iter().any(|reply| *reply != Reply::Granted)
        {
            return;
        }
    }
}
