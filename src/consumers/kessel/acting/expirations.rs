//! Rows that expire: an expiration is acted on when its time comes, not a day later with the store's
//! garbage collection (behaviour section 9, "What is true").
//!
//! Two sorted sets in Redis, of one group each: rows that are to expire, by their time, and rows with an
//! expiration that have ended, by when that became known. So a restart forgets none, two instances act once,
//! and what comes after the end of a row is no second one: its marking, its collection, or its creation, which
//! may come late from another partition.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use redis::Script;
use serde::{Deserialize, Serialize};

use crate::clients::redis::{Connection, describe};
use crate::consumers::kessel::row::{Operation, Relationship, RowChange};
use crate::engine::Failure;
use crate::outage::Breaker;

/// How often rows that are due are looked for.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// How long an instance has for acting on rows that it took. Then another one takes them.
const LEASE: Duration = Duration::from_secs(30);
/// Rows that are taken at a time: as many as a slow receiver can be told of meanwhile.
const MOST: usize = 100;
/// A change of so long ago is read from a backlog.
const BACKLOG: Duration = Duration::from_secs(10);
/// A row that had expired before its creation was read from a backlog is given this long for its deletion to
/// be read too.
const GRACE: Duration = Duration::from_secs(30);

/// Notes rows that are to expire, unless they have ended. ARGV: time and row, again and again.
const SCHEDULE: &str = "for i = 1, #ARGV, 2 do \
if not redis.call('ZSCORE', KEYS[2], ARGV[i + 1]) then \
redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end end return 1";

/// Takes rows that are due, and puts them back for as long as acting on them may take. ARGV: now, until, most.
const TAKE: &str = "local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3]) \
for _, row in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], row) end return due";

/// Notes that rows have ended, and forgets those that ended long ago. ARGV: now, long ago, then the rows.
const END: &str = "for i = 3, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) \
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[i]) end \
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2]) return 1";

/// Where one group keeps the rows that expire.
#[derive(Clone)]
pub(super) struct Expirations {
    connection: Connection,
    breaker: Arc<Breaker>,
    /// The sorted set of rows that are to expire, and that of rows that have ended.
    keys: [String; 2],
    /// How long it is known that a row has ended.
    kept: Duration,
}

/// A row that expires, as the sorted sets hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Expiring {
    #[serde(flatten)]
    relationship: Relationship,
    /// Without it the time tells rows of one relationship apart.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    xid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    expires_ms: Option<i64>,
}

impl Expiring {
    /// What the sets call the row of a change. A collection does not show when the row expired, so with
    /// `created_xid` that is no part of it.
    fn name(change: &RowChange) -> String {
        let expires_ms = match change.created_xid {
            Some(_) => None,
            None => change.expires.map(Timestamp::as_millisecond),
        };
        let (relationship, xid) = (change.relationship.clone(), change.created_xid);
        serde_json::to_string(&Self { relationship, xid, expires_ms }).unwrap_or_default()
    }

    /// The change that it is when a row of this name expires.
    fn expired(name: &str, now: Timestamp) -> Option<RowChange> {
        let Self { relationship, xid, expires_ms } = serde_json::from_str(name).ok()?;
        let expires = expires_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        Some(RowChange {
            operation: Operation::Expire,
            relationship,
            created_xid: xid,
            deleted_xid: None,
            caveat: None,
            expires,
            committed: expires.unwrap_or(now),
            place: None,
            at: RowChange::NO_RECORD,
        })
    }
}

/// Rows that are due, taken for a while.
pub(super) struct Due {
    /// The changes that they are.
    pub(super) changes: Vec<RowChange>,
    names: Vec<String>,
}

impl Expirations {
    /// Keeps them under names that begin with `prefix`. That a row has ended is known for `kept`.
    #[must_use]
    pub(super) fn new(
        connection: Connection,
        breaker: Arc<Breaker>,
        prefix: &str,
        kept: Duration,
    ) -> Self {
        let keys = ["expirations", "ended"].map(|name| format!("{prefix}{name}"));
        Self { connection, breaker, keys, kept }
    }

    /// Notes when rows expire that have been created.
    ///
    /// # Errors
    /// When Redis is away.
    pub(super) async fn schedule(
        &self,
        changes: &[&RowChange],
        now: Timestamp,
    ) -> Result<(), Failure> {
        let script = Script::new(SCHEDULE);
        let mut call = script.prepare_invoke();
        call.key(&self.keys[0]).key(&self.keys[1]);
        for change in changes {
            if let Some(at) = due(change, now) {
                call.arg(at.as_millisecond()).arg(Expiring::name(change));
            }
        }
        self.ask(async |connection| call.invoke_async::<i64>(connection).await).await.map(drop)
    }

