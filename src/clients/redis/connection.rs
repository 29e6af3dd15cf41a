//! One shared connection to a server, replaced as soon as it may be useless.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult,
    Value,
};

/// How long a connection or an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// An attempt to connect, pending or done. All requests share it, so that a server that is away
/// costs one time-out.
type Attempt = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// A connection to one server, made when it is first used; clones share it. A request tries once
/// and reports. The breaker decides how long to go on.
///
/// The redis crate's own manager is not used. It keeps for ever an attempt that failed at AUTH, a
/// silent connection, and one to a server that became a replica.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    current: Arc<Mutex<Option<Attempt>>>,
}

impl Connection {
    pub(super) fn new(client: Client) -> Self {
        Self { client, current: Arc::default() }
    }

    /// The shared attempt, or a new one if there is none.
    fn attempt(&self) -> Attempt {
        let mut current = self.lock();
        // Nobody drives an attempt that all its waiters have left, yet its time-out runs on.
        let left = |attempt: &mut Attempt| {
            attempt.peek().is_none() && attempt.strong_count().is_some_and(|count| count < 2)
        };
        current.take_if(left);
        let client = &self.client;
        current.get_or_insert_with(|| made(client.clone()).boxed().shared()).clone()
    }

    async fn connected(&self) -> RedisResult<(Attempt, MultiplexedConnection)> {
        let attempt = self.attempt();
        match attempt.clone().await {
            Ok(connection) => Ok((attempt, connection)),
            Err(error) => {
                self.drop_it(&attempt);
                Err(error)
            }
        }
    }

    /// The next request makes a new connection, unless somebody has made one already.
    fn drop_it(&self, used: &Attempt) {
        self.lock().take_if(|current| current.ptr_eq(used));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Attempt>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn made(client: Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Whether to replace the connection after this error: it broke, was silent for too long, sent
/// nonsense, or leads to a server where it may do nothing.
fn ends_it(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => true,
        _ => error.code().is_some_and(is_elsewhere),
    }
}

/// `READONLY`: a primary that became a replica; in a transaction this shows as `EXECABORT`.
/// `NOAUTH`: the account's rights have gone.
fn is_elsewhere(code: &str) -> bool {
    matches!(code, "READONLY" | "EXECABORT" | "NOAUTH")
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let request = async move {
            let (attempt, mut connection) = self.connected().await?;
            let answer = connection.req_packed_command(command).await;
            if answer.as_ref().map_or_else(ends_it, says_elsewhere) {
                self.drop_it(&attempt);
            }
            answer
        };
        request.boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let request = async move {
            let (attempt, mut connection) = self.connected().await?;
            let answer = connection.req_packed_commands(pipeline, offset, count).await;
            if answer.as_ref().map_or_else(ends_it, |all| all.iter().any(says_elsewhere)) {
                self.drop_it(&attempt);
            }
            answer
        };
        request.boxed()
    }

    fn get_db(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
    }
}

/// Errors of single commands come as values, and are turned into errors only further up.
fn says_elsewhere(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if is_elsewhere(error.code()))
}

impl fmt::Debug for Connection {
    /// Without the address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_shared_until_all_who_wait_for_it_have_left() {
        let connection = Connection::new(Client::open("redis://127.0.0.1:9").expect("a URL"));
        let first = connection.attempt();
        assert!(first.ptr_eq(&connection.clone().attempt()), "one for all");
        let watched = first.downgrade().expect("not over");
        drop(first);
        let second = connection.attempt();
        assert!(watched.upgrade().is_none(), "nobody drives it any more");
        assert!(second.ptr_eq(&connection.attempt()));
    }

    #[test]
    fn a_refusal_of_one_command_leaves_the_connection_as_it_is() {
        let error = |kind| RedisError::from((kind, "x"));
        for (kind, ends) in [
            (ErrorKind::Io, true),
            (ErrorKind::AuthenticationFailed, true),
            (ErrorKind::Server(redis::ServerErrorKind::ReadOnly), true),
            (ErrorKind::Server(redis::ServerErrorKind::ExecAbort), true),
            (ErrorKind::Server(redis::ServerErrorKind::ResponseError), false),
            (ErrorKind::Server(redis::ServerErrorKind::BusyLoading), false),
            (ErrorKind::UnexpectedReturnType, false),
        ] {
            assert_eq!(ends_it(&error(kind)), ends, "{kind:?}");
        }
    }
}
