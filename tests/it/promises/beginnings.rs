//! Behaviour section 1: where a group begins with a topic in which it has committed nothing.

use std::collections::BTreeMap;

use crm_event_processors::config::{GroupProtocol, OffsetReset};
use crm_event_processors::engine::Outcome;
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::FutureRecord;
use rdkafka::{Offset, TopicPartitionList};

use super::stage::{Gate, Member, Seen, Stage};
use test_support::kafka::{client, committed, create_topic, produce};
use test_support::services::kafka;
use test_support::{unique, until};

const MINUTE: i64 = 60_000;

/// In milliseconds. Far enough back for later timestamps, but not so far that retention deletes it.
fn hour_ago() -> i64 {
    Timestamp::now().as_millisecond() - 60 * MINUTE
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).expect("a time")
}

/// The committed offsets of a topic's partitions.
async fn offsets(stage: &Stage, topic: &str) -> BTreeMap<i32, i64> {
    let committed = committed(kafka(), &stage.settings.group, topic).await;
    committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect()
}

/// Sends this many records to each partition of a topic, a second apart from `since_ms` on.
async fn fill(topic: &str, partitions: i32, records: i64, since_ms: i64) {
    const TEXT: &[u8] = b"text";
    let all = (0..partitions).flat_map(|partition| (0..records).map(move |n| (partition, n)));
    let records = all.map(|(partition, number)| {
        let time = since_ms + number * 1_000;
        FutureRecord::to(topic).partition(partition).key(TEXT).payload(TEXT).timestamp(time)
    });
    produce(kafka(), records).await;
}

/// A topic for a stage's group, with this many records in each partition.
async fn filled(partitions: i32, records: i64, since_ms: i64) -> String {
    let topic = unique("filled");
    create_topic(kafka(), &topic, partitions).await;
    fill(&topic, partitions, records, since_ms).await;
    topic
}

/// Commits like an earlier life of the group.
async fn commit(stage: &Stage, topic: &str, offsets: &[(i32, i64)]) {
    let (group, topic) = (stage.settings.group.clone(), topic.to_owned());
    let offsets = offsets.to_vec();
    let committed = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            client(kafka()).set("group.id", &group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&topic, partition, Offset::Offset(offset))
                .expect("an offset");
        }
        consumer.commit(&list, CommitMode::Sync).expect("a commit");
    });
    committed.await.expect("it is committed");
}

/// Finished records of a topic, by partition and offset.
fn done(seen: &Seen, topic: &str) -> Vec<(i32, i64)> {
    let of = seen.outcomes.iter().filter(|seen| seen.0 == topic);
    let mut done: Vec<_> = of.map(|seen| (seen.1, seen.2)).collect();
    done.sort_unstable();
    done
}

fn held(member: &Member) -> BTreeMap<String, String> {
    member.pulse().read().held.topics
}

async fn until_held(member: &Member, topics: &[&str]) {
    until("topics to be held", async || {
        let held = held(member);
        let held: Vec<&str> = held.keys().map(String::as_str).collect();
        (held == topics).then_some(())
    })
    .await;
}

async fn sent(_: super::stage::Call) -> Result<Outcome, crm_event_processors::engine::Failure> {
    Ok(Outcome::Sent)
}

async fn a_topic_without_a_decision_is_held(protocol: GroupProtocol) {
    let mut stage = Stage::new(2).await;
    stage.kafka.auto_offset_reset = None;
    stage.kafka.group_protocol = protocol;
    let old = filled(2, 3, hour_ago()).await;
    commit(&stage, &stage.topic, &[(0, 0), (1, 0)]).await;
    let member = stage.start_on(vec![old.clone(), stage.topic.clone()], sent);
    until_held(&member, &[&old]).await;
    let said = held(&member).remove(&old).expect("held");
    assert!(said.contains(&format!("set KAFKA_START_AT to {old}=earliest")), "{said}");
    assert!(!member.pulse().read().held.all, "the other topic may be read");
    stage.send(&[(0, "a", "1"), (1, "b", "2")]).await;
    fill(&old, 2, 2, hour_ago() + MINUTE).await;
    let seen = member.until_outcomes(2).await;
    assert_eq!(done(&seen, &stage.topic), [(0, 0), (1, 0)]);
    stage.until_committed(1, 1).await;
    // It stops, and starts with a decision. Everything that it left alone is still there.
    let seen = member.stop().await;
    assert_eq!(done(&seen, &old), []);
    assert!(offsets(&stage, &old).await.is_empty(), "nothing was decided");
    stage.kafka.start_at = format!("{old}=earliest").parse().expect("a decision");
    let member = stage.start_on(vec![old.clone(), stage.topic.clone()], sent);
    let seen = member.until_outcomes(10).await;
    assert_eq!(done(&seen, &old), Vec::from_iter((0..2).flat_map(|p| (0..5).map(move |o| (p, o)))));
    assert!(held(&member).is_empty());
    member.stop().await;
}

