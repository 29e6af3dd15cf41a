//! What a session reports: signs of life, the end of a snapshot, losses, and the client's errors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;

use super::dispatch::job::Waits;
use super::group::start::Loss;
use super::group::topics::Unreadable;
use super::session::{End, Session, SnapshotCount};
use super::settings::EngineError;
use super::vitals::{AtWork, PartitionVitals, Vitals};
use super::{Consumer, Observed};
use crate::cdc::Remarks;
use crate::kafka::Signals;
use crate::outage::Breaker;

/// Why a group is not joined while the old service is in it, and what to do.
pub(super) const ANOTHER_ASSIGNOR: &str = "another member of this group uses another assignor: \
                                           stop the old service, this one joins when it is gone";

impl<C: Consumer> Session<'_, C> {
    pub(super) fn update_vitals(&mut self, now: Instant, signals: &Signals) {
        let open: usize = self.partitions.values().map(|p| p.load().records).sum();
        let partitions = self.partition_vitals(now, signals);
        let lag = partitions.iter().map(|partition| partition.lag).sum();
        if open == 0 && lag <= 0 {
            self.times.progress = now;
        }
        let waits_for = self.waits_for(signals);
        self.engine.pulse.update(Vitals {
            beat: now,
            progress: self.times.progress,
            partitions,
            open,
            lag,
            waits_for,
            longest: self.longest(now),
            held: self.membership.unbegun.held(),
        });
    }

    /// The record in flight that has been at its work for longest, as far as nothing explains it.
    fn longest(&self, now: Instant) -> Option<AtWork> {
        let still = self.dispatch.in_flight.values().filter_map(|task| {
            let since = task.life.still_since(now)?;
            let mut records = task.records.iter();
            let origin = records.find_map(|(id, offset)| {
                let partition = self.partitions.get(id).filter(|of| of.is_open(*offset))?;
                Some(partition.origin(*offset))
            });
            Some((since, origin?))
        });
        let (since, origin) = still.min_by_key(|(since, _)| *since)?;
        Some(AtWork { origin, since })
    }

    /// What explains that records do not end. Only what this consumer's own work waits for counts:
    /// another's outage must not hide a stall.
    pub(super) fn waits_for(&self, signals: &Signals) -> Vec<String> {
        let mut names: BTreeSet<&str> = BTreeSet::new();
        let mut breakers: BTreeMap<&str, &Breaker> = BTreeMap::new();
        for Waits { breaker, reason } in self.dispatch.lanes.parked().map(|job| &job.waits_for) {
            match breaker {
                Some(breaker) => drop(breakers.insert(breaker.name(), breaker)),
                // What was given up waits for nothing that would explain it.
                None if reason.is_empty() => {}
                None => drop(names.insert(reason)),
            }
        }
        if self.dispatch.lanes.running() > 0 {
            let awaited = self.dispatch.shared.awaited().filter(|breaker| breaker.away().is_some());
            breakers.extend(awaited.map(|breaker| (breaker.name(), &**breaker)));
        }
        let mut waits_for: Vec<String> = names.into_iter().map(str::to_owned).collect();
        waits_for.extend(breakers.into_iter().map(|(name, breaker)| match breaker.away() {
            Some(away) => format!("{name}: {}", away.error),
            None => name.to_owned(),
        }));
        waits_for.extend(self.dispatch.floods.reasons());
        waits_for.extend(signals.brokers.away().map(|reason| format!("kafka: {reason}")));
        waits_for.extend(self.membership.refused.map(|why| format!("kafka: {why}")));
        if self.membership.unreadable.is_some() {
            waits_for.push("kafka: this account may not read one of the topics".to_owned());
        }
        if self.membership.assignment.is_planning() {
            waits_for.push("kafka: reading committed offsets".to_owned());
        }
        waits_for
    }

    pub(super) fn partition_vitals(&self, now: Instant, signals: &Signals) -> Vec<PartitionVitals> {
        let fetch_states = signals.fetch_states.lock().unwrap_or_else(PoisonError::into_inner);
        let vitals = self.partitions.values().map(|partition| PartitionVitals {
            topic: Arc::clone(&partition.topic),
            number: partition.number,
            lag: partition.lag(
                fetch_states.of(&partition.topic, partition.number).map_or(0, |fetch| fetch.lag),
            ),
            waiting: partition.waiting(now),
        });
        vitals.collect()
    }

    pub(super) fn count_snapshot(&mut self, reason: &'static str) {
        if reason == super::SNAPSHOT_SKIPPED {
            self.notices.snapshot.skipped += 1;
        }
        self.notices.snapshot.last = Some(Instant::now());
    }

    /// Counts what is unusual about a change, and warns of it once a topic.
    pub(super) fn note(
        &mut self,
        remarks: &Remarks,
        topic: &Arc<str>,
        partition: i32,
        offset: i64,
    ) {
        for remark in remarks.iter() {
            let observed = Observed::Remarked { topic, remark };
            self.engine.observer.observe(self.engine.name(), &observed);
            if self.notices.warned_of.insert((Arc::clone(topic), remark)) {
                tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
                    messaging.destination.name = %topic,
                    messaging.destination.partition.id = partition,
                    messaging.kafka.offset = offset, remark = remark.as_str(),
                    "{}; more of them are only counted", remark.advice());
            }
        }
    }

    /// Says once, at the end of a snapshot, how many of its rows were skipped.
    pub(super) fn report_snapshot(&mut self, now: Instant) {
        const QUIET: Duration = Duration::from_secs(10);
        let over = self.notices.snapshot.last.is_some_and(|last| now - last > QUIET);
        if over && self.notices.snapshot.skipped > 0 {
            tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group,
                rows = self.notices.snapshot.skipped,
                "snapshot rows skipped by SNAPSHOT_POLICY; if rows were written while the connector was down, compare the ledgers with wallet_ledger");
        }
        if over {
            self.notices.snapshot = SnapshotCount::default();
        }
    }

    /// What a poll returned instead of a record.
    pub(super) fn client_error(&mut self, error: &KafkaError) -> Option<Result<End, EngineError>> {
        let group = &self.engine.settings.group;
        match error {
            KafkaError::MessageConsumptionFatal(code) => return Some(self.fatal(*code)),
            KafkaError::MessageConsumption(code) => match code {
                // Without the partition's name, and not always: statistics tell.
                RDKafkaErrorCode::AutoOffsetReset => {}
                // Said once at the start; librdkafka repeats it with every refresh.
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {}
                // Said when no broker is left, with the reason and what to do; these repeat it many
                // times a second.
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::Resolve => {}
                RDKafkaErrorCode::InconsistentGroupProtocol => self.refuse(ANOTHER_ASSIGNOR),
                RDKafkaErrorCode::GroupAuthorizationFailed => self.refuse(
                    "this account may not use the group: allow it to READ it, or choose another CONSUMER_GROUP_ID",
                ),
                RDKafkaErrorCode::TopicAuthorizationFailed => {
                    if self.membership.unreadable.is_none() {
                        self.membership.unreadable = Some(Unreadable::default());
                        tracing::error!(messaging.consumer.group.name = %group, topics = ?self.engine.settings.subscription.topics,
                            "this account may not read one of the topics: allow it to READ and DESCRIBE them, consuming starts then");
                    }
                }
                code => {
                    tracing::warn!(messaging.consumer.group.name = %group, error.type = %code,
                        "kafka client reports an error, going on");
                }
            },
            error => {
                tracing::warn!(messaging.consumer.group.name = %group, %error,
                    "kafka client reports an error, going on");
            }
        }
        None
    }

    /// Said once; librdkafka repeats it every few seconds, and readiness goes on.
    pub(super) fn refuse(&mut self, why: &'static str) {
        if self.membership.refused.replace(why).is_none() {
            tracing::error!(messaging.consumer.group.name = %self.engine.settings.group, "{why}");
        }
    }

    pub(super) fn fatal(&self, code: RDKafkaErrorCode) -> Result<End, EngineError> {
        let by_itself = || self.client.context().may_fence_itself();
        if code == RDKafkaErrorCode::UnreleasedInstanceId
            || (code == RDKafkaErrorCode::FencedInstanceId && by_itself())
        {
            return Ok(End::Anew(format!("the broker does not accept it for now ({code})")));
        }
        let advice = match code {
            RDKafkaErrorCode::FencedInstanceId => {
                "another process uses the same KAFKA_INSTANCE_ID; give each running process its own"
            }
            _ => "see the log above; the platform should start it again",
        };
        Err(EngineError::Fatal { group: self.engine.settings.group.clone(), code, advice })
    }

    pub(super) fn report_loss(&self, topic: &str, partition: i32, loss: Loss) {
        let group = &self.engine.settings.group;
        let records = match loss {
            Loss::Expired(records) => {
                tracing::error!(messaging.consumer.group.name = %group,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition, records,
                    "records lost: retention removed them before they were read; compare the ledgers of that time with wallet_ledger");
                Some(records)
            }
            Loss::CutBack(records) => {
                tracing::error!(messaging.consumer.group.name = %group,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition, records,
                    "log was cut back, as an unclean leader election does: this many records that were read are gone, and unread ones after them; \
                     reading on at the first record not older than the newest finished one; compare the ledgers of that time with wallet_ledger");
                None
            }
            Loss::Recreated => {
                tracing::error!(messaging.consumer.group.name = %group,
                    messaging.destination.name = topic,
                    messaging.destination.partition.id = partition,
                    "topic was recreated, or ends before the committed offset: reading it from its beginning");
                None
            }
        };
        let observed = Observed::Lost { topic, partition, records };
        self.engine.observer.observe(self.engine.name(), &observed);
    }

    /// Whether the client's answer to a call is worth a warning.
    pub(super) fn warn_on_error(&self, what: &'static str, result: KafkaResult<()>) {
        if let Err(error) = result {
            tracing::warn!(messaging.consumer.group.name = %self.engine.settings.group, %error, what,
                "kafka client refused a call");
        }
    }
}
