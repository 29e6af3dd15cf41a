//! Which disturbance explains that something came again.
//!
//! A member claims, sends, and confirms its claim once the answer came. While Redis remembers it, a
//! confirmed event is never sent again. So a repeat needs one of these: a lost answer; a sender
//! interrupted before it could confirm; or a Redis that forgot, together with a record that came
//! again. A committed record does not come again, unless a member that stood still had it in hand.
//! A connector's copy of it is recognised.

use std::collections::HashMap;
use std::time::Duration;

use crate::checker::Bounds;
use crate::history::{Arrival, Consumer, Disturbance, Harm, History, Kind, Written};

/// What a member's evaluation may end with.
const APPLY: &str = "apply_tier_upgrade:";

/// How soon, at the earliest, a member that lost its partitions can have them back.
const REJOIN: Duration = Duration::from_millis(500);

/// Why something came again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Why {
    /// Its answer came too late, so the same request, known by its seed, was sent again.
    Resent,
    /// Its answer got lost.
    AnswerLost,
    /// A later step was refused.
    Refused,
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

impl Known<'_> {
    /// Since when all of it is known to be committed.
    fn committed(&self) -> Option<Duration> {
        let all: Option<Vec<Duration>> = self.commits.iter().copied().collect();
        all?.into_iter().max()
    }

    /// Whether a function is called at the end.
    fn applies(&self) -> bool {
        self.last.is_some_and(|last| last.starts_with(APPLY))
    }
}

pub(crate) struct Explainer<'a> {
    arrivals: &'a [Arrival],
    disturbances: &'a [Disturbance],
    bounds: &'a Bounds,
    /// What is known of the record behind each name.
    records: HashMap<&'a str, Known<'a>>,
}

