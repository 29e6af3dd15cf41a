//! One run of the daemon, ended by a clean stop or torn down.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::progress::DemoError;
use super::watch::Watch;
use crate::app::{App, RunError, Stores};
use crate::clients::redis::Cache;
use crate::config::Settings;
use crate::consumers::registry::CONSUMERS;
use crate::dedup::MemoryStore;

/// How long a client of the broker may take to go.
const TEAR_DOWN: Duration = Duration::from_secs(5);

/// The real daemon, in a runtime of its own, so that it can be torn down without a clean stop.
pub(super) struct DaemonRun {
    runtime: Option<Runtime>,
    signals: mpsc::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl DaemonRun {
    pub(super) fn start(
        settings: &Settings,
        claims: &Arc<MemoryStore>,
        watch: &Arc<Watch>,
    ) -> Result<Self, DemoError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("daemon")
            .enable_all()
            .build()
            .map_err(DemoError::Runtime)?;
        let (signals, received) = mpsc::channel(2);
        let (settings, watch) = (settings.clone(), Arc::clone(watch));
        let claims = Box::new(Arc::clone(claims));
        let ended = runtime.spawn(async move {
            let stores = |_: &_, _: &_| Ok(Stores { claims, cache: Cache::none() });
            App::build(settings, &CONSUMERS, stores, Arc::new(watch))?.run(received).await
        });
        Ok(Self { runtime: Some(runtime), signals, ended })
    }

    /// Resolves only if the daemon ends by itself.
    pub(super) async fn failed(&mut self) -> DemoError {
        match (&mut self.ended).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => RunError::Panicked.into(),
        }
    }

    /// Stops it as SIGTERM does, and waits for it.
    pub(super) async fn stop(mut self) -> Result<(), DemoError> {
        // A daemon that has ended already says why below.
        self.signals.send(()).await.ok();
        let ended = (&mut self.ended).await;
        ended.map_err(|_| RunError::Panicked)??;
        Ok(())
    }

    /// Tasks end where they stand; nothing is finished or committed. Waits until the threads are
    /// gone, as those of a dead process are before the next is started.
    pub(super) async fn tear_down(mut self) -> Result<(), DemoError> {
        if let Some(runtime) = self.runtime.take() {
            let gone = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(TEAR_DOWN));
            gone.await?;
        }
        Ok(())
    }
}

impl Drop for DaemonRun {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
