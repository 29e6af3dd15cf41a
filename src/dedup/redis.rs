//! Claims in Redis 6 and later, Valkey and Upstash: plain commands, and a script where a claim is
//! already there.

use std::time::Duration;

use futures::future::BoxFuture;
use redis::{Pipeline, Value};

use super::{Moment, Op, Reply, Store, StoreUnavailable, TakenBack};
use crate::clients::redis::{Connection, describe};

/// Marks a value that says when something was done; a holder's name never starts so.
const DONE: &str = "done:";

/// Marks a value that says what took back that which was done.
const TAKEN_BACK: &str = "taken:";

/// Marks what was done as taken back: `taken:<accepted>:<due>:<by>`. What is known of the two times
/// stays.
const TAKE_BACK: &str = "local v = redis.call('GET', KEYS[1]) or '' \
local at, due = string.match(v, '^done:(%d+):?(%d*)$') \
if not at then at, due = string.match(v, '^taken:(%d*):(%d*):') end \
redis.call('SET', KEYS[1], 'taken:' .. (at or '') .. ':' .. (due or '') .. ':' .. ARGV[1], \
'EX', ARGV[2]) return 1";

/// Keeps a text if the asker holds the lock: without it another decision may have been kept
/// meanwhile.
const KEEP: &str = "local v = redis.call('GET', KEYS[2]) \
local holder = v and string.match(v, '^held:%d+:(.*)$') \
if not holder or holder ~= ARGV[1] then return 0 end \
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) return 1";

/// Keeps a time for good where there is none.
const SINCE: &str = "redis.call('SET', KEYS[1], ARGV[1], 'NX') return redis.call('GET', KEYS[1])";

/// Takes a claim that is free, or renews the holder's own; otherwise answers what it holds.
const RECLAIM: &str = "local v = redis.call('GET', KEYS[1]) \
if v and v ~= ARGV[1] then return v end \
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) return ARGV[1]";

/// Deletes a claim if the asker still holds it.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
return redis.call('DEL', KEYS[1]) end return 0";

/// Takes `free:<ms>`, what nobody holds, or one's own `held:<ms>:<asker>`; the time stays. Answers
/// what stood there before.
const ACQUIRE: &str = "local v = redis.call('GET', KEYS[1]) local at = '0' \
if v then at = string.match(v, '^free:(%d+)$') \
if not at then local holder at, holder = string.match(v, '^held:(%d+):(.*)$') \
if not at or (holder ~= ARGV[1] and holder ~= ARGV[3]) then return v end end end \
redis.call('SET', KEYS[1], 'held:' .. at .. ':' .. ARGV[1], 'EX', ARGV[2]) return v";

/// Leaves `free:<ms>` behind, unless somebody else holds it.
const FREE: &str = "local v = redis.call('GET', KEYS[1]) \
local holder = v and string.match(v, '^held:%d+:(.*)$') \
if holder and holder ~= ARGV[1] then return 0 end \
redis.call('SET', KEYS[1], 'free:' .. ARGV[2], 'EX', ARGV[3]) return 1";

/// Claims kept in Redis, each for the length of the window.
pub struct RedisStore {
    connection: Connection,
    window_seconds: u64,
}

impl RedisStore {
    /// Claims live for `window`, in whole seconds.
    #[must_use]
    pub fn new(connection: Connection, window: Duration) -> Self {
        Self { connection, window_seconds: window.as_secs().max(1) }
    }

    async fn run(&self, ops: &[Op]) -> Result<Vec<Reply>, StoreUnavailable> {
        let mut first = Pipeline::with_capacity(ops.len());
        for op in ops {
            self.add(&mut first, op);
        }
        let answers = self.query(&first).await?;
        let mut replies: Vec<Option<Reply>> =
            ops.iter().zip(&answers).map(|(op, answer)| reply(op, answer)).collect();

        let taken: Vec<usize> = (0..replies.len()).filter(|at| replies[*at].is_none()).collect();
        if !taken.is_empty() {
            let mut second = Pipeline::with_capacity(taken.len());
            for at in &taken {
                if let Op::Claim { key, asker } = &ops[*at] {
                    second.cmd("EVAL").arg(RECLAIM).arg(1).arg(key).arg(&**asker);
                    second.arg(self.window_seconds);
                }
            }
            let answers = self.query(&second).await?;
            for (at, answer) in taken.iter().zip(&answers) {
                if let Op::Claim { asker, .. } = &ops[*at] {
                    replies[*at] = Some(standing(answer, Some(asker)));
                }
            }
        }
        Ok(replies.into_iter().map(|reply| reply.unwrap_or(Reply::Held)).collect())
    }

