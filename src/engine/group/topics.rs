//! Topics that the account may not read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::Consumer as _;
use rdkafka::types::RDKafkaRespErr;
use tokio::task::JoinHandle;

use crate::kafka::GroupConsumer;

/// How long a broker may take for one answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often they are looked at.
const RECHECK_AFTER: Duration = Duration::from_secs(10);

/// Looks whether topics that could not be read may be read by now. The client says only once that
/// they may not.
#[derive(Default)]
pub(in crate::engine) struct Unreadable {
    look: Option<JoinHandle<bool>>,
    next: Option<Instant>,
}

impl Unreadable {
    /// Whether all of `topics` may be read.
    pub(in crate::engine) fn is_over(
        &mut self,
        now: Instant,
        client: &Arc<GroupConsumer>,
        topics: &[String],
    ) -> bool {
        if let Some(look) = &mut self.look {
            let Some(found) = look.now_or_never() else { return false };
            self.look = None;
            return found.unwrap_or(false);
        }
        if self.next.is_none_or(|next| next <= now) {
            self.next = Some(now + RECHECK_AFTER);
            let (client, topics) = (Arc::clone(client), topics.to_vec());
            self.look = Some(tokio::task::spawn_blocking(move || {
                let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
                topics.iter().all(|topic| {
                    let metadata = client.fetch_metadata(Some(topic), BROKER_TIMEOUT);
                    metadata.is_ok_and(|metadata| {
                        metadata.topics().iter().all(|found| found.error() != Some(refused))
                    })
                })
            }));
        }
        false
    }
}
