//! What actions are run by: a consumer that reads changes of one kind and has a few actions carry them out.
//!
//! The actions of one group share its offsets. Each that keeps state or calls out has a group, and so an
//! [`Acting`], of its own.

mod batch;
mod expirations;
mod expire;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use self::batch::{Applying, apply_all};
use self::expirations::Expirations;
use super::actions::{Action, Configured, Group, Item, Parts, Repeats};
use super::row::RowChange;
use crate::cdc::{Change, DecodeError};
use crate::clients::SetupError;
use crate::consumers::call::outcome;
use crate::consumers::entry::Branch;
use crate::engine::dispatch::permits::Urgency;
use crate::engine::{
    Batched, Consumer, Context, Failure, Lane, Once, Outcome, Route, Sends, Step, Steps, Taken,
};
use crate::metric_names::KESSEL_EVENTS;

/// Reads changes of one kind.
pub trait Source: Clone + Send + Sync + 'static {
    /// What a change means, or a stable label for why it means nothing.
    ///
    /// # Errors
    /// When a column that the meaning rests on is missing or holds something unexpected.
    fn read(&self, change: &Change<'_>) -> Result<Result<Item, &'static str>, DecodeError>;

    /// What is done in order: changes with the same lane.
    fn lane(item: &Item) -> Lane;
}

/// Runs some actions on what a source reads.
pub struct Acting<S> {
    source: S,
    /// Those that take repeats first: where one of them fails, the others have not begun.
    actions: Vec<Running>,
    /// `None` where no action asks for them, or Redis is not set.
    expirations: Option<Expirations>,
    namespaces: Namespaces,
}

/// An action, and what it was configured with.
struct Running {
    configured: Configured,
    action: Arc<dyn Action>,
}

impl<S: Source> Acting<S> {
    /// Runs those of `configured` that run in the consumer's own group.
    ///
    /// # Errors
    /// When an action cannot be built.
    pub fn shared(
        source: S,
        configured: Vec<Configured>,
        parts: &Parts<'_>,
    ) -> Result<Self, SetupError> {
        let shared = configured.into_iter().filter(|it| it.kind.group == Group::Consumers);
        let group = parts.shared.settings.kafka.group_of(parts.spec.name);
        Self::new(source, shared.collect(), parts, &group)
    }

    /// Runs each of the others in a group of its own.
    ///
    /// # Errors
    /// When an action cannot be built.
    pub fn branches(
        source: &S,
        configured: Vec<Configured>,
        parts: &Parts<'_>,
    ) -> Result<Vec<Branch>, SetupError> {
        let group = parts.shared.settings.kafka.group_of(parts.spec.name);
        let own = configured.into_iter().filter(|it| it.kind.group != Group::Consumers);
        own.map(|configured| {
            let (name, start) = (configured.name.clone(), configured.start);
            let takes_replays = configured.kind.keeps_state;
            let group = format!("{group}-{name}");
            let consumer = Self::new(source.clone(), vec![configured], parts, &group)?;
            let consumer = Arc::new(consumer);
            Ok(Branch { name, start, takes_replays, consumer })
        })
        .collect()
    }

    fn new(
        source: S,
        configured: Vec<Configured>,
        parts: &Parts<'_>,
        group: &str,
    ) -> Result<Self, SetupError> {
        let running = configured.into_iter().map(|configured| {
            let action = (configured.kind.build)(&configured, parts)?;
            Ok(Running { configured, action })
        });
        let mut actions = running.collect::<Result<Vec<_>, SetupError>>()?;
        actions.sort_by_key(|running| running.configured.kind.repeats);
        let expire = actions.iter().any(|running| running.configured.kind.expires);
        let expirations = if expire { expire::expirations(parts.shared, group) } else { None };
        Ok(Self { source, actions, expirations, namespaces: Namespaces::default() })
    }

    fn takers<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = &'a Running> {
        self.actions.iter().filter(|running| running.configured.takes(item))
    }

    /// How careful the most careful of the actions is that take a change.
    fn repeats(&self, item: &Item) -> Repeats {
        let repeats = self.takers(item).map(|running| running.configured.kind.repeats);
        repeats.max().unwrap_or(Repeats::Harmless)
    }

    /// Where the end of a row is noted, if `item` ends one that expires.
    fn ended_in<'a>(&'a self, item: &'a Item) -> Option<(&'a Expirations, &'a RowChange)> {
        let Item::Row(change) = item;
        let expirations = self.expirations.as_ref()?;
        change.ends_what_expires().then_some((expirations, change))
    }

    /// Has every action carry out one change that takes it, and notes when its row expires or that it has
    /// ended.
    async fn carry_out(&self, cx: &Context, item: &Item) -> Result<(), Failure> {
        let Item::Row(change) = item;
        if let Some(expirations) = self.expirations.as_ref().filter(|_| change.will_expire()) {
            expirations.schedule(&[change], Timestamp::now()).await?;
        }
        self.act(cx, item).await?;
        match self.ended_in(item) {
            Some((expirations, change)) => expirations.end(change, Timestamp::now()).await,
            None => Ok(()),
        }
    }

    /// Has every action carry out one change that takes it.
    async fn act(&self, cx: &Context, item: &Item) -> Result<(), Failure> {
        for running in self.takers(item) {
            cx.step(Taken::Action(&running.configured.name));
            let breaker = running.action.breaker();
            let _permit = match running.configured.kind.repeats {
                Repeats::Alone => Some(cx.permit(Urgency::One).await?),
                _ => None,
            };
            let applied = running.action.apply(&[item]);
            let mut applied = match breaker {
                Some(breaker) => cx.unless_given_up(breaker, applied).await?,
                None => applied.await,
            };
            applied
                .pop()
                .unwrap_or(Err(Failure::Alone))
                .map_err(|failure| running.name(failure))?;
            if let Some(breaker) = breaker {
                cx.served(breaker, 1);
            }
            self.count(item, running);
        }
        Ok(())
    }

    fn count(&self, item: &Item, running: &Running) {
        let namespace = self.namespaces.label(item.namespace());
        let action = running.configured.name.clone();
        metrics::counter!(KESSEL_EVENTS, "operation" => item.operation(),
            "namespace" => namespace, "action" => action)
        .increment(1);
    }
}

