//! What librdkafka calls back. Callbacks run inside `recv` and must not wait: they note what
//! happened, and the loop carries it out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

use super::brokers::Brokers;

/// A change of the assignment that the loop must carry out, or has lost already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rebalance {
    /// These become ours once the loop assigns them. The list may be empty, and is answered all the
    /// same.
    Assign(Vec<(String, i32)>),
    /// These are to be given up: the group waits for it.
    Revoke(Vec<(String, i32)>),
    /// These are gone already.
    Lost(Vec<(String, i32)>),
    /// The client does not let partitions go that it has lost.
    Refused(KafkaError),
}

/// How long a commit may be under way: librdkafka's default of `socket.timeout.ms`.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What statistics say of one partition that is consumed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FetchState {
    /// Records behind the position.
    pub(crate) lag: i64,
    /// Nobody fetches it.
    pub(crate) stopped: bool,
}

/// What the last statistics say.
#[derive(Debug, Default)]
pub(crate) struct FetchStates {
    /// How many statistics there were by now.
    pub(crate) number: u64,
    partitions: HashMap<String, HashMap<i32, FetchState>>,
}

impl FetchStates {
    /// What they say of one partition.
    pub(crate) fn of(&self, topic: &str, partition: i32) -> Option<FetchState> {
        self.partitions.get(topic)?.get(&partition).copied()
    }
}

/// Callbacks of one consumer.
pub(crate) struct Callbacks {
    group: String,
    rebalances: mpsc::UnboundedSender<Rebalance>,
    closing: Arc<AtomicBool>,
    fetch_states: Arc<Mutex<FetchStates>>,
    brokers: Arc<Brokers>,
    session_lost: Mutex<Option<Instant>>,
    heartbeat_lost: Arc<Mutex<Option<Instant>>>,
}

/// The loop's end of [`Callbacks`].
pub(crate) struct Signals {
    pub(crate) rebalances: mpsc::UnboundedReceiver<Rebalance>,
    /// Set before the client is dropped: from then on a revoke is answered on the spot.
    pub(crate) closing: Arc<AtomicBool>,
    /// What statistics say of the partitions.
    pub(crate) fetch_states: Arc<Mutex<FetchStates>>,
    /// Whether any broker can be reached.
    pub(crate) brokers: Arc<Brokers>,
    /// When a heartbeat of the new protocol last had no answer.
    pub(crate) heartbeat_lost: Arc<Mutex<Option<Instant>>>,
}

impl Callbacks {
    pub(crate) fn new(group: &str) -> (Self, Signals) {
        let (sender, rebalances) = mpsc::unbounded_channel();
        let signals = Signals {
            rebalances,
            closing: Arc::default(),
            fetch_states: Arc::default(),
            brokers: Arc::new(Brokers::new(group)),
            heartbeat_lost: Arc::default(),
        };
        let context = Self {
            group: group.to_owned(),
            rebalances: sender,
            closing: Arc::clone(&signals.closing),
            fetch_states: Arc::clone(&signals.fetch_states),
            brokers: Arc::clone(&signals.brokers),
            session_lost: Mutex::default(),
            heartbeat_lost: Arc::clone(&signals.heartbeat_lost),
        };
        (context, signals)
    }

    /// Whether the group may have been joined again with a commit still under way. A static member
    /// has another id then, and the broker takes such a commit for one of a second process.
    pub(crate) fn may_fence_itself(&self) -> bool {
        let lost = *self.session_lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.is_some_and(|lost| lost.elapsed() < COMMIT_TIMEOUT)
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" && !self.brokers.failed(message, Instant::now()) {
            tracing::debug!(target: "librdkafka", client = %self.group, facility, message, "librdkafka");
            return;
        }
        if facility == "SESSTMOUT" {
            let mut lost = self.session_lost.lock().unwrap_or_else(PoisonError::into_inner);
            *lost = Some(Instant::now());
        }
        if facility == "REQTMOUT" && message.contains("ConsumerGroupHeartbeat") {
            let mut heartbeat_lost =
                self.heartbeat_lost.lock().unwrap_or_else(PoisonError::into_inner);
            *heartbeat_lost = Some(Instant::now());
        }
        log(&self.group, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let all_down =
            error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::AllBrokersDown);
        if all_down {
            self.brokers.all_down(reason);
        }
        tracing::debug!(messaging.consumer.group.name = %self.group, %error, reason, "kafka client error");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => {
                let mut fetch_states =
                    self.fetch_states.lock().unwrap_or_else(PoisonError::into_inner);
                *fetch_states = FetchStates {
                    number: fetch_states.number + 1,
                    partitions: statistics.partitions(),
                };
                drop(fetch_states);
                if statistics.is_connected() {
                    self.brokers.up();
                } else {
                    self.brokers.not_up();
                }
            }
            Err(error) => tracing::debug!(%error, "statistics cannot be read"),
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let names: Vec<(String, i32)> = partitions
            .elements()
            .iter()
            .map(|partition| (partition.topic().to_owned(), partition.partition()))
            .collect();
        let rebalance = if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            Rebalance::Assign(names)
        } else if consumer.assignment_lost() || self.closing.load(Ordering::Acquire) {
            // Nobody waits for a drain: the partitions have another owner, or the engine drained
            // and committed before it closed the client.
            if let Err(error) = consumer.incremental_unassign(partitions) {
                // Nobody hears it while the client closes.
                self.rebalances.send(Rebalance::Refused(error)).ok();
            }
            Rebalance::Lost(names)
        } else {
            Rebalance::Revoke(names)
        };
        // Without a loop the client is being dropped in the middle of its work, and would wait for
        // good for an answer that nobody else gives.
        let undelivered = self.rebalances.send(rebalance);
        if matches!(undelivered, Err(SendError(Rebalance::Revoke(_))))
            && let Err(error) = consumer.incremental_unassign(partitions)
        {
            tracing::debug!(messaging.consumer.group.name = %self.group, %error, "partitions not unassigned");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(())
            | Err(KafkaError::ConsumerCommit(rdkafka::types::RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => {
                tracing::warn!(messaging.consumer.group.name = %self.group, %error, "offsets not committed, will be committed again");
            }
        }
    }
}

