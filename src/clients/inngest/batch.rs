//! Which events go into a request, and where each goes after its answer. No I/O, no clock.

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::answer::{Cause, Says, Verdict};
use super::event::Events;
use super::{Accepted, SendError};

/// How large a request may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// One caller's events on their way: those from `next` on are not accepted yet.
#[derive(Debug)]
pub(super) struct Submission {
    /// The events that are not accepted yet; possibly, before them, some that are.
    json: Bytes,
    /// Where `json` begins in what the caller handed over.
    base: usize,
    ends: SmallVec<[u32; 4]>,
    next: usize,
    reply: oneshot::Sender<Result<Accepted, SendError>>,
    pub(super) arrived: Instant,
}

impl Submission {
    pub(super) fn new(
        events: Events,
        reply: oneshot::Sender<Result<Accepted, SendError>>,
        arrived: Instant,
    ) -> Self {
        Self { json: events.json.into(), base: 0, ends: events.ends, next: 0, reply, arrived }
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

    /// Where the first event that is not accepted begins, as the caller handed it over.
    fn start(&self) -> usize {
        self.next.checked_sub(1).map_or(0, |previous| self.ends[previous] as usize + 1)
    }

    /// Where the first `count` events end, as the caller handed them over.
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

    fn finish(self, outcome: Result<Accepted, SendError>) {
        // A caller that has gone wants no answer.
        drop(self.reply.send(outcome));
    }
}

/// A caller's share of a batch: its next `take` events.
#[derive(Debug)]
struct Part {
    submission: Submission,
    take: usize,
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
    /// How often it failed with others accepted in between; the first answer counts too.
    pub(super) strikes: u32,
    /// How many batches had been accepted when it was first sent, then when it last failed.
    pub(super) accepted_before: Option<u64>,
    /// Whether some of it may have been taken, although no answer said so.
    maybe_taken: bool,
    /// Whether it ever had no whole answer.
    pub(super) met_silence: bool,
    /// Not to be sent before this.
    pub(super) due: Instant,
}

/// What is left to do after an answer.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// To be sent as they are.
    pub(super) batches: Vec<Batch>,
    /// To be batched anew, before all others, in this order.
    pub(super) rest: Vec<Submission>,
}

impl Batch {
    fn new(mut parts: Vec<Part>) -> Self {
        let size: usize = parts.iter().map(|part| part.submission.slice(part.take).len() + 1).sum();
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
            // The bytes are in the body now: a second copy would double what is in flight.
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
            strikes: 0,
            accepted_before: None,
            maybe_taken: false,
            met_silence: false,
            // What waited longest goes first; a batch of nobody is never sent.
            due: due.unwrap_or_else(Instant::now),
        }
    }

    /// The request's body.
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

    /// Counts a failure against it, where that says anything: `accepted` batches were accepted so
    /// far.
    pub(super) fn failed(&mut self, says: Says, accepted: u64) {
        self.maybe_taken |= says != Says::Nothing;
        self.met_silence |= says == Says::Silent;
        let others_passed = self.accepted_before.is_some_and(|before| accepted > before);
        let strikes = match says {
            Says::Nothing | Says::Unclear => return,
            Says::Silent => others_passed,
            Says::Answered => {
                self.answers += 1;
                self.strikes == 0 || others_passed
            }
        };
        self.strikes += u32::from(strikes);
        self.accepted_before = Some(accepted);
    }

    /// The batch without those whose caller has gone: their events would come late, when somebody
    /// else has sent them. What may have been taken stays as it is, for a repeat of it is known by
    /// its bytes. `None` when nobody is left.
    pub(super) fn without_abandoned(mut self) -> Option<Self> {
        let gone = |part: &Part| part.submission.is_abandoned();
        if self.is_abandoned() {
            return None;
        }
        if self.maybe_taken || !self.parts.iter().any(gone) {
            return Some(self);
        }
        self.parts.retain(|part| !gone(part));
        let Self { attempts, answers, strikes, accepted_before, due, .. } = self;
        let rest = Self::new(self.parts);
        Some(Self { attempts, answers, strikes, accepted_before, due, ..rest })
    }

    /// Whether every caller has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.parts.iter().all(|part| part.submission.is_abandoned())
    }

    /// Hands every event on after an answer at time `at`. A [`Verdict::Retry`] is the batch itself
    /// again.
    pub(super) fn settle(self, verdict: Verdict, at: Accepted) -> Leftover {
        let alone = self.events == 1;
        let mut left = Leftover::default();
        match verdict {
            Verdict::Accepted => {
                let all = self.events;
                self.accept(all, at, &mut left);
            }
            Verdict::Stopped { accepted, cause, message } => {
                let mut parts = self.accept(accepted, at, &mut left);
                if parts.is_empty() {
                    return left;
                }
                if alone {
                    let certain = cause == Cause::Event;
                    refuse(parts, certain, message);
                } else if cause != Cause::TooMany {
                    let suspect = parts.remove(0).submission;
                    left.batches.push(Self::new(vec![Part { submission: suspect, take: 1 }]));
                    left.rest.extend(parts.into_iter().map(|part| part.submission));
                } else if accepted == 0 {
                    left.batches.extend(halves(parts));
                } else {
                    left.rest.extend(parts.into_iter().map(|part| part.submission));
                }
            }
            Verdict::TooLarge { message } if alone => refuse(self.parts, true, message),
            Verdict::TooLarge { .. } => left.batches.extend(halves(self.parts)),
            Verdict::Retry { .. } => left.batches.push(self),
        }
        left
    }

    /// Takes apart a batch that keeps failing while others are accepted: two halves, or, when it
    /// has one caller, an outage of that caller's own, who counts its attempts.
    pub(super) fn take_apart(self, message: String) -> Vec<Self> {
        if self.is_shared() {
            return halves(self.parts);
        }
        for part in self.parts {
            let outage = SendError::Outage { message: message.clone(), retry_after: None };
            part.submission.finish(Err(outage));
        }
        Vec::new()
    }

    /// Marks the first `count` events as accepted; returns the parts that are not, in order.
    fn accept(self, mut count: usize, at: Accepted, left: &mut Leftover) -> Vec<Part> {
        let mut open = Vec::new();
        for mut part in self.parts {
            let taken = part.take.min(count);
            count -= taken;
            part.take -= taken;
            part.submission.next += taken;
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
        let refused = SendError::Refused { message: message.clone(), certain };
        part.submission.finish(Err(refused));
    }
}

