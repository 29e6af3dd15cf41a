//! Which disturbance explains that something came again.
//!
//! A member claims, sends, and confirms its claim when the answer came. What was confirmed is never
//! sent again while Redis remembers it. So a repeat needs one of: an answer that got lost; a sender
//! that was interrupted before it could confirm; or a Redis that forgot, together with a record that
//! came again. What was committed does not come again, unless somebody who stood still had it in hand,
//! and a connector's copy of it is known for one.

use std::collections::HashMap;
use std::time::Duration;

use crate::checker::Bounds;
use crate::history::{Arrival, Consumer, Disturbance, Harm, History, Written};

/// Why something came again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Why {
    /// The very same request came again, which Inngest knows by its seed: its answer came too late.
    Resent,
    /// Its answer got lost.
    AnswerLost,
    /// Its sender was killed before it could confirm.
    Killed,
    /// Its sender was stopped before it could confirm.
    Stopped,
    /// Its sender stood still before it could confirm.
    Frozen,
    /// Its partition moved before its sender could confirm.
    Moved,
    /// Redis forgot it before it was committed.
    Forgotten,
}

pub(crate) struct Explainer<'a> {
    disturbances: &'a [Disturbance],
    bounds: &'a Bounds,
    /// What is known of the record behind each name.
    records: HashMap<&'a str, Known<'a>>,
}

/// What is known of a record.
#[derive(Debug, Default, Clone)]
struct Known<'a> {
    /// Since when it was seen that it had been committed.
    committed: Option<Duration>,
    /// Whether there is a copy of it that nothing but a claim recognises.
    copied: bool,
    /// Where it and its copies lie.
    places: Vec<String>,
    /// The last thing that it calls for, after the one by this name.
    last: Option<&'a str>,
}

impl<'a> Explainer<'a> {
    pub(crate) fn new(history: &'a History, bounds: &'a Bounds) -> Self {
        let commits = Commits::new(history);
        let mut records: HashMap<&str, Known<'_>> = HashMap::new();
        for record in &history.written {
            for effect in &record.effects {
                for name in &effect.chain {
                    let known = records.entry(name).or_default();
                    known.last =
                        effect.chain.last().filter(|last| *last != name).map(|last| &**last);
                    known.places.push(record.place());
                    if record.copy {
                        known.copied |= !record.positioned;
                    } else {
                        known.committed = commits.first_above(effect.consumer, record);
                    }
                }
            }
        }
        Self { disturbances: &history.disturbances, bounds, records }
    }