/// Passes librdkafka's own log on.
pub(super) fn log(client: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning
        | RDKafkaLogLevel::Notice => {
            tracing::warn!(target: "librdkafka", client, facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Info => {
            tracing::info!(target: "librdkafka", client, facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", client, facility, message, "librdkafka");
        }
    }
}

/// The little that is read of librdkafka's statistics.
#[derive(Debug, Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: HashMap<String, BrokerStatistics>,
    #[serde(default)]
    topics: HashMap<String, TopicStatistics>,
}

#[derive(Debug, Deserialize)]
struct BrokerStatistics {
    state: String,
}

#[derive(Debug, Deserialize)]
struct TopicStatistics {
    #[serde(default)]
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(Debug, Deserialize)]
struct PartitionStatistics {
    app_offset: i64,
    next_offset: i64,
    ls_offset: i64,
    #[serde(default)]
    desired: bool,
    #[serde(default)]
    fetch_state: String,
}

impl Statistics {
    /// Each partition that is consumed. Offsets have gaps, so the lag is an upper bound; it is 0
    /// where everything was delivered, markers apart.
    fn partitions(&self) -> HashMap<String, HashMap<i32, FetchState>> {
        let reading = |p: &PartitionStatistics| {
            // Before the first record only the fetch position is known.
            let position = if p.app_offset >= 0 { p.app_offset } else { p.next_offset };
            let lag = if position >= 0 { (p.ls_offset - position).max(0) } else { 0 };
            FetchState { lag, stopped: p.fetch_state == "none" }
        };
        let of_topic = |topic: &TopicStatistics| {
            let consumed = topic.partitions.iter().filter(|(_, p)| p.desired);
            consumed.filter_map(|(number, p)| Some((number.parse().ok()?, reading(p)))).collect()
        };
        self.topics.iter().map(|(topic, found)| (topic.clone(), of_topic(found))).collect()
    }

    /// Whether the group's coordinator can be talked to, which no consumer can do without; as long
    /// as it is not known, any broker.
    fn is_connected(&self) -> bool {
        let up = |broker: &BrokerStatistics| broker.state == "UP";
        match self.brokers.get("GroupCoordinator") {
            Some(coordinator) => up(coordinator),
            None => self.brokers.values().any(up),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_of_the_new_protocol_without_an_answer_is_noted() {
        let (context, signals) = Callbacks::new("g");
        let told = |request: &str| {
            let text = format!(
                "[thrd:GroupCoordinator]: GroupCoordinator/3: Timed out {request} in flight (after 1000ms, timeout #0)"
            );
            context.log(RDKafkaLogLevel::Warning, "REQTMOUT", &text);
            signals.heartbeat_lost.lock().expect("not poisoned").is_some()
        };
        assert!(!told("FetchRequest"));
        assert!(told("ConsumerGroupHeartbeatRequest"));
    }

    #[test]
    fn statistics_tell_the_lag_what_is_not_fetched_and_whether_a_broker_is_there() {
        let statistics: Statistics = serde_json::from_str(
            r#"{"brokers": {"b:1/1": {"state": "UP", "tx": 5}, "b:2/2": {"state": "DOWN"}},
                "topics": {"t": {"partitions": {
                    "0": {"app_offset": 10, "next_offset": 20, "ls_offset": 25, "desired": true, "fetch_state": "active"},
                    "1": {"app_offset": -1001, "next_offset": 20, "ls_offset": 25, "desired": true, "fetch_state": "none"},
                    "2": {"app_offset": 3, "next_offset": 3, "ls_offset": 25, "desired": false},
                    "-1": {"app_offset": -1001, "next_offset": -1001, "ls_offset": -1001}}}}}"#,
        )
        .expect("statistics");
        let read = [
            (0, FetchState { lag: 15, stopped: false }),
            (1, FetchState { lag: 5, stopped: true }),
        ];
        assert_eq!(statistics.partitions()["t"], HashMap::from(read));
        assert!(statistics.is_connected());
        let brokers = |coordinator: &str| {
            let text = format!(
                r#"{{"brokers": {{"b:1/1": {{"state": "UP"}}, "GroupCoordinator": {{"state": "{coordinator}"}}}}}}"#
            );
            serde_json::from_str::<Statistics>(&text).expect("statistics")
        };
        assert!(brokers("UP").is_connected() && !brokers("TRY_CONNECT").is_connected());
    }
}
