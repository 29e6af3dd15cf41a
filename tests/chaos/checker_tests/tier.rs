//! Evaluations of members, which repeat by nature, and their upgrades.

use crate::checker::{Promise, check};
use crate::history::{Arrival, Disturbance, Harm, History, Kind};
use crate::{BOUNDS, broken, disturbed, event, failing, good, ms, sample, written};

const EVALUATE: &str = "evaluate_user_tier_status:u:m";
const CANCELLED: &str = "tier/upgrade-cancelled:u:m";
const UPGRADE: &str = "tier/upgrade:u:m";

/// A member is evaluated for two changes, each time with a scheduled upgrade.
fn evaluated() -> History {
    let change = |offset, at| {
        let mut change = written(offset, at, &[EVALUATE, CANCELLED, UPGRADE]);
        change.effects[0].fresh = true;
        change.effects[0].order = None;
        change
    };
    let mut history = History { written: vec![change(0, 0), change(1, 5_000)], ..good() };
    history.samples.clear();
    history.arrivals.clear();
    history.arrivals.extend(evaluation(1_000, "1.1"));
    history.arrivals.extend(evaluation(6_000, "1.1"));
    history
}

fn evaluation(at: u64, by: &str) -> [Arrival; 3] {
    let called = Arrival { kind: Kind::Call, ..event(EVALUATE, at, by) };
    let sent = |what, number| {
        let internal = Some(u128::from(at * 10 + number));
        Arrival { internal, ..event(what, at + 100, by) }
    };
    [called, sent(CANCELLED, 0), sent(UPGRADE, 1)]
}

#[test]
fn an_evaluation_must_come_after_the_change_that_called_for_it() {
    let mut history = evaluated();
    assert_eq!(broken(&history), []);
    history.arrivals.truncate(3);
    history.arrivals.extend(evaluation(4_000, "1.1"));
    assert_eq!(
        broken(&history),
        [Promise::NothingLost, Promise::NothingTwice],
        "before the change"
    );
}

#[test]
fn a_member_is_evaluated_once_for_each_change_unless_a_disturbance_explains_more() {
    let mut history = evaluated();
    history.arrivals.extend(evaluation(9_000, "1.1"));
    assert_eq!(broken(&history), [Promise::NothingTwice]);
    history.disturbances = vec![failing(Harm::AnswerLost, Kind::Event, 5_900, 6_100)];
    assert_eq!(broken(&history), [Promise::NothingTwice], "Supabase had answered");
    history.disturbances = vec![failing(Harm::AnswerLost, Kind::Call, 5_900, 6_100)];
    assert_eq!(broken(&history), []);

    // The evaluation may belong to the change that is not committed yet.
    let stopped = disturbed(Harm::Stopped, Some("1.1"), 6_200, 6_300);
    history.disturbances = vec![stopped];
    history.arrivals.truncate(6);
    history.arrivals.extend(evaluation(9_000, "2.1"));
    history.samples = vec![sample(6_400, 1)];
    assert_eq!(broken(&history), []);
    history.samples = vec![sample(6_400, 2)];
    assert_eq!(broken(&history), [Promise::NothingTwice]);
    history.samples.clear();

    // The repeat came first, so the other change's evaluation needs no explanation.
    history.disturbances = vec![disturbed(Harm::Killed, Some("1.1"), 1_200, 1_200)];
    history.arrivals.truncate(3);
    history.arrivals.extend(evaluation(5_500, "1.2"));
    history.arrivals.extend(evaluation(60_000, "1.2"));
    history.arrivals[0].at = ms(1_000);
    history.samples = vec![sample(50_000, 1)];
    assert_eq!(broken(&history), []);
    history.disturbances.clear();
    assert_eq!(broken(&history), [Promise::NothingTwice]);
    history.samples.clear();

    // An explained repeat is not counted against later changes.
    history.arrivals.truncate(3);
    history.arrivals.extend(evaluation(2_500, "1.1"));
    history.arrivals.extend(evaluation(6_000, "1.1"));
    history.disturbances = vec![failing(Harm::AnswerLost, Kind::Call, 900, 1_100)];
    assert_eq!(broken(&history), []);
    assert_eq!(check(&history, &BOUNDS).repeats.len(), 1);
}

