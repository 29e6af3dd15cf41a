//! Contract section 1, "Where to start".

use std::time::{Duration, Instant};

use crm_event_processors::config::OffsetReset;
use crm_event_processors::engine::Outcome;
use crm_event_processors::engine::backpressure::PATIENCE;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::stage::{Gate, Stage};
use crate::support::kafka::{client, create_topic, delete_before, until_led};
use crate::support::services::kafka;
use crate::support::{unique, until};

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
        (crate::support::kafka::ends(kafka(), &stage.topic).await.len() == 2).then_some(())
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
    // Full for longer than its patience it pauses, which throws away what was fetched ahead.
    let full = Instant::now();
    until("the partition to be paused", async || {
        (member.pulse().read().beat > full + PATIENCE * 3).then_some(())
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
    // The client hears nothing of the deletion.
    stage.kafka.metadata_refresh = Duration::from_secs(3_600);
    stage.send(&[(0, "a", "old"); 9]).await;
    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, 9).await;

    let deleted = admin().delete_topics(&[&stage.topic], &AdminOptions::new()).await;
    deleted.expect("an answer").into_iter().for_each(|topic| drop(topic.expect("it is deleted")));
    until("the topic to be made anew", async || {
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
