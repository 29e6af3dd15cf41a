//! The action `cache_invalidate`: entries of an authorization cache in Redis are removed, or the epoch that
//! its keys carry is moved on, so that nobody finds the old ones again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use redis::aio::ConnectionLike as _;
use redis::{Cmd, Pipeline, Value};
use serde::Deserialize;

use super::{Action, Applied, Group, Item, Kind, Repeats, Template, options};
use crate::clients::redis::{Connection, describe};
use crate::engine::Failure;
use crate::outage::Breaker;

/// What it declares.
pub static KIND: Kind = Kind {
    name: "cache_invalidate",
    group: Group::Consumers,
    repeats: Repeats::Harmless,
    keeps_state: false,
    reads: true,
    expires: true,
    schemas: false,
    needs: &[&["redis.cache_url", "redis.url"]],
    check: |given| {
        let given: Options = options(given)?;
        match (given.key, given.epoch) {
            (None, None) => {
                Err("key or epoch is missing: a template such as authz:{namespace}:{object_id}"
                    .into())
            }
            _ => Ok(()),
        }
    },
    build: |configured, parts| {
        let Options { key, epoch } = options(&configured.options).unwrap_or_default();
        let (server, retries) = (parts.shared.cache.server(), configured.retries);
        Ok(Arc::new(Invalidation { key, epoch, server, retries }))
    },
};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// The key of an entry.
    key: Option<Template>,
    /// The key of an epoch.
    epoch: Option<Template>,
}

/// Removes entries and moves epochs on.
struct Invalidation {
    key: Option<Template>,
    epoch: Option<Template>,
    server: Option<(Connection, Arc<Breaker>)>,
    retries: u32,
}

/// What is done to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Move {
    /// The entry goes.
    Unlink,
    /// The epoch moves on.
    Increase,
}

impl Action for Invalidation {
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>> {
        let Some((connection, breaker)) = self.server.clone() else {
            return Box::pin(std::future::ready(items.iter().map(|_| Ok(())).collect()));
        };
        let (moves, of_items) = self.moves(items);
        let retries = self.retries;
        Box::pin(async move {
            let refusals = match carry_out(connection, &breaker, &moves).await {
                Ok(refusals) => refusals,
                Err(message) => {
                    return of_items.iter().map(|_| Err(away(&breaker, &message))).collect();
                }
            };
            let answer = |places: &Vec<usize>| match places.iter().find_map(|at| refusals.get(at)) {
                None => Ok(()),
                Some(message) => Err(Failure::Refused {
                    kind: "invalidation_refused",
                    message: message.clone(),
                    retries,
                }),
            };
            of_items.iter().map(answer).collect()
        })
    }

    fn breaker(&self) -> Option<&Arc<Breaker>> {
        self.server.as_ref().map(|(_, breaker)| breaker)
    }
}

impl Invalidation {
    /// What is to be done, each once for all of these changes, and by its places what each of them calls
    /// for.
    fn moves(&self, items: &[&Item]) -> (Vec<(Move, String)>, Vec<Vec<usize>>) {
        let mut known = BTreeMap::new();
        let mut moves = Vec::new();
        let mut place = |what: Move, key: String| {
            *known.entry((what, key.clone())).or_insert_with(|| {
                moves.push((what, key));
                moves.len() - 1
            })
        };
        let templates = [(Move::Unlink, self.key.as_ref()), (Move::Increase, self.epoch.as_ref())];
        let of_item = |item: &&Item| {
            let asked = templates.iter().filter_map(|(what, template)| Some((*what, (*template)?)));
            asked.map(|(what, template)| place(what, template.fill(item))).collect()
        };
        let of_items = items.iter().map(of_item).collect();
        (moves, of_items)
    }
}

/// Carries them out in one pipeline. Answers which were refused, by their places.
async fn carry_out(
    mut connection: Connection,
    breaker: &Breaker,
    moves: &[(Move, String)],
) -> Result<BTreeMap<usize, String>, String> {
    let mut pipeline = Pipeline::with_capacity(moves.len());
    for (what, key) in moves {
        let command = match what {
            Move::Unlink => "UNLINK",
            Move::Increase => "INCR",
        };
        pipeline.add_command(Cmd::new().arg(command).arg(key).to_owned());
    }
    let Ok(leave) = breaker.admit(Instant::now()) else {
        return Err("Redis is away".to_owned());
    };
    match connection.req_packed_commands(&pipeline, 0, moves.len()).await {
        Ok(answers) => {
            leave.succeeded_for(moves.len() as u64);
            let refused = answers.into_iter().enumerate().filter_map(|(at, answer)| match answer {
                Value::ServerError(error) => {
                    let (what, key) = moves.get(at)?;
                    Some((at, format!("{what:?} of {key}: {}", describe(&error.into()))))
                }
                _ => None,
            });
            Ok(refused.collect())
        }
        Err(error) => {
            let message = describe(&error);
            leave.failed(Instant::now(), None, &message);
            Err(message)
        }
    }
}

fn away(breaker: &Arc<Breaker>, message: &str) -> Failure {
    Failure::Outage {
        breaker: Arc::clone(breaker),
        kind: "cache_away",
        message: message.to_owned(),
        retry_after: None,
        attempted: false,
    }
}
