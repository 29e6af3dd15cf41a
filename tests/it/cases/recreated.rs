//! A topic that is recreated under the running daemon, which is killed then.

use std::collections::BTreeMap;

use crm_event_processors::clients::redis::connect;
use crm_event_processors::fakes::{Fake, Options};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::purchases::{award_all, awards, send, until_awarded, until_committed};
use test_support::daemon::{Environment, Log};
use test_support::{kafka, services, unique, until};

/// For how long the topic is away.
#[derive(Clone, Copy, PartialEq)]
enum Gap {
    /// Too short for the client to notice.
    Short,
    /// As short, and more comes at once than the old topic held.
    ShortAndMore,
    /// Long enough for the group to take the partition away.
    Long,
}

async fn make_anew(topic: &str, gap: Gap, log: &Log) {
    let admin: AdminClient<DefaultClientContext> =
        kafka::client(services::kafka()).create().expect("an admin client");
    let deleted = admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    if gap == Gap::Long {
        log.until("partitions lost").await;
    }
    until("the topic to be recreated", async || {
        let topic = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        made[0].is_ok().then_some(())
    })
    .await;
    kafka::until_led(services::kafka(), topic, 1).await;
}

async fn made_anew(gap: Gap) {
    let (brokers, prefix, redis) = (services::kafka(), unique("recreated"), services::Redis::own());
    let fake = Fake::start(Options::default()).await.expect("a fake");
    award_all(&fake);
    let (topic, group) = (format!("{prefix}.purchase_ledger"), format!("{prefix}-currency"));
    kafka::create_topic(brokers, &topic, 1).await;
    send(&topic, 0..9).await;
    let environment = Environment::new(brokers, redis.url(), fake.url(), &prefix);
    let (daemon, log) = environment.start_logging();
    let committed = async |offset| until_committed(&group, &topic, offset).await;
    committed(9).await;
    assert_eq!(awards(&fake).len(), 9);

    make_anew(&topic, gap, &log).await;
    // From now on only the kept positions tell what was finished.
    let mut claims = connect(redis.url()).expect("a redis url");
    let () = redis::cmd("FLUSHALL").query_async(&mut claims).await.expect("emptied");
    // The connector repeats a few changes, as one does that has lost its place.
    let more = if gap == Gap::ShortAndMore { 20 } else { 12 };
    send(&topic, 7..more).await;
    let count = usize::try_from(more).expect("a small number");
    until_awarded(&fake, count).await;
    committed(i64::try_from(more - 7).expect("a small number")).await;
    daemon.kill();

    let () = redis::cmd("FLUSHALL").query_async(&mut claims).await.expect("emptied");
    send(&topic, 5..6).await;
    send(&topic, more..more + 2).await;
    let daemon = environment.start();
    until_awarded(&fake, count + 2).await;
    committed(i64::try_from(more - 7 + 3).expect("a small number")).await;
    assert!(daemon.stop().success(), "a clean stop");
    let awards = awards(&fake);
    let expected: BTreeMap<_, _> = (0..more + 2).map(|lsn| (lsn, 1)).collect();
    assert_eq!(awards, expected, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_short_gap_nothing_is_skipped_and_nothing_sent_again() {
    made_anew(Gap::Short).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_short_gap_what_lies_below_the_old_position_is_read_too() {
    made_anew(Gap::ShortAndMore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_long_gap_nothing_is_skipped_and_nothing_sent_again() {
    made_anew(Gap::Long).await;
}
