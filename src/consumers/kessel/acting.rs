//! What actions are run by: a consumer that reads changes of one kind and has a few actions carry them out.
//!
//! The actions of one group share its offsets. Each that keeps state or calls out has a group, and so an
//! [`Acting`], of its own.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use jiff::Timestamp;

use super::actions::{Action, Applied, Configured, Group, Item, Parts, Repeats};
use crate::cdc::{Change, DecodeError};
use crate::clients::SetupError;
use crate::consumers::call::outcome;
use crate::consumers::entry::Branch;
use crate::engine::dispatch::permits::Urgency;
use crate::engine::{
    Batched, Consumer, Context, Failure, Lane, Once, Outcome, Route, Sends, Sent, SentOfMany, Step,
    Steps, Taken,
};
use crate::metric_names::KESSEL_EVENTS;
use crate::outage::Breaker;

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
        Self::new(source, shared.collect(), parts)
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
        let own = configured.into_iter().filter(|it| it.kind.group != Group::Consumers);
        own.map(|configured| {
            let (name, start) = (configured.name.clone(), configured.start);
            let consumer = Arc::new(Self::new(source.clone(), vec![configured], parts)?);
            Ok(Branch { name, start, consumer })
        })
        .collect()
    }

    fn new(source: S, configured: Vec<Configured>, parts: &Parts<'_>) -> Result<Self, SetupError> {
        let running = configured.into_iter().map(|configured| {
            let action = (configured.kind.build)(&configured, parts)?;
            Ok(Running { configured, action })
        });
        let mut actions = running.collect::<Result<Vec<_>, SetupError>>()?;
        actions.sort_by_key(|running| running.configured.kind.repeats);
        Ok(Self { source, actions, namespaces: Namespaces::default() })
    }

    fn takers<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = &'a Running> {
        self.actions.iter().filter(|running| running.configured.takes(item))
    }

    /// How careful the most careful of the actions is that take a change.
    fn repeats(&self, item: &Item) -> Repeats {
        let repeats = self.takers(item).map(|running| running.configured.kind.repeats);
        repeats.max().unwrap_or(Repeats::Harmless)
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

    async fn process(&self, cx: &Context, item: &Item) -> Result<Outcome, Failure> {
        if self.repeats(item) == Repeats::Harmless {
            self.act(cx, item).await?;
            return Ok(Outcome::Sent);
        }
        let act = || async { self.act(cx, item).await.map(|()| Some(Timestamp::now())) };
        let once: Once = cx.once(&item.idempotency_key(), act).await?;
        Ok(outcome(&[once], "nothing_to_do"))
    }

    fn batched<'w>(&self, item: &'w Item) -> Option<Batched<'w>> {
        match self.repeats(item) {
            Repeats::Harmless => Some(Batched::Repeatable),
            Repeats::Claimed => Some(Batched::claimed(item.idempotency_key())),
            Repeats::Alone => None,
        }
    }

    async fn send_all(&self, cx: &Context, items: &[&Item]) -> Result<Box<dyn Sends>, Failure> {
        let mut parts = Vec::with_capacity(self.actions.len());
        for running in &self.actions {
            let taken = items.iter().enumerate();
            let (places, taken): (Vec<usize>, Vec<&Item>) =
                taken.filter(|(_, item)| running.configured.takes(item)).unzip();
            if taken.is_empty() {
                continue;
            }
            cx.step(Taken::Action(&running.configured.name));
            taken.iter().for_each(|item| self.count(item, running));
            parts.push((places, running.action.apply(&taken)));
        }
        let breaker = self.actions.iter().find_map(|running| running.action.breaker().cloned());
        let count = items.len();
        Ok(Box::new(Applying { all: Box::pin(apply_all(parts, count)), over: false, breaker }))
    }
}

/// Has one action after another carry out its changes. Once one has failed, the others do not begin, and
/// what they were to carry out goes alone next: who refuses a change can be told from who is away then.
async fn apply_all(
    parts: Vec<(Vec<usize>, BoxFuture<'static, Vec<Applied>>)>,
    count: usize,
) -> SentOfMany {
    let now = Timestamp::now();
    let mut all: Vec<Sent> = (0..count).map(|_| Ok(Some(now))).collect();
    let mut failed = false;
    for (places, applied) in parts {
        let applied = match failed {
            true => places.iter().map(|_| Err(Failure::Alone)).collect(),
            false => applied.await,
        };
        for (place, applied) in places.into_iter().zip(applied) {
            let Err(failure) = applied else { continue };
            failed = true;
            if let Some(sent @ Ok(_)) = all.get_mut(place) {
                *sent = Err(match failure {
                    Failure::Refused { .. } | Failure::Poison { .. } => Failure::Alone,
                    failure => failure,
                });
            }
        }
    }
    all.into_iter().enumerate().collect()
}

/// A batch under way.
struct Applying {
    all: BoxFuture<'static, SentOfMany>,
    over: bool,
    breaker: Option<Arc<Breaker>>,
}

impl Sends for Applying {
    fn next<'s>(
        &'s mut self,
        cx: &'s Context,
    ) -> BoxFuture<'s, Result<Option<SentOfMany>, Failure>> {
        Box::pin(async move {
            if self.over {
                return Ok(None);
            }
            let sent = match &self.breaker {
                Some(breaker) => cx.unless_given_up(breaker, &mut self.all).await?,
                None => (&mut self.all).await,
            };
            self.over = true;
            Ok(Some(sent))
        })
    }

    fn ready(&mut self) -> SentOfMany {
        Vec::new()
    }

    fn abandon(&mut self, _: usize) {}
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