#[tokio::test]
async fn a_topic_without_a_decision_is_held_and_the_others_go_on() {
    a_topic_without_a_decision_is_held(GroupProtocol::Classic).await;
}

#[tokio::test]
async fn so_it_is_with_kip_848() {
    a_topic_without_a_decision_is_held(GroupProtocol::Consumer).await;
}

#[tokio::test]
async fn topics_begin_as_they_are_told_and_all_of_them_at_once() {
    let mut stage = Stage::new(1).await;
    let since = hour_ago();
    let first = filled(2, 4, since).await;
    let last = filled(2, 4, since).await;
    let timed = filled(2, 4, since).await;
    let later = filled(1, 4, since).await;
    let (within, behind) = (time(since + 2_500), time(since + MINUTE));
    let told = format!("{first}=earliest,{last}=latest,{timed}={within},{later}={behind}");
    stage.kafka.start_at = told.parse().expect("a decision");
    // For a topic that is not named, such as this one.
    stage.kafka.auto_offset_reset = Some(OffsetReset::Latest);
    stage.send(&[(0, "a", "old")]).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let topics = [&first, &last, &timed, &later, &stage.topic].map(Clone::clone);
    let member = stage.start_on(topics.to_vec(), move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    // Before any record has an outcome.
    gate.until_waiting(1).await;
    for (topic, begins) in [(&first, vec![0, 0]), (&last, vec![4, 4]), (&timed, vec![3, 3])]
        .into_iter()
        .chain([(&later, vec![4]), (&stage.topic, vec![1])])
    {
        let offsets = offsets(&stage, topic).await.into_values().collect::<Vec<_>>();
        assert_eq!(offsets, begins, "{topic}");
    }
    gate.open();
    let seen = member.until_outcomes(10).await;
    assert_eq!(done(&seen, &timed), [(0, 3), (1, 3)]);
    assert_eq!(done(&seen, &first).len(), 8);
    member.stop().await;
}

#[tokio::test]
async fn a_kill_before_the_first_record_does_not_hold_a_topic_again_nor_begin_it_elsewhere() {
    let mut stage = Stage::new(2).await;
    stage.kafka.auto_offset_reset = None;
    stage.kafka.session_timeout = std::time::Duration::from_secs(6);
    fill(&stage.topic, 2, 3, hour_ago()).await;
    stage.kafka.start_at = format!("{}=latest", stage.topic).parse().expect("a decision");
    let member = stage.start(sent);
    member.until("the assignment", |seen| seen.assigned == 2).await;
    member.abort();
    fill(&stage.topic, 1, 2, hour_ago() + MINUTE).await;
    stage.kafka.start_at = Default::default();
    let member = stage.start(sent);
    let seen = member.until_outcomes(2).await;
    assert_eq!(done(&seen, &stage.topic), [(0, 3), (0, 4)]);
    member.stop().await;
}

#[tokio::test]
async fn no_decision_overrides_a_commit_and_a_partition_without_one_is_new() {
    let since = hour_ago();
    for told in ["earliest".to_owned(), "latest".to_owned(), time(since + 2_500).to_string()] {
        let mut stage = Stage::new(3).await;
        stage.kafka.auto_offset_reset = Some(OffsetReset::Latest);
        fill(&stage.topic, 3, 4, since).await;
        commit(&stage, &stage.topic, &[(0, 2), (1, 4)]).await;
        stage.kafka.start_at = format!("{}={told}", stage.topic).parse().expect("a decision");
        let member = stage.start(sent);
        let seen = member.until_outcomes(6).await;
        let expected = [(0, 2), (0, 3), (2, 0), (2, 1), (2, 2), (2, 3)];
        assert_eq!(done(&seen, &stage.topic), expected, "{told}");
        member.stop().await;
    }
}

#[tokio::test]
async fn members_that_start_together_begin_a_topic_once() {
    let mut stage = Stage::new(4).await;
    stage.kafka.auto_offset_reset = None;
    stage.kafka.start_at = format!("{}=latest", stage.topic).parse().expect("a decision");
    fill(&stage.topic, 4, 3, hour_ago()).await;
    let members = [stage.start(sent), stage.start(sent)];
    until("both to have begun", async || {
        let begun = members.iter().map(|member| {
            let vitals = member.pulse().read();
            (vitals.partitions.len(), vitals.held.topics.len())
        });
        (Vec::from_iter(begun) == [(2, 0), (2, 0)]).then_some(())
    })
    .await;
    assert_eq!(Vec::from_iter(offsets(&stage, &stage.topic).await.into_values()), [3, 3, 3, 3]);
    fill(&stage.topic, 4, 2, hour_ago() + MINUTE).await;
    for partition in 0..4 {
        stage.until_committed(partition, 5).await;
    }
    let mut all = Vec::new();
    for member in members {
        all.extend(done(&member.stop().await, &stage.topic));
    }
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter((0..4).flat_map(|p| [(p, 3), (p, 4)])));
}

