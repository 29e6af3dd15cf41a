//! What the daemon tells of itself: logs, metrics, and the health endpoints.

pub mod http;
pub mod logs;
pub mod metrics;
