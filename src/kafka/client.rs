//! Clients of the broker, configured for the promises that the engine makes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaResult;
use secrecy::ExposeSecret;
use tokio::sync::oneshot;

use super::callbacks::Callbacks;
use super::topic_ids::{TopicId, TopicIds};
use crate::config::{self, Beginning, GroupProtocol, Properties};

/// The consumer of one group.
pub(crate) type GroupConsumer = StreamConsumer<Callbacks>;

/// Who shares out partitions in a group of the classic protocol.
pub(super) const ASSIGNOR: &str = "cooperative-sticky";

/// How long a client may take to leave its group and go.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The shortest time that a member of a KIP-848 group gets to give partitions up. After that the
/// broker takes them.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(45);

/// Makes clients for one cluster.
#[derive(Debug, Clone)]
pub struct Kafka {
    settings: config::Kafka,
    commit_interval: Duration,
    drain_deadline: Duration,
    topic_ids: Arc<TopicIds>,
    /// How many consumers of this process share the room for what is fetched ahead.
    consumers: usize,
}

impl Kafka {
    /// Clients for the cluster of `settings`; consumers commit every `commit_interval`, and their
    /// revoked partitions drain for at most `drain_deadline`.
    #[must_use]
    pub fn new(
        settings: config::Kafka,
        commit_interval: Duration,
        drain_deadline: Duration,
    ) -> Self {
        Self { settings, commit_interval, drain_deadline, topic_ids: Arc::default(), consumers: 1 }
    }

    /// Clients as `settings` say.
    #[must_use]
    pub fn of(settings: &config::Settings) -> Self {
        let config::Engine { commit_interval, drain_deadline, .. } = settings.engine;
        let consumers = settings.consumers.len().max(1);
        Self { consumers, ..Self::new(settings.kafka.clone(), commit_interval, drain_deadline) }
    }

    /// Where a topic begins that holds records and of which the group has committed nothing.
    #[must_use]
    pub fn beginning_of(&self, topic: &str) -> Option<Beginning> {
        self.settings.beginning_of(topic)
    }

    /// Whether a member that returns gets its partitions back without a rebalance. Static members
    /// of the classic protocol do.
    pub(crate) fn is_static_classic(&self) -> bool {
        let classic = self.settings.group_protocol == GroupProtocol::Classic;
        classic && self.settings.instance_id.is_some()
    }

    /// Whether the broker admits this member beside members with another assignor. It does in a
    /// group of the new protocol.
    pub(crate) fn uses_consumer_protocol(&self) -> bool {
        self.settings.group_protocol == GroupProtocol::Consumer
    }

    /// What every client shares: brokers, security, and the user's own properties.
    #[must_use]
    pub fn base(&self) -> ClientConfig {
        self.client(&[])
    }

    /// As [`Self::base`], with defaults that the user's properties override. Their names must not
    /// be aliases: of a name and its alias librdkafka takes either.
    pub(super) fn client(&self, more: &[(&str, &str)]) -> ClientConfig {
        let mut client = ClientConfig::new();
        // librdkafka would pass on errors alone. The log's filter decides what is shown.
        client.set_log_level(RDKafkaLogLevel::Info);
        client.set("bootstrap.servers", &self.settings.bootstrap);
        client.set("client.id", env!("CARGO_PKG_NAME"));
        // OpenSSL is built in and would look for authorities where it was built: nowhere.
        let ca = self.settings.ca_file.as_deref().unwrap_or("probe");
        client.set("ssl.ca.location", ca);
        if let Some(credentials) = &self.settings.credentials {
            client.set("security.protocol", "SASL_SSL");
            client.set("sasl.mechanisms", "PLAIN");
            client.set("sasl.username", credentials.username.expose_secret());
            client.set("sasl.password", credentials.password.expose_secret());
        }
        for (name, value) in more {
            client.set(*name, *value);
        }
        apply(&mut client, &self.settings.properties);
        client
    }

