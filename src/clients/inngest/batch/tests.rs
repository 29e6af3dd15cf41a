//! Every caller gets its own outcome, whatever batches its events went through.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::super::queue::{Queue, SWEEP_FROM};
use super::*;
use crate::clients::inngest::Events;
use crate::room::Room;

type Outcome = oneshot::Receiver<Result<Accepted, SendError>>;

const AT: Timestamp = Timestamp::UNIX_EPOCH;
const LIMITS: Limits = Limits { events: 5, bytes: 1000 };

fn submission(ids: &[u32]) -> (Submission, Outcome) {
    let mut events = Events::default();
    for id in ids {
        events.push("n", Some(&id.to_string()), &json!({ "x": id })).expect("valid");
    }
    let (reply, outcome) = oneshot::channel();
    let (Events { json, ends }, charge) = (events, Room::new(usize::MAX).charge(0));
    (Submission::new(json.into(), ends, charge, Reply::One(reply), Instant::now()), outcome)
}

/// The ids in a request's body, in order.
fn ids(body: &[u8]) -> Vec<u32> {
    #[derive(serde::Deserialize)]
    struct Wire {
        id: String,
    }
    let events: Vec<Box<RawValue>> = serde_json::from_slice(body).expect("an array");
    let id = |event: &RawValue| serde_json::from_str::<Wire>(event.get()).expect("an event").id;
    events.iter().map(|event| id(event).parse().expect("a number")).collect()
}

fn queue(submissions: impl IntoIterator<Item = Submission>) -> Queue {
    let mut queue = Queue::default();
    submissions.into_iter().for_each(|submission| queue.push(submission));
    queue
}

fn stopped(accepted: usize, cause: Cause) -> BatchOutcome {
    BatchOutcome::Stopped { accepted, cause, message: "m".to_owned() }
}

fn all_ids(batches: &[Batch]) -> Vec<Vec<u32>> {
    batches.iter().map(|batch| ids(&batch.body())).collect()
}

#[test]
fn a_callers_events_stay_together_unless_they_exceed_a_request() {
    let (a, _a) = submission(&[1, 2, 3]);
    let (b, _b) = submission(&[4, 5, 6]);
    let (c, _c) = submission(&[10, 11, 12, 13, 14, 15, 16]);
    let mut queue = queue([a, b, c]);
    assert!(queue.is_full(LIMITS));
    assert_eq!(ids(&queue.take(LIMITS).expect("a batch").body()), [1, 2, 3]);
    assert_eq!(ids(&queue.take(LIMITS).expect("a batch").body()), [4, 5, 6]);
    let batch = queue.take(LIMITS).expect("a batch");
    assert_eq!(ids(&batch.body()), [10, 11, 12, 13, 14]);
    assert!(queue.take(LIMITS).is_none());
    queue.push_front(batch.settle(BatchOutcome::Accepted, AT).rest);
    assert_eq!(ids(&queue.take(LIMITS).expect("the rest").body()), [15, 16]);
    assert_eq!((queue.events, queue.bytes), (0, 0));
}

#[test]
fn a_request_is_full_at_its_byte_limit_but_takes_one_event_of_any_size() {
    let limits = Limits { events: 100, bytes: 75 };
    let (a, _a) = submission(&[1, 2, 3]);
    let (b, _b) = submission(&[4]);
    let mut queue = queue([a, b]);
    let first = queue.take(limits).expect("a batch");
    assert_eq!(ids(&first.body()), [1, 2], "36 bytes each, a comma, two brackets");
    assert_eq!(first.body().len(), limits.bytes);
    let tiny = Limits { events: 100, bytes: 1 };
    assert_eq!(ids(&queue.take(tiny).expect("a batch").body()), [4]);
}

