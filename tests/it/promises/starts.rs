//! Behaviour section 1, "Where to start".

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crm_event_processors::config::OffsetReset;
use crm_event_processors::engine::Outcome;
use crm_event_processors::engine::dispatch::backpressure::TURNOVER;
use crm_event_processors::engine::partition::metadata::{self, Log};
use crm_event_processors::engine::partition::offsets::OffsetMap;
use crm_event_processors::engine::partition::replay_index::ReplayIndex;
use jiff::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::FutureRecord;
use rdkafka::{Offset, TopicPartitionList};

use super::stage::{Gate, Stage};
use test_support::kafka::{client, create_topic, delete_before, produce, until_led};
use test_support::services::{Cluster, kafka};
use test_support::{unique, until};

fn admin() -> AdminClient<DefaultClientContext> {
    client(kafka()).create().expect("an admin client")
}

#[tokio::test]
async fn a_new_group_that_is_told_latest_begins_with_what_comes() {
    let mut stage = Stage::new(1).await;
    stage.kafka.auto_offset_reset = Some(OffsetReset::Latest);
    stage.send(&[(0, "a", "old")]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    member.until("the assignment", |seen| seen.assigned == 1).await;
    stage.send(&[(0, "a", "new")]).await;
    let seen = member.until_outcomes(1).await;
    assert_eq!(seen.outcome(0, 1), Some(Outcome::Sent));
    member.stop().await;
}

#[tokio::test]
async fn a_new_group_on_empty_topics_starts_and_a_later_partition_starts_at_its_beginning() {
    let mut stage = Stage::new(1).await;
    stage.kafka.auto_offset_reset = None;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    member.until("the assignment", |seen| seen.assigned == 1).await;
    stage.send(&[(0, "a", "1")]).await;
    stage.until_committed(0, 1).await;
    member.stop().await;

    let more = NewPartitions::new(&stage.topic, 2);
    let made = admin().create_partitions([&more], &AdminOptions::new()).await.expect("an answer");
    for result in made {
        result.expect("the partition is made");
    }
    until("the new partition", async || {
        (test_support::kafka::ends(kafka(), &stage.topic).await.len() == 2).then_some(())
    })
    .await;
    stage.send(&[(1, "b", "2"), (1, "b", "3")]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    let seen = member.until_outcomes(2).await;
    assert!(seen.outcomes.iter().all(|seen| seen.1 == 1), "{:?}", seen.outcomes);
    member.stop().await;
}

#[tokio::test]
async fn a_topic_that_appears_later_is_consumed_from_its_beginning() {
    let mut stage = Stage::new(1).await;
    stage.kafka.auto_offset_reset = Some(OffsetReset::Latest);
    let later = unique("later");
    let member =
        stage.start_on(vec![stage.topic.clone(), later.clone()], async |_| Ok(Outcome::Sent));
    member.until("the assignment", |seen| seen.assigned == 1).await;
    create_topic(kafka(), &later, 1).await;
    let first = stage.topic.clone();
    stage.topic = later.clone();
    stage.send(&[(0, "a", "1")]).await;
    let seen = member.until_outcomes(1).await;
    assert_eq!(seen.outcomes[0].0, later);
    assert_ne!(first, later);
    member.stop().await;
}

#[tokio::test]
async fn a_start_behind_retention_goes_on_at_the_earliest_and_counts_the_loss() {
    let stage = Stage::new(1).await;
    stage.send(&[(0, "a", "1"); 2]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 2).await;
    member.stop().await;
    stage.send(&[(0, "a", "1"); 6]).await;
    delete_before(kafka(), &stage.topic, 5).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    let seen = member.until_outcomes(3).await;
    assert_eq!(seen.lost, [(0, Some(3))]);
    assert_eq!(seen.outcomes[0].2, 5);
    member.stop().await;
}

#[tokio::test]
async fn a_position_that_retention_passes_while_it_runs_is_found_again_and_the_loss_counted() {
    let mut stage = Stage::new(1).await;
    // It holds one record and asks for no more until that has ended.
    stage.settings.bounds.records = 1;
    stage.send(&[(0, "a", "1"); 1]).await;
    let gate = Gate::closed();
    let script = gate.clone();
    let member = stage.start(move |_| {
        let gate = script.clone();
        async move {
            gate.pass().await;
            Ok(Outcome::Sent)
        }
    });
    gate.until_waiting(1).await;
    // Full for too long, the partition is paused, which drops what was fetched ahead.
    let full = Instant::now();
    until("the partition to be paused", async || {
        (member.pulse().read().beat > full + TURNOVER * 3).then_some(())
    })
    .await;
    stage.send(&[(0, "a", "1"); 8]).await;
    delete_before(kafka(), &stage.topic, 6).await;
    gate.open();
    let seen = member.until("the loss", |seen| !seen.lost.is_empty()).await;
    let (partition, lost) = seen.lost[0];
    assert_eq!(partition, 0);
    let seen = member.until("the last record", |seen| seen.outcome(0, 8).is_some()).await;
    assert_eq!(seen.outcomes.len() as i64 + lost.expect("a number"), 9, "each is done or counted");
    member.stop().await;
}

#[tokio::test]
async fn a_topic_that_is_made_anew_while_it_is_consumed_is_read_from_its_beginning() {
    let mut stage = Stage::new(1).await;
    // So rarely that the client does not notice the deletion.
    stage.kafka.metadata_refresh = Duration::from_secs(3_600);
    stage.send(&[(0, "a", "old"); 9]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 9).await;

    let deleted = admin().delete_topics(&[&stage.topic], &AdminOptions::new()).await;
    deleted.expect("an answer").into_iter().for_each(|topic| drop(topic.expect("it is deleted")));
    until("the topic to be recreated", async || {
        let topic = NewTopic::new(&stage.topic, 1, TopicReplication::Fixed(1));
        let made = admin().create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        made[0].is_ok().then_some(())
    })
    .await;
    until_led(kafka(), &stage.topic, 1).await;
    stage.send(&[(0, "a", "new"); 2]).await;
    let seen = member.until_outcomes(11).await;
    assert_eq!(seen.outcomes[9..].iter().map(|seen| seen.2).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(seen.lost, [(0, None)], "which is told");
    stage.until_committed(0, 2).await;
    member.stop().await;
}

/// Commits for the group while it has no member, like a daemon that saw another log.
async fn commit(stage: &Stage, offset: i64, metadata: String) {
    let (topic, group) = (stage.topic.clone(), stage.settings.group.clone());
    let committed = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            client(kafka()).set("group.id", &group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&topic, 0);
        element.set_offset(Offset::Offset(offset)).expect("an offset");
        element.set_metadata(&metadata);
        consumer.commit(&list, CommitMode::Sync).expect("the commit is taken");
    });
    committed.await.expect("it ends");
}

#[tokio::test]
async fn a_log_that_was_cut_back_goes_on_at_the_first_record_not_older_than_the_newest_finished_one()
 {
    let stage = Stage::new(1).await;
    let now = Timestamp::now().as_millisecond();
    let records = (0..5).map(|at| {
        let record = FutureRecord::to(&stage.topic).key(b"a".as_slice()).payload(b"1".as_slice());
        record.timestamp(now - 60_000 + at * 1_000)
    });
    produce(kafka(), records).await;
    // The newest that was finished was written after the third and before the fourth.
    let log = Log { newest_ms: Some(now - 60_000 + 2_500), topic: None };
    commit(&stage, 9, metadata::encode(9, log, &ReplayIndex::default(), &OffsetMap::default()))
        .await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 5).await;
    let seen = member.stop().await;
    let offsets: Vec<i64> = seen.outcomes.iter().map(|seen| seen.2).collect();
    assert_eq!(offsets, [3, 4]);
    assert_eq!(seen.lost, [(0, None)], "which is told");
}

