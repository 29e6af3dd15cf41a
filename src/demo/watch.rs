//! Watches the engine: which records still lack an outcome, and what became of the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::progress::Progress;
use crate::engine::{Observed, Observer, Origin, Outcome};

/// What happened to one consumer's records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Outcomes, including those of records that came again after a kill.
    pub records: u64,
    /// Sent and accepted.
    pub sent: u64,
    /// Skipped, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Done before, within the claim window.
    pub duplicates: u64,
    /// Recognised as replays.
    pub replayed: u64,
    /// Set aside, by kind.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// Waits and repeated attempts, by reason.
    pub waits: BTreeMap<String, u64>,
    /// The time from handing a record to the broker to the acceptance of its event, for every
    /// record that led to one.
    pub latencies: Vec<Duration>,
}

/// The engine's observer, and the feeder's memory of what it fed.
#[derive(Debug)]
pub struct Watch {
    state: Mutex<State>,
    changed: Notify,
    progress: mpsc::UnboundedSender<Progress>,
}

type Place = (&'static str, Arc<str>, i32, i64);

#[derive(Debug, Default)]
struct State {
    tallies: BTreeMap<&'static str, Tally>,
    /// Fed and not finished, with the time of feeding.
    open: HashMap<Place, Instant>,
    /// Finished before the feeder learned where they were stored.
    early: HashMap<Place, (Instant, bool)>,
    /// Handed to the producer, but it is not known yet where they are stored.
    unplaced: usize,
}

impl Watch {
    /// Reports what happens to `progress`.
    #[must_use]
    pub fn new(progress: mpsc::UnboundedSender<Progress>) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), progress }
    }

    /// A record was handed to the producer.
    pub(super) fn handed(&self) {
        self.lock().unplaced += 1;
    }

    /// A record is stored, and `consumers` will get it.
    pub(super) fn placed(
        &self,
        at: Instant,
        consumers: impl Iterator<Item = &'static str>,
        (topic, partition, offset): (&Arc<str>, i32, i64),
    ) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.unplaced -= 1;
        for consumer in consumers {
            let place = (consumer, Arc::clone(topic), partition, offset);
            match state.early.remove(&place) {
                None => drop(state.open.insert(place, at)),
                Some((finished, sent)) if sent => {
                    let latency = finished.saturating_duration_since(at);
                    state.tallies.entry(consumer).or_default().latencies.push(latency);
                }
                Some(_) => {}
            }
        }
        drop(guard);
        self.changed.notify_waiters();
    }

    /// Waits until at most `most` records lack an outcome.
    pub(super) async fn at_most(&self, most: usize) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listening before looking: a change in between is not missed.
            changed.as_mut().enable();
            if self.open() <= most {
                return;
            }
            changed.await;
        }
    }

    /// Records without an outcome.
    #[must_use]
    pub fn open(&self) -> usize {
        let state = self.lock();
        state.open.len() + state.unplaced
    }

    /// What happened so far, by consumer.
    #[must_use]
    pub fn tallies(&self) -> BTreeMap<&'static str, Tally> {
        self.lock().tallies.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finished(&self, consumer: &'static str, origin: &Origin, outcome: Outcome) {
        let now = Instant::now();
        let sent = outcome == Outcome::Sent;
        let mut guard = self.lock();
        let State { tallies, open, early, .. } = &mut *guard;
        let tally = tallies.entry(consumer).or_default();
        tally.records += 1;
        match outcome {
            Outcome::Sent => tally.sent += 1,
            Outcome::Skipped(reason) => *tally.skipped.entry(reason).or_default() += 1,
            Outcome::Duplicate => tally.duplicates += 1,
            Outcome::Replayed => tally.replayed += 1,
            Outcome::DeadLettered(kind) => *tally.dead_letters.entry(kind).or_default() += 1,
        }
        let place = (consumer, Arc::clone(&origin.topic), origin.partition, origin.offset);
        match open.remove(&place) {
            Some(fed) if sent => tally.latencies.push(now.saturating_duration_since(fed)),
            Some(_) => {}
            None => drop(early.insert(place, (now, sent))),
        }
        drop(guard);
        self.changed.notify_waiters();
    }
}

impl Observer for Watch {
    fn observe(&self, consumer: &'static str, observed: &Observed<'_>) {
        let progress = match observed {
            Observed::Outcome { origin, outcome, .. } => {
                self.finished(consumer, origin, *outcome);
                Progress::Outcome { consumer, origin: (*origin).clone(), outcome: *outcome }
            }
            Observed::Retry { origin, reason } => {
                let mut state = self.lock();
                let tally = state.tallies.entry(consumer).or_default();
                *tally.waits.entry((*reason).to_owned()).or_default() += 1;
                drop(state);
                let (origin, reason) = ((*origin).clone(), (*reason).to_owned());
                Progress::Waits { consumer, origin, reason }
            }
            Observed::Lost { topic, partition, .. } => {
                Progress::Note(format!("{consumer}: records lost in {topic} {partition}"))
            }
            Observed::Rebalanced { .. } | Observed::Remarked { .. } => return,
        };
        // Nobody may be listening any more.
        drop(self.progress.send(progress));
    }
}
