//! The chaos run's checker on handmade histories: good ones pass, and each broken promise is
//! recognised.

#[allow(dead_code, reason = "the run uses all of it")]
mod checker;
mod explain;
#[allow(dead_code, reason = "the run uses all of it")]
mod history;
#[allow(dead_code, reason = "the run uses all of it")]
mod plan;
#[path = "checker_tests/plans.rs"]
mod plans;
#[path = "checker_tests/tier.rs"]
mod tier;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use checker::{Bounds, Promise, Verdict, check};
use explain::Why;
use history::{Arrival, Disturbance, Effect, Harm, History, Kind, Sample, Written, called};

const BOUNDS: Bounds = Bounds {
    memory: 100,
    settle: Duration::from_secs(1),
    session: Duration::from_secs(6),
    drain: Duration::from_secs(2),
    renewal: Duration::from_secs(5),
    request: Duration::from_secs(3),
    near: Duration::from_secs(2),
};
const AWARD: &str = "currency/award:purchase:p";
const CANCEL: &str = "currency/cancelled:purchase:p";
const REVERSE: &str = "currency/reverse:purchase:p";

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
    Disturbance { harm, who, hits: None, from: ms(from), to: ms(to), text }
}

/// Requests to Inngest (events) or Supabase (calls) fail.
fn failing(harm: Harm, hits: Kind, from: u64, to: u64) -> Disturbance {
    Disturbance { hits: Some(hits), ..disturbed(harm, None, from, to) }
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

/// The promises that the checker finds broken.
fn broken(history: &History) -> Vec<Promise> {
    check(history, &BOUNDS).problems.into_keys().collect()
}

#[test]
fn what_a_member_lost_while_it_stood_still_may_come_back_to_it_at_once() {
    let mut history = good();
    history.samples = vec![sample(14_500, 2)];
    history.arrivals = vec![
        event(AWARD, 10_100, "1.1"),
        event(AWARD, 10_600, "1.1"),
        event(CANCEL, 12_100, "1.1"),
        event(REVERSE, 12_200, "1.1"),
    ];
    history.disturbances = vec![disturbed(Harm::Frozen, Some("1.1"), 3_000, 10_000)];
    assert_eq!(broken(&history), []);
    history.disturbances = vec![disturbed(Harm::Frozen, Some("1.1"), 8_000, 10_000)];
    assert_eq!(broken(&history), [Promise::NothingTwice], "its session was not over");
}

#[test]
fn a_partition_may_move_while_a_broker_is_away() {
    let mut history = good();
    history.samples = vec![sample(4_500, 2)];
    let repeat = |by| event(AWARD, 1_090, by);
    history.arrivals.push(repeat("2.1"));
    assert_eq!(broken(&history), [Promise::NothingTwice]);
    history.disturbances = vec![disturbed(Harm::Broker, None, 500, 1_200)];
    assert_eq!(broken(&history), []);
    *history.arrivals.last_mut().expect("the repeat") = repeat("1.1");
    assert_eq!(broken(&history), [Promise::NothingTwice], "it did not move");
    *history.arrivals.last_mut().expect("the repeat") = event(AWARD, 1_600, "1.1");
    assert_eq!(broken(&history), [], "it was lost and came back");
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
    assert_eq!(broken(&history), [Promise::Stores, Promise::CatchUp, Promise::Conduct]);
}

/// What explains a repeat of the award, its commit still open, under these disturbances.
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

    let lost = |hits| failing(Harm::AnswerLost, hits, 500, 1_200);
    assert_eq!(why(again(1_300), vec![lost(Kind::Event)]), Some(Why::AnswerLost));
    assert_eq!(why(again(1_300), vec![lost(Kind::Call)]), None, "Inngest answered");

    let away = disturbed(Harm::RedisAway, None, 900, 49_900);
    assert_eq!(why(again(57_000), vec![away, long_after.clone()]), Some(Why::Killed));

    let forgets = disturbed(Harm::Forgets, None, 30_000, 30_100);
    assert_eq!(why(again(57_000), vec![forgets.clone()]), None, "nothing sends it again");
    assert_eq!(why(again(57_000), vec![forgets, long_after]), Some(Why::Forgotten));
}

