//! What a group does about rows whose time comes.

use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use super::batch::{Part, apply_each};
use super::expirations::{Due, Expirations, LOOK};
use super::{Acting, Source};
use crate::clients::redis::connect;
use crate::consumers::entry::Dependencies;
use crate::consumers::kessel::actions::Item;
use crate::consumers::kessel::row::RowChange;
use crate::engine::{Failure, Sent};

impl<S: Source> Acting<S> {
    /// Notes when the rows of these changes expire.
    pub(super) fn schedule(&self, items: &[&Item]) -> Option<Part> {
        let expirations = self.expirations.clone()?;
        let expiring = items.iter().enumerate().filter_map(|(place, item)| {
            let Item::Row(change) = item;
            change.will_expire().then(|| (place, change.clone()))
        });
        let (places, changes): (Vec<usize>, Vec<RowChange>) = expiring.unzip();
        if changes.is_empty() {
            return None;
        }
        let count = places.len();
        let noted = async move {
            let changes: Vec<&RowChange> = changes.iter().collect();
            let noted = expirations.schedule(&changes, Timestamp::now()).await;
            // Each of them asks for itself next, and waits for the outage.
            (0..count).map(|_| noted.as_ref().map(drop).map_err(|_| Failure::Alone)).collect()
        };
        Some(Part { places, applied: Box::pin(noted) })
    }

    /// Acts on rows when their time comes, for ever.
    pub(super) async fn expire(&self) {
        let Some(expirations) = &self.expirations else {
            if self.actions.iter().any(|running| running.configured.kind.expires) {
                tracing::warn!(
                    "REDIS_URL is not set: an expiration is acted on when the store collects its row, \
                     hours later"
                );
            }
            return std::future::pending().await;
        };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            // While Redis is away they wait: its breaker says so.
            if let Ok(due) = expirations.take(Timestamp::now()).await
                && !due.changes.is_empty()
            {
                self.act_on(expirations, due).await;
            }
        }
    }

    /// Acts on rows that are due. Those that nobody could be told of now come again.
    async fn act_on(&self, expirations: &Expirations, due: Due) {
        let items: Vec<Item> = due.changes.iter().cloned().map(Item::Row).collect();
        let items: Vec<&Item> = items.iter().collect();
        let parts = self.begin(&items);
        let parts = parts.into_iter().map(|(_, part)| part).collect();
        let mut sent: Vec<Option<Sent>> = (0..items.len()).map(|_| None).collect();
        for (place, result) in apply_each(parts, items.len()).await {
            sent[place] = Some(result);
        }
        let refused =
            |failure: &Failure| matches!(failure, Failure::Refused { .. } | Failure::Poison { .. });
        // Whose it was is not logged: where the store collects the row, that is a record, and a dead letter.
        for sent in &sent {
            if let Some(Err(failure)) = sent
                && refused(failure)
            {
                tracing::error!(?failure, "an expiration was refused");
            }
        }
        let acted = |at: usize| matches!(sent[at], Some(Ok(_)));
        let is_refused = |at: usize| matches!(&sent[at], Some(Err(failure)) if refused(failure));
        expirations.done(&due, acted, Timestamp::now()).await.ok();
        expirations.forget(&due, is_refused).await.ok();
    }
}

/// Where a group keeps the rows that expire; `None` without Redis.
pub(super) fn expirations(shared: &Dependencies<'_>, group: &str) -> Option<Expirations> {
    let settings = shared.settings;
    // Loading has already checked the address.
    let connection = connect(settings.redis.url.as_ref()?.expose_secret()).ok()?;
    let prefix = format!("{}{group}:", settings.redis.key_prefix);
    let breaker = shared.breakers.get("redis");
    Some(Expirations::new(connection, breaker, &prefix, settings.kessel.dead_rows))
}