    fn add(&self, pipeline: &mut Pipeline, op: &Op) {
        match op {
            Op::Claim { key, asker } => {
                pipeline.cmd("SET").arg(key).arg(&**asker).arg("NX");
                pipeline.arg("EX").arg(self.window_seconds);
            }
            Op::Confirm { key, accepted_ms, due_ms, keep } => {
                let value = match due_ms {
                    0 => format!("{DONE}{accepted_ms}"),
                    due_ms => format!("{DONE}{accepted_ms}:{due_ms}"),
                };
                pipeline.cmd("SET").arg(key).arg(value).arg("EX").arg(seconds(*keep));
            }
            Op::TakeBack { key, by, keep } => {
                pipeline.cmd("EVAL").arg(TAKE_BACK).arg(1).arg(key).arg(written(*by));
                pipeline.arg(seconds(*keep));
            }
            Op::Keep { key, text, keep, lock, asker } => {
                pipeline.cmd("EVAL").arg(KEEP).arg(2).arg(key).arg(lock).arg(&**asker);
                pipeline.arg(text).arg(seconds(*keep));
            }
            Op::Since { key, now_ms } => {
                pipeline.cmd("EVAL").arg(SINCE).arg(1).arg(key).arg(*now_ms);
            }
            Op::Release { key, asker } => {
                pipeline.cmd("EVAL").arg(RELEASE).arg(1).arg(key).arg(&**asker);
            }
            Op::Acquire { key, asker, left_by, lease } => {
                pipeline.cmd("EVAL").arg(ACQUIRE).arg(1).arg(key).arg(&**asker);
                pipeline.arg(lease.as_secs().max(1)).arg(left_by.as_deref().unwrap_or_default());
            }
            Op::Free { key, asker, accepted_ms } => {
                pipeline.cmd("EVAL").arg(FREE).arg(1).arg(key).arg(&**asker);
                pipeline.arg(*accepted_ms).arg(self.window_seconds);
            }
            Op::Read { key } | Op::Look { key, .. } | Op::Recall { key } => {
                pipeline.cmd("GET").arg(key);
            }
        }
    }

    async fn query(&self, pipeline: &Pipeline) -> Result<Vec<Value>, StoreUnavailable> {
        let mut connection = self.connection.clone();
        pipeline
            .query_async(&mut connection)
            .await
            .map_err(|error| StoreUnavailable::new(describe(&error)))
    }
}

impl Store for RedisStore {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        Box::pin(self.run(ops))
    }
}

/// Warns of a server that may drop claims before their time. Managed servers that do not tell their
/// policy are believed.
pub async fn warn_of_eviction(mut connection: Connection) {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("maxmemory-policy");
    let policy: redis::RedisResult<Vec<String>> = command.query_async(&mut connection).await;
    if let Ok([_, policy]) = policy.as_deref()
        && policy != "noeviction"
    {
        tracing::warn!(
            policy,
            "redis may drop claims when its memory is full: set maxmemory-policy noeviction"
        );
    }
}

/// What the first round trip settles; `None` for a claim that somebody has.
fn reply(op: &Op, answer: &Value) -> Option<Reply> {
    match (op, answer) {
        (Op::Claim { .. }, Value::Nil) => None,
        (Op::Read { .. } | Op::Look { .. }, Value::Nil) => Some(Reply::Free),
        (Op::Look { asker, .. }, answer) => Some(standing(answer, Some(asker))),
        (Op::Recall { .. }, Value::Nil) => Some(Reply::Kept(None)),
        (Op::Recall { .. }, answer) => Some(Reply::Kept(Some(text(answer).to_owned()))),
        (Op::Since { now_ms, .. }, answer) => {
            Some(Reply::Since { ms: text(answer).parse().unwrap_or(*now_ms) })
        }
        (Op::Keep { .. }, Value::Int(0)) => Some(Reply::Held),
        (Op::Read { .. }, answer) => Some(standing(answer, None)),
        (Op::Acquire { asker, left_by, .. }, answer) => {
            Some(acquired(answer, asker, left_by.as_deref()))
        }
        _ => Some(Reply::Granted),
    }
}

/// What stood at a key before it was asked for alone.
fn acquired(before: &Value, asker: &str, left_by: Option<&str>) -> Reply {
    if *before == Value::Nil {
        return Reply::Acquired { accepted_ms: None, resumed: false };
    }
    let text = text(before);
    if let Some(at) = text.strip_prefix("free:") {
        return Reply::Acquired { accepted_ms: at.parse().ok(), resumed: false };
    }
    let held = text.strip_prefix("held:").and_then(|held| held.split_once(':'));
    let (at, holder) = held.unwrap_or_default();
    if holder == asker || Some(holder) == left_by {
        return Reply::Acquired { accepted_ms: at.parse().ok(), resumed: true };
    }
    Reply::Taken { holder: holder.into() }
}

/// What a value that stands at a key means to `asker`.
fn standing(value: &Value, asker: Option<&str>) -> Reply {
    let text = text(value);
    if let Some(done) = text.strip_prefix(DONE) {
        let (at, due) = done.split_once(':').unwrap_or((done, ""));
        let (accepted_ms, due_ms) = (at.parse().unwrap_or(0), due.parse().unwrap_or(0));
        return Reply::Done { accepted_ms, due_ms };
    }
    if let Some(taken) = text.strip_prefix(TAKEN_BACK) {
        return taken_back(taken);
    }
    if Some(text) == asker { Reply::Granted } else { Reply::Held }
}

/// `<commit>:<lsn>:<whether deleted>`, as the script appends it.
fn written(by: TakenBack) -> String {
    let lsn = by.at.lsn.map_or_else(String::new, |lsn| lsn.to_string());
    format!("{}:{lsn}:{}", by.at.commit_ms, u8::from(by.deleted))
}

fn taken_back(text: &str) -> Reply {
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap_or_default();
    let (accepted, due, commit, lsn, deleted) = (next(), next(), next(), next(), next());
    Reply::TakenBack {
        accepted_ms: accepted.parse().ok(),
        due_ms: due.parse().unwrap_or(0),
        by: TakenBack {
            at: Moment { commit_ms: commit.parse().unwrap_or(0), lsn: lsn.parse().ok() },
            deleted: deleted == "1",
        },
    }
}

fn seconds(keep: Duration) -> u64 {
    keep.as_secs().max(1)
}

fn text(value: &Value) -> &str {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        Value::SimpleString(text) => text,
        _ => "",
    }
}