impl Running {
    /// Names the action in what a dead letter says.
    fn name(&self, failure: Failure) -> Failure {
        let named = |message: String| format!("action {}: {message}", self.configured.name);
        match failure {
            Failure::Poison { kind, message } => Failure::Poison { kind, message: named(message) },
            Failure::Refused { kind, message, retries } => {
                Failure::Refused { kind, message: named(message), retries }
            }
            Failure::Suspect { breaker, kind, message } => {
                Failure::Suspect { breaker, kind, message: named(message) }
            }
            failure => failure,
        }
    }
}

/// The types that have a label of their own. A store may have any number of them, and labels must not.
#[derive(Default)]
struct Namespaces(Mutex<HashSet<Box<str>>>);

impl Namespaces {
    const MOST: usize = 100;

    fn label(&self, namespace: &str) -> String {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(namespace) {
            return namespace.to_owned();
        }
        if known.len() < Self::MOST {
            known.insert(namespace.into());
            return namespace.to_owned();
        }
        "other".to_owned()
    }
}

impl<S: Source> Consumer for Acting<S> {
    type Work = Item;

    fn route(&self, change: &Change<'_>, _: Timestamp) -> Result<Route<Item>, DecodeError> {
        Ok(match self.source.read(change)? {
            Ok(work) if self.takers(&work).next().is_none() => Route::Skip("filtered"),
            Ok(work) => {
                let lane = S::lane(&work);
                Route::Process { work, lane }
            }
            Err(reason) => Route::Skip(reason),
        })
    }

    fn reads_key_changes(&self) -> bool {
        true
    }

    fn steps(&self, item: &Item) -> Steps {
        let claimed = self.repeats(item) != Repeats::Harmless;
        let claim = claimed.then(|| Step::claim(item.idempotency_key()));
        let actions = self.takers(item).map(|running| Step::action(&running.configured.name));
        Steps { lane: item.about(), steps: claim.into_iter().chain(actions).collect() }
    }

    /// Where every action has a group of its own, the consumer's has none.
    fn has_work(&self) -> bool {
        !self.actions.is_empty()
    }

    async fn beside(&self) {
        let upkeep = self.actions.iter().filter_map(|running| running.action.upkeep());
        futures::future::join(self.expire(), futures::future::join_all(upkeep)).await;
    }

    async fn process(&self, cx: &Context, item: &Item) -> Result<Outcome, Failure> {
        if let Some((expirations, change)) = self.ended_in(item)
            && expirations.has_ended(change).await?
        {
            return Ok(Outcome::Duplicate);
        }
        if self.repeats(item) == Repeats::Harmless {
            self.carry_out(cx, item).await?;
            return Ok(Outcome::Sent);
        }
        let act = || async { self.carry_out(cx, item).await.map(|()| Some(Timestamp::now())) };
        let once: Once = cx.once(&item.idempotency_key(), act).await?;
        Ok(outcome(&[once], "nothing_to_do"))
    }

    fn batched<'w>(&self, item: &'w Item) -> Option<Batched<'w>> {
        if self.ended_in(item).is_some() {
            return None;
        }
        match self.repeats(item) {
            Repeats::Harmless => Some(Batched::Repeatable),
            Repeats::Claimed => Some(Batched::claimed(item.idempotency_key())),
            Repeats::Alone => None,
        }
    }

    async fn send_all(&self, cx: &Context, items: &[&Item]) -> Result<Box<dyn Sends>, Failure> {
        let mut parts = Vec::from_iter(self.schedule(items));
        for (running, part) in self.begin(items) {
            cx.step(Taken::Action(&running.configured.name));
            parts.push(part);
        }
        let breaker = self.actions.iter().find_map(|running| running.action.breaker().cloned());
        let all = Box::pin(apply_all(parts, items.len()));
        Ok(Box::new(Applying { all, over: false, breaker }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_with_many_types_has_a_bounded_number_of_labels() {
        let namespaces = Namespaces::default();
        let types: Vec<String> = (0..150).map(|number| format!("type{number}")).collect();
        let labels = || types.iter().map(|name| namespaces.label(name)).collect::<Vec<_>>();
        let first = labels();
        assert_eq!(first[..100], types[..100]);
        assert!(first[100..].iter().all(|label| label == "other"));
        assert_eq!(labels(), first, "a label stays what it is");
    }
}
