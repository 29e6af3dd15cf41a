//! Operations of all callers, a pipeline at a time.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{Op, Reply};
use super::{Store, StoreUnavailable};
use crate::metric_names;
use crate::outage::Breaker;

/// Operations in one pipeline. Larger ones gain nothing and delay the first of them.
const PIPELINE: usize = 512;
/// Pipelines under way at once: one is answered while the next is filled and sent.
const UNDER_WAY: usize = 4;
/// Operations that may wait for a pipeline; more simply wait to get in.
pub(super) const QUEUE: usize = 4096;

/// Operations of one caller, and where its answer goes.
pub(super) enum Request {
    One(Op, oneshot::Sender<Answer<Reply>>),
    Many(Vec<Op>, oneshot::Sender<Answer<Vec<Reply>>>),
}

type Answer<T> = Result<T, StoreUnavailable>;

impl Request {
    fn ops(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Many(ops, _) => ops.len(),
        }
    }

    /// A caller that has gone needs no claim; one that must be kept is claimed again. What he has
    /// done is noted all the same.
    fn is_wanted(&self) -> bool {
        let second_phase = |ops: &[Op]| ops.iter().any(Op::is_second_phase);
        match self {
            Self::One(op, reply) => op.is_second_phase() || !reply.is_closed(),
            Self::Many(ops, reply) => second_phase(ops) || !reply.is_closed(),
        }
    }
}

/// Answers `requests` in pipelines. Those under way at once are independent: whoever asks for a key
/// waits for its answer before asking again, or has no use for it any more. A claim that is given back
/// while it is being renewed may stay behind: it expires by itself.
pub(super) async fn run(
    store: impl Store,
    requests: mpsc::Receiver<Request>,
    breaker: Arc<Breaker>,
) {
    let batches = stream::unfold(requests, |mut requests| async {
        let first = requests.recv().await?;
        let mut ops = first.ops();
        let mut batch = vec![first];
        while ops < PIPELINE
            && let Ok(next) = requests.try_recv()
        {
            ops += next.ops();
            batch.push(next);
        }
        Some((batch, requests))
    });
    batches.for_each_concurrent(UNDER_WAY, |batch| answer(&store, batch, &breaker)).await;
}

async fn answer(store: &impl Store, batch: Vec<Request>, breaker: &Breaker) {
    let mut ops = Vec::with_capacity(batch.iter().map(Request::ops).sum());
    let mut callers = Vec::with_capacity(batch.len());
    for request in batch.into_iter().filter(Request::is_wanted) {
        match request {
            Request::One(op, reply) => {
                ops.push(op);
                callers.push(Caller::One(reply));
            }
            Request::Many(all, reply) => {
                callers.push(Caller::Many(all.len(), reply));
                ops.extend(all);
            }
        }
    }
    if ops.is_empty() {
        return;
    }
    let short = || StoreUnavailable::new("short answer");
    let mut answer = execute(store, &ops, breaker).await.map(Vec::into_iter);
    // A caller that stopped waiting does not need its answer.
    for caller in callers {
        match caller {
            Caller::One(reply) => {
                let one = answer.as_mut().map_err(|error| error.clone());
                drop(reply.send(one.and_then(|all| all.next().ok_or_else(short))));
            }
            Caller::Many(count, reply) => {
                let many = answer.as_mut().map_err(|error| error.clone());
                let many = many.map(|all| all.by_ref().take(count).collect::<Vec<_>>());
                let whole =
                    many.and_then(|many| if many.len() == count { Ok(many) } else { Err(short()) });
                drop(reply.send(whole));
            }
        }
    }
}

/// Where a caller's answer goes.
enum Caller {
    One(oneshot::Sender<Answer<Reply>>),
    Many(usize, oneshot::Sender<Answer<Vec<Reply>>>),
}

async fn execute(
    store: &impl Store,
    ops: &[Op],
    breaker: &Breaker,
) -> Result<Vec<Reply>, StoreUnavailable> {
    let Ok(leave) = breaker.admit(Instant::now()) else {
        let error = breaker.away().map_or_else(String::new, |away| away.error.clone());
        return Err(StoreUnavailable::new(error));
    };
    metrics::histogram!(metric_names::PIPELINE).record(ops.len() as f64);
    let start = Instant::now();
    let answer = store.execute(ops).await;
    metric_names::request(breaker.name(), start.elapsed(), answer.is_ok());
    match &answer {
        Ok(_) => leave.succeeded(),
        Err(error) => leave.failed(Instant::now(), None, &error.message),
    }
    answer
}