#[tokio::test]
async fn offsets_that_a_tool_translated_mark_nothing_as_done() {
    let stage = Stage::new(1).await;
    stage.send(&[(0, "a", "1"); 8]).await;
    // These offsets are of the original's log, where all of them but the first were finished.
    let completed = OffsetMap::from_ascending(21..28);
    let text = metadata::encode(20, Log::default(), &ReplayIndex::default(), &completed);
    commit(&stage, 2, text).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 8).await;
    let seen = member.stop().await;
    let offsets: Vec<i64> = seen.outcomes.iter().map(|seen| seen.2).collect();
    assert_eq!(offsets, (2..8).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_topic_that_was_made_anew_while_nobody_looked_is_read_from_its_beginning() {
    let stage = Stage::new(1).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    // The first commit after the broker has answered with the topic's id names it.
    until("a commit that names its topic", async || {
        stage.send(&[(0, "a", "old")]).await;
        let (offset, text) = stage.committed().await.remove(&0)?;
        metadata::decode(offset, &text).ok()?.log.topic.map(|_| ())
    })
    .await;
    member.stop().await;
    let (offset, text) = stage.committed().await.remove(&0).expect("a commit");

    let deleted = admin().delete_topics(&[&stage.topic], &AdminOptions::new()).await;
    deleted.expect("an answer").into_iter().for_each(|topic| drop(topic.expect("it is deleted")));
    until("the topic to be recreated", async || {
        let topic = NewTopic::new(&stage.topic, 1, TopicReplication::Fixed(1));
        let made = admin().create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        made[0].is_ok().then_some(())
    })
    .await;
    until_led(kafka(), &stage.topic, 1).await;
    until("the group's offsets to go with the old topic", async || {
        stage.committed().await.is_empty().then_some(())
    })
    .await;
    // A late commit of the old topic's offset comes after the new records.
    let count = usize::try_from(offset).expect("a small number") + 2;
    stage.send(&vec![(0, "a", "new"); count]).await;
    commit(&stage, offset, text).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    let seen = member.until("the first of the new", |seen| seen.outcome(0, 0).is_some()).await;
    assert_eq!(seen.lost, [(0, None)], "which is told");
    member.until("the last before the old offset", |s| s.outcome(0, offset - 1).is_some()).await;
    member.stop().await;
}

/// Cuts a partition's log back to its first `records`, each a batch of its own, of a broker that is
/// down.
fn cut_back(log: &Path, records: usize) {
    let bytes = fs::read(log).expect("the log");
    let mut end = 0;
    for _ in 0..records {
        let length: [u8; 4] = bytes[end + 8..end + 12].try_into().expect("four bytes");
        end += 12 + usize::try_from(u32::from_be_bytes(length)).expect("a length");
    }
    fs::write(log, &bytes[..end]).expect("it is cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_cut_back_while_it_is_consumed_goes_on_where_it_was_cut() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::own(1)).await.expect("a broker");
    let stage = Stage::bare(cluster.bootstrap());
    create_topic(cluster.bootstrap(), &stage.topic, 1).await;
    for _ in 0..10 {
        stage.send(&[(0, "a", "1")]).await;
    }
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 10).await;
    let log = cluster.data(1).join(format!("{}-0/{:020}.log", stage.topic, 0));
    tokio::task::block_in_place(|| {
        cluster.kill(1);
        cut_back(&log, 6);
        cluster.start(1);
    });
    // More records than were cut, so that the old position lies within the log again.
    for _ in 0..8 {
        stage.send(&[(0, "a", "2")]).await;
    }
    let seen = member.until_outcomes(18).await;
    let again: Vec<i64> = seen.outcomes[10..].iter().map(|seen| seen.2).collect();
    assert_eq!(again, (6..14).collect::<Vec<_>>(), "each that came, and no other");
    assert_eq!(seen.lost, [(0, None)], "which is told");
    stage.until_committed(0, 14).await;
    member.stop().await;
}
