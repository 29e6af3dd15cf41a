//! `run`: the daemon.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::app::{App, RunError, Stores};
use crate::clients::redis::Cache;
use crate::config::Settings;
use crate::consumers::registry::CONSUMERS;
use crate::dedup::MemoryStore;
use crate::telemetry::http::{self, Health};
use crate::telemetry::metrics::{self, Recorder};

/// Arguments of `run`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Decide and log what would be sent, and do nothing: no group is joined, nothing is committed,
    /// claimed, sent or set aside
    #[arg(long)]
    pub shadow: bool,
}

/// Logs what [`run`] would do, until SIGTERM or SIGINT. Connects to nothing but Kafka.
///
/// # Errors
/// When it cannot start or cannot go on.
pub async fn shadow(settings: Settings) -> Result<(), RunError> {
    let signals = signals();
    let stores = |settings: &Settings, _: &_| {
        let claims = Box::new(Arc::new(MemoryStore::new(settings.dedup.window)));
        Ok(Stores { claims, cache: Cache::none() })
    };
    let app = App::build(settings, &CONSUMERS, stores, Arc::new(Recorder::default()))?;
    app.shadow(signals).await
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start or cannot go on.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    // First, so that a stop during the start is a clean one too.
    let signals = signals();
    let (listen, stall_timeout) = (settings.http.listen, settings.engine.stall_timeout);
    let metrics = metrics::install()?;
    let app = App::build(settings, &CONSUMERS, Stores::redis, Arc::new(Recorder::default()))?;
    let (consumers, breakers) = (app.pulses().into(), app.breakers());
    let health = Health { consumers, breakers, stall_timeout, metrics };
    match listen {
        Some(listen) => {
            tokio::select! {
                ended = app.run(signals) => ended,
                Err(source) = http::serve(listen, health) => {
                    Err(RunError::Listen { listen, source })
                }
            }
        }
        None => app.run(signals).await,
    }
}

/// A message for each SIGTERM and SIGINT.
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
