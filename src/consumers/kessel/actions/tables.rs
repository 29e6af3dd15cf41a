//! What the actions that write to PostgreSQL have in common: their tables, made when they are first used, and
//! what a refusal means for the changes of a batch.

use std::sync::Arc;

use futures::future::BoxFuture;
use ring::digest;
use tokio::sync::OnceCell;
use tokio_postgres::types::ToSql;

use super::{Applied, Configured, Parts};
use crate::clients::postgres::{Fault, Postgres};
use crate::clients::{HttpConfig, SetupError};
use crate::engine::Failure;
use crate::outage::Breaker;

/// The longest name of a table: names of its indexes begin with it, and PostgreSQL cuts names at 63 bytes.
const LONGEST_NAME: usize = 40;
/// Instances that start together make the tables one after another.
const LOCK: i64 = 0x6b65_7373_656c;

/// Tables of one action.
pub(super) struct Tables {
    server: Postgres,
    /// What makes them where they are missing.
    create: String,
    created: OnceCell<()>,
    /// The kind of a refusal, for dead letters.
    refusal: &'static str,
    retries: u32,
}

impl Tables {
    /// The tables that `create` makes, in the database of the settings.
    pub(super) fn new(
        configured: &Configured,
        parts: &Parts<'_>,
        create: String,
        refusal: &'static str,
    ) -> Result<Arc<Self>, SetupError> {
        let settings = parts.shared.settings;
        let missing = SetupError::Address { service: "PostgreSQL", setting: "KESSEL_DATABASE_URL" };
        let url = settings.kessel.database_url.as_ref().ok_or(missing)?;
        let breaker = parts.shared.breakers.get("kessel/postgres");
        let times = HttpConfig {
            connect_timeout: settings.clients.connect_timeout,
            timeout: settings.clients.request_timeout,
        };
        let server = Postgres::new(url, breaker, times)?;
        let (created, retries) = (OnceCell::new(), configured.retries);
        Ok(Arc::new(Self { server, create, created, refusal, retries }))
    }

    pub(super) fn breaker(&self) -> &Arc<Breaker> {
        self.server.breaker()
    }

    /// Runs one statement for `count` changes, after the tables were made.
    pub(super) fn write(
        self: &Arc<Self>,
        statement: Arc<str>,
        columns: Vec<Box<dyn ToSql + Send + Sync>>,
        count: usize,
    ) -> BoxFuture<'static, Vec<Applied>> {
        let me = Arc::clone(self);
        Box::pin(async move {
            let written = match me.created.get_or_try_init(|| me.create()).await {
                Ok(()) => me.execute(&statement, &columns).await,
                Err(fault) => Err(fault),
            };
            match written {
                Ok(()) => (0..count).map(|_| Ok(())).collect(),
                Err(fault) => (0..count).map(|_| Err(me.failure(&fault, count))).collect(),
            }
        })
    }

    async fn create(&self) -> Result<(), Fault> {
        self.server
            .with(async |connection| {
                let transaction = connection.transaction().await?;
                transaction.execute("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
                transaction.batch_execute(&self.create).await?;
                transaction.commit().await
            })
            .await
    }

    async fn execute(
        &self,
        statement: &str,
        columns: &[Box<dyn ToSql + Send + Sync>],
    ) -> Result<(), Fault> {
        let values: Vec<&(dyn ToSql + Sync)> =
            columns.iter().map(|column| &**column as &(dyn ToSql + Sync)).collect();
        self.server
            .with(async |connection| {
                let statement = connection.prepare_cached(statement).await?;
                connection.execute(&statement, &values).await.map(drop)
            })
            .await
    }

    /// One of many may be the reason for a refusal: each goes alone next.
    fn failure(&self, fault: &Fault, count: usize) -> Failure {
        let message = fault.to_string();
        match fault {
            Fault::Refused(_) if count > 1 => Failure::Alone,
            Fault::Refused(_) => {
                Failure::Refused { kind: self.refusal, message, retries: self.retries }
            }
            Fault::Away(_) => Failure::Outage {
                breaker: Arc::clone(self.server.breaker()),
                kind: "postgres_away",
                message,
                retry_after: None,
                attempted: false,
            },
        }
    }
}

/// The name of a table, if it can go into a statement as it stands.
pub(super) fn name(name: &str) -> Result<&str, String> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let rest = bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if first && rest && name.len() <= LONGEST_NAME {
        return Ok(name);
    }
    Err(format!(
        "table {name:?} must be 1 to {LONGEST_NAME} lower case letters, digits or underscores"
    ))
}

/// A key of fixed size for texts of any: a key of a row's own texts can be too long for an index.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        // With its length: two texts are not the same as one.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_need_quotes_is_refused() {
        assert_eq!(name("kessel_rows"), Ok("kessel_rows"));
        for wrong in ["", "Rows", "a b", "1st", "a;drop table b", "a.b", &"x".repeat(41)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_of_other_texts_differ_however_they_are_cut() {
        assert_eq!(key(["a", "b"]).len(), 32);
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_ne!(key(["a", ""]), key(["a"]));
    }
}
