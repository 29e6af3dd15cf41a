//! Which events go into a request, and where each goes after its answer. No I/O, no clock.

use bytes::Bytes;
use jiff::Timestamp;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::answer::{BatchOutcome, Cause, Evidence};
use super::reply::Reply;
use super::{Accepted, SendError};
use crate::room::Charge;

/// One caller's events on their way: those from `next` on are not accepted yet.
#[derive(Debug)]
pub(super) struct Submission {
    /// The events that are not accepted yet, possibly preceded by accepted ones.
    json: Bytes,
    /// Where `json` begins in the bytes that the caller handed over.
    base: usize,
    ends: SmallVec<[u32; 4]>,
    next: usize,
    /// Requests in which some of them were accepted.
    served: u32,
    /// Holds the room for its bytes until it ends.
    _charge: Charge,
    reply: Reply,
    pub(super) arrived: Instant,
}

impl Submission {
    pub(super) fn new(
        json: Bytes,
        ends: SmallVec<[u32; 4]>,
        charge: Charge,
        reply: Reply,
        arrived: Instant,
    ) -> Self {
        Self { json, base: 0, ends, next: 0, served: 0, _charge: charge, reply, arrived }
    }

    /// Whether the caller has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(super) fn events(&self) -> usize {
        self.ends.len() - self.next
    }

    pub(super) fn bytes(&self) -> usize {
        self.end(self.ends.len()) - self.start()
    }

    /// Where the first event that is not accepted begins, in the caller's bytes.
    fn start(&self) -> usize {
        self.next.checked_sub(1).map_or(0, |previous| self.ends[previous] as usize + 1)
    }

    /// Where the first `count` events end, in the caller's bytes.
    fn end(&self, count: usize) -> usize {
        count.checked_sub(1).map_or(0, |last| self.ends[last] as usize)
    }

    /// The next `take` events, separated by commas.
    fn slice(&self, take: usize) -> &[u8] {
        &self.json[self.start() - self.base..self.end(self.next + take) - self.base]
    }

    /// How many of the next events fit into `limits`; at least one.
    fn fitting(&self, limits: Limits) -> usize {
        let start = self.start();
        (1..=self.events().min(limits.events.max(1)))
            .rev()
            .find(|take| self.end(self.next + take) - start <= limits.bytes.saturating_sub(2))
            .unwrap_or(1)
    }

    /// The next `take` events, each alone.
    pub(super) fn each(&self, take: usize) -> impl Iterator<Item = &[u8]> {
        (self.next..self.next + take).map(|index| {
            let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize + 1);
            &self.json[start - self.base..self.ends[index] as usize - self.base]
        })
    }

    fn finish(self, outcome: Result<Timestamp, Fault>) {
        let served = self.served;
        let outcome = match outcome {
            Ok(at) => Ok(Accepted { at, served }),
            Err(Fault::Refused { certain, message }) => {
                Err(SendError::Refused { message, certain, served })
            }
            Err(Fault::Outage { message }) => {
                Err(SendError::Outage { message, retry_after: None, served })
            }
        };
        self.reply.send(outcome);
    }
}

/// Why a caller's events were not accepted.
enum Fault {
    Refused { certain: bool, message: String },
    Outage { message: String },
}

/// How large a request may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// A caller's share of a batch: its next `take` events.
#[derive(Debug)]
pub(super) struct Part {
    submission: Submission,
    pub(super) take: usize,
}

impl Part {
    /// All events of a caller, or as many as a request takes.
    pub(super) fn of(submission: Submission, limits: Limits) -> Self {
        let take = submission.fitting(limits);
        Self { submission, take }
    }

    pub(super) fn bytes(&self) -> usize {
        self.submission.slice(self.take).len()
    }
}