    /// Whether the end of a row was acted on before.
    ///
    /// # Errors
    /// When Redis is away.
    pub(super) async fn has_ended(&self, change: &RowChange) -> Result<bool, Failure> {
        let name = Expiring::name(change);
        let mut command = redis::cmd("ZSCORE");
        command.arg(&self.keys[1]).arg(name);
        let score: Option<String> =
            self.ask(async |connection| command.query_async(connection).await).await?;
        Ok(score.is_some())
    }

    /// Notes that a row has ended, which was acted on.
    ///
    /// # Errors
    /// When Redis is away.
    pub(super) async fn end(&self, change: &RowChange, now: Timestamp) -> Result<(), Failure> {
        self.end_all(&[Expiring::name(change)], now).await
    }

    /// Takes rows that are due for as long as acting on them may take.
    ///
    /// # Errors
    /// When Redis is away.
    pub(super) async fn take(&self, now: Timestamp) -> Result<Due, Failure> {
        let script = Script::new(TAKE);
        let mut call = script.prepare_invoke();
        call.key(&self.keys[0]).arg(now.as_millisecond());
        call.arg(now.as_millisecond() + milliseconds(LEASE)).arg(MOST);
        let taken: Vec<String> =
            self.ask(async |connection| call.invoke_async(connection).await).await?;
        let mut due = Due { changes: Vec::new(), names: Vec::new() };
        for name in taken {
            if let Some(change) = Expiring::expired(&name, now) {
                due.changes.push(change);
                due.names.push(name);
            }
        }
        Ok(due)
    }

    /// Notes that some of the rows that were taken have been acted on. The others come again.
    ///
    /// # Errors
    /// When Redis is away.
    pub(super) async fn done(
        &self,
        due: &Due,
        acted: impl Fn(usize) -> bool,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let names = due.names.iter().enumerate().filter(|(at, _)| acted(*at));
        let names: Vec<String> = names.map(|(_, name)| name.clone()).collect();
        if names.is_empty() { Ok(()) } else { self.end_all(&names, now).await }
    }

    /// Forgets some of the rows that were taken: nobody could act on them. Where the store collects them, that
    /// is their end.
    ///
    /// # Errors
    /// When Redis is away.
    pub(super) async fn forget(
        &self,
        due: &Due,
        which: impl Fn(usize) -> bool,
    ) -> Result<(), Failure> {
        let names = due.names.iter().enumerate().filter(|(at, _)| which(*at));
        let names: Vec<&str> = names.map(|(_, name)| name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("ZREM");
        command.arg(&self.keys[0]).arg(names);
        self.ask(async |connection| command.query_async::<i64>(connection).await).await.map(drop)
    }

    async fn end_all(&self, names: &[String], now: Timestamp) -> Result<(), Failure> {
        let script = Script::new(END);
        let mut call = script.prepare_invoke();
        call.key(&self.keys[0]).key(&self.keys[1]).arg(now.as_millisecond());
        call.arg(now.as_millisecond() - milliseconds(self.kept)).arg(names);
        self.ask(async |connection| call.invoke_async::<i64>(connection).await).await.map(drop)
    }

    async fn ask<T>(
        &self,
        request: impl AsyncFnOnce(&mut Connection) -> redis::RedisResult<T>,
    ) -> Result<T, Failure> {
        let failure = |message: String| Failure::Outage {
            breaker: Arc::clone(&self.breaker),
            kind: "expirations_away",
            message,
            retry_after: None,
            attempted: false,
        };
        let Ok(leave) = self.breaker.admit(Instant::now()) else {
            return Err(failure("Redis is away".to_owned()));
        };
        let mut connection = self.connection.clone();
        match request(&mut connection).await {
            Ok(answer) => {
                leave.succeeded();
                Ok(answer)
            }
            Err(error) => {
                let message = describe(&error);
                leave.failed(Instant::now(), None, &message);
                Err(failure(message))
            }
        }
    }
}

/// When a created row's expiration is acted on, if it has one.
fn due(change: &RowChange, now: Timestamp) -> Option<Timestamp> {
    let expires = change.expires.filter(|_| change.operation.lives())?;
    let behind = now.duration_since(change.committed);
    let backlog = behind > jiff::SignedDuration::try_from(BACKLOG).unwrap_or_default();
    let grace = now + GRACE;
    Some(if backlog && expires < grace { grace } else { expires })
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