#[test]
fn those_whose_caller_has_gone_are_left_out() {
    let (a, gone) = submission(&[1]);
    let (b, _b) = submission(&[2]);
    let (c, also_gone) = submission(&[3]);
    let mut queue = queue([a, b, c]);
    drop((gone, also_gone));
    assert_eq!(ids(&queue.take(LIMITS).expect("a batch").body()), [2]);
    assert!(queue.take(LIMITS).is_none());
    assert_eq!((queue.events, queue.bytes), (0, 0));
}

#[test]
fn who_has_gone_is_left_out_of_a_repeat_too_unless_something_may_have_been_taken() {
    for evidence in [Evidence::Nothing, Evidence::Silent, Evidence::Unclear, Evidence::Answered] {
        let (a, gone) = submission(&[1]);
        let (b, stays) = submission(&[2]);
        let mut batch = queue([a, b]).take(LIMITS).expect("a batch");
        batch.seed = Some("fixed".to_owned());
        batch.failed(evidence, 0);
        drop(gone);
        let again = batch.without_abandoned().expect("one is left");
        let (left, seed) = match evidence {
            Evidence::Nothing => (vec![2], None),
            _ => (vec![1, 2], Some("fixed".to_owned())),
        };
        assert_eq!((ids(&again.body()), &again.seed), (left, &seed), "{evidence:?}");
        drop(stays);
        assert!(again.without_abandoned().is_none());
    }
}

#[test]
fn what_callers_leave_behind_does_not_pile_up() {
    let (stays, _stays) = submission(&[0]);
    let mut queue = queue([stays]);
    for id in 1..10_000 {
        let (submission, outcome) = submission(&[id]);
        drop(outcome);
        queue.push(submission);
        assert!(queue.waiting.len() <= SWEEP_FROM + 1);
    }
    assert_eq!(ids(&queue.take(LIMITS).expect("a batch").body()), [0]);
}

#[test]
fn after_a_partial_400_the_suspect_is_alone_and_the_rest_goes_on_in_order() {
    let (a, mut a_outcome) = submission(&[1]);
    let (b, mut b_outcome) = submission(&[2, 3]);
    let (c, mut c_outcome) = submission(&[4]);
    let batch = queue([a, b, c]).take(LIMITS).expect("a batch");
    let mut left = batch.settle(stopped(2, Cause::Event), AT);
    assert_eq!(a_outcome.try_recv().expect("an outcome").expect("accepted").at, AT);
    assert!(b_outcome.try_recv().is_err() && c_outcome.try_recv().is_err(), "not known yet");
    assert_eq!(all_ids(&left.batches), [[3]]);
    assert_eq!(ids(&queue(left.rest).take(LIMITS).expect("the rest").body()), [4]);

    let suspect = left.batches.remove(0).settle(stopped(0, Cause::Unsure), AT);
    assert!(suspect.batches.is_empty() && suspect.rest.is_empty());
    let refused = b_outcome.try_recv().expect("an outcome").expect_err("refused");
    assert!(matches!(refused, SendError::Refused { certain: false, .. }), "{refused:?}");
}

#[test]
fn a_suspect_in_the_middle_of_a_callers_events_that_passes_alone_lets_the_rest_follow() {
    let (a, mut outcome) = submission(&[1, 2, 3]);
    let batch = queue([a]).take(LIMITS).expect("a batch");
    let mut left = batch.settle(stopped(1, Cause::Event), AT);
    assert_eq!(all_ids(&left.batches), [[2]]);
    let left = left.batches.remove(0).settle(BatchOutcome::Accepted, AT);
    assert!(outcome.try_recv().is_err());
    let last = queue(left.rest).take(LIMITS).expect("the rest");
    assert_eq!(ids(&last.body()), [3]);
    last.settle(BatchOutcome::Accepted, AT);
    assert!(outcome.try_recv().expect("an outcome").is_ok());
}

