//! The dry run: what the engine would do, decided beside the group and without a trace. It joins no
//! group, commits nothing, claims nothing, sends nothing and sets nothing aside.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Consumer;
use super::group::beginnings::{Beginner, Sights, Why, partitions};
use super::group::committed::{BROKER_TIMEOUT, Name, committed};
use super::group::start::{Start, bounds_of, start};
use super::group::unbegun::reason;
use super::intake::{Route, intake};
use super::partition::offsets::Admission;
use super::partition::recognition::Recognition;
use super::partition::{Partition, Passed};
use super::settings::{Engine, EngineError};
use super::vitals::{HeldTopics, Vitals};
use crate::cdc::Record;
use crate::kafka::{self, Callbacks, GroupConsumer};

/// How often topics and partitions are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// What a look has found.
#[derive(Default)]
struct Found {
    /// Partitions that are not read yet, and where their logs end now.
    starts: Vec<(Start, i64)>,
    held: BTreeMap<String, Why>,
    /// Topics of the group, those that are held among them.
    topics: usize,
}

/// What became of the records.
#[derive(Default)]
struct Tally {
    records: u64,
    would_do: u64,
    replayed: u64,
    events: BTreeMap<&'static str, u64>,
    skipped: BTreeMap<&'static str, u64>,
    set_aside: BTreeMap<&'static str, u64>,
}

struct Shadow<'a, C: Consumer> {
    engine: &'a Engine<C>,
    client: Arc<GroupConsumer>,
    sights: Arc<Sights>,
    partitions: HashMap<Name, Partition>,
    /// Where the logs ended when they were found, for those that are not read that far yet.
    ahead: HashMap<Name, i64>,
    caught_up: bool,
    told: HashSet<String>,
    held: HeldTopics,
    tally: Tally,
}

impl<C: Consumer> Engine<C> {
    /// Decides about every record that the group has not finished, and says what it would do, until
    /// `stop` is cancelled. Starts where the group's commits stand, else where its topics would
    /// begin.
    ///
    /// # Errors
    /// When no client can be made.
    pub async fn shadow(self, stop: CancellationToken) -> Result<(), EngineError> {
        let group = &self.settings.group;
        let failed = |source| EngineError::Client { group: group.clone(), source };
        let (context, _signals) = Callbacks::new(group);
        let client =
            self.kafka.reader(group, &self.settings.properties, context).map_err(failed)?;
        let client = Arc::new(client);
        let mut shadow = Shadow {
            engine: &self,
            client: Arc::clone(&client),
            sights: Arc::default(),
            partitions: HashMap::new(),
            ahead: HashMap::new(),
            caught_up: false,
            told: HashSet::new(),
            held: HeldTopics::default(),
            tally: Tally::default(),
        };
        let mut stream = client.stream();
        let mut due = tokio::time::interval(LOOK);
        let mut look = shadow.look();
        let mut looking = true;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                found = &mut look, if looking => {
                    looking = false;
                    match found {
                        Ok(Ok(found)) => shadow.read(found).map_err(failed)?,
                        Ok(Err(error)) => tracing::warn!(consumer = self.name(), %error,
                            "where to start cannot be read, asking again"),
                        Err(_) => {}
                    }
                    shadow.beat();
                    due.reset();
                }
                _ = due.tick(), if !looking => {
                    look = shadow.look();
                    looking = true;
                }
                Some(message) = stream.next() => match message {
                    Ok(message) => shadow.on_record(&message),
                    // Connections come and go.
                    Err(error) => tracing::debug!(%error, "kafka client reports an error"),
                },
            }
        }
        shadow.tell("this would have been done");
        drop(stream);
        drop(shadow);
        self.kafka.close(client).await;
        Ok(())
    }
}

