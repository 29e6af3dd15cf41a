//! The connector of `config/debezium`, made in a real Kafka Connect.

use reqwest::Client;
use serde_json::{Value, json};

use super::database::Database;
use test_support::services::connect;
use test_support::until;

/// A running connector.
pub(crate) struct Connector {
    url: String,
    http: Client,
}

/// Where a connector finds its database, and as whom it logs in.
pub(crate) struct Login<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) name: &'a str,
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

impl<'a> Login<'a> {
    /// The connector's role in a database of the shared PostgreSQL.
    fn of(database: &'a Database) -> Self {
        let (host, port) = &connect().database;
        let (name, password) = (&database.name, &database.debezium_password);
        Self { host, port: *port, name, user: "debezium", password }
    }
}

impl Connector {
    /// Creates it as configured, for topics behind `prefix`. Only addresses are changed.
    pub(super) async fn start(database: &Database, prefix: &str) -> Self {
        Self::start_with(database, prefix, &[]).await
    }

    /// As [`Self::start`], with other settings.
    pub(super) async fn start_with(
        database: &Database,
        prefix: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let written = include_str!("../../../config/debezium/connector.json");
        Self::start_as(written, &Login::of(database), prefix, settings).await
    }

    /// The connector of a SpiceDB's store.
    pub(super) async fn start_kessel(
        database: &Database,
        prefix: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        Self::start_kessel_as(&Login::of(database), prefix, settings).await
    }

    /// As [`Self::start_kessel`], of a store anywhere.
    pub(crate) async fn start_kessel_as(
        login: &Login<'_>,
        prefix: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let written = include_str!("../../../config/debezium/kessel.json");
        let written = written.replace("SPICEDB_DATABASE_", "CDC_DATABASE_");
        Self::start_as(&written, login, prefix, settings).await
    }

    async fn start_as(
        written: &str,
        login: &Login<'_>,
        prefix: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let config = [
            ("HOST", login.host),
            ("PORT", &login.port.to_string()),
            ("NAME", login.name),
            ("USER", login.user),
            ("PASSWORD", login.password),
        ]
        .into_iter()
        .fold(written.to_owned(), |config, (what, value)| {
            config.replace(&format!("${{env:CDC_DATABASE_{what}}}"), value)
        });
        assert!(!config.contains("${"), "every placeholder has a value: {config}");
        let mut config: Value = serde_json::from_str(&config).expect("json");
        config["topic.prefix"] = json!(prefix);
        for (name, value) in settings {
            config[name] = json!(value);
        }

        drop(rustls::crypto::ring::default_provider().install_default());
        let http = Client::builder().no_proxy().build().expect("a client");
        let connector = Self { url: format!("{}/connectors/{prefix}", connect().url), http };
        let put = connector.http.put(format!("{}/config", connector.url)).json(&config);
        let answer = put.send().await.expect("Connect answers");
        let (status, body) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status.is_success(), "the connector is refused: {status} {body}");
        until("the connector to run", async || connector.runs().await.then_some(())).await;
        connector
    }

    async fn runs(&self) -> bool {
        let status = self.http.get(format!("{}/status", self.url)).send().await;
        let status = status.expect("Connect answers").text().await.expect("a body");
        assert!(!status.contains("FAILED"), "the connector fails: {status}");
        status.matches(r#""state":"RUNNING""#).count() == 2 // itself and its task
    }

    /// Removes it. Its slot stays.
    pub(crate) async fn remove(self) {
        let answer = self.http.delete(&self.url).send().await.expect("Connect answers");
        assert!(answer.status().is_success(), "the connector is removed: {}", answer.status());
    }
}
