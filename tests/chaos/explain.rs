//! Which disturbance explains that something came again.
//!
//! A member claims, sends, and confirms its claim when the answer came. What was confirmed is never
//! sent again while Redis remembers it. So a repeat needs one of: an answer that got lost; a sender
//! that was interrupted before it could confirm; or a Redis that forgot, together with a record that
//! came again because its offset was not committed yet.

use std::time::Duration;

use crate::checker::Bounds;
use crate::history::{Arrival, Disturbance, Harm, History};

/// Why something came again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Why {
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
}

impl<'a> Explainer<'a> {
    pub(crate) fn new(history: &'a History, bounds: &'a Bounds) -> Self {
        Self { disturbances: &history.disturbances, bounds }
    }

    fn of(&self, harms: &[Harm]) -> impl Iterator<Item = &'a Disturbance> {
        let found = self.disturbances.iter().filter(move |found| harms.contains(&found.harm));
        found.collect::<Vec<_>>().into_iter()
    }

    /// Why what arrived first as `first` could arrive once more as `again`.
    pub(crate) fn explain(&self, first: &Arrival, again: &Arrival) -> Option<Why> {
        let (at, near) = (first.at, self.bounds.near);
        let by_now = self.confirmed(at);
        // An answer that takes long is as good as lost.
        if self.of(&[Harm::AnswerLost]).any(|lost| overlap(lost, at, at, near)) {
            return Some(Why::AnswerLost);
        }
        for (harm, why) in [
            (Harm::Killed, Why::Killed),
            (Harm::Stopped, Why::Stopped),
            (Harm::Frozen, Why::Frozen),
        ] {
            let hit = |found: &Disturbance| first.by.is_none() || found.who == first.by;
            if self.of(&[harm]).any(|found| hit(found) && overlap(found, at, by_now, near)) {
                return Some(why);
            }
        }
        if self.of(&[Harm::Forgets]).any(|lost| lost.from <= again.at && at <= lost.to + near)
            && (self.uncommitted(at) || self.copied(at))
        {
            return Some(Why::Forgotten);
        }
        // A drain that runs out of time gives up what is in flight.
        let moving = self.bounds.session + self.bounds.drain + near;
        let moves = [Harm::Killed, Harm::Stopped, Harm::Frozen, Harm::Joined];
        self.of(&moves)
            .any(|found| found.from <= by_now && at <= found.to + moving)
            .then_some(Why::Moved)
    }

    /// Whether its sender stood still shortly before: what it decided then is out of date.
    pub(crate) fn was_frozen(&self, arrival: &Arrival) -> bool {
        let near = self.bounds.near;
        self.of(&[Harm::Frozen])
            .any(|found| found.who == arrival.by && overlap(found, arrival.at, arrival.at, near))
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

    /// Whether its offset may not have been committed before its partition moved.
    fn uncommitted(&self, at: Duration) -> bool {
        let moving = self.bounds.session + self.bounds.drain + self.bounds.near;
        let harms = [Harm::Killed, Harm::Stopped, Harm::Frozen, Harm::Joined, Harm::Broker];
        self.of(&harms)
            .any(|found| found.from <= at + 2 * self.bounds.near && at <= found.to + moving)
    }

    /// Whether a copy of it may have waited behind it.
    fn copied(&self, at: Duration) -> bool {
        self.of(&[Harm::Replay]).any(|found| overlap(found, at, at, self.bounds.near))
    }
}

/// Whether a disturbance, give or take `near`, touches a span.
fn overlap(found: &Disturbance, from: Duration, to: Duration, near: Duration) -> bool {
    found.from <= to + near && from <= found.to + near
}
