//! The options of a demo run, its progress and its errors.

use std::time::Duration;

use super::expectation::Event;
use super::faults::Fault;
use super::recordings::BundledError;
use crate::app::RunError;
use crate::config::{Environment, Problems};
use crate::engine::{Origin, Outcome};
use crate::fakes::Endpoint;
use crate::fakes::broker::BrokerError;

/// The options of a demo run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is fed.
    pub feed: Feed,
    /// How long requests take, at least; default none.
    pub latency: Vec<(Endpoint, Duration)>,
    /// What goes wrong; default nothing.
    pub fault: Option<Fault>,
    /// The user's environment. Only a few settings of it count.
    pub environment: Environment,
}

/// What is fed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Feed {
    /// Records a second; as fast as they drain if `None`.
    pub rate: Option<f64>,
    /// At least this many records, in whole rounds; 0 is one round.
    pub records: usize,
    /// Round after round until the run is told to stop.
    pub keep_running: bool,
}

/// Something to show while the demo runs.
#[derive(Debug, Clone)]
pub enum Progress {
    /// A line.
    Note(String),
    /// Inngest stored an event.
    Event(Event),
    /// A record has its outcome.
    Outcome {
        /// Whose.
        consumer: &'static str,
        /// Which record.
        origin: Origin,
        /// How it ended.
        outcome: Outcome,
    },
    /// A record waits, or is tried again later.
    Waits {
        /// Whose.
        consumer: &'static str,
        /// Which record.
        origin: Origin,
        /// For what.
        reason: String,
    },
    /// No more progress follows.
    Over,
}

/// Why a demo could not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A setting of the environment.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// The embedded broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// What is fed.
    #[error(transparent)]
    Bundled(#[from] BundledError),
    /// The fake.
    #[error("no free port on 127.0.0.1 for the fake services")]
    Fake(#[source] std::io::Error),
    /// The daemon's runtime.
    #[error("the daemon's runtime cannot be started")]
    Runtime(#[source] std::io::Error),
    /// The daemon.
    #[error("the daemon ended by itself")]
    Daemon(#[from] RunError),
    /// A part of the demo.
    #[error("a part of the demo panicked; see the log")]
    Panicked(#[from] tokio::task::JoinError),
}
