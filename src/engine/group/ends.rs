//! Where the logs of paused partitions end. librdkafka refreshes that only while it fetches, and
//! lag must grow with the log while nothing is fetched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::Consumer as _;
use tokio::task::JoinHandle;

use crate::engine::partition::assigned::Partitions;
use crate::kafka::GroupConsumer;

/// How often it is asked.
const LOOK_AT_ENDS_EVERY: Duration = Duration::from_secs(3);
/// How long a broker may take for one partition's answer.
const ENDS_TIMEOUT: Duration = Duration::from_secs(2);

/// A look at the ends of logs.
#[derive(Default)]
pub(in crate::engine) struct Ends {
    look: Option<JoinHandle<Vec<(u32, i64)>>>,
    next: Option<Instant>,
}

impl Ends {
    /// Asks now and then where paused partitions end.
    pub(in crate::engine) fn look(
        &mut self,
        now: Instant,
        partitions: &mut Partitions,
        client: &Arc<GroupConsumer>,
    ) {
        if let Some(look) = &mut self.look {
            let Some(found) = look.now_or_never() else { return };
            self.look = None;
            for (id, end) in found.unwrap_or_default() {
                if let Some(partition) = partitions.get_mut(&id) {
                    partition.ends_at(end);
                }
            }
        }
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        let paused = partitions.iter().filter(|(_, partition)| partition.paused);
        let paused: Vec<_> = paused.map(|(id, p)| (*id, Arc::clone(&p.topic), p.number)).collect();
        if paused.is_empty() {
            return;
        }
        self.next = Some(now + LOOK_AT_ENDS_EVERY);
        let client = Arc::clone(client);
        self.look = Some(tokio::task::spawn_blocking(move || {
            let end = |(id, topic, number): (u32, Arc<str>, i32)| {
                let bounds = client.fetch_watermarks(&topic, number, ENDS_TIMEOUT).ok()?;
                Some((id, bounds.1))
            };
            // A broker that does not answer for one will not for the next: what is known stays.
            paused.into_iter().map_while(end).collect()
        }));
    }
}