    fn of(&self, harms: &[Harm]) -> impl Iterator<Item = &'a Disturbance> {
        let found = self.disturbances.iter().filter(move |found| harms.contains(&found.harm));
        found.collect::<Vec<_>>().into_iter()
    }

    /// The last thing that follows from what is called `name`, where more than one does.
    pub(crate) fn last_of(&self, name: &str) -> Option<&'a str> {
        self.records.get(name).and_then(|known| known.last)
    }

    /// What is known of the record behind a name, in words.
    pub(crate) fn describe(&self, name: &str) -> String {
        let Some(known) = self.records.get(name) else {
            return "called for by no record".to_owned();
        };
        let committed = known
            .committed
            .map_or("never".to_owned(), |at| format!("since {:.3} s", at.as_secs_f64()));
        format!("written to {}, seen committed {committed}", known.places.join(", "))
    }

    /// Why what arrived first as `first` could arrive once more as `again`, although what it led to
    /// was accepted at `accepted`.
    pub(crate) fn explain(
        &self,
        first: &Arrival,
        accepted: Duration,
        again: &Arrival,
    ) -> Option<Why> {
        if first.internal.is_some() && first.internal == again.internal {
            return Some(Why::Resent);
        }
        let (at, near) = (first.at, self.bounds.near);
        let unknown = Known::default();
        let known = self.records.get(&*first.what).unwrap_or(&unknown);
        let forgotten =
            self.of(&[Harm::Forgets]).any(|lost| lost.from <= again.at && at <= lost.to + near);
        if let Some(committed) = known.committed
            && again.begun > committed + near
        {
            // Nobody gets it from there any more: only who had it before, and copies of it.
            if self.of(&[Harm::Frozen]).any(|found| {
                found.may_have_hit(again)
                    && found.from <= committed + near
                    && again.at <= found.to + near
            }) {
                return Some(Why::Frozen);
            }
            let copied = known.copied || self.replayed(at);
            return (forgotten && copied).then_some(Why::Forgotten);
        }
        let moving = self.bounds.session + self.bounds.drain + near;
        let moves = [Harm::Killed, Harm::Stopped, Harm::Frozen, Harm::Joined];
        let moved = |until: Duration| {
            self.of(&moves).any(|found| found.from <= until && at <= found.to + moving)
        };
        if forgotten && (moved(again.at) || known.copied || self.replayed(at)) {
            return Some(Why::Forgotten);
        }
        // An answer that takes long is as good as lost.
        if self.of(&[Harm::AnswerLost]).any(|lost| lost.overlaps(at, accepted, near)) {
            return Some(Why::AnswerLost);
        }
        let by_now = self.confirmed(accepted);
        for (harm, why) in [
            (Harm::Killed, Why::Killed),
            (Harm::Stopped, Why::Stopped),
            (Harm::Frozen, Why::Frozen),
        ] {
            if self
                .of(&[harm])
                .any(|found| found.may_have_hit(first) && found.overlaps(at, by_now, near))
            {
                return Some(why);
            }
        }
        // A drain that runs out of time gives up what is in flight.
        moved(by_now).then_some(Why::Moved)
    }

    /// Whether its sender stood still shortly before: what it decided then is out of date.
    pub(crate) fn was_frozen(&self, arrival: &Arrival) -> bool {
        let near = self.bounds.near;
        self.of(&[Harm::Frozen])
            .any(|found| found.who == arrival.by && found.overlaps(arrival.at, arrival.at, near))
    }

    /// By when what was accepted at `at` was confirmed, if nothing happened to its sender.
    fn confirmed(&self, at: Duration) -> Duration {
        let near = self.bounds.near;
        let mut by = at + near;
        loop {
            let away = self.of(&[Harm::Forgets, Harm::RedisAway]);
            let later = away.filter(|away| away.from <= by && at <= away.to);
            let later = later.map(|away| away.to + near).max().unwrap_or(by);
            if later <= by {
                return by;
            }
            by = later;
        }
    }

    /// Whether a connector's copy of it may have waited behind it.
    fn replayed(&self, at: Duration) -> bool {
        self.of(&[Harm::Replay]).any(|found| found.overlaps(at, at, self.bounds.near))
    }
}

/// Since when each offset was seen below a commit.
struct Commits<'a>(HashMap<Partition<'a>, Vec<(i64, Duration)>>);

/// Consumer, topic and number.
type Partition<'a> = (&'a str, &'a str, i32);

impl<'a> Commits<'a> {
    fn new(history: &'a History) -> Self {
        let mut steps: HashMap<_, Vec<(i64, Duration)>> = HashMap::new();
        for sample in &history.samples {
            for ((topic, partition), next) in &sample.offsets {
                let steps = steps.entry((sample.consumer, &**topic, *partition)).or_default();
                // What went back is read again from there: as if it had not been committed before.
                steps.retain(|(before, _)| before <= next);
                if steps.last().is_none_or(|(before, _)| before < next) {
                    steps.push((*next, sample.answered));
                }
            }
        }
        Self(steps)
    }

    fn first_above(&self, consumer: Consumer, record: &Written) -> Option<Duration> {
        let steps = self.0.get(&(consumer, &*record.topic, record.partition))?;
        let above = steps.partition_point(|(next, _)| *next <= record.offset);
        steps.get(above).map(|(_, seen)| *seen)
    }
}
