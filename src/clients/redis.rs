//! Connections to Redis: one per server, shared, made on first use and again after every loss.

mod connection;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{AsyncCommands, RedisError};

pub use self::connection::Connection;
use crate::outage::Breaker;

/// The longest cached text that is read, in bytes; one of ours takes a few hundred.
const MAX_TEXT: usize = 64 << 10;
/// The largest cached set that is read; one of ours has a few dozen members.
const MAX_MEMBERS: usize = 10_000;

/// A connection to the server at `url` (`redis://` or `rediss://`), made when it is first used.
///
/// # Errors
/// When `url` is not a Redis URL.
pub fn connect(url: &str) -> redis::RedisResult<Connection> {
    super::http::install_tls();
    Ok(Connection::new(redis::Client::open(url)?))
}

/// What went wrong and what to do about it, in one line.
#[must_use]
pub fn describe(error: &RedisError) -> String {
    let text = super::http::one_line(&error.to_string());
    let says = |part| text.contains(part);
    let advice = if says("certificate") {
        super::http::UNTRUSTED
    } else if says("NOAUTH") || says("uthentication") {
        "check user and password in REDIS_URL and CRM_CACHE_REDIS_URL"
    } else if says("NOPERM") {
        "allow its account the commands and keys that claims need"
    } else if error.is_io_error() || error.is_timeout() {
        "check REDIS_URL and CRM_CACHE_REDIS_URL (rediss:// where the port is for TLS, redis:// \
         where it is not) and the network"
    } else {
        return text;
    };
    format!("{text}: {advice}")
}

/// The cache that this daemon shares with the rest of the CRM (`CRM_CACHE_REDIS_URL`). A cache that
/// is away is not an outage: it counts as empty.
#[derive(Clone)]
pub struct Cache {
    backend: Option<(Connection, Arc<Breaker>)>,
}

impl Cache {
    /// A cache on a server. While the server is away, `breaker` keeps requests from it.
    #[must_use]
    pub fn new(connection: Connection, breaker: Arc<Breaker>) -> Self {
        Self { backend: Some((connection, breaker)) }
    }

    /// A cache that never has anything, for the demo.
    #[must_use]
    pub fn none() -> Self {
        Self { backend: None }
    }

    /// The server behind it, for whoever must know that a request went through.
    #[must_use]
    pub fn server(&self) -> Option<(Connection, Arc<Breaker>)> {
        self.backend.clone()
    }

    /// The text at `key`. Text longer than any of ours counts as absent.
    pub async fn get(&self, key: &str) -> Option<String> {
        // One byte more than our longest text: somebody else may have put anything there.
        let range = (0, isize::try_from(MAX_TEXT).unwrap_or(isize::MAX));
        let text: Vec<u8> = self
            .ask(async |mut connection| connection.getrange(key, range.0, range.1).await)
            .await?;
        if text.is_empty() || text.len() > MAX_TEXT { None } else { String::from_utf8(text).ok() }
    }

    /// Puts `text` at `key`, for `lifetime`.
    pub async fn set(&self, key: &str, text: &str, lifetime: Duration) {
        let seconds = lifetime.as_secs().max(1);
        self.ask(async |mut connection| connection.set_ex::<_, _, ()>(key, text, seconds).await)
            .await;
    }

    /// The members of the set at `key`; none when there is no such set, or one that is larger than
    /// any of ours.
    pub async fn members(&self, key: &str) -> Vec<String> {
        self.ask(async |mut connection| {
            let count = connection.scard::<_, usize>(key).await;
            let members = match count {
                Ok(1..=MAX_MEMBERS) => connection.smembers::<_, Vec<String>>(key).await,
                count => count.map(|_| Vec::new()),
            };
            match members {
                // Somebody put something else there: the server is well, and has no such set.
                Err(error) if error.code() == Some("WRONGTYPE") => Ok(Vec::new()),
                answer => answer,
            }
        })
        .await
        .unwrap_or_default()
    }

    /// Puts a set of `members`, at least one, at `key` for `lifetime`.
    pub async fn set_members(&self, key: &str, members: &[&str], lifetime: Duration) {
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX).max(1);
        let mut pipeline = redis::pipe();
        // In one transaction, so that the set never lacks an expiry.
        pipeline.atomic().del(key).sadd(key, members).expire(key, seconds);
        self.ask(async |mut connection| pipeline.query_async::<()>(&mut connection).await).await;
    }

    async fn ask<T>(
        &self,
        request: impl AsyncFnOnce(Connection) -> redis::RedisResult<T>,
    ) -> Option<T> {
        let (connection, breaker) = self.backend.as_ref()?;
        let leave = breaker.admit(Instant::now()).ok()?;
        match request(connection.clone()).await {
            Ok(answer) => {
                leave.succeeded();
                Some(answer)
            }
            Err(error) => {
                leave.failed(Instant::now(), None, &describe(&error));
                None
            }
        }
    }
}