#[test]
fn too_many_or_too_large_is_halved_and_alone_refused() {
    let large = || BatchOutcome::TooLarge { message: "m".to_owned() };
    let (a, _a) = submission(&[1]);
    let (b, _b) = submission(&[2]);
    let (c, mut c_outcome) = submission(&[3, 4, 5]);
    let batch = queue([a, b, c]).take(LIMITS).expect("a batch");
    let mut left = batch.settle(stopped(0, Cause::TooMany), AT);
    assert_eq!(all_ids(&left.batches), [vec![1], vec![2, 3, 4, 5]]);
    let mut left = left.batches.remove(1).settle(large(), AT);
    assert_eq!(all_ids(&left.batches), [vec![2], vec![3, 4, 5]]);
    let mut left = left.batches.remove(1).settle(large(), AT);
    assert_eq!(all_ids(&left.batches), [[3, 4]], "the fifth follows");
    let mut left = left.batches.remove(0).settle(large(), AT);
    assert_eq!(all_ids(&left.batches), [[3]]);
    left.batches.remove(0).settle(large(), AT);
    let refused = c_outcome.try_recv().expect("an outcome").expect_err("refused");
    assert!(matches!(refused, SendError::Refused { certain: true, .. }), "{refused:?}");
}

#[test]
fn a_batch_that_keeps_failing_is_halved_down_to_one_caller_who_gets_an_outage() {
    let (a, _a) = submission(&[1]);
    let (b, mut outcome) = submission(&[2, 3]);
    let batch = queue([a, b]).take(LIMITS).expect("a batch");
    let mut halves = batch.take_apart("m".to_owned());
    assert_eq!(all_ids(&halves), [vec![1], vec![2, 3]]);
    assert!(halves.iter().all(|half| half.seed.is_none()), "other bytes, another seed");
    assert!(halves.remove(1).take_apart("m".to_owned()).is_empty());
    let outage = outcome.try_recv().expect("an outcome").expect_err("an outage");
    assert!(matches!(outage, SendError::Outage { .. }), "{outage:?}");
}

#[test]
fn a_failure_counts_against_a_batch_by_what_it_says_and_by_whether_others_passed() {
    let (a, _a) = submission(&[1]);
    let mut batch = queue([a]).take(LIMITS).expect("a batch");
    batch.accepted_before = Some(7);
    for (evidence, accepted, counted_failures, answers) in [
        (Evidence::Silent, 7, 0, 0),   // nobody gets an answer
        (Evidence::Silent, 9, 1, 0),   // others did
        (Evidence::Silent, 9, 1, 0),   // not since
        (Evidence::Nothing, 12, 1, 0), // a rate limit
        (Evidence::Unclear, 12, 1, 0), // a gateway's page
        (Evidence::Silent, 12, 2, 0),
        (Evidence::Answered, 12, 2, 1),
        (Evidence::Answered, 13, 3, 2),
    ] {
        batch.failed(evidence, accepted);
        assert_eq!(
            (batch.counted_failures, batch.answers),
            (counted_failures, answers),
            "{evidence:?} at {accepted}"
        );
    }
    let (b, _b) = submission(&[2]);
    let mut batch = queue([b]).take(LIMITS).expect("a batch");
    batch.failed(Evidence::Answered, 0);
    assert_eq!(batch.counted_failures, 1, "the first answer counts, whoever else passed");
}

#[test]
fn a_repeat_is_the_same_batch() {
    let (a, _a) = submission(&[1, 2]);
    let mut batch = queue([a]).take(LIMITS).expect("a batch");
    batch.seed = Some("seed".to_owned());
    let body = batch.body();
    let retry = BatchOutcome::Retry {
        evidence: Evidence::Answered,
        retry_after: Some(Duration::ZERO),
        message: String::new(),
    };
    let again = batch.settle(retry, AT).batches.remove(0);
    assert_eq!((again.seed.as_deref(), again.body()), (Some("seed"), body));
}

/// How the modelled server treats an event.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Good,
    Poison,
    Unclear,
    Large,
}