/// The events of one request, of one or more callers, with the bytes that go on the wire.
#[derive(Debug)]
pub(super) struct Batch {
    parts: Vec<Part>,
    body: Bytes,
    events: usize,
    /// Fixed at the first attempt: a repeat carries the same seed and the same bytes.
    pub(super) seed: Option<String>,
    /// Attempts that failed so far.
    pub(super) attempts: u32,
    /// How often it failed with an answer that may be about its events.
    pub(super) answers: u32,
    /// How often it failed while others were accepted. The first answered failure counts too.
    pub(super) counted_failures: u32,
    /// How many batches had been accepted when it was first sent, then when it last failed.
    pub(super) accepted_before: Option<u64>,
    /// Whether some of it may have been taken, although no answer said so.
    maybe_taken: bool,
    /// Whether an attempt ever ended without a complete answer.
    pub(super) met_silence: bool,
    /// Whether it is part of a failed batch: its size says nothing about the server's limit.
    pub(super) is_part: bool,
    /// Not to be sent before this.
    pub(super) due: Instant,
}

/// What is left to do after an answer.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// To be sent as they are.
    pub(super) batches: Vec<Batch>,
    /// To be batched again, before all others, in this order.
    pub(super) rest: Vec<Submission>,
}

impl Batch {
    pub(super) fn new(mut parts: Vec<Part>) -> Self {
        let size: usize = parts.iter().map(|part| part.bytes() + 1).sum();
        let mut body = Vec::with_capacity(size + 1);
        for part in &parts {
            body.push(if body.is_empty() { b'[' } else { b',' });
            body.extend_from_slice(part.submission.slice(part.take));
        }
        body.push(b']');
        let body = Bytes::from(body);
        let mut at = 0;
        let mut due: Option<Instant> = None;
        for Part { submission, take } in &mut parts {
            let length = submission.slice(*take).len();
            at += 1;
            // Shares the body's bytes: a second copy would double the memory in flight.
            if *take == submission.events() {
                submission.base = submission.start();
                submission.json = body.slice(at..at + length);
            }
            at += length;
            due = Some(due.map_or(submission.arrived, |due| due.min(submission.arrived)));
        }
        Self {
            events: parts.iter().map(|part| part.take).sum(),
            parts,
            body,
            seed: None,
            attempts: 0,
            answers: 0,
            counted_failures: 0,
            accepted_before: None,
            maybe_taken: false,
            met_silence: false,
            is_part: false,
            // The longest wait goes first. An empty batch is never sent.
            due: due.unwrap_or_else(Instant::now),
        }
    }

    /// A part of a batch that failed.
    fn part(parts: Vec<Part>) -> Self {
        Self { is_part: true, ..Self::new(parts) }
    }

    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// How many events it holds.
    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// Whether it holds events of more than one caller.
    pub(super) fn is_shared(&self) -> bool {
        self.parts.len() > 1
    }

    /// How many callers have any of the first `count` events.
    pub(super) fn callers(&self, count: usize) -> u64 {
        let mut before = 0;
        let has = |part: &&Part| {
            let has = before < count;
            before += part.take;
            has
        };
        self.parts.iter().take_while(has).count() as u64
    }

