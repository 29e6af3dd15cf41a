//! Connections to Redis: one per server, shared, made on first use and again after every loss.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};

/// How long a connection or an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to the server at `url` (`redis://` or `rediss://`), made when it is first used.
/// It tries once and reports: how long to go on is for the breaker to say.
///
/// # Errors
/// When `url` is no Redis URL.
pub fn connect(url: &str) -> redis::RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    ConnectionManager::new_lazy_with_config(redis::Client::open(url)?, config)
}
