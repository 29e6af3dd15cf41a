//! The task that fills requests, keeps a few under way and repeats those of unknown outcome.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Client, Url};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::answer::{self, BatchOutcome, Cause, Evidence};
use super::batch::{Batch, Limits, Part, Submission};
use super::limits::{Sizes, Suspects};
use super::queue::Queue;
use super::{InngestConfig, SERVICE};
use crate::clients::http::{self, ReadError};
use crate::clients::key_redaction::KeyRedaction;
use crate::metric_names;
use crate::outage::{Backoff, Breaker, Leave};

const SEED: HeaderName = HeaderName::from_static("x-inngest-event-id-seed");
/// 5,000 ids take 150 kB. An answer far beyond that is not Inngest's.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// How often a batch fails, with others accepted in between, before it is taken apart.
const MAX_COUNTED_FAILURES: u32 = 3;
/// How often it fails with no other to compare with before it is halved all the same. Otherwise one
/// bad event at a quiet time would hold up its neighbours for ever. In a true outage this happens
/// rarely, since the breaker lets through few requests.
const ATTEMPTS_BEFORE_SPLIT: u32 = 6;
/// Submissions taken over at a time.
const INTAKE: usize = 1024;

/// How a request goes out.
pub(super) struct Wire {
    pub(super) http: Client,
    /// Holds the key: never printed.
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) redaction: KeyRedaction,
}

/// The state of the batching; owned by one task.
pub(super) struct Batcher {
    incoming: mpsc::UnboundedReceiver<Submission>,
    queue: Queue,
    /// Batches to be sent as they are: repeats, suspects and halves. They hold no request slot
    /// while they wait, so that a few bad batches cannot keep the good ones out.
    waiting: Vec<Batch>,
    sizes: Sizes,
    suspects: Suspects,
    max_wait: Duration,
    requests: usize,
    backoff: Backoff,
    settle: Duration,
    /// Batches of which something was accepted.
    accepted: u64,
}

/// What may be sent next.
enum Next {
    Waiting(usize),
    Fresh,
}

impl Batcher {
    pub(super) fn new(
        config: &InngestConfig,
        limits: Limits,
        incoming: mpsc::UnboundedReceiver<Submission>,
    ) -> Self {
        Self {
            incoming,
            queue: Queue::default(),
            waiting: Vec::new(),
            sizes: Sizes::new(limits),
            suspects: Suspects::default(),
            max_wait: config.max_wait,
            requests: config.requests.max(1),
            backoff: config.backoff,
            settle: config.settle,
            accepted: 0,
        }
    }