/// What is known of a record.
#[derive(Debug, Default, Clone)]
struct Known<'a> {
    /// For each record that calls for it, since when it was seen committed.
    commits: Vec<Option<Duration>>,
    /// Whether it has a copy that only a claim recognises.
    copied: bool,
    /// Where it and its copies lie.
    places: Vec<String>,
    /// The last thing that its record calls for after it.
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
                    known.places.push(record.location());
                    if record.copy {
                        known.copied |= !record.positioned;
                    } else {
                        known.commits.push(commits.first_above(effect.consumer, record));
                    }
                }
            }
        }
        Self { arrivals: &history.arrivals, disturbances: &history.disturbances, bounds, records }
    }

    /// Disturbances of these kinds that had begun by `by`. A later one explains nothing.
    fn of(&self, harms: &[Harm], by: Duration) -> impl Iterator<Item = &'a Disturbance> {
        let found = self.disturbances.iter();
        let found = found.filter(move |found| harms.contains(&found.harm) && found.from <= by);
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
            .committed()
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
        let (at, near) = (first.at, self.bounds.near);
        if first.internal.is_some() && first.internal == again.internal {
            return self.unanswered(first, again).then_some(Why::Resent);
        }
        let unknown = Known::default();
        let known = self.records.get(&*first.what).unwrap_or(&unknown);
        let forgotten = self.of(&[Harm::Forgets], again.at).any(|lost| at <= lost.to + near);
        let copied = known.copied || self.replayed(first, again);
        if let Some(committed) = known.committed()
            && again.begun > committed + near
        {
            // Nobody reads it again: only copies remain, and members that had it before.
            if self
                .of(&[Harm::Frozen], committed + near)
                .any(|found| found.may_have_hit(again) && again.at <= found.to + near)
            {
                return Some(Why::Frozen);
            }
            return (forgotten && copied).then_some(Why::Forgotten);
        }
        if forgotten && (copied || self.moved(at, again.at, first, again)) {
            return Some(Why::Forgotten);
        }
        // A slow answer counts as lost. Events are then repeated as the same request, unless
        // another member sends them.
        let fresh = first.kind != Kind::Event || self.returned(first, again);
        if fresh
            && self
                .of(&[Harm::AnswerLost], again.at)
                .any(|lost| lost.hits == Some(first.kind) && lost.overlaps(at, accepted, near))
        {
            return Some(Why::AnswerLost);
        }
        if first.kind == Kind::Call && self.refused(first, accepted.min(again.at), known) {
            return Some(Why::Refused);
        }
        let by_now = self.confirmed(accepted).min(again.at);
        // A member that was killed or has stopped sends nothing any more.
        let elsewhere = first.by.is_none() || first.by != again.by;
        for (harm, why) in [
            (Harm::Killed, Why::Killed),
            (Harm::Stopped, Why::Stopped),
            (Harm::Frozen, Why::Frozen),
        ] {
            if self.of(&[harm], by_now).any(|found| {
                // A member that goes on may repeat what it sent before. If its session was over, it
                // may repeat everything, and may get its partitions back at once.
                let lost = found.to - found.from >= self.bounds.session;
                let goes_on =
                    harm == Harm::Frozen && (at <= found.to || lost || self.returned(first, again));
                found.may_have_hit(first) && at <= found.to + near && (elsewhere || goes_on)
            }) {
                return Some(why);
            }
        }
        // A drain that runs out of time gives up what is in flight.
        self.moved(at, by_now, first, again).then_some(Why::Moved)
    }

    /// Whether the answer to a request may still have been missing when it was sent again.
    fn unanswered(&self, first: &Arrival, again: &Arrival) -> bool {
        let near = self.bounds.near;
        let lost = |found: &Disturbance| match found.harm {
            Harm::AnswerLost => {
                found.hits == Some(first.kind) && found.overlaps(first.at, first.at, near)
            }
            _ => found.may_have_hit(first) && found.overlaps(first.at, again.at, near),
        };
        again.at + near >= first.at + self.bounds.request
            || self.of(&[Harm::AnswerLost, Harm::Frozen], again.at).any(lost)
    }

    /// Whether what follows from a call could not be had by `until`, so that its record was tried
    /// again from the start. A function counts as away until somebody has called it with success.
    fn refused(&self, first: &Arrival, until: Duration, known: &Known<'_>) -> bool {
        let answers = |from: Duration| {
            let calls = self.arrivals.iter().filter(|call| call.what.starts_with(APPLY));
            let own = calls.filter(|call| call.by == first.by && call.at >= from);
            own.map(|call| call.at).min().unwrap_or(Duration::MAX)
        };
        self.of(&[Harm::Refused, Harm::AnswerLost], until).any(|found| {
            let to = match found.hits {
                Some(Kind::Call) => known.applies().then(|| answers(found.to)),
                _ => (found.harm == Harm::Refused).then_some(found.to),
            };
            to.is_some_and(|to| first.at <= to.saturating_add(self.bounds.near))
        })
    }

    /// Whether the partition of what arrived at `at` may have moved by `until`, so that it was
    /// given up before it could be confirmed.
    fn moved(&self, at: Duration, until: Duration, first: &Arrival, again: &Arrival) -> bool {
        let Bounds { session, drain, near, .. } = self.bounds;
        let moves = [Harm::Killed, Harm::Stopped, Harm::Frozen, Harm::Joined];
        let moved = self.of(&moves, until).any(|found| at <= found.to + *session + *drain + *near);
        // While a broker is away the group may count a member as gone and tell it late. Partitions
        // lost like this are not drained, and come back as soon as the member has joined again.
        let apart = again.begun.abs_diff(first.begun);
        let unheard = (first.by != again.by || apart >= REJOIN)
            && self.of(&[Harm::Broker], until).any(|found| at <= found.to + *near);
        (moved && self.returned(first, again)) || unheard
    }

    /// Whether a partition can have moved between the two: to another member, or, after a while,
    /// back to the same one.
    fn returned(&self, first: &Arrival, again: &Arrival) -> bool {
        let known = first.by.is_some() && again.by.is_some();
        let apart = again.begun.abs_diff(first.begun);
        !known || first.by != again.by || apart >= self.bounds.drain
    }

    /// Whether a cancel could come too soon after an upgrade, if work on both began at `begun` or
    /// later: the claim or the noted time was forgotten or out of reach, or the sender could not
    /// note it.
    pub(crate) fn unsettled(&self, begun: Duration, upgrade: &Arrival, cancel: &Arrival) -> bool {
        let near = self.bounds.near;
        let (at, until) = (upgrade.at, cancel.at);
        let hit = |found: &Disturbance| match found.harm {
            Harm::Forgets => found.overlaps(begun, until, self.bounds.renewal + near),
            Harm::RedisAway => found.overlaps(begun, until, near),
            Harm::AnswerLost => found.hits == Some(upgrade.kind) && found.overlaps(at, at, near),
            _ => found.who == upgrade.by && found.overlaps(at, until, Duration::ZERO),
        };
        let harms = [
            Harm::Forgets,
            Harm::RedisAway,
            Harm::AnswerLost,
            Harm::Killed,
            Harm::Stopped,
            Harm::Frozen,
        ];
        // What it decided before it stood still is out of date.
        let stood_still = |found: &Disturbance| {
            found.harm == Harm::Frozen && found.who == cancel.by && until <= found.to + near
        };
        self.of(&harms, until).any(|found| hit(found) || stood_still(found))
    }

    /// By when what was accepted at `at` was confirmed, if its sender was not disturbed.
    fn confirmed(&self, at: Duration) -> Duration {
        let near = self.bounds.near;
        let mut by = at + near;
        loop {
            let away = self.of(&[Harm::Forgets, Harm::RedisAway], by);
            let later = away.filter(|away| at <= away.to);
            let later = later.map(|away| away.to + near).max().unwrap_or(by);
            if later <= by {
                return by;
            }
            by = later;
        }
    }

    /// Whether a connector's copy of it may have waited behind it.
    fn replayed(&self, first: &Arrival, again: &Arrival) -> bool {
        let near = self.bounds.near;
        self.of(&[Harm::Replay], again.at).any(|found| found.overlaps(first.at, first.at, near))
    }
}

/// Since when each offset is known to lie below a commit.
struct Commits<'a>(HashMap<Partition<'a>, Vec<(i64, Duration)>>);

/// Consumer, topic and number.
type Partition<'a> = (&'a str, &'a str, i32);

impl<'a> Commits<'a> {
    fn new(history: &'a History) -> Self {
        let mut steps: HashMap<_, Vec<(i64, Duration)>> = HashMap::new();
        for sample in &history.samples {
            for ((topic, partition), next) in &sample.offsets {
                let steps = steps.entry((sample.consumer, &**topic, *partition)).or_default();
                // After a step back the records are read again, as if they had not been committed.
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
