//! The health endpoints: `/livez`, `/readyz`, `/metrics`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use super::metrics;
use crate::engine::vitals::{Pulse, Vitals};
use crate::outage::Breakers;

/// What the endpoints tell of.
#[derive(Clone)]
pub struct Health {
    /// Each consumer's name and signs of life.
    pub consumers: Arc<[(&'static str, Arc<Pulse>)]>,
    /// The dependencies.
    pub breakers: Arc<Breakers>,
    /// After what time without progress a consumer counts as stalled.
    pub stall_timeout: Duration,
    /// Where metrics are rendered.
    pub metrics: PrometheusHandle,
}

/// What a consumer is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Condition {
    /// It makes progress, or has nothing to do.
    Ready,
    /// It waits for something that is named; a restart would not help.
    Degraded,
    /// It has work and makes no progress.
    Stalled,
}

#[derive(Serialize)]
struct Readiness<'a> {
    consumer: &'a str,
    state: Condition,
    partitions: usize,
    records_in_flight: usize,
    lag: i64,
    seconds_since_progress: u64,
    waits_for: Vec<String>,
}

fn judge(vitals: &Vitals, now: Instant, timeout: Duration) -> Condition {
    if vitals.stalled(now, timeout) {
        Condition::Stalled
    } else if vitals.waits_for.is_empty() {
        Condition::Ready
    } else {
        Condition::Degraded
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When `listen` cannot be listened on.
pub async fn serve(listen: SocketAddr, health: Health) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(health);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tracing::info!(address = %listener.local_addr()?, "health endpoints listen");
    axum::serve(listener, app).await
}

/// 200 while nothing is stalled: what waits for a dependency is named, and restarting for it would
/// only loop.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let now = Instant::now();
    let mut stalled = false;
    let mut body = String::new();
    for (consumer, pulse) in health.consumers.iter() {
        let vitals = pulse.read();
        let state = judge(&vitals, now, health.stall_timeout);
        stalled |= state == Condition::Stalled;
        let line = Readiness {
            consumer,
            state,
            partitions: vitals.partitions.len(),
            records_in_flight: vitals.open,
            lag: vitals.lag,
            seconds_since_progress: now.saturating_duration_since(vitals.progress).as_secs(),
            waits_for: vitals.waits_for,
        };
        let line = serde_json::to_string(&line).unwrap_or_default();
        // Writing to a String cannot fail.
        writeln!(body, "{line}").ok();
    }
    let status = if stalled { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, [(CONTENT_TYPE, "application/x-ndjson")], body)
}

async fn render(State(health): State<Health>) -> impl IntoResponse {
    let consumers = health.consumers.iter().map(|(name, pulse)| (*name, pulse.read()));
    metrics::gauges(consumers, &health.breakers);
    let text = health.metrics.render();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
