//! What the daemon says about itself: logs, metrics, and the health endpoints.

pub mod http;
pub mod logs;
pub mod metrics;
