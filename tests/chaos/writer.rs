//! The producer: writes the load at its pace, and at times all of it again, as a connector does
//! that lost its place.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::history::{Disturbance, Harm, Written};
use crate::load::Item;
use crate::run::{Clock, Spec};
use crate::support::kafka;

const TICK: Duration = Duration::from_millis(20);
/// Records that a replay sends before it looks up.
const BURST: usize = 500;

/// A record on its way.
pub(crate) struct Sent {
    at: Duration,
    copy: bool,
    item: Item,
    delivery: DeliveryFuture,
    /// The replay that it ended, if it ended one.
    pub(crate) replayed: Option<Disturbance>,
}

/// Writes the load. Some seconds are quiet, some bring many times the rate.
pub(crate) async fn write(
    bootstrap: &str,
    clock: Clock,
    prefix: &str,
    spec: &Spec,
    progress: &watch::Sender<usize>,
) -> Vec<Sent> {
    let producer: FutureProducer = kafka::client(bootstrap)
        // Neither doubled nor reordered while brokers come and go.
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "120000")
        .set("linger.ms", "2")
        .create()
        .expect("a producer");
    let items = &spec.load.items;
    let mut rng = Rng::with_seed(items.len() as u64);
    let mut sent: Vec<Sent> = Vec::with_capacity(items.len());
    let mut replays = spec.plan.replays.iter().copied().peekable();
    let (mut next, mut due, mut second, mut pace) = (0, 0.0, 0, 1.0);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut before = clock.now();
    while next < items.len() {
        ticks.tick().await;
        let now = clock.now();
        if now.as_secs() != second {
            second = now.as_secs();
            pace = [0.0, 0.4, 0.8, 0.8, 1.0, 3.0][rng.usize(..6)];
        }
        // A pause of this process is not made up for in one go.
        due += spec.rate * pace * (now - before).min(10 * TICK).as_secs_f64();
        before = now;
        while due >= 1.0 && next < items.len() {
            due -= 1.0;
            let item = &items[next];
            sent.push(send(&producer, prefix, clock, item, item.copy));
            next += 1;
            progress.send_replace(next);
            if replays.next_if(|at| *at <= next).is_some() {
                replay(&producer, prefix, clock, &items[..next], &mut sent).await;
            }
        }
    }
    sent
}

async fn replay(
    producer: &FutureProducer,
    prefix: &str,
    clock: Clock,
    items: &[Item],
    sent: &mut Vec<Sent>,
) {
    let (from, mut number) = (clock.now(), 0);
    for item in items.iter().filter(|item| item.replayable) {
        sent.push(send(producer, prefix, clock, item, true));
        number += 1;
        if number % BURST == 0 {
            sleep(TICK).await;
        }
    }
    let text = format!("connector sends {number} records again");
    let replayed = Disturbance { harm: Harm::Replay, who: None, from, to: clock.now(), text };
    sent.last_mut().expect("something was sent").replayed = Some(replayed);
}

fn send(producer: &FutureProducer, prefix: &str, clock: Clock, item: &Item, copy: bool) -> Sent {
    let topic = format!("{prefix}.{}", item.topic);
    let record = FutureRecord::to(&topic)
        .partition(item.partition)
        .key(item.key.as_bytes())
        .payload(item.value.as_bytes());
    let at = clock.now();
    let delivery = producer.send_result(record).map_err(|(error, _)| error);
    let delivery = delivery.expect("room in the producer's queue");
    Sent { at, copy, item: item.clone(), delivery, replayed: None }
}

/// Where everything ended up.
pub(crate) async fn acknowledged(sent: Vec<Sent>, prefix: &str) -> Vec<Written> {
    let mut written = Vec::with_capacity(sent.len());
    for Sent { at, copy, item, delivery, .. } in sent {
        let delivered = delivery.await.expect("the producer lives").map_err(|(error, _)| error);
        let delivered = delivered.expect("the brokers acknowledge");
        written.push(Written {
            topic: format!("{prefix}.{}", item.topic),
            partition: delivered.partition,
            offset: delivered.offset,
            at,
            copy,
            effects: item.effects,
            key: item.key,
            value: item.value,
        });
    }
    written
}

/// The offset behind the last record of each partition that holds any.
pub(crate) fn ends(written: &[Written]) -> BTreeMap<(String, i32), i64> {
    let mut ends = BTreeMap::new();
    for record in written {
        let end = ends.entry((record.topic.clone(), record.partition)).or_default();
        *end = (record.offset + 1).max(*end);
    }
    ends
}
