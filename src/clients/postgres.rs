//! Connections to a PostgreSQL: a few, made when they are needed, and what its refusals mean.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::Config;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::http::{self, HttpConfig, SetupError};
use crate::outage::Breaker;

/// Connections at a time.
const CONNECTIONS: usize = 4;
/// How much longer than a statement may take its answer is waited for: the server ends it first.
const PATIENCE: Duration = Duration::from_secs(5);

/// A PostgreSQL. Clones share its connections.
#[derive(Clone)]
pub struct Postgres {
    pool: Pool,
    breaker: Arc<Breaker>,
    timeout: Duration,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The server is away, or takes nothing at present; or somebody must change something first.
    #[error("{0}")]
    Away(String),
    /// The server refuses what it was given.
    #[error("{0}")]
    Refused(String),
}

impl Postgres {
    /// The server at `url`; `breaker` stands for it.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn new(
        url: &SecretString,
        breaker: Arc<Breaker>,
        times: HttpConfig,
    ) -> Result<Self, SetupError> {
        http::install_tls();
        let wrong =
            || SetupError::Address { service: "PostgreSQL", setting: "KESSEL_DATABASE_URL" };
        let mut config: Config = url.expose_secret().parse().map_err(|_| wrong())?;
        config.connect_timeout(times.connect_timeout);
        config.application_name("crm-event-processors");
        let given = config.get_options().unwrap_or_default().to_owned();
        let limit = times.timeout.as_millis();
        config.options(format!("{given} -c statement_timeout={limit}").trim_start());
        // A machine that trusts nobody may still reach a server without TLS.
        let tls = MakeRustlsConnect::with_native_certs().map_or_else(
            |_| {
                let trusted = rustls::RootCertStore::empty();
                let builder = rustls::ClientConfig::builder().with_root_certificates(trusted);
                MakeRustlsConnect::new(builder.with_no_client_auth())
            },
            |(tls, _)| tls,
        );
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method });
        let limit = Some(times.connect_timeout);
        let timeouts = Timeouts { wait: Some(times.timeout), create: limit, recycle: limit };
        let builder = Pool::builder(manager).max_size(CONNECTIONS).timeouts(timeouts);
        let pool = builder.runtime(Runtime::Tokio1).build().map_err(|_| wrong())?;
        Ok(Self { pool, breaker, timeout: times.timeout + PATIENCE })
    }

    /// The breaker that stands for it.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Does something on a connection.
    ///
    /// # Errors
    /// Why it was not done. What was refused may be so because of a part of it.
    pub async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Fault> {
        let Ok(leave) = self.breaker.admit(Instant::now()) else {
            return Err(Fault::Away("PostgreSQL is away".to_owned()));
        };
        let done = self.on_connection(work).await;
        match &done {
            Ok(_) => leave.succeeded(),
            Err(Fault::Refused(_)) => leave.turned_down(),
            Err(Fault::Away(message)) => leave.failed(Instant::now(), None, message),
        }
        done
    }

    async fn on_connection<T>(
        &self,
        work: impl AsyncFnOnce(&mut Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Fault> {
        let mut connection = self.pool.get().await.map_err(|error| Fault::Away(of_pool(error)))?;
        match tokio::time::timeout(self.timeout, work(&mut connection)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                let fault = fault(&error);
                if matches!(fault, Fault::Away(_)) {
                    // It may lead to a server that was demoted since: the next one is made anew.
                    drop(Object::take(connection));
                }
                Err(fault)
            }
            Err(_) => {
                drop(Object::take(connection));
                // Where one is silent all may be, and each would cost as long a wait.
                self.pool.retain(|_, _| false);
                Err(Fault::Away("PostgreSQL did not answer in time".to_owned()))
            }
        }
    }
}

fn of_pool(error: deadpool_postgres::PoolError) -> String {
    match error {
        deadpool_postgres::PoolError::Backend(error) => fault(&error).to_string(),
        deadpool_postgres::PoolError::Timeout(_) => {
            "no connection to PostgreSQL in time: check KESSEL_DATABASE_URL and the network".into()
        }
        other => http::one_line(&other.to_string()),
    }
}

/// What a refusal means. A class of its own is about what was sent; everything else may pass, or somebody
/// must see to it.
fn fault(error: &tokio_postgres::Error) -> Fault {
    let Some(refused) = error.as_db_error() else {
        let mut message = format!("PostgreSQL: {error}");
        if let Some(cause) = std::error::Error::source(error) {
            message = format!("{message}: {cause}");
        }
        if message.contains("certificate") {
            message = format!("{message}: {}", http::UNTRUSTED);
        }
        return Fault::Away(http::one_line(&message));
    };
    let (state, text) = (refused.code(), http::one_line(refused.message()));
    let message = format!("PostgreSQL answered {}: {text}", state.code());
    let advice = if *state == SqlState::INVALID_PASSWORD
        || *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
    {
        "check user and password in KESSEL_DATABASE_URL"
    } else if *state == SqlState::INVALID_CATALOG_NAME {
        "create the database that KESSEL_DATABASE_URL names"
    } else if *state == SqlState::INSUFFICIENT_PRIVILEGE {
        "grant its account what docs/operations.md lists"
    } else if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN].contains(state) {
        "the action's table was changed or dropped: put it back as it was, or name another table"
    } else if *state == SqlState::READ_ONLY_SQL_TRANSACTION {
        "KESSEL_DATABASE_URL must lead to the primary"
    } else if is_about_the_data(state.code()) {
        return Fault::Refused(message);
    } else {
        return Fault::Away(message);
    };
    Fault::Away(format!("{message}: {advice}"))
}

/// Data exceptions, broken constraints, and what is larger than the server's limits.
fn is_about_the_data(code: &str) -> bool {
    ["22", "23", "54"].iter().any(|class| code.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_data_is_told_from_what_may_pass() {
        for code in ["22021", "22P05", "23514", "54000"] {
            assert!(is_about_the_data(code), "{code}");
        }
        for code in ["40001", "40P01", "42501", "53300", "55P03", "57P01", "57014", "08006"] {
            assert!(!is_about_the_data(code), "{code}");
        }
    }
}
