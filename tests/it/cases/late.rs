//! A change that the broker first refused as too large, and takes later: after the changes behind
//! it were finished.

use std::collections::BTreeMap;

use crm_event_processors::clients::redis::connect;
use crm_event_processors::fakes::{Fake, Options};
use jiff::Timestamp;

use super::purchases::{award_all, awards, commit_us, send, until_committed};
use test_support::daemon::Environment;
use test_support::{kafka, services, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_comes_late_is_handled_where_its_time_is_named_and_no_other_is_again() {
    let (brokers, prefix, redis) = (services::kafka(), unique("late"), services::Redis::own());
    let fake = Fake::start(Options::default()).await.expect("a fake");
    award_all(&fake);
    let topic = format!("{prefix}.purchase_ledger");
    kafka::create_topic(brokers, &topic, 1).await;
    let committed =
        async |offset| until_committed(&format!("{prefix}-currency"), &topic, offset).await;
    let environment = Environment::new(brokers, redis.url(), fake.url(), &prefix);
    send(&topic, [0, 1, 4, 5]).await;
    let daemon = environment.start();
    committed(4).await;

    // The connector resumes before the first change that was refused.
    let mut claims = connect(redis.url()).expect("a redis url");
    let () = redis::cmd("FLUSHALL").query_async(&mut claims).await.expect("emptied");
    send(&topic, [1, 2]).await;
    committed(6).await;
    assert!(daemon.stop().success(), "a clean stop");
    assert_eq!(awards(&fake).get(&2), None, "it looks like a replay");

    let time = |lsn| Timestamp::from_microsecond(commit_us(lsn)).expect("a time");
    let span = format!("{}..{}", time(3), time(4));
    let daemon = environment.with("REPLAY_RECOGNITION", &span).start();
    send(&topic, [1, 3, 4, 5, 6]).await;
    committed(11).await;
    assert!(daemon.stop().success(), "a clean stop");
    let expected = BTreeMap::from([(0, 1), (1, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
    assert_eq!(awards(&fake), expected);
}
