//! The chaos run's checker on histories made by hand: good ones pass, and each broken promise is
//! found as what it is.

#[allow(dead_code, reason = "the run uses all of it")]
mod checker;
mod explain;
#[allow(dead_code, reason = "the run uses all of it")]
mod history;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use checker::{Bounds, Promise, Verdict, check};
use explain::Why;
use history::{Arrival, Disturbance, Effect, Harm, History, Kind, Sample, Written};

const BOUNDS: Bounds = Bounds {
    memory: 100,
    settle: Duration::from_secs(1),
    session: Duration::from_secs(6),
    drain: Duration::from_secs(2),
    near: Duration::from_secs(2),
};
const AWARD: &str = "currency/award:purchase:p";
const CANCEL: &str = "currency/cancelled:purchase:p";
const REVERSE: &str = "currency/reverse:purchase:p";

const EVALUATE: &str = "evaluate_user_tier_status:u:m";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn effect(chain: &[&str]) -> Effect {
    Effect {
        consumer: "currency",
        chain: chain.iter().map(|&name| name.to_owned()).collect(),
        fresh: false,
        order: Some("p".to_owned()),
        content: None,
    }
}

fn written(offset: i64, at: u64, chain: &[&str]) -> Written {
    Written {
        topic: "t".to_owned(),
        partition: 0,
        offset,
        at: ms(at),
        copy: false,
        positioned: true,
        effects: vec![effect(chain)],
        key: String::new(),
        value: String::new(),
    }
}

fn event(what: &str, at: u64, by: &str) -> Arrival {
    Arrival {
        kind: Kind::Event,
        what: what.to_owned(),
        at: ms(at),
        begun: ms(at),
        by: Some(by.to_owned()),
        content: Some(json!({"source_id": "p"}).to_string()),
        internal: None,
    }
}

fn sample(at: u64, next: i64) -> Sample {
    let offsets = BTreeMap::from([(("t".to_owned(), 0), next)]);
    Sample { consumer: "currency", asked: ms(at - 10), answered: ms(at), offsets }
}

fn disturbed(harm: Harm, who: Option<&str>, from: u64, to: u64) -> Disturbance {
    let (who, text) = (who.map(str::to_owned), format!("{harm:?}"));
    Disturbance { harm, who, from: ms(from), to: ms(to), text }
}

/// A purchase is awarded and refunded, and all of it is committed.
fn good() -> History {
    History {
        written: vec![written(0, 0, &[AWARD]), written(1, 0, &[CANCEL, REVERSE])],
        arrivals: vec![
            event(AWARD, 1_000, "1.1"),
            event(CANCEL, 2_100, "1.1"),
            event(REVERSE, 2_200, "1.1"),
        ],
        samples: vec![sample(1_500, 1), sample(2_500, 2)],
        caught_up: Some(ms(500)),
        ..History::default()
    }
}

/// The promises that were found broken.
fn broken(history: &History) -> Vec<Promise> {
    check(history, &BOUNDS).problems.into_keys().collect()
}

#[test]
fn a_history_without_fault_keeps_every_promise() {
    let Verdict { problems, repeats, events, .. } = check(&good(), &BOUNDS);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!((repeats.len(), events), (0, 3));
}

#[test]
fn an_event_that_never_came_is_lost_and_its_commit_too_early() {
    let mut history = good();
    history.arrivals.pop();
    assert_eq!(broken(&history), [Promise::NothingLost, Promise::CommitBehindOutcome]);
}

#[test]
fn an_event_that_nothing_calls_for_is_found() {
    let mut history = good();
    history.arrivals.push(event("currency/award:purchase:q", 3_000, "1.1"));
    assert_eq!(broken(&history), [Promise::NothingInvented]);
}

#[test]
fn a_refund_before_its_award_is_out_of_order_and_a_repeated_award_after_it_is_not() {
    let mut history = good();
    history.arrivals.rotate_left(1);
    assert!(broken(&history).contains(&Promise::Order));

    let mut history = good();
    history.arrivals.push(event(AWARD, 2_300, "2.1"));
    history.disturbances.push(disturbed(Harm::Killed, Some("1.1"), 1_100, 1_100));
    let problems = broken(&history);
    assert!(!problems.contains(&Promise::Order), "{problems:?}");
}

