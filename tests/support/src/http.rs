//! Asking the daemon's health endpoints.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use serde_json::Value;

use super::until;

/// The health endpoints of one daemon.
pub struct Health {
    address: String,
    /// The same port of UDP, which no daemon uses. It reserves the number against other test
    /// programs, also before the daemon listens.
    _reserved: UdpSocket,
}

impl Health {
    /// On a port that is free now, for a daemon's `HTTP_LISTEN`: below those that the system gives
    /// to clients, and beside those of `tests/services/up`.
    pub fn free() -> Self {
        for _ in 0..1_000 {
            let address = (Ipv4Addr::LOCALHOST, fastrand::u16(30_000..32_000));
            let Ok(_reserved) = UdpSocket::bind(address) else { continue };
            if TcpListener::bind(address).is_ok() {
                return Self { address: format!("{}:{}", address.0, address.1), _reserved };
            }
        }
        panic!("no free port between 30000 and 31999");
    }

    /// The address to listen on.
    pub fn listen(&self) -> &str {
        &self.address
    }

    /// Status and body; `None` while nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.get(format!("http://{}{path}", self.address)).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.expect("a body")))
    }

    /// The status, and each consumer's state by its name.
    pub async fn readiness(&self) -> Option<(u16, BTreeMap<String, Value>)> {
        let (status, body) = self.get("/readyz").await?;
        let line = |line| {
            let line: Value = serde_json::from_str(line).expect("an object a line");
            (line["consumer"].as_str().expect("a name").to_owned(), line)
        };
        Some((status, body.lines().map(line).collect()))
    }

    /// `/metrics`, queried until it answers.
    pub async fn metrics(&self) -> Metrics {
        let text = until("metrics", async || self.get("/metrics").await).await.1;
        Metrics(text)
    }
}

/// The text of `/metrics`.
pub struct Metrics(String);

impl Metrics {
    /// Whether it has `name` at all.
    pub fn tells_of(&self, name: &str) -> bool {
        let sample = format!("# TYPE {name} ");
        self.0.lines().any(|line| line.starts_with(&sample))
    }

    /// The samples of `name` that carry all of these labels.
    pub fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
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
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).iter().sum()
    }
}

impl std::fmt::Display for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