/// The server of the model: event by event, in order, up to the first that it does not take.
fn serve(
    request: &[u32],
    kinds: &[Kind],
    cap: usize,
    stored: &mut HashMap<u32, u32>,
) -> BatchOutcome {
    if request.iter().any(|id| kinds[*id as usize] == Kind::Large) {
        return BatchOutcome::TooLarge { message: "m".to_owned() };
    }
    for (index, id) in request.iter().enumerate() {
        match kinds[*id as usize] {
            _ if index == cap => return stopped(index, Cause::TooMany),
            Kind::Poison => return stopped(index, Cause::Event),
            Kind::Unclear => return stopped(index, Cause::Unsure),
            Kind::Good | Kind::Large => *stored.entry(*id).or_default() += 1,
        }
    }
    BatchOutcome::Accepted
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        12 => Just(Kind::Good),
        1 => Just(Kind::Poison),
        1 => Just(Kind::Unclear),
        1 => Just(Kind::Large)
    ]
}

proptest! {
    #[test]
    fn under_random_batches_and_poison_each_caller_gets_its_own_outcome_and_nothing_twice(
        callers in prop::collection::vec(prop::collection::vec(kind(), 1..8), 1..40),
        max_events in 1_usize..12,
        max_bytes in 1_usize..500,
        cap in 1_usize..12,
        newest_first in any::<bool>(),
    ) {
        let limits = Limits { events: max_events, bytes: max_bytes };
        let kinds: Vec<Kind> = callers.iter().flatten().copied().collect();
        let (mut stored, mut next) = (HashMap::new(), 0);
        let mut stored_order = Vec::new();
        let mut queue = Queue::default();
        let mut outcomes = Vec::new();
        for caller in &callers {
            let ids: Vec<u32> = caller.iter().map(|_| { next += 1; next - 1 }).collect();
            let (submission, outcome) = submission(&ids);
            queue.push(submission);
            outcomes.push((ids, outcome));
        }
        let mut waiting: Vec<Batch> = Vec::new();
        let mut requests = 0;
        loop {
            let batch = if newest_first { waiting.pop() } else { None };
            let Some(batch) = batch.or_else(|| queue.take(limits)).or_else(|| waiting.pop()) else {
                break;
            };
            requests += 1;
            prop_assert!(requests < 10_000, "it must come to an end");
            let request = ids(&batch.body());
            prop_assert_eq!(request.len(), batch.events());
            prop_assert!(request.len() <= max_events);
            prop_assert!(request.len() == 1 || batch.body().len() <= max_bytes);
            let before: Vec<u32> = stored.keys().copied().collect();
            let outcome = serve(&request, &kinds, cap, &mut stored);
            stored_order.extend(request.iter().filter(|id| {
                stored.contains_key(*id) && !before.contains(id)
            }));
            let left = batch.settle(outcome, AT);
            waiting.extend(left.batches);
            queue.push_front(left.rest);
        }
        prop_assert_eq!((queue.events, queue.bytes), (0, 0));
        prop_assert!(stored.values().all(|copies| *copies == 1), "stored twice: {:?}", stored);
        for (ids, mut outcome) in outcomes {
            let outcome = outcome.try_recv().expect("every caller has an outcome");
            let fault = ids.iter().position(|id| kinds[*id as usize] != Kind::Good);
            let taken = &ids[..fault.unwrap_or(ids.len())];
            let order: Vec<u32> =
                stored_order.iter().filter(|id| ids.contains(id)).copied().collect();
            prop_assert_eq!(order.as_slice(), taken, "its events, in order, up to the bad one");
            match (fault.map(|index| kinds[ids[index] as usize]), outcome) {
                (None, Ok(_)) => {}
                (Some(kind), Err(SendError::Refused { certain, .. })) => {
                    prop_assert_eq!(certain, kind != Kind::Unclear);
                }
                (kind, outcome) => prop_assert!(false, "{:?} got {:?}", kind, outcome),
            }
        }
    }
}