#[test]
fn nothing_explains_a_repeat_before_it_and_nobody_repeats_after_his_end() {
    // One member sends both copies of a state, and happens to be killed later.
    let killed = disturbed(Harm::Killed, Some("1.1"), 4_900, 4_900);
    let joined = disturbed(Harm::Joined, Some("1.1"), 0, 0);
    let twice = event(AWARD, 1_050, "1.1");
    assert_eq!(why(twice.clone(), vec![killed, joined.clone()]), None);
    let killed = |at| disturbed(Harm::Killed, Some("1.1"), at, at);
    assert_eq!(why(twice, vec![killed(1_020)]), None, "it is not there any more");
    assert_eq!(why(event(AWARD, 1_050, "2.1"), vec![killed(1_060)]), None, "only then");
    assert_eq!(why(event(AWARD, 1_050, "2.1"), vec![killed(1_020)]), Some(Why::Killed));

    // A partition that moves goes to another member, and comes back only after a while.
    let moves = vec![disturbed(Harm::Joined, Some("3.1"), 900, 900)];
    assert_eq!(why(event(AWARD, 1_800, "2.1"), moves.clone()), Some(Why::Moved));
    assert_eq!(why(event(AWARD, 1_800, "1.1"), moves.clone()), None);
    assert_eq!(why(event(AWARD, 3_100, "1.1"), moves.clone()), Some(Why::Moved));
    // A lost answer makes the sender repeat the same request, not send another one.
    let lost = vec![failing(Harm::AnswerLost, Kind::Event, 900, 2_000)];
    assert_eq!(why(event(AWARD, 1_050, "1.1"), lost), None);
    // A member that stood still may repeat what it sent before, but not everything after.
    let frozen = |to| vec![disturbed(Harm::Frozen, Some("1.1"), 500, to)];
    assert_eq!(why(event(AWARD, 1_050, "1.1"), frozen(950)), None);
    assert_eq!(why(event(AWARD, 1_050, "1.1"), frozen(1_040)), Some(Why::Frozen));
    // It was sent before the partition moved, but arrived after another one from the same member.
    let late = Arrival { begun: ms(1_000), ..event(AWARD, 3_500, "1.1") };
    let mut history = good();
    history.samples.clear();
    history.disturbances = moves;
    history.arrivals[0] = event(AWARD, 1_000, "1.1");
    history.arrivals.push(late);
    assert_eq!(broken(&history), [Promise::NothingTwice]);
}

#[test]
fn the_same_request_comes_again_only_where_its_answer_did_not() {
    let mut history = good();
    history.arrivals[0].internal = Some(7);
    let again = |at| Arrival { internal: Some(7), begun: ms(1_000), ..event(AWARD, at, "1.1") };
    history.arrivals.push(again(1_200));
    assert_eq!(broken(&history), [Promise::NothingTwice], "everything is posted twice");

    let mut check_with = |found: Vec<Disturbance>, at| {
        history.disturbances = found;
        *history.arrivals.last_mut().expect("one") = again(at);
        broken(&history).is_empty()
    };
    assert!(check_with(vec![failing(Harm::AnswerLost, Kind::Event, 900, 1_100)], 1_200));
    assert!(!check_with(vec![failing(Harm::AnswerLost, Kind::Call, 900, 1_100)], 1_200));
    assert!(!check_with(vec![failing(Harm::AnswerLost, Kind::Event, 8_000, 8_100)], 1_200));
    assert!(check_with(vec![disturbed(Harm::Frozen, Some("1.1"), 1_100, 1_900)], 1_950));
    assert!(!check_with(vec![disturbed(Harm::Frozen, Some("2.1"), 1_100, 1_900)], 1_950));
    assert!(check_with(vec![], 4_000), "it was given up");
}