/// Two batches of half the callers each, or one of half the events of a single caller, whose rest
/// follows when that is accepted.
fn halves(mut parts: Vec<Part>) -> Vec<Batch> {
    if parts.len() == 1 {
        for part in &mut parts {
            part.take = part.take.div_ceil(2);
        }
        return vec![Batch::new(parts)];
    }
    let second = parts.split_off(parts.len() / 2);
    vec![Batch::new(parts), Batch::new(second)]
}

/// Events that wait for the next request, first come first served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: std::collections::VecDeque<Submission>,
    events: usize,
    bytes: usize,
    sweep_at: usize,
}

/// Below this many submissions the abandoned ones are not worth looking for.
const SWEEP_FROM: usize = 1024;

impl Queue {
    pub(super) fn push(&mut self, submission: Submission) {
        self.count(&submission);
        self.waiting.push_back(submission);
        // Callers may come and go while nothing can be sent: what they leave must not pile up.
        if self.waiting.len() > self.sweep_at.max(SWEEP_FROM) {
            let all = std::mem::take(&mut self.waiting);
            (self.events, self.bytes) = (0, 0);
            for submission in all.into_iter().filter(|submission| !submission.is_abandoned()) {
                self.count(&submission);
                self.waiting.push_back(submission);
            }
            self.sweep_at = self.waiting.len() * 2;
        }
    }

    /// Puts submissions before all others, keeping their order.
    pub(super) fn push_front(&mut self, submissions: Vec<Submission>) {
        for submission in submissions.into_iter().rev() {
            self.count(&submission);
            self.waiting.push_front(submission);
        }
    }

    fn count(&mut self, submission: &Submission) {
        self.events += submission.events();
        self.bytes += submission.bytes() + 1;
    }

    /// When the one that waits longest came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|submission| submission.arrived)
    }

    /// Whether a request is full.
    pub(super) fn is_full(&self, limits: Limits) -> bool {
        self.events >= limits.events || self.bytes >= limits.bytes
    }

    /// The next request, without those whose caller has gone; `None` when nobody is left.
    /// A caller's events stay together unless they exceed a whole request.
    pub(super) fn take(&mut self, limits: Limits) -> Option<Batch> {
        let mut parts = Vec::new();
        // A body is the opening bracket and, for each event, its bytes and a comma or bracket.
        let (mut events, mut bytes) = (0, 1);
        while let Some(first) = self.waiting.front() {
            let fits =
                events + first.events() <= limits.events && bytes + first.bytes() < limits.bytes;
            if !fits && !parts.is_empty() && !first.is_abandoned() {
                break;
            }
            let Some(submission) = self.waiting.pop_front() else { break };
            self.events -= submission.events();
            self.bytes -= submission.bytes() + 1;
            if submission.is_abandoned() {
                continue;
            }
            let take = if fits { submission.events() } else { submission.fitting(limits) };
            events += take;
            bytes += submission.slice(take).len() + 1;
            parts.push(Part { submission, take });
            if !fits {
                break;
            }
        }
        (!parts.is_empty()).then(|| Batch::new(parts))
    }
}

#[cfg(test)]
mod tests;