    /// The ids of these topics. Those that are missing or have no id are left out. Blocks.
    ///
    /// # Errors
    /// When no broker answers within `timeout`.
    pub(crate) fn topic_ids(
        &self,
        topics: &[String],
        timeout: Duration,
    ) -> KafkaResult<HashMap<String, TopicId>> {
        let mut config = self.base();
        config.set("allow.auto.create.topics", "false");
        self.topic_ids.ask(&config, topics, timeout)
    }

    /// A consumer in `group`. `own` properties win over those of all clients.
    pub(crate) fn consumer(
        &self,
        group: &str,
        own: &Properties,
        context: Callbacks,
    ) -> KafkaResult<GroupConsumer> {
        self.configure(group, own).create_with_context(context)
    }

    /// A client that reads what the group `group` has committed and is never a member of it, nor
    /// commits anything. `own` as of [`Self::consumer`].
    pub(crate) fn reader(
        &self,
        group: &str,
        own: &Properties,
        context: Callbacks,
    ) -> KafkaResult<GroupConsumer> {
        let mut client = self.configure(group, own);
        client.set("enable.auto.commit", "false");
        client.remove("group.instance.id");
        client.create_with_context(context)
    }

    /// How a consumer's client in `group` is set up. `own` properties win over those of all clients.
    #[must_use]
    pub fn configure(&self, group: &str, own: &Properties) -> ClientConfig {
        let mut client = self.base();
        // What is fetched ahead, shared by the consumers. 4 MiB still give one of them 245,000 records a
        // second. Each record takes 300 bytes besides its own, so small ones are counted too.
        let (kbytes, records) = (4_096 / self.consumers, 10_000 / self.consumers);
        client.set("queued.max.messages.kbytes", kbytes.max(512).to_string());
        client.set("queued.min.messages", records.max(1_000).to_string());
        // A fetch answer stays in memory whole while any of its records is in hand, and several do
        // at a time. A megabyte for each partition would be 50 MiB.
        client.set("fetch.max.bytes", "1048576");
        client.set("fetch.queue.backoff.ms", "10");
        client.set("statistics.interval.ms", "5000");
        client.set("allow.auto.create.topics", "false");
        client.set(
            "topic.metadata.refresh.interval.ms",
            self.settings.metadata_refresh.as_millis().to_string(),
        );
        let classic = self.settings.group_protocol == GroupProtocol::Classic;
        let session = self.settings.session_timeout.as_millis();
        if classic {
            // It must not be shorter than the session timeout. Five minutes is librdkafka's
            // default.
            client.set("max.poll.interval.ms", session.max(300_000).to_string());
            // A member hears of a rebalance with its next heartbeat, and a partition that moves
            // stands still until all have heard.
            client.set("heartbeat.interval.ms", (session / 10).clamp(100, 1_000).to_string());
        } else {
            // librdkafka's default is five minutes. After a heartbeat that timed out it never
            // learns what the lost answer told it to give up, so the broker must act sooner.
            let rebalance = REBALANCE_TIMEOUT.max(self.drain_deadline * 2);
            client.set("max.poll.interval.ms", rebalance.as_millis().to_string());
        }
        apply(&mut client, &self.settings.properties);
        apply(&mut client, own);

        client.set("group.id", group);
        // librdkafka commits what the engine has stored, and only that; where a partition starts is
        // the engine's decision.
        client.set("enable.auto.commit", "true");
        client.set("enable.auto.offset.store", "false");
        client.set("auto.commit.interval.ms", self.commit_interval.as_millis().to_string());
        client.set("auto.offset.reset", "error");
        if classic {
            client.set("partition.assignment.strategy", ASSIGNOR);
            client.set("session.timeout.ms", session.to_string());
        } else {
            client.set("group.protocol", "consumer");
        }
        if let Some(instance) = &self.settings.instance_id {
            client.set("group.instance.id", instance);
        }
        client
    }