#[tokio::test]
async fn a_decision_that_comes_with_another_member_is_taken_by_whoever_has_the_first_partition() {
    let mut stage = Stage::new(2).await;
    stage.kafka.auto_offset_reset = None;
    fill(&stage.topic, 2, 3, hour_ago()).await;
    let undecided = stage.start(sent);
    until_held(&undecided, &[&stage.topic]).await;
    assert!(undecided.pulse().read().held.all, "nothing may be read");
    stage.kafka.start_at = format!("{}=earliest", stage.topic).parse().expect("a decision");
    let decided = stage.start(sent);
    let begins = until("the other one to begin it, or to wait", async || {
        let vitals = decided.pulse().read();
        let waits = vitals.held.topics.values().any(|why| why.contains("first partition"));
        (waits || !vitals.partitions.is_empty()).then_some(!waits)
    })
    .await;
    if begins {
        until("the undecided one to go on", async || held(&undecided).is_empty().then_some(()))
            .await;
    }
    let mut all = done(&undecided.stop().await, &stage.topic);
    for partition in 0..2 {
        stage.until_committed(partition, 3).await;
    }
    all.extend(done(&decided.stop().await, &stage.topic));
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter((0..2).flat_map(|p| (0..3).map(move |o| (p, o)))));
}

#[tokio::test]
async fn a_topic_that_appears_with_records_in_it_is_read_whole_though_nobody_has_decided() {
    let mut stage = Stage::new(1).await;
    stage.kafka.auto_offset_reset = None;
    let later = unique("later");
    let member = stage.start_on(vec![stage.topic.clone(), later.clone()], sent);
    member.until("the assignment", |seen| seen.assigned == 1).await;
    create_topic(kafka(), &later, 2).await;
    fill(&later, 2, 3, hour_ago()).await;
    let seen = member.until_outcomes(6).await;
    assert_eq!(done(&seen, &later).len(), 6);
    assert!(held(&member).is_empty());
    member.stop().await;
}

#[tokio::test]
async fn an_empty_topic_begins_at_once_so_that_a_kill_does_not_hold_what_comes_next() {
    let mut stage = Stage::new(2).await;
    stage.kafka.auto_offset_reset = None;
    stage.kafka.session_timeout = std::time::Duration::from_secs(6);
    let member = stage.start(sent);
    member.until("the assignment", |seen| seen.assigned == 2).await;
    member.abort();
    fill(&stage.topic, 2, 2, hour_ago()).await;
    let member = stage.start(sent);
    let seen = member.until_outcomes(4).await;
    assert_eq!(done(&seen, &stage.topic).len(), 4);
    member.stop().await;
}