impl<C: Consumer> Shadow<'_, C> {
    fn look(&self) -> JoinHandle<KafkaResult<Found>> {
        let beginner = Beginner::new(self.engine, &self.client, HashSet::new(), &self.sights);
        let known = self.partitions.keys().cloned().collect();
        tokio::task::spawn_blocking(move || find(&beginner, &known))
    }

    /// Reads what was found, besides what is read already.
    fn read(&mut self, found: Found) -> KafkaResult<()> {
        self.tell_held(&found);
        if found.starts.is_empty() {
            return Ok(());
        }
        let never = CancellationToken::new();
        for (start, end) in found.starts {
            let name = (start.topic.clone(), start.partition);
            tracing::info!(consumer = self.engine.name(),
                messaging.destination.name = %name.0, messaging.destination.partition.id = name.1,
                messaging.kafka.offset = start.offset, committed = start.committed, end,
                lost = start.lost.map(|lost| format!("{lost:?}")), "would start here");
            if start.offset < end {
                self.ahead.insert(name.clone(), end);
            }
            self.partitions.insert(name, Partition::new(start, None, &never, Timestamp::now()));
        }
        let mut list = TopicPartitionList::with_capacity(self.partitions.len());
        for ((topic, number), partition) in &self.partitions {
            let next = Offset::Offset(partition.next_offset());
            list.add_partition_offset(topic, *number, next)?;
        }
        self.client.assign(&list)?;
        self.look_whether_caught_up();
        Ok(())
    }

    fn tell_held(&mut self, found: &Found) {
        let topics: BTreeMap<String, String> =
            found.held.iter().map(|(topic, why)| (topic.clone(), reason(topic, *why))).collect();
        for (topic, reason) in &topics {
            if self.told.insert(topic.clone()) {
                tracing::error!(consumer = self.engine.name(), "{reason}");
            }
        }
        let undecided = found.held.values().filter(|why| **why == Why::Undecided).count();
        self.held = HeldTopics { topics, all: undecided == found.topics };
    }

    /// Says that it lives, and what it may not read.
    fn beat(&self) {
        let vitals = Vitals { held: self.held.clone(), ..Vitals::idle(Instant::now()) };
        self.engine.pulse.update(vitals);
    }

    fn on_record(&mut self, message: &BorrowedMessage<'_>) {
        let name = (message.topic().to_owned(), message.partition());
        let offset = message.offset();
        let headers = kafka::headers(message);
        let headers = kafka::text_headers(&headers);
        let record = Record {
            topic: message.topic(),
            partition: message.partition(),
            offset,
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        };
        let Some(partition) = self.partitions.get_mut(&name) else { return };
        let consumer = &*self.engine.consumer;
        let intake = intake(consumer, &self.engine.settings, &record, Timestamp::now());
        let of = self.engine.settings.replay_recognition;
        let Recognition { compared, counted } =
            Recognition::new(intake.logged, record.headers, self.engine.name(), of);
        let replayed = compared.is_some_and(|logged| partition.is_replay(&logged));
        let passed = Passed { logged: counted, written: None };
        // What was done above the commit is not done again either.
        let now = Instant::now();
        if partition.admit(offset, passed, 0, now) == Admission::Fresh {
            partition.complete(offset, 0, now);
            self.decide(&record, intake.route, replayed);
        }
        if self.ahead.get(&name).is_some_and(|end| offset + 1 >= *end) {
            self.ahead.remove(&name);
            self.look_whether_caught_up();
        }
    }

    fn decide(
        &mut self,
        record: &Record<'_>,
        route: Result<Route<C::Work>, crate::cdc::DecodeError>,
        replayed: bool,
    ) {
        let consumer = self.engine.name();
        let Record { topic, partition, offset, .. } = *record;
        self.tally.records += 1;
        match route {
            Ok(Route::Skip(reason)) => {
                *self.tally.skipped.entry(reason).or_default() += 1;
                tracing::debug!(
                    consumer,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition,
                    messaging.kafka.offset = offset,
                    reason,
                    "would skip"
                );
            }
            _ if replayed => {
                self.tally.replayed += 1;
                tracing::debug!(
                    consumer,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition,
                    messaging.kafka.offset = offset,
                    "was done before"
                );
            }
            Ok(Route::Process { work, .. }) => {
                let steps = self.engine.consumer.steps(&work);
                self.tally.would_do += 1;
                for event in steps.events() {
                    *self.tally.events.entry(event).or_default() += 1;
                }
                tracing::info!(
                    consumer,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition,
                    messaging.kafka.offset = offset,
                    plan = steps.requests().collect::<Vec<_>>().join(", "),
                    "would do"
                );
            }
            Err(error) => {
                *self.tally.set_aside.entry(error.kind()).or_default() += 1;
                tracing::warn!(consumer, messaging.destination.name = topic,
                    messaging.destination.partition.id = partition,
                    messaging.kafka.offset = offset, %error,
                    "would set aside in the dead letter topic");
            }
        }
    }

    fn look_whether_caught_up(&mut self) {
        if self.ahead.is_empty() && !std::mem::replace(&mut self.caught_up, true) {
            self.tell(
                "read to the ends of its topics, going on with what comes until it is stopped",
            );
        }
    }

    fn tell(&self, what: &'static str) {
        let Tally { records, would_do, replayed, .. } = self.tally;
        tracing::info!(
            consumer = self.engine.name(),
            records,
            would_do,
            replayed,
            events = counts(&self.tally.events),
            skipped = counts(&self.tally.skipped),
            set_aside = counts(&self.tally.set_aside),
            "{what}"
        );
    }
}

/// Where the partitions that are not `known` start, where logs end, and what is held. Blocks.
fn find(beginner: &Beginner, known: &HashSet<Name>) -> KafkaResult<Found> {
    beginner.look();
    let mut found = Found { topics: beginner.topics.len(), ..Found::default() };
    for (topic, told) in &beginner.topics {
        let numbers = partitions(&beginner.client, topic).unwrap_or_default();
        let names: Vec<Name> = numbers.iter().map(|part| (topic.clone(), *part)).collect();
        let new: Vec<&Name> = names.iter().filter(|name| !known.contains(*name)).collect();
        if new.is_empty() {
            continue;
        }
        let mut places = committed(&beginner.client, &names)?;
        if places.is_empty() && new.len() == names.len() {
            let beginning = beginner.beginning(topic, &names, *told);
            match beginning.and_then(|at| beginner.places(&names, at).map_err(|_| Why::Unreachable))
            {
                Ok(begins) => {
                    places =
                        begins.into_iter().map(|(name, at)| (name, (at, String::new()))).collect();
                }
                Err(why) => {
                    found.held.insert(topic.clone(), why);
                    continue;
                }
            }
        }
        for name in new {
            let place = places.get(name);
            let log = bounds_of(&beginner.client, (topic, name.1), place, BROKER_TIMEOUT);
            // One whose leader is away is found by a later look.
            let Ok(log) = log else { continue };
            found.starts.push((start(topic, name.1, place, Some(log)), log.high));
        }
    }
    Ok(found)
}

fn counts<K: std::fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
    let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_name() {
        assert_eq!(counts(&BTreeMap::from([("a/b", 2), ("a/c", 1)])), "a/b 2, a/c 1");
    }
}
