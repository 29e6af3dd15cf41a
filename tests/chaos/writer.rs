//! The producer: writes the load at its pace, and at times all of it again, as a connector does
//! that lost its place.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::history::{Disturbance, Harm, Written};
use crate::load::{Item, full_name};
use crate::run::{Clock, Spec};
use test_support::kafka;

const TICK: Duration = Duration::from_millis(20);
/// Records that a replay sends between two pauses.
const BURST: usize = 500;

/// Records on their way.
pub(crate) struct Writing {
    /// If dropped, it would forget the records on their way.
    producer: FutureProducer,
    clock: Clock,
    prefix: String,
    sent: Vec<Sent>,
    /// When everything was sent again.
    pub(crate) replays: Vec<Disturbance>,
}

struct Sent {
    at: Duration,
    copy: bool,
    item: Item,
    delivery: DeliveryFuture,
}

/// Writes the load. Some seconds are quiet, some bring many times the rate.
pub(crate) async fn write(
    bootstrap: &str,
    clock: Clock,
    prefix: &str,
    spec: &Spec,
    progress: &watch::Sender<usize>,
) -> Writing {
    let producer: FutureProducer = kafka::client(bootstrap)
        // Neither doubled nor reordered while brokers come and go.
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "120000")
        .set("linger.ms", "2")
        .create()
        .expect("a producer");
    let items = &spec.load.items;
    let (prefix, sent) = (prefix.to_owned(), Vec::with_capacity(items.len()));
    let mut writing = Writing { producer, clock, prefix, sent, replays: Vec::new() };
    let mut rng = Rng::with_seed(items.len() as u64);
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
        // If this process pauses, the backlog is not written all at once.
        due += spec.rate * pace * (now - before).min(10 * TICK).as_secs_f64();
        before = now;
        while due >= 1.0 && next < items.len() {
            due -= 1.0;
            let item = &items[next];
            writing.send(item, item.copy);
            next += 1;
            progress.send_replace(next);
            if replays.next_if(|at| *at <= next).is_some() {
                writing.replay(&items[..next]).await;
            }
        }
    }
    writing
}

impl Writing {
    async fn replay(&mut self, items: &[Item]) {
        let (from, mut number) = (self.clock.now(), 0);
        for item in items.iter().filter(|item| item.replayable) {
            self.send(item, true);
            number += 1;
            if number % BURST == 0 {
                sleep(TICK).await;
            }
        }
        let (to, text) = (self.clock.now(), format!("connector sends {number} records again"));
        let (harm, who, hits) = (Harm::Replay, None, None);
        self.replays.push(Disturbance { harm, who, hits, from, to, text });
    }

    fn send(&mut self, item: &Item, copy: bool) {
        let topic = full_name(&self.prefix, item.topic);
        let record = FutureRecord::to(&topic)
            .partition(item.partition)
            .key(item.key.as_bytes())
            .payload(item.value.as_bytes());
        let at = self.clock.now();
        let delivery = self.producer.send_result(record).map_err(|(error, _)| error);
        let delivery = delivery.expect("room in the producer's queue");
        self.sent.push(Sent { at, copy, item: item.clone(), delivery });
    }

    /// The records with their places, once all are acknowledged.
    pub(crate) async fn acknowledged(self) -> Vec<Written> {
        let mut written = Vec::with_capacity(self.sent.len());
        for Sent { at, copy, item, delivery } in self.sent {
            let delivered = delivery.await.expect("the producer lives");
            let delivered = delivered.map_err(|(error, _)| error);
            let delivered = delivered.expect("the brokers acknowledge");
            written.push(Written {
                topic: full_name(&self.prefix, item.topic),
                partition: delivered.partition,
                offset: delivered.offset,
                at,
                copy,
                positioned: item.replayable,
                effects: item.effects,
                key: item.key,
                value: item.value,
            });
        }
        written
    }
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
