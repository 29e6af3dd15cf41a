//! Claims in Redis 6 and later, Valkey and Upstash: plain commands, and a script where a claim is
//! already there.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use redis::{Cmd, Pipeline, Value};

use super::{
    ClaimOp, ClaimReply, LockOp, LockReply, Moment, Op, Reply, Store, StoreUnavailable, TakenBack,
};
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
            first.add_command(match op {
                Op::Claim(op) => self.claim_command(op),
                Op::Lock(op) => self.lock_command(op),
            });
        }
        let answers = self.query(&first).await?;
        let mut replies: Vec<Option<Reply>> =
            ops.iter().zip(&answers).map(|(op, answer)| reply(op, answer)).collect();

        let open: Vec<usize> = (0..replies.len()).filter(|at| replies[*at].is_none()).collect();
        if !open.is_empty() {
            let mut second = Pipeline::with_capacity(open.len());
            for at in &open {
                second.add_command(self.second_command(&ops[*at]));
            }
            let answers = self.query(&second).await?;
            for (at, answer) in open.iter().zip(&answers) {
                replies[*at] = Some(Reply::Claim(second_reply(&ops[*at], answer)));
            }
        }
        let held = || Reply::Claim(ClaimReply::Held);
        Ok(replies.into_iter().map(|reply| reply.unwrap_or_else(held)).collect())
    }

    /// What is asked where the first command left it open.
    fn second_command(&self, op: &Op) -> Cmd {
        match op {
            Op::Claim(ClaimOp::Take { key, asker }) => {
                let mut eval = eval(RECLAIM, &[key]);
                eval.arg(&**asker).arg(self.window_seconds);
                eval
            }
            Op::Claim(ClaimOp::ConfirmTaken { key, accepted_ms }) => {
                let mut set = set(key, &done(*accepted_ms, 0));
                set.arg("EX").arg(self.window_seconds);
                set
            }
            Op::Claim(op) => self.claim_command(op),
            Op::Lock(op) => self.lock_command(op),
        }
    }

    fn claim_command(&self, op: &ClaimOp) -> Cmd {
        match op {
            ClaimOp::Take { key, asker } => {
                let mut set = set(key, asker);
                set.arg("NX").arg("EX").arg(self.window_seconds);
                set
            }
            ClaimOp::Confirm { key, accepted_ms, due_ms, keep } => {
                let mut set = set(key, &done(*accepted_ms, *due_ms));
                set.arg("EX").arg(seconds(*keep));
                set
            }
            ClaimOp::ConfirmTaken { key, accepted_ms } => {
                let mut set = set(key, &done(*accepted_ms, 0));
                set.arg("XX").arg("KEEPTTL");
                set
            }
            ClaimOp::TakeBack { key, by, keep } => {
                let mut eval = eval(TAKE_BACK, &[key]);
                eval.arg(written(*by)).arg(seconds(*keep));
                eval
            }
            ClaimOp::Release { key, asker } => {
                let mut eval = eval(RELEASE, &[key]);
                eval.arg(&**asker);
                eval
            }
            ClaimOp::Look { key, .. } => get(key),
        }
    }

    fn lock_command(&self, op: &LockOp) -> Cmd {
        match op {
            LockOp::Acquire { key, asker, left_by, lease } => {
                let mut eval = eval(ACQUIRE, &[key]);
                eval.arg(&**asker).arg(seconds(*lease));
                eval.arg(left_by.as_deref().unwrap_or_default());
                eval
            }
            LockOp::Free { key, asker, accepted_ms } => {
                let mut eval = eval(FREE, &[key]);
                eval.arg(&**asker).arg(*accepted_ms).arg(self.window_seconds);
                eval
            }
            LockOp::Keep { key, text, keep, lock, asker } => {
                let mut eval = eval(KEEP, &[key, lock]);
                eval.arg(&**asker).arg(text).arg(seconds(*keep));
                eval
            }
            LockOp::Recall { key } => get(key),
            LockOp::Since { key, now_ms } => {
                let mut eval = eval(SINCE, &[key]);
                eval.arg(*now_ms);
                eval
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

/// `SET key value`, in buffers of its size: a batch has two of them a record.
fn set(key: &str, value: &str) -> Cmd {
    let mut set = Cmd::with_capacity(6, key.len() + value.len() + 24);
    set.arg("SET").arg(key).arg(value);
    set
}

/// The value that says when something was done, and until when it sleeps.
fn done(accepted_ms: i64, due_ms: i64) -> String {
    let mut digits = itoa::Buffer::new();
    let mut value = String::with_capacity(40);
    value.push_str(DONE);
    value.push_str(digits.format(accepted_ms));
    if due_ms != 0 {
        value.push(':');
        value.push_str(digits.format(due_ms));
    }
    value
}

fn get(key: &str) -> Cmd {
    let mut get = Cmd::new();
    get.arg("GET").arg(key);
    get
}

fn eval(script: &str, keys: &[&Arc<str>]) -> Cmd {
    let mut eval = Cmd::new();
    eval.arg("EVAL").arg(script).arg(keys.len());
    for key in keys {
        eval.arg(&***key);
    }
    eval
}

/// What the first round trip settles; `None` for a claim that somebody has, and for one that is to be
/// marked done and is not there.
fn reply(op: &Op, answer: &Value) -> Option<Reply> {
    match op {
        Op::Claim(op) => claim_reply(op, answer).map(Reply::Claim),
        Op::Lock(op) => Some(Reply::Lock(lock_reply(op, answer))),
    }
}

fn claim_reply(op: &ClaimOp, answer: &Value) -> Option<ClaimReply> {
    match (op, answer) {
        (ClaimOp::Take { .. } | ClaimOp::ConfirmTaken { .. }, Value::Nil) => None,
        (ClaimOp::Take { .. }, _) => Some(ClaimReply::Granted),
        (ClaimOp::Look { .. }, Value::Nil) => Some(ClaimReply::Free),
        (ClaimOp::Look { asker, .. }, answer) => Some(standing(answer, asker.as_deref())),
        _ => Some(ClaimReply::Noted),
    }
}

fn second_reply(op: &Op, answer: &Value) -> ClaimReply {
    match op {
        Op::Claim(ClaimOp::Take { asker, .. }) => standing(answer, Some(asker)),
        _ => ClaimReply::Noted,
    }
}

fn lock_reply(op: &LockOp, answer: &Value) -> LockReply {
    match (op, answer) {
        (LockOp::Acquire { asker, left_by, .. }, answer) => {
            acquired(answer, asker, left_by.as_deref())
        }
        (LockOp::Free { .. }, _) => LockReply::Noted,
        (LockOp::Keep { .. }, Value::Int(0)) => LockReply::Lost,
        (LockOp::Keep { .. }, _) => LockReply::Noted,
        (LockOp::Recall { .. }, Value::Nil) => LockReply::Text(None),
        (LockOp::Recall { .. }, answer) => LockReply::Text(Some(text(answer).to_owned())),
        (LockOp::Since { now_ms, .. }, answer) => {
            LockReply::Since { ms: text(answer).parse().unwrap_or(*now_ms) }
        }
    }
}

/// What stood at a key before it was asked for alone.
fn acquired(before: &Value, asker: &str, left_by: Option<&str>) -> LockReply {
    if *before == Value::Nil {
        return LockReply::Acquired { accepted_ms: None, resumed: false };
    }
    let text = text(before);
    if let Some(at) = text.strip_prefix("free:") {
        return LockReply::Acquired { accepted_ms: at.parse().ok(), resumed: false };
    }
    let held = text.strip_prefix("held:").and_then(|held| held.split_once(':'));
    let (at, holder) = held.unwrap_or_default();
    if holder == asker || Some(holder) == left_by {
        return LockReply::Acquired { accepted_ms: at.parse().ok(), resumed: true };
    }
    LockReply::Taken { holder: holder.into() }
}

/// What a value that stands at a key means to `asker`.
fn standing(value: &Value, asker: Option<&str>) -> ClaimReply {
    let text = text(value);
    if let Some(done) = text.strip_prefix(DONE) {
        let (at, due) = done.split_once(':').unwrap_or((done, ""));
        let (accepted_ms, due_ms) = (at.parse().unwrap_or(0), due.parse().unwrap_or(0));
        return ClaimReply::Done { accepted_ms, due_ms };
    }
    if let Some(taken) = text.strip_prefix(TAKEN_BACK) {
        return taken_back(taken);
    }
    if Some(text) == asker { ClaimReply::Granted } else { ClaimReply::Held }
}

/// `<commit>:<lsn>:<whether deleted>`, as the script appends it.
fn written(by: TakenBack) -> String {
    let lsn = by.at.lsn.map_or_else(String::new, |lsn| lsn.to_string());
    format!("{}:{lsn}:{}", by.at.commit_ms, u8::from(by.deleted))
}

fn taken_back(text: &str) -> ClaimReply {
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap_or_default();
    let (accepted, due, commit, lsn, deleted) = (next(), next(), next(), next(), next());
    ClaimReply::TakenBack {
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