#[test]
fn a_member_is_evaluated_again_while_its_upgrade_cannot_be_applied() {
    const APPLY: &str = "apply_tier_upgrade:u:m";
    let call = |what, at| Arrival { kind: Kind::Call, ..event(what, at, "1.1") };
    let mut change = written(0, 0, &[EVALUATE, CANCELLED, APPLY]);
    (change.effects[0].fresh, change.effects[0].order) = (true, None);
    let mut history = History { written: vec![change], ..good() };
    history.samples.clear();
    history.arrivals = vec![
        call(EVALUATE, 9_000),
        event(CANCELLED, 9_050, "1.1"),
        call(EVALUATE, 9_200),
        event(CANCELLED, 9_250, "1.1"),
        call(APPLY, 9_300),
    ];
    assert_eq!(broken(&history), [Promise::NothingTwice]);
    history.disturbances = vec![failing(Harm::Refused, Kind::Call, 1_000, 3_000)];
    assert_eq!(broken(&history), [], "nobody has called it since");

    let mut other = call("apply_tier_upgrade:v:m", 6_000);
    history.arrivals.push(other.clone());
    history.written.push(written(1, 0, &["apply_tier_upgrade:v:m"]));
    assert_eq!(broken(&history), [Promise::NothingTwice], "it is known to answer again");
    other.by = Some("2.1".to_owned());
    *history.arrivals.last_mut().expect("one") = other;
    assert_eq!(broken(&history), [], "to another member");
}

#[test]
fn a_cancel_may_follow_an_upgrade_at_once_only_where_its_time_could_not_be_known() {
    let mut history = evaluated();
    history.arrivals.truncate(3);
    history.written[1].at = ms(1_150);
    history.arrivals.extend(evaluation(1_300, "1.1"));
    assert_eq!(broken(&history), [Promise::Settle]);
    let mut check_with = |found: Disturbance| {
        history.disturbances = vec![found];
        broken(&history)
    };
    let joined = disturbed(Harm::Joined, Some("2.1"), 500, 500);
    assert_eq!(check_with(joined), [Promise::Settle], "a partition that moves takes it along");
    let other = disturbed(Harm::Killed, Some("2.1"), 1_200, 1_200);
    assert_eq!(check_with(other), [Promise::Settle], "another's end");
    assert_eq!(check_with(disturbed(Harm::Forgets, None, 1_200, 1_250)), []);

    // Redis may forget the member's claim while Inngest takes its time.
    let mut slow = evaluated();
    slow.arrivals.truncate(3);
    slow.written[1].at = ms(2_000);
    slow.arrivals[1].at = ms(16_000);
    slow.arrivals[2].at = ms(16_000);
    slow.arrivals.extend(evaluation(16_300, "2.1"));
    slow.disturbances = vec![disturbed(Harm::Forgets, None, 1_500, 1_500)];
    assert_eq!(broken(&slow), []);
    slow.arrivals[0].at = ms(8_400);
    assert_eq!(broken(&slow), [], "it may have been begun before that");
    slow.arrivals[0].at = ms(8_600);
    assert_eq!(broken(&slow), [Promise::Settle], "the claim was taken again by then");
    // Inngest may also take its time for the member that cancels.
    slow.arrivals[3].at = ms(1_200);
    slow.arrivals[3].by = Some("2.1".to_owned());
    slow.written[1].at = ms(1_100);
    slow.disturbances = vec![disturbed(Harm::Forgets, None, 1_500, 1_500)];
    assert!(!broken(&slow).contains(&Promise::Settle));
    assert_eq!(check_with(disturbed(Harm::Frozen, Some("1.1"), 1_150, 1_250)), []);
}
