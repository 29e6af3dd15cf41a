//! What the groups have committed, asked again and again from outside.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::history::{Consumer, Sample};
use crate::run::Clock;
use test_support::{kafka, until};

const PAUSE: Duration = Duration::from_millis(200);
/// The fewest answers of each group that a run needs.
const FEWEST: usize = 10;
/// For one answer; a group whose coordinator is away is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A group to query.
pub(crate) struct Group {
    pub(crate) consumer: Consumer,
    pub(crate) id: String,
    /// Topics with their numbers of partitions.
    pub(crate) topics: Vec<(String, i32)>,
}

/// Queries the groups on a thread of its own until [`Self::finish`].
pub(crate) struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    groups: Vec<(Consumer, Vec<String>)>,
}

impl Sampler {
    pub(crate) fn start(bootstrap: &str, clock: Clock, groups: Vec<Group>) -> Self {
        let (samples, done) = (Arc::<Mutex<Vec<Sample>>>::default(), Arc::<AtomicBool>::default());
        let names = |group: &Group| {
            (group.consumer, group.topics.iter().map(|(topic, _)| topic.clone()).collect())
        };
        let known = groups.iter().map(names).collect();
        let (into, stop, bootstrap) =
            (Arc::clone(&samples), Arc::clone(&done), bootstrap.to_owned());
        let thread = thread::spawn(move || {
            let client = |group: &Group| -> BaseConsumer {
                // It never subscribes, so it never becomes a member.
                kafka::client(&bootstrap).set("group.id", &group.id).create().expect("a client")
            };
            let clients: Vec<BaseConsumer> = groups.iter().map(client).collect();
            while !stop.load(Ordering::Relaxed) {
                for (group, client) in groups.iter().zip(&clients) {
                    if let Some(sample) = ask(group, client, clock) {
                        into.lock().expect("not poisoned").push(sample);
                    }
                }
                thread::sleep(PAUSE);
            }
        });
        Self { samples, done, thread, groups: known }
    }

    /// Whether every group was seen, after `since`, with everything committed.
    pub(crate) fn caught_up(&self, ends: &BTreeMap<(String, i32), i64>, since: Duration) -> bool {
        let samples = self.samples.lock().expect("not poisoned");
        self.groups.iter().all(|(consumer, topics)| {
            let last = samples.iter().rev().find(|sample| sample.consumer == *consumer);
            last.is_some_and(|sample| {
                sample.asked >= since
                    && ends.iter().filter(|((topic, _), _)| topics.contains(topic)).all(
                        |(place, end)| sample.offsets.get(place).is_some_and(|next| next >= end),
                    )
            })
        })
    }

    /// What groups had not committed when last seen.
    pub(crate) fn behind(&self, ends: &BTreeMap<(String, i32), i64>) -> Vec<String> {
        let samples = self.samples.lock().expect("not poisoned");
        let mut behind = Vec::new();
        for (consumer, topics) in &self.groups {
            let last = samples.iter().rev().find(|sample| sample.consumer == *consumer);
            for (place, end) in ends.iter().filter(|((topic, _), _)| topics.contains(topic)) {
                let next = last.and_then(|sample| sample.offsets.get(place)).copied();
                if next.is_none_or(|next| next < *end) {
                    let (topic, partition) = place;
                    behind.push(format!(
                        "{consumer} has committed {next:?} of {end} in {topic}/{partition}"
                    ));
                }
            }
        }
        behind
    }

    /// All answers, with one of every group after `since`; and the groups that answered too seldom
    /// to judge them.
    pub(crate) async fn finish(self, since: Duration) -> (Vec<Sample>, Vec<String>) {
        until("a last look at the offsets", async || {
            let samples = self.samples.lock().expect("not poisoned");
            let seen = |consumer| {
                samples.iter().any(|sample| sample.consumer == consumer && sample.asked >= since)
            };
            self.groups.iter().all(|(consumer, _)| seen(*consumer)).then_some(())
        })
        .await;
        self.done.store(true, Ordering::Relaxed);
        let thread = self.thread;
        tokio::task::spawn_blocking(move || thread.join().expect("the sampler ends"))
            .await
            .expect("the sampler ends");
        let samples = std::mem::take(&mut *self.samples.lock().expect("not poisoned"));
        let of = |consumer| samples.iter().filter(|sample| sample.consumer == consumer).count();
        let counts = self.groups.iter().map(|(consumer, _)| (*consumer, of(*consumer)));
        let few = counts.filter(|(_, count)| *count < FEWEST);
        let few = few.map(|(consumer, count)| format!("{consumer}'s offsets seen {count} times"));
        let few = few.collect();
        (samples, few)
    }
}

fn ask(group: &Group, client: &BaseConsumer, clock: Clock) -> Option<Sample> {
    let mut list = TopicPartitionList::new();
    for (topic, partitions) in &group.topics {
        for partition in 0..*partitions {
            list.add_partition(topic, partition);
        }
    }
    let asked = clock.now();
    let answer = client.committed_offsets(list, ANSWER_WITHIN).ok()?;
    let answered = clock.now();
    let elements = answer.elements();
    let offsets = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(next) => Some(((element.topic().to_owned(), element.partition()), next)),
        _ => None,
    });
    Some(Sample { consumer: group.consumer, asked, answered, offsets: offsets.collect() })
}