    /// Its events, each alone.
    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|part| part.submission.each(part.take))
    }

    /// Counts a failure if its evidence says anything about the batch. `accepted` batches were
    /// accepted so far.
    pub(super) fn failed(&mut self, evidence: Evidence, accepted: u64) {
        self.maybe_taken |= evidence != Evidence::Nothing;
        self.met_silence |= evidence == Evidence::Silent;
        let others_passed = self.accepted_before.is_some_and(|before| accepted > before);
        let counted_failures = match evidence {
            Evidence::Nothing | Evidence::Unclear => return,
            Evidence::Silent => others_passed,
            Evidence::Answered => {
                self.answers += 1;
                self.counted_failures == 0 || others_passed
            }
        };
        self.counted_failures += u32::from(counted_failures);
        self.accepted_before = Some(accepted);
    }

    /// The batch without callers that have gone: their events would come late, after somebody else
    /// has sent them. A batch that may have been taken stays as it is, since a repeat is known by
    /// its bytes. `None` if nobody is left.
    pub(super) fn without_abandoned(mut self) -> Option<Self> {
        let gone = |part: &Part| part.submission.is_abandoned();
        if self.is_abandoned() {
            return None;
        }
        if self.maybe_taken || !self.parts.iter().any(gone) {
            return Some(self);
        }
        self.parts.retain(|part| !gone(part));
        let Self { attempts, answers, counted_failures, accepted_before, is_part, due, .. } = self;
        let rest = Self::new(self.parts);
        Some(Self { attempts, answers, counted_failures, accepted_before, is_part, due, ..rest })
    }

    /// Whether every caller has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.parts.iter().all(|part| part.submission.is_abandoned())
    }

    /// Passes every event on after an answer at time `at`. A [`BatchOutcome::Retry`] leaves the
    /// batch itself.
    pub(super) fn settle(self, outcome: BatchOutcome, at: Timestamp) -> Leftover {
        let alone = self.events == 1;
        let mut left = Leftover::default();
        match outcome {
            BatchOutcome::Accepted => {
                let all = self.events;
                self.accept(all, at, &mut left);
            }
            BatchOutcome::Stopped { accepted, cause, message } => {
                let mut parts = self.accept(accepted, at, &mut left);
                if parts.is_empty() {
                    return left;
                }
                if alone {
                    let certain = cause == Cause::Event;
                    refuse(parts, certain, message);
                } else if cause != Cause::TooMany {
                    let suspect = parts.remove(0).submission;
                    left.batches.push(Self::part(vec![Part { submission: suspect, take: 1 }]));
                    left.rest.extend(parts.into_iter().map(|part| part.submission));
                } else if accepted == 0 {
                    left.batches.extend(halves(parts));
                } else {
                    left.rest.extend(parts.into_iter().map(|part| part.submission));
                }
            }
            BatchOutcome::TooLarge { message } if alone => refuse(self.parts, true, message),
            BatchOutcome::TooLarge { .. } => left.batches.extend(halves(self.parts)),
            BatchOutcome::Retry { .. } => left.batches.push(self),
        }
        left
    }

    /// Takes apart a batch that keeps failing while others are accepted. A shared batch becomes two
    /// halves. A single caller gets an outage of its own, and counts its attempts.
    pub(super) fn take_apart(self, message: String) -> Vec<Self> {
        if self.is_shared() {
            return halves(self.parts);
        }
        for part in self.parts {
            part.submission.finish(Err(Fault::Outage { message: message.clone() }));
        }
        Vec::new()
    }

    /// Marks the first `count` events as accepted; returns the parts that are not, in order.
    fn accept(self, mut count: usize, at: Timestamp, left: &mut Leftover) -> Vec<Part> {
        let mut open = Vec::new();
        for mut part in self.parts {
            let taken = part.take.min(count);
            count -= taken;
            part.take -= taken;
            part.submission.next += taken;
            part.submission.served += u32::from(taken > 0);
            if part.submission.events() == 0 {
                part.submission.finish(Ok(at));
            } else if part.take == 0 {
                left.rest.push(part.submission);
            } else {
                open.push(part);
            }
        }
        open
    }
}

fn refuse(parts: Vec<Part>, certain: bool, message: String) {
    for part in parts {
        part.submission.finish(Err(Fault::Refused { certain, message: message.clone() }));
    }
}

/// Two batches of half the callers each. A single caller gets one batch of half its events, and the
/// rest follows when that is accepted.
fn halves(mut parts: Vec<Part>) -> Vec<Batch> {
    if parts.len() == 1 {
        for part in &mut parts {
            part.take = part.take.div_ceil(2);
        }
        return vec![Batch::part(parts)];
    }
    let second = parts.split_off(parts.len() / 2);
    vec![Batch::part(parts), Batch::part(second)]
}

#[cfg(test)]
mod tests;