    /// Runs until every [`super::Inngest`] has been dropped, and with them every caller.
    ///
    /// Answers come first, since they free slots; then new submissions; then the timer.
    pub(super) async fn run(mut self, wire: &Wire, breaker: &Breaker) {
        let mut under_way = FuturesUnordered::new();
        let mut arrivals = Vec::with_capacity(INTAKE);
        loop {
            let wake = loop {
                let now = Instant::now();
                if under_way.len() >= self.requests {
                    break None;
                }
                let Some(next) = self.next(now) else { break self.next_due() };
                let leave = match breaker.admit(now.into_std()) {
                    Ok(leave) => leave,
                    Err(until) => break Some(Instant::from_std(until)),
                };
                let batch = match next {
                    Next::Waiting(index) => Some(self.waiting.swap_remove(index)),
                    Next::Fresh => self.queue.take(self.sizes.limits()),
                };
                if let Some(mut batch) = batch.and_then(Batch::without_abandoned) {
                    batch.seed.get_or_insert_with(new_seed);
                    batch.accepted_before.get_or_insert(self.accepted);
                    under_way.push(post(wire, batch, leave));
                }
            };
            tokio::select! {
                biased;
                Some((batch, outcome)) = under_way.next() => self.settle(batch, outcome, breaker),
                count = self.incoming.recv_many(&mut arrivals, INTAKE) => {
                    if count == 0 {
                        return;
                    }
                    for submission in arrivals.drain(..) {
                        self.take_in(submission);
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    fn take_in(&mut self, submission: Submission) {
        if self.suspects.has(&submission, Instant::now()) {
            let part = Part::of(submission, self.sizes.limits());
            self.waiting.push(Batch::new(vec![part]));
        } else {
            self.queue.push(submission);
        }
    }

    /// What waits longest of all that may be sent now.
    fn next(&self, now: Instant) -> Option<Next> {
        let waiting = self.waiting.iter().enumerate().filter(|(_, batch)| batch.due <= now);
        let waiting = waiting.min_by_key(|(_, batch)| batch.due).map(|(i, batch)| (i, batch.due));
        let oldest = self.queue.oldest().filter(|oldest| {
            *oldest + self.max_wait <= now || self.queue.is_full(self.sizes.limits())
        });
        match (waiting, oldest) {
            (Some((_, due)), Some(oldest)) if oldest < due => Some(Next::Fresh),
            (Some((index, _)), _) => Some(Next::Waiting(index)),
            (None, Some(_)) => Some(Next::Fresh),
            (None, None) => None,
        }
    }

    /// When something may be sent, if nothing may now.
    fn next_due(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|batch| batch.due).min();
        let fresh = self.queue.oldest().map(|oldest| oldest + self.max_wait);
        waiting.into_iter().chain(fresh).min()
    }

    fn settle(&mut self, mut batch: Batch, outcome: BatchOutcome, breaker: &Breaker) {
        let at = jiff::Timestamp::now();
        match outcome {
            BatchOutcome::Retry { evidence, retry_after, message } => {
                batch.failed(evidence, self.accepted);
                let out_of_patience = batch.answers >= ATTEMPTS_BEFORE_SPLIT && batch.is_shared();
                if batch.counted_failures >= MAX_COUNTED_FAILURES || out_of_patience {
                    tracing::warn!(
                        events = batch.events(),
                        error = message,
                        "a batch keeps failing: it is taken apart to find the event at fault"
                    );
                    if !batch.is_shared() {
                        self.suspects.note(&batch, Instant::now());
                    }
                    let wait = if batch.met_silence { self.settle } else { Duration::ZERO };
                    let apart = batch.take_apart(message).into_iter().map(|mut part| {
                        part.due = part.due.max(Instant::now() + wait);
                        part
                    });
                    self.waiting.extend(apart);
                    return;
                }
                // While the breaker is away it says when the next request goes out. A pause of its
                // own on top would make every batch late after the outage.
                let pause = if breaker.away().is_some() {
                    Duration::ZERO
                } else {
                    self.backoff.delay(batch.attempts, fastrand::f64())
                };
                batch.attempts = batch.attempts.saturating_add(1);
                batch.due = Instant::now() + retry_after.map_or(pause, |asked| asked.max(pause));
                self.waiting.push(batch);
                self.waiting.retain(|batch| !batch.is_abandoned());
            }
            outcome => {
                match &outcome {
                    BatchOutcome::Accepted => {
                        self.accepted += 1;
                        self.sizes.accepted();
                    }
                    BatchOutcome::Stopped { accepted: 1.., .. } => self.accepted += 1,
                    BatchOutcome::TooLarge { .. } if batch.events() > 1 => {
                        self.sizes.too_large(&batch)
                    }
                    _ => {}
                }
                let left = batch.settle(outcome, at);
                self.waiting.extend(left.batches);
                self.queue.push_front(left.rest);
            }
        }
    }
}

/// Sends a batch once and reports to the breaker.
async fn post(wire: &Wire, batch: Batch, leave: Leave<'_>) -> (Batch, BatchOutcome) {
    let start = Instant::now();
    let outcome = exchange(wire, &batch).await;
    let answered = !matches!(outcome, BatchOutcome::Retry { .. });
    metric_names::request(SERVICE, start.elapsed(), answered);
    metrics::histogram!(metric_names::BATCH).record(batch.events() as f64);
    match &outcome {
        BatchOutcome::Retry { retry_after, message, .. } => {
            leave.failed(Instant::now().into_std(), *retry_after, message);
        }
        // One event refused without a clear reason may mean that the server is unwell. In a larger
        // batch that is not clear yet, and the leave is given back unused.
        BatchOutcome::Stopped { accepted: 0, cause: Cause::Unsure, message } => {
            if batch.events() == 1 {
                leave.failed(Instant::now().into_std(), None, message);
            }
        }
        BatchOutcome::Accepted => leave.succeeded_for(batch.callers(batch.events())),
        BatchOutcome::Stopped { accepted: accepted @ 1.., .. } => {
            leave.succeeded_for(batch.callers(*accepted));
        }
        // Inngest refuses these before it asks its queue, which may be down all the same. Callers
        // that wait for the queue must not look like the only ones that fail.
        BatchOutcome::Stopped { accepted: 0, .. } | BatchOutcome::TooLarge { .. } => {
            leave.turned_down()
        }
    }
    tracing::debug!(
        events = batch.events(),
        bytes = batch.body().len(),
        seconds = start.elapsed().as_secs_f64(),
        accepted = outcome == BatchOutcome::Accepted,
        "batch answered"
    );
    (batch, outcome)
}

async fn exchange(wire: &Wire, batch: &Batch) -> BatchOutcome {
    let unanswered = |evidence, message: &str| BatchOutcome::Retry {
        evidence,
        retry_after: None,
        message: format!("inngest did not answer: {message}"),
    };
    let unknown = |message: &str| unanswered(Evidence::Silent, message);
    let request = wire.http.post(wire.url.clone()).headers(wire.headers.clone());
    let seed = batch.seed.as_deref().unwrap_or_default();
    let response = match request.header(SEED, seed).body(batch.body()).send().await {
        Ok(response) => response,
        Err(error) => {
            let evidence = if error.is_connect() { Evidence::Nothing } else { Evidence::Silent };
            return unanswered(evidence, &http::describe(error));
        }
    };
    let status = response.status().as_u16();
    let retry_after = http::retry_after(response.headers(), jiff::Timestamp::now());
    match http::read(response, MAX_ANSWER_BYTES).await {
        Ok(body) => {
            let body = if status == 200 { body } else { wire.redaction.redact(body) };
            named(answer::judge(status, &body, batch.events(), retry_after), wire)
        }
        // Success and a partial 400 need the whole answer; every other status speaks for itself.
        Err(_) if !matches!(status, 200 | 400) => {
            named(answer::judge(status, b"", batch.events(), retry_after), wire)
        }
        Err(ReadError::Broken { message, .. }) => unknown(&message),
        Err(ReadError::TooLarge) => unknown("its answer is longer than one of inngest can be"),
    }
}

/// Names the address in the message if the answer may not be Inngest's. Only the address: the path
/// holds the key.
fn named(mut outcome: BatchOutcome, wire: &Wire) -> BatchOutcome {
    if let BatchOutcome::Retry {
        evidence: Evidence::Unclear | Evidence::Nothing, message, ..
    } = &mut outcome
    {
        message.push_str(&format!(" (asked at {})", wire.url.origin().ascii_serialization()));
    }
    outcome
}

/// A seed for a request's ids: the time in Unix milliseconds and 10 random bytes.
fn new_seed() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random: [u8; 10] = std::array::from_fn(|_| fastrand::u8(..));
    format!("{},{}", now.as_millis(), STANDARD.encode(random))
}