#[test]
fn an_id_under_another_name_is_not_what_was_called_for() {
    assert_eq!(called("currency/award", Some(AWARD), "{}"), AWARD);
    assert_ne!(called("currency/reverse", Some(AWARD), "{}"), AWARD);
    assert_ne!(called("currency/awards", Some(AWARD), "{}"), AWARD);
    let data = json!({"source_type": "purchase", "source_id": "p"}).to_string();
    assert_eq!(called("currency/cancelled", None, &data), CANCEL);
}

#[test]
fn what_one_change_calls_for_has_no_order_and_two_changes_of_a_row_have() {
    const SIGNUP: [&str; 2] =
        ["mission/evaluate:1:referral_signup:r", "mission/evaluate:2:referral_signup:r"];
    const BOUGHT: &str = "mission/evaluate:1:referral_purchase:r";
    let mut signup = written(0, 0, &[SIGNUP[0]]);
    signup.effects.push(effect(&[SIGNUP[1]]));
    let mut history = History {
        written: vec![signup, written(1, 100, &[BOUGHT])],
        arrivals: vec![
            event(SIGNUP[1], 1_000, "1.1"),
            event(SIGNUP[0], 1_000, "1.1"),
            event(BOUGHT, 1_000, "1.1"),
        ],
        caught_up: Some(ms(500)),
        ..History::default()
    };
    assert_eq!(broken(&history), []);
    history.arrivals.swap(1, 2);
    assert_eq!(broken(&history), [Promise::Order]);
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
    assert_eq!(broken(&history), [], "a letter does not say whose it is");
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

    let mut older = history.clone();
    older.samples[2].offsets.insert(("t".to_owned(), 0), 0);
    assert_eq!(broken(&older), [], "nothing was seen by the time that it may have been sent");
    older.samples.insert(0, Sample { ..sample(20, 1) });
    older.disturbances[0].from = ms(2_030);
    older.disturbances[1].from = ms(2_030);
    assert_eq!(broken(&older), [Promise::CommitBehindOutcome, Promise::CommitGoesOn], "older");

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
fn a_call_may_come_again_until_the_event_that_follows_from_it_was_accepted() {
    const CALL: &str = "redeem_reward_with_points:r:u";
    let mut history = good();
    history.samples.clear();
    history.written.push(written(2, 5_000, &[CALL, "reward/redeemed:r"]));
    let called = |at, by| Arrival { kind: Kind::Call, ..event(CALL, at, by) };
    history.arrivals.extend([called(6_000, "1.1"), called(36_000, "1.2")]);
    history.arrivals.push(event("reward/redeemed:r", 37_000, "1.2"));
    history.disturbances = vec![disturbed(Harm::Killed, Some("1.1"), 28_000, 28_000)];
    assert_eq!(broken(&history), []);

    let mut refused = history.clone();
    refused.arrivals[4].by = Some("1.1".to_owned());
    refused.disturbances.clear();
    assert_eq!(broken(&refused), [Promise::NothingTwice]);
    refused.disturbances = vec![failing(Harm::Refused, Kind::Event, 5_900, 8_000)];
    assert_eq!(broken(&refused), [], "its event was refused, and all of it is tried again");

    history.arrivals.push(event("reward/redeemed:r", 7_000, "1.1"));
    history.arrivals.rotate_right(1);
    assert!(broken(&history).contains(&Promise::NothingTwice), "it was accepted long before");
}

#[test]
fn a_call_that_nothing_calls_for_is_found() {
    let mut history = good();
    let call = |what| Arrival { kind: Kind::Call, ..event(what, 1_000, "1.1") };
    history.arrivals.push(call("calc_currency_for_source:purchase:p"));
    assert_eq!(broken(&history), []);
    history.arrivals.push(call("apply_tier_upgrade:u:m"));
    assert_eq!(broken(&history), [Promise::NothingInvented]);
}
