//! One consumer: its client, replaced where that helps, and the session that each client lives in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Consumer;
use super::dispatch::permits::Permits;
use super::dispatch::work::Shared;
use super::group::beginnings::Sights;
use super::session::{End, Session};
use super::settings::{Engine, EngineError};
use crate::kafka::Callbacks;
use crate::room::Room;

/// How long to wait before a new client is created.
const ANEW: Duration = Duration::from_secs(3);

/// Says, when dropped, that nobody answers rebalances any more.
struct Closing(Arc<AtomicBool>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Engine<()> {
    /// The engine of `consumer`.
    #[must_use]
    pub fn with<C: Consumer>(self, consumer: Arc<C>) -> Engine<C> {
        Engine {
            consumer,
            settings: self.settings,
            kafka: self.kafka,
            dead_letters: self.dead_letters,
            claims: self.claims,
            breakers: self.breakers,
            observer: self.observer,
            pulse: self.pulse,
        }
    }
}

impl<C> Engine<C> {
    /// The consumer's name.
    pub(in crate::engine) fn name(&self) -> &'static str {
        self.settings.subscription.consumer
    }
}

impl<C: Consumer> Engine<C> {
    /// Consumes until `stop` is cancelled; then finishes what is in flight, commits, and leaves
    /// the group.
    ///
    /// # Errors
    /// When the consumer cannot go on by itself; see [`EngineError`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), EngineError> {
        let shared = Arc::new(Shared {
            group: self.settings.group.clone(),
            claim_prefix: self.settings.claim_prefix.clone(),
            claims: self.claims.clone(),
            permits: Permits::new(self.settings.limits),
            answers: Room::new(self.settings.bounds.answers()),
            client_retries: OnceLock::new(),
        });
        let sights = Arc::default();
        loop {
            match self.session(&shared, &sights, &stop).await? {
                End::Stopped => return Ok(()),
                End::Anew(reason) => {
                    tracing::warn!(messaging.consumer.group.name = %self.settings.group, reason,
                        "creating a new kafka client");
                    tokio::select! {
                        () = tokio::time::sleep(ANEW) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn session(
        &self,
        shared: &Arc<Shared>,
        sights: &Arc<Sights>,
        stop: &CancellationToken,
    ) -> Result<End, EngineError> {
        let group = &self.settings.group;
        let failed = |source| EngineError::Client { group: group.clone(), source };
        let (context, signals) = Callbacks::new(group);
        let closing = Arc::clone(&signals.closing);
        let client =
            self.kafka.consumer(group, &self.settings.properties, context).map_err(failed)?;
        let client = Arc::new(client);
        // Dropped before the client, however this ends: a client that waits for a revoke to be
        // answered by a loop that is gone would never close.
        let closing = Closing(closing);
        let session =
            Session::new(self, Arc::clone(shared), Arc::clone(sights), Arc::clone(&client), stop);
        let end = session.run(signals).await;
        // A client that gave up may hang for good when it is dropped.
        if !matches!(end, Err(EngineError::Fatal { .. })) {
            drop(closing);
            self.kafka.close(client).await;
        } else {
            std::mem::forget(client);
        }
        end
    }
}
