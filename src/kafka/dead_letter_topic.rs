//! The dead letter topic itself: made where it is missing, and made to take what its source topics
//! take.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewTopic,
    OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;

/// How long looking for a topic, making it or changing it may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The setting that says how large a record may be.
const MAX_BYTES: &str = "max.message.bytes";
/// What brokers accept by default.
const USUAL_BYTES: u64 = 1_048_588;
/// What a letter's own headers may add to its record.
const HEADERS: u64 = 64 << 10;

/// A topic for dead letters, and clients that may look after it.
pub(super) struct DeadLetterTopic {
    name: String,
    client: ClientConfig,
}

impl DeadLetterTopic {
    pub(super) fn new(name: &str, client: ClientConfig) -> Self {
        Self { name: name.to_owned(), client }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes it where it is missing and may be made; where it is there, has it take what `sources`
    /// take.
    pub(super) async fn ensure(&self, sources: &[String]) -> KafkaResult<()> {
        let sources = sources.iter().map(String::as_str).collect::<Vec<_>>();
        if self.exists().await? {
            if let Err(error) = self.widen(&sources, 0).await {
                tracing::debug!(messaging.destination.name = %self.name, %error,
                    "could not read or change the size limit of the dead letter topic");
            }
            return Ok(());
        }
        let admin = self.admin()?;
        let taken = configurations(&admin, &sources).await.unwrap_or_default();
        let most = taken.values().filter_map(max_bytes).max();
        self.create(&admin, most.filter(|most| *most > USUAL_BYTES).map(|most| most + HEADERS))
            .await
    }

    /// Has it take what `sources` take and `more` bytes, where it takes less: whether it took less,
    /// and has been told to.
    pub(super) async fn widen(&self, sources: &[&str], more: u64) -> KafkaResult<bool> {
        let admin = self.admin()?;
        let topics: Vec<&str> = sources.iter().copied().chain([&*self.name]).collect();
        let mut found = configurations(&admin, &topics).await?;
        let Some(own) = found.remove(&self.name) else { return Ok(false) };
        let most = found.values().filter_map(max_bytes).max().unwrap_or(0);
        if max_bytes(&own).is_none_or(|takes| takes >= most + more) {
            return Ok(false);
        }
        let most = (most + HEADERS).to_string();
        // The request replaces all of a topic's own settings: those that it has go with it.
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(&self.name));
        for entry in own.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic) {
            if let Some(value) = &entry.value {
                change = change.set(&entry.name, value);
            }
        }
        for result in admin.alter_configs([&change.set(MAX_BYTES, &most)], &options()).await? {
            result.map_err(|(_, code)| KafkaError::AdminOp(code))?;
        }
        tracing::info!(messaging.destination.name = %self.name, bytes = most,
            "dead letter topic accepts records as large as its source topics do");
        Ok(true)
    }

    /// Asked first: an account may see the topic and not be allowed to make one.
    async fn exists(&self) -> KafkaResult<bool> {
        // Not the producer: asking for a topic that is missing could make it.
        let client: BaseConsumer =
            self.client.clone().set("allow.auto.create.topics", "false").create()?;
        let topic = self.name.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let metadata = client.fetch_metadata(Some(&topic), ADMIN_TIMEOUT)?;
            Ok(metadata.topics().iter().any(|found| found.error().is_none()))
        });
        asking.await.unwrap_or(Err(KafkaError::Canceled))
    }

    async fn create(
        &self,
        admin: &AdminClient<DefaultClientContext>,
        most: Option<u64>,
    ) -> KafkaResult<()> {
        let most = most.map(|most| most.to_string());
        let mut topic = NewTopic::new(&self.name, 1, TopicReplication::Fixed(-1));
        if let Some(most) = &most {
            topic = topic.set(MAX_BYTES, most);
        }
        for result in admin.create_topics([&topic], &options()).await? {
            match result {
                Ok(_) => {
                    tracing::info!(messaging.destination.name = %self.name, "dead letter topic created");
                }
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(KafkaError::AdminOp(code)),
            }
        }
        Ok(())
    }

    fn admin(&self) -> KafkaResult<AdminClient<DefaultClientContext>> {
        self.client.create()
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT))
}

/// The settings of these topics, of those that are there.
async fn configurations(
    admin: &AdminClient<DefaultClientContext>,
    topics: &[&str],
) -> KafkaResult<HashMap<String, ConfigResource>> {
    let asked: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let found = admin.describe_configs(&asked, &options()).await?;
    let named = found.into_iter().flatten().filter_map(|found| match &found.specifier {
        OwnedResourceSpecifier::Topic(name) => Some((name.clone(), found)),
        _ => None,
    });
    Ok(named.collect())
}

fn max_bytes(topic: &ConfigResource) -> Option<u64> {
    topic.get(MAX_BYTES)?.value.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::broker::Broker;

    #[tokio::test]
    async fn a_topic_is_looked_for_before_it_is_made() {
        let broker = Broker::start().expect("a broker");
        broker.create_topic("there", 1).expect("a topic");
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", broker.bootstrap());
        for (topic, exists) in [("there", true), ("missing", false)] {
            let topic = DeadLetterTopic::new(topic, client.clone());
            assert_eq!(topic.exists().await, Ok(exists), "{}", topic.name);
        }
    }
}
