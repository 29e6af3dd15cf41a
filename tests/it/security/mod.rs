//! TLS, accounts, secrets that stay secret, and malicious peers.

mod canary;
mod fuzz;
mod http_server;
mod limits;
mod mutate;
mod secrets;
mod tls;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use test_support::services;

/// A Kafka and a Redis that speak TLS and require an account, and also speak plainly, for the
/// test's own checks. Shared; ends with this process.
pub(crate) struct Secure(BTreeMap<String, String>);

impl Secure {
    pub(crate) fn services() -> &'static Self {
        static SERVICES: OnceLock<Result<Secure, String>> = OnceLock::new();
        let started =
            SERVICES.get_or_init(|| services::up(&["--secure", "kafka", "redis"]).map(Self));
        match started {
            Ok(services) => services,
            Err(reason) => panic!("`tests/services/up --secure kafka redis` failed: {reason}"),
        }
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("`up --secure` exports no {name}"))
    }

    pub(crate) fn kafka(&self) -> &str {
        self.get("TEST_KAFKA")
    }

    pub(crate) fn kafka_tls(&self) -> &str {
        self.get("TEST_KAFKA_SECURE")
    }

    pub(crate) fn redis(&self) -> &str {
        self.get("TEST_REDIS")
    }

    pub(crate) fn redis_tls(&self) -> &str {
        self.get("TEST_REDIS_SECURE")
    }

    pub(crate) fn user(&self) -> &str {
        self.get("TEST_USER")
    }

    pub(crate) fn password(&self) -> &str {
        self.get("TEST_PASSWORD")
    }

    /// The file of the authority that no system trusts.
    pub(crate) fn ca(&self) -> &str {
        self.get("TEST_CA")
    }
}
