//! `run`: the daemon.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Settings;
use crate::engine::{Observed, Observer};
use crate::supervisor::{Daemon, Memory, RunError, breakers};

/// Nobody watches.
struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _: &'static str, _: &Observed<'_>) {}
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start or cannot go on.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let breakers = breakers(&settings);
    let memory = Memory::redis(&settings, &breakers)?;
    let daemon = Daemon::new(settings, breakers, memory, Arc::new(Nobody))?;
    daemon.run(signals()).await
}

/// A word for each SIGTERM and SIGINT.
fn signals() -> mpsc::Receiver<()> {
    let (sender, signals) = mpsc::channel(2);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let sender = sender.clone();
        match signal(kind) {
            Ok(mut stream) => {
                tokio::spawn(async move {
                    while stream.recv().await.is_some() && sender.send(()).await.is_ok() {}
                });
            }
            Err(error) => tracing::error!(%error, "signal cannot be handled"),
        }
    }
    signals
}
