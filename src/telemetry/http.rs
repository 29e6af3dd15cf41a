//! The health endpoints: `/livez`, `/readyz`, `/metrics`.
//!
//! Anybody who reaches the port can ask, so the cost is bounded: one request a connection, and
//! limits on its duration, on connections and on bytes of headers. No body is read.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::metrics;
use crate::engine::vitals::{Pulse, Vitals};
use crate::outage::Breakers;

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may last, from its request's first byte to its answer's last.
const MAX_DURATION: Duration = Duration::from_secs(10);
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request line with its headers.
const MAX_HEADERS: usize = 16 << 10;

/// What the endpoints report on.
#[derive(Clone)]
pub struct Health {
    /// Each consumer's name and signs of life.
    pub consumers: Arc<[(&'static str, Arc<Pulse>)]>,
    /// The dependencies.
    pub breakers: Arc<Breakers>,
    /// The time without progress after which a consumer counts as stalled.
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
    } else if vitals.waits_for.is_empty() && vitals.held.topics.is_empty() {
        Condition::Ready
    } else {
        Condition::Degraded
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When `listen` cannot be listened on.
pub async fn serve(listen: SocketAddr, health: Health) -> io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(health);
    let listener = TcpListener::bind(listen).await?;
    tracing::info!(address = %listener.local_addr()?, "health endpoints listen");
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(MAX_HEADERS);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let leave = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Usually the process is out of file descriptors, and some may be freed meanwhile.
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(app.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            if let Ok(Err(error)) = timeout(MAX_DURATION, connection).await {
                tracing::debug!(%error, "health request not answered");
            }
            drop(leave);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// 200 while nothing is stalled. A wait for a dependency is only named, since a restart for it
/// would loop.
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
            waits_for: vitals
                .waits_for
                .into_iter()
                .chain(vitals.held.topics.into_values())
                .collect(),
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