#[test]
fn other_content_than_was_called_for_or_sent_before_is_found() {
    let mut history = good();
    history.written[0].effects[0].content = Some(json!({"source_id": "q"}));
    assert_eq!(broken(&history), [Promise::SameContent]);

    let mut history = good();
    history.disturbances.push(disturbed(Harm::Killed, Some("1.1"), 1_100, 1_100));
    let other = Arrival { content: Some("{}".to_owned()), ..event(AWARD, 1_300, "2.1") };
    history.arrivals.insert(1, other);
    assert_eq!(broken(&history), [Promise::SameContent]);
}

#[test]
fn an_offset_committed_before_its_outcome_is_found() {
    let mut history = good();
    history.samples[0] = sample(900, 1);
    assert_eq!(broken(&history), [Promise::CommitBehindOutcome]);
}

#[test]
fn a_cancel_that_comes_too_soon_is_found() {
    let mut history = good();
    history.arrivals[1].at = ms(1_900);
    assert_eq!(broken(&history), [Promise::Settle]);
}

#[test]
fn memory_lag_and_incidents_are_problems() {
    let mut history = good();
    history.memory.insert("1.1".to_owned(), 101);
    history.caught_up = None;
    history.incidents.push("it ended by itself".to_owned());
    assert_eq!(broken(&history), [Promise::Memory, Promise::CatchUp, Promise::Conduct]);
}

/// A repeat of the award, its commit still open, with these disturbances: what explains it.
fn why(again: Arrival, disturbances: Vec<Disturbance>) -> Option<Why> {
    let mut history = good();
    history.samples.clear();
    history.disturbances = disturbances;
    history.arrivals.push(again);
    let verdict = check(&history, &BOUNDS);
    let unexplained = verdict.broken(Promise::NothingTwice);
    let why = verdict.repeats.into_keys().next();
    assert_eq!(unexplained, usize::from(why.is_none()));
    why
}

#[test]
fn a_repeat_needs_a_disturbance_that_can_have_caused_it() {
    let again = |at| event(AWARD, at, "2.1");
    assert_eq!(why(again(9_000), vec![]), None);

    let killed = disturbed(Harm::Killed, Some("1.1"), 1_500, 1_500);
    assert_eq!(why(again(9_000), vec![killed.clone()]), Some(Why::Killed));
    let long_after = disturbed(Harm::Killed, Some("1.1"), 50_000, 50_000);
    assert_eq!(why(again(57_000), vec![long_after.clone()]), None, "it was confirmed by then");

    let lost = disturbed(Harm::AnswerLost, None, 500, 1_200);
    assert_eq!(why(again(1_300), vec![lost]), Some(Why::AnswerLost));

    let away = disturbed(Harm::RedisAway, None, 900, 49_900);
    assert_eq!(why(again(57_000), vec![away, long_after.clone()]), Some(Why::Killed));

    let forgets = disturbed(Harm::Forgets, None, 30_000, 30_100);
    assert_eq!(why(again(57_000), vec![forgets.clone()]), None, "nothing sends it again");
    assert_eq!(why(again(57_000), vec![forgets, long_after]), Some(Why::Forgotten));
}

#[test]
fn what_was_committed_comes_again_only_from_somebody_who_stood_still() {
    let mut history = good();
    history.disturbances = vec![
        disturbed(Harm::Killed, Some("1.1"), 1_400, 1_400),
        disturbed(Harm::Forgets, None, 5_000, 5_100),
        disturbed(Harm::Replay, None, 20_000, 21_000),
    ];
    history.arrivals.push(event(AWARD, 22_000, "2.1"));
    assert_eq!(broken(&history), [Promise::NothingTwice]);

    history.disturbances.push(disturbed(Harm::Frozen, Some("2.1"), 1_000, 21_900));
    assert_eq!(broken(&history), []);

    history.arrivals.last_mut().expect("one").by = None;
    assert_eq!(broken(&history), [], "a call does not say whose it is");
    history.disturbances.pop();
    assert_eq!(broken(&history), [Promise::NothingTwice], "but nobody stood still");
}

