//! Asking the daemon's health endpoints.

use std::collections::BTreeMap;
use std::net::TcpListener;

use serde_json::Value;

use super::until;

/// The health endpoints of one daemon.
pub(crate) struct Health(String);

impl Health {
    /// On a port that is free now, for a daemon's `HTTP_LISTEN`.
    pub(crate) fn free() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        Self(listener.local_addr().expect("an address").to_string())
    }

    /// The address to listen on.
    pub(crate) fn listen(&self) -> &str {
        &self.0
    }

    /// Status and body; `None` while nobody listens.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.get(format!("http://{}{path}", self.0)).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.expect("a body")))
    }

    /// Status and what each consumer is up to, by its name.
    pub(crate) async fn readiness(&self) -> Option<(u16, BTreeMap<String, Value>)> {
        let (status, body) = self.get("/readyz").await?;
        let line = |line| {
            let line: Value = serde_json::from_str(line).expect("an object a line");
            (line["consumer"].as_str().expect("a name").to_owned(), line)
        };
        Some((status, body.lines().map(line).collect()))
    }

    /// What `/metrics` tells, asked until it tells something.
    pub(crate) async fn metrics(&self) -> Metrics {
        let text = until("metrics", async || self.get("/metrics").await).await.1;
        Metrics(text)
    }
}

/// The text of `/metrics`.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Whether it tells of `name` at all.
    pub(crate) fn tells_of(&self, name: &str) -> bool {
        let sample = format!("# TYPE {name} ");
        self.0.lines().any(|line| line.starts_with(&sample))
    }

    /// The samples of `name` that carry all of these labels.
    pub(crate) fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let carried: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, carries) = series.split_once('{').unwrap_or((series, ""));
            let carries: Vec<&str> = carries.trim_end_matches('}').split(',').collect();
            let wanted = found == name && carried.iter().all(|label| carries.contains(&&**label));
            wanted.then(|| value.parse().expect("a number"))
        };
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
    }

    /// Their sum; 0 where there are none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).iter().sum()
    }
}

impl std::fmt::Display for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
