//! Why the daemon ends although nobody stopped it, and the exit status of each reason.

use crate::clients::SetupError;
use crate::engine::EngineError;

/// Why the daemon ended although nobody stopped it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something in the configuration cannot work.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A Redis URL is none.
    #[error("{variable} is not a usable redis:// or rediss:// URL")]
    RedisUrl {
        /// Which variable.
        variable: &'static str,
    },
    /// The health endpoints cannot listen.
    #[error("cannot listen on {listen}: choose another HTTP_LISTEN or PORT")]
    Listen {
        /// The address.
        listen: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Metrics cannot be recorded.
    #[error("metrics cannot be recorded")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// A consumer ended.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A consumer's task ended without a word.
    #[error("a consumer's task panicked; see the log")]
    Panicked,
    /// Nobody has said where to begin, of anything.
    #[error(
        "nothing may be read: the groups {groups} have committed nothing of their topics, which hold \
         records; set KAFKA_AUTO_OFFSET_RESET to earliest to process all of their history or to latest \
         to begin with what comes from now on, or KAFKA_START_AT for single topics ({example}=latest)"
    )]
    NothingToRead {
        /// The groups.
        groups: String,
        /// One of the topics.
        example: String,
    },
    /// A consumer has work and makes no progress.
    #[error("consumer {consumer} has made no progress for {seconds} s while it has work{hangs}")]
    Stalled {
        /// Which consumer.
        consumer: &'static str,
        /// `STALL_TIMEOUT`, in seconds.
        seconds: u64,
        /// The record that hangs, where it is one; after a colon.
        hangs: String,
    },
}

impl RunError {
    /// Exit status (behaviour section 8.8): 64 configuration, 70 stalled or a fatal client error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setup(_)
            | Self::RedisUrl { .. }
            | Self::Listen { .. }
            | Self::Metrics(_)
            | Self::NothingToRead { .. }
            | Self::Engine(EngineError::Client { .. }) => 64,
            Self::Engine(_) | Self::Panicked | Self::Stalled { .. } => 70,
        }
    }
}
