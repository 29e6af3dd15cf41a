//! Many changes at a time: what each action does about them, and what became of each.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;

use super::{Acting, Running, Source};
use crate::consumers::kessel::actions::{Applied, Item};
use crate::engine::{Context, Failure, Sends, Sent, SentOfMany};
use crate::outage::Breaker;

/// What an action does about some changes, by their places.
pub(super) struct Part {
    /// Where these changes stand among all of them.
    pub(super) places: Vec<usize>,
    /// What has become of them.
    pub(super) applied: BoxFuture<'static, Vec<Applied>>,
}

impl<S: Source> Acting<S> {
    /// What each action is to do about these changes.
    pub(super) fn begin(&self, items: &[&Item]) -> Vec<(&Running, Part)> {
        let mut parts = Vec::with_capacity(self.actions.len());
        for running in &self.actions {
            let taken = items.iter().copied().enumerate();
            let (places, taken): (Vec<usize>, Vec<&Item>) =
                taken.filter(|(_, item)| running.configured.takes(item)).unzip();
            if !taken.is_empty() {
                taken.iter().for_each(|item| self.count(item, running));
                let applied = running.action.apply(&taken);
                parts.push((running, Part { places, applied }));
            }
        }
        parts
    }
}

/// As [`apply_each`], for changes of records: what is refused goes alone next, so that who refuses a change
/// can be told from who is away.
pub(super) async fn apply_all(parts: Vec<Part>, count: usize) -> SentOfMany {
    let mut all = apply_each(parts, count).await;
    for (_, sent) in &mut all {
        if matches!(sent, Err(Failure::Refused { .. } | Failure::Poison { .. })) {
            *sent = Err(Failure::Alone);
        }
    }
    all
}

/// Has one action after another carry out its changes. Once one has failed, the others do not begin, and
/// what they were to carry out goes alone next.
pub(super) async fn apply_each(parts: Vec<Part>, count: usize) -> SentOfMany {
    let now = Timestamp::now();
    let mut all: Vec<Sent> = (0..count).map(|_| Ok(Some(now))).collect();
    let mut failed = false;
    for Part { places, applied } in parts {
        let applied = match failed {
            true => places.iter().map(|_| Err(Failure::Alone)).collect(),
            false => applied.await,
        };
        for (place, applied) in places.into_iter().zip(applied) {
            let Err(failure) = applied else { continue };
            failed = true;
            if let Some(sent @ Ok(_)) = all.get_mut(place) {
                *sent = Err(failure);
            }
        }
    }
    all.into_iter().enumerate().collect()
}

/// A batch under way.
pub(super) struct Applying {
    pub(super) all: BoxFuture<'static, SentOfMany>,
    pub(super) over: bool,
    pub(super) breaker: Option<Arc<Breaker>>,
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
