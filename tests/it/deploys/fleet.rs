//! Members of one deployment: processes that come and go, and what their logs say of partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitStatus;

use serde_json::Value;

use test_support::daemon::{Daemon, Environment, Log};

/// Tells of every partition on its own, for machines.
const LOG_LEVEL: &str = "info,crm_event_processors::engine::group::rebalance=debug";

/// A partition of one group.
pub(super) type Place = (String, String, i32);
/// Who has which partition.
pub(super) type Owners = BTreeMap<Place, String>;

/// A member took a partition, or gave one up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// When, as the log says.
    at: String,
    pub(super) member: String,
    pub(super) place: Place,
    pub(super) taken: bool,
    /// The lowest offset that was not done.
    pub(super) offset: i64,
    /// How many above it were done.
    pub(super) completed: i64,
}

struct Member {
    name: String,
    daemon: Daemon,
    log: Log,
}

/// All members that ever were.
pub(super) struct Fleet {
    environment: Environment,
    running: Vec<Member>,
    ended: BTreeMap<String, Vec<String>>,
}

impl Fleet {
    pub(super) fn new(environment: Environment) -> Self {
        let environment = environment.with("LOG_FORMAT", "json").with("LOG_LEVEL", LOG_LEVEL);
        Self { environment, running: Vec::new(), ended: BTreeMap::new() }
    }

    /// Starts a member. Each of its requests to Inngest carries its name.
    pub(super) fn start(&mut self, name: &str) {
        let environment = self.environment.clone().with("INNGEST_ENV", name);
        let (daemon, log) = environment.start_logging();
        self.running.push(Member { name: name.to_owned(), daemon, log });
    }

    /// Stops a member as the platform does, and waits until it is gone.
    pub(super) async fn stop(&mut self, name: &str) -> ExitStatus {
        let at = self.running.iter().position(|member| member.name == name).expect("it runs");
        let Member { name, daemon, log } = self.running.remove(at);
        let stopped = tokio::task::spawn_blocking(move || {
            let status = daemon.stop();
            (status, log.whole())
        });
        let (status, log) = stopped.await.expect("it ends");
        self.ended.insert(name, log.lines().map(str::to_owned).collect());
        status
    }

    /// Names of those that run.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.running.iter().map(|member| member.name.clone()).collect()
    }

    /// Every line logged so far, with who logged it.
    pub(super) fn lines(&self) -> Vec<(String, Value)> {
        let ended = self.ended.iter().map(|(name, lines)| (name, lines.clone()));
        let running = self.running.iter().map(|member| (&member.name, member.log.lines()));
        let all = ended.chain(running);
        let parsed = all.flat_map(|(name, lines)| {
            // Lines that are not JSON do not come from the logger: the last words of a panic, say.
            let parse = |line: String| serde_json::from_str(&line).unwrap_or(Value::String(line));
            lines.into_iter().map(move |line| (name.clone(), parse(line))).collect::<Vec<_>>()
        });
        parsed.collect()
    }

    /// Who took and gave up which partition, in order.
    pub(super) fn turns(&self) -> Vec<Turn> {
        let mut turns: Vec<Turn> = self.lines().iter().filter_map(turn).collect();
        turns.sort();
        turns
    }
}

fn turn((member, line): &(String, Value)) -> Option<Turn> {
    let taken = match line["message"].as_str()? {
        "partition assigned" => true,
        "partition given up" => false,
        _ => return None,
    };
    let text = |name: &str| line[name].as_str().expect("a text").to_owned();
    let number = |name: &str| line[name].as_i64().expect("a number");
    let partition = number("messaging.destination.partition.id");
    Some(Turn {
        at: text("timestamp"),
        member: member.clone(),
        place: (
            text("messaging.consumer.group.name"),
            text("messaging.destination.name"),
            i32::try_from(partition).expect("a partition"),
        ),
        taken,
        offset: number("messaging.kafka.offset"),
        completed: number("completed"),
    })
}

/// Who has which partition after these turns.
pub(super) fn owners(turns: &[Turn]) -> Owners {
    let mut owners = Owners::new();
    for turn in turns {
        if turn.taken {
            owners.insert(turn.place.clone(), turn.member.clone());
        } else if owners.get(&turn.place) == Some(&turn.member) {
            owners.remove(&turn.place);
        }
    }
    owners
}

/// How many partitions of a group each of these members has.
pub(super) fn shares(
    owners: &Owners,
    group: &str,
    members: &BTreeSet<String>,
) -> BTreeMap<String, usize> {
    let mut shares: BTreeMap<String, usize> =
        members.iter().map(|name| (name.clone(), 0)).collect();
    for owner in owners.iter().filter(|(place, _)| place.0 == group).map(|(_, owner)| owner) {
        if let Some(share) = shares.get_mut(owner) {
            *share += 1;
        }
    }
    shares
}