    /// Leaves the group and drops the client, on a thread of its own: dropping blocks, and after a
    /// fatal error or beside a broker that flaps it can hang for good.
    pub(crate) async fn close(&self, client: Arc<GroupConsumer>) {
        let (done, closed) = oneshot::channel();
        let classic = self.settings.group_protocol == GroupProtocol::Classic;
        let comes_back = self.settings.instance_id.is_some();
        let thread = std::thread::Builder::new().name("kafka-close".to_owned());
        let spawned = thread.spawn(move || {
            // librdkafka 2.12 dereferences a null pointer where the answer to a member's first
            // SyncGroup meets a client that is closing (confluentinc/librdkafka#5347). One that has
            // left before does not look at it. A static member keeps its place, and is not
            // affected.
            if classic && !comes_back && client.assignment().is_ok_and(|own| own.count() == 0) {
                client.unsubscribe();
            }
            drop(client);
            // Nobody may be waiting any more.
            done.send(()).ok();
        });
        if spawned.is_err() || tokio::time::timeout(CLOSE_DEADLINE, closed).await.is_err() {
            tracing::warn!("kafka client did not close in time");
        }
    }
}

fn apply(client: &mut ClientConfig, properties: &Properties) {
    for (name, value) in properties.iter() {
        client.set(name, value);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;
    use crate::consumers::registry;

    fn configured(more: &[(&str, &str)]) -> ClientConfig {
        let needed = [
            ("KAFKA_BOOTSTRAP_SERVERS", "broker.invalid:9092"),
            ("INNGEST_EVENT_KEY", "test"),
            ("REDIS_URL", "redis://unused.invalid"),
            ("CONSUMERS", "marketplace"),
        ];
        let named = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Environment = needed.iter().chain(more).map(named).collect();
        let settings = registry::load(&environment, Path::new("")).settings.expect("settings");
        let kafka = Kafka::of(&settings);
        kafka.configure(
            "group",
            &settings.consumer(&crate::consumers::marketplace::SPEC).kafka_properties,
        )
    }

    #[test]
    fn a_member_is_heard_every_second_unless_it_is_told_otherwise() {
        let beat = |more: &[_]| configured(more).get("heartbeat.interval.ms").map(str::to_owned);
        assert_eq!(beat(&[]).as_deref(), Some("1000"));
        let own = ("MARKETPLACE_KAFKA_PROPERTIES", "heartbeat.interval.ms=2500");
        assert_eq!(beat(&[own]).as_deref(), Some("2500"));
        assert_eq!(beat(&[("KAFKA_GROUP_PROTOCOL", "consumer")]), None, "the broker's to say");
    }

    #[test]
    fn what_is_given_by_an_alias_is_what_counts_at_every_start() {
        let set = [
            ("KAFKA_API_KEY", "key"),
            ("KAFKA_API_SECRET", "secret-of-this-test"),
            ("KAFKA_PROPERTIES", "sasl.mechanism=SCRAM-SHA-256,max.partition.fetch.bytes=5"),
            ("MARKETPLACE_KAFKA_PROPERTIES", "fetch.message.max.bytes=6"),
        ];
        let client = configured(&set);
        for (name, value) in [
            ("sasl.mechanisms", Some("SCRAM-SHA-256")),
            ("sasl.mechanism", None),
            ("fetch.message.max.bytes", Some("6")),
            ("max.partition.fetch.bytes", None),
        ] {
            assert_eq!(client.get(name), value, "{name}");
        }
    }

    #[test]
    fn a_broker_waits_for_partitions_longer_than_a_drain_takes_and_not_for_minutes() {
        let timeout = |more: &[_]| configured(more).get("max.poll.interval.ms").map(str::to_owned);
        let new = ("KAFKA_GROUP_PROTOCOL", "consumer");
        assert_eq!(timeout(&[new]).as_deref(), Some("45000"));
        let long = [new, ("DRAIN_DEADLINE", "50s"), ("SHUTDOWN_GRACE", "60s")];
        assert_eq!(timeout(&long).as_deref(), Some("100000"));
        assert_eq!(timeout(&[]).as_deref(), Some("300000"), "of the classic protocol");
    }
}