#[test]
fn a_request_from_before_the_commit_may_come_again_after_it_where_something_interrupted_its_sender()
{
    let mut history = good();
    history.arrivals.push(Arrival { begun: ms(900), ..event(AWARD, 9_000, "2.1") });
    assert_eq!(broken(&history), [Promise::NothingTwice]);

    history.disturbances = vec![disturbed(Harm::Killed, Some("1.1"), 1_400, 1_400)];
    assert_eq!(broken(&history), []);
    history.arrivals.push(event(AWARD, 9_000, "2.1"));
    assert_eq!(broken(&history), [Promise::NothingTwice], "this one was begun after it");
}

#[test]
fn a_commit_may_go_back_only_while_a_broker_is_away() {
    let mut history = good();
    history.samples.push(sample(3_000, 1));
    assert_eq!(broken(&history), [Promise::CommitGoesOn]);

    history.disturbances = vec![disturbed(Harm::Broker, None, 1_500, 2_000)];
    assert_eq!(broken(&history), []);
    assert_eq!(check(&history, &BOUNDS).overtaken, 1);

    history.disturbances[0].to = ms(1_600);
    history.samples.last_mut().expect("one").answered = ms(20_000);
    assert_eq!(broken(&history), [Promise::CommitGoesOn], "long after");
    history.disturbances.push(disturbed(Harm::Frozen, Some("1.2"), 1_550, 21_000));
    assert_eq!(broken(&history), [Promise::CommitGoesOn], "who stands still sends nothing");
    history.disturbances[1].to = ms(19_900);
    assert_eq!(broken(&history), [], "by a member that stood still meanwhile");

    history.samples.push(sample(40_000, 2));
    history.disturbances.push(disturbed(Harm::Forgets, None, 5_000, 5_100));
    history.disturbances.push(disturbed(Harm::Killed, Some("1.1"), 5_200, 5_200));
    history.arrivals.push(event(REVERSE, 9_000, "2.1"));
    assert_eq!(broken(&history), [], "what lies between is read again");
}

#[test]
fn a_copy_without_a_place_in_the_log_is_known_only_while_redis_remembers() {
    let mut history = good();
    let copy = Written { copy: true, positioned: false, ..written(2, 20_000, &[AWARD]) };
    history.written.push(copy);
    history.arrivals.push(event(AWARD, 22_000, "1.1"));
    assert_eq!(broken(&history), [Promise::NothingTwice]);

    history.disturbances.push(disturbed(Harm::Forgets, None, 5_000, 5_100));
    assert_eq!(broken(&history), []);
}

#[test]
fn an_evaluation_must_come_after_the_change_that_called_for_it() {
    let mut history = good();
    let mut change = written(2, 5_000, &[EVALUATE, "tier/upgrade-cancelled:u:m"]);
    change.effects[0].fresh = true;
    change.effects[0].order = None;
    history.written.push(change);
    let evaluated = |at| Arrival { kind: Kind::Call, ..event(EVALUATE, at, "1.1") };
    history.arrivals.push(evaluated(4_000));
    history.arrivals.push(event("tier/upgrade-cancelled:u:m", 4_100, "1.1"));
    assert_eq!(broken(&history), [Promise::NothingLost], "it came before the change");
    history.arrivals.push(evaluated(6_000));
    history.arrivals.push(event("tier/upgrade-cancelled:u:m", 6_100, "1.1"));
    assert_eq!(broken(&history), []);
}

#[test]
fn a_call_may_come_again_until_the_event_that_follows_from_it_was_accepted() {
    const CALL: &str = "redeem_reward_with_points:r:u";
    let mut history = good();
    history.samples.clear();
    history.written.push(written(2, 5_000, &[CALL, "reward/redeemed:r"]));
    let called = |at| Arrival { kind: Kind::Call, by: None, ..event(CALL, at, "") };
    history.arrivals.extend([called(6_000), called(36_000)]);
    history.arrivals.push(event("reward/redeemed:r", 37_000, "1.2"));
    history.disturbances = vec![disturbed(Harm::Killed, Some("1.1"), 28_000, 28_000)];
    assert_eq!(broken(&history), []);

    history.arrivals.push(event("reward/redeemed:r", 7_000, "1.1"));
    history.arrivals.rotate_right(1);
    assert!(broken(&history).contains(&Promise::NothingTwice), "it was accepted long before");
}
