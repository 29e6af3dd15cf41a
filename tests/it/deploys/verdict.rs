//! What must hold of a deploy, judged by the fake's log, the members' logs and the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use crm_event_processors::engine::partition::metadata;
use crm_event_processors::fakes::Log;

use super::fleet::{Fleet, Turn, shares};
use super::rolling::{Deploy, Step, sender};
use super::traffic::{Asked, Sent, Spot, Stream, name_of, spot_of};
use test_support::kafka;

/// Exactly the events that were called for arrived, each once, and those of one key in order.
pub(super) fn each_once_and_in_order(deploy: &Deploy, log: &Log) {
    let arrived: Vec<String> = log.events.iter().map(name_of).collect();
    let position: BTreeMap<&str, usize> =
        arrived.iter().enumerate().map(|(at, name)| (&**name, at)).collect();
    assert_eq!(position.len(), arrived.len(), "repeats: {:?}", repeated(&arrived));

    let called_for: BTreeSet<&str> =
        deploy.sent.iter().flat_map(|sent| &sent.events).map(|event| &**event).collect();
    let lost: Vec<_> = called_for.iter().filter(|event| !position.contains_key(**event)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let extra: Vec<_> = position.keys().filter(|event| !called_for.contains(**event)).collect();
    assert!(extra.is_empty(), "nothing calls for {extra:?}");

    let mut lanes: BTreeMap<(Spot, &str), Vec<&str>> = BTreeMap::new();
    for Sent { spot, lane, events } in &deploy.sent {
        lanes.entry((*spot, lane)).or_default().extend(events.iter().map(|event| &**event));
    }
    for (lane, events) in lanes {
        assert!(events.is_sorted_by_key(|event| position[event]), "{lane:?} out of order");
    }
}

fn repeated(names: &[String]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    names.iter().filter(|name| !seen.insert(*name)).map(|name| &**name).collect()
}

/// The currency of each purchase was asked for once.
pub(super) fn each_asked_once(deploy: &Deploy, asked: &Asked) {
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let more: Vec<_> = asked.iter().filter(|(_, times)| **times != 1).collect();
    assert!(more.is_empty(), "asked for again: {more:?}");
    let awards = deploy.sent.iter().filter(|sent| sent.events[0].starts_with("currency/award"));
    assert_eq!(asked.len(), awards.count());
}

/// Each owner gave its partition up with all finished work committed, and the next one started
/// right there. Everything below is finished, no more and no less.
pub(super) fn handed_over_where_it_was_done(deploy: &Deploy, turns: &[Turn], log: &Log) {
    let lasts: BTreeSet<&str> =
        deploy.sent.iter().filter_map(|sent| sent.events.last()).map(|event| &**event).collect();
    // Who finished each record, in order.
    let mut finished: BTreeMap<Spot, Vec<&str>> = BTreeMap::new();
    for event in &log.events {
        let name = name_of(event);
        if lasts.contains(&*name) {
            finished.entry(spot_of(&name)).or_default().push(sender(log, event.post));
        }
    }
    for (spot, place) in deploy.spots() {
        let by = &finished[&spot];
        let own: Vec<&Turn> = turns.iter().filter(|turn| turn.place == place).collect();
        let (tenures, rest) = own.as_chunks::<2>();
        assert!(rest.is_empty(), "{place:?} was never given up");
        let mut done = (0, 0);
        let mut count = 0;
        for [taken, given] in tenures {
            assert!(taken.taken && !given.taken && taken.member == given.member, "{own:?}");
            assert_eq!((taken.offset, taken.completed), done, "{place:?} by {}", taken.member);
            done = (given.offset, given.completed);
            let until = usize::try_from(given.offset + given.completed).expect("a number");
            let (owner, during) = (&taken.member, &by[count..until]);
            assert!(during.iter().all(|member| member == owner), "{place:?} by {owner}");
            count = until;
        }
        assert_eq!(count, by.len(), "all of {place:?}");
    }
}

/// The group has committed the end of every partition, and nothing above it.
pub(super) async fn committed_is_what_was_read(brokers: &str, deploy: &Deploy) {
    for (group, stream) in deploy.groups().iter().zip([Stream::Purchases, Stream::Orders]) {
        let topic = deploy.topic(stream);
        let ends = kafka::ends(brokers, &topic).await;
        let committed = kafka::committed(brokers, group, &topic).await;
        let sent = deploy.sent.iter().filter(|sent| sent.spot.0 == stream).count();
        assert_eq!(usize::try_from(ends.values().sum::<i64>()).expect("a number"), sent);
        for (partition, end) in ends {
            let (offset, text) = &committed[&partition];
            assert_eq!(*offset, end, "{topic} {partition}");
            let completed = metadata::decode(*offset, text).expect("own metadata").completed;
            assert!(completed.runs().is_empty(), "{topic} {partition}");
        }
    }
}

/// No member logged a problem.
pub(super) fn quiet(fleet: &Fleet) {
    // A commit that meets a rebalance is refused by the broker.
    const COMMIT_REFUSED: &str = "offsets not committed, will be committed again";
    let lines = fleet.lines();
    let alarming = |line: &serde_json::Value| {
        let ours = line["target"].as_str().is_none_or(|target| target != "librdkafka");
        ours && line["level"] != "INFO"
            && line["level"] != "DEBUG"
            && line["message"] != COMMIT_REFUSED
    };
    let alarms: Vec<_> = lines.iter().filter(|(_, line)| alarming(line)).collect();
    assert!(alarms.is_empty(), "{alarms:?}");
}

/// In each step the members that stay give up no more than an even share asks for, and nothing that
/// they get back.
pub(super) fn only_what_must_moves(deploy: &Deploy, turns: &[Turn]) {
    for step in &deploy.steps {
        let stay: BTreeSet<String> =
            step.members_before.intersection(&step.members_after).cloned().collect();
        for turn in turns[step.turns.clone()].iter().filter(|turn| !turn.taken) {
            let back = step.after.get(&turn.place) == Some(&turn.member);
            assert!(!back, "{} lost {:?} and got it back", turn.member, turn.place);
        }
        for group in deploy.groups() {
            let moved = moved(step, &group, &stay);
            assert_eq!(moved, needed(step, &group, &stay), "{}: {group}", step.what);
        }
    }
}

/// How many partitions the members that stay have given up.
pub(super) fn moved(step: &Step, group: &str, stay: &BTreeSet<String>) -> usize {
    let moved = step.before.iter().filter(|(place, owner)| {
        place.0 == group && stay.contains(*owner) && step.after.get(*place) != Some(*owner)
    });
    moved.count()
}

/// How many they must give up: what each has above its share of an even distribution, where those
/// with most keep the larger shares.
fn needed(step: &Step, group: &str, stay: &BTreeSet<String>) -> usize {
    let mut have: Vec<usize> = shares(&step.before, group, stay).into_values().collect();
    have.sort_unstable_by(|a, b| b.cmp(a));
    let all = step.after.keys().filter(|place| place.0 == group).count();
    let members = step.members_after.len();
    let (share, larger) = (all / members, all % members);
    let targets = (0..have.len()).map(|rank| share + usize::from(rank < larger));
    have.iter().zip(targets).map(|(have, target)| have.saturating_sub(target)).sum()
}
