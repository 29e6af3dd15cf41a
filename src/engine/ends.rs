//! Where the logs of paused partitions end: librdkafka refreshes that only while it fetches, and lag
//! must grow with the log just while nothing is fetched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::Consumer as _;
use tokio::task::JoinHandle;

use super::Consumer;
use super::session::Session;

/// How often it is asked.
const LOOK: Duration = Duration::from_secs(3);
/// How long a broker may take for one partition's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A look at the ends of logs.
#[derive(Default)]
pub(super) struct Ends {
    look: Option<JoinHandle<Vec<(u32, i64)>>>,
    next: Option<Instant>,
}

impl<C: Consumer> Session<'_, C> {
    /// Asks now and then where paused partitions end.
    pub(super) fn look_at_ends(&mut self, now: Instant) {
        if let Some(look) = &mut self.ends.look {
            let Some(found) = look.now_or_never() else { return };
            self.ends.look = None;
            for (id, end) in found.unwrap_or_default() {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.ends_at(end);
                }
            }
        }
        if self.ends.next.is_some_and(|next| now < next) {
            return;
        }
        let paused = self.partitions.iter().filter(|(_, partition)| partition.paused);
        let paused: Vec<_> = paused.map(|(id, p)| (*id, Arc::clone(&p.topic), p.number)).collect();
        if paused.is_empty() {
            return;
        }
        self.ends.next = Some(now + LOOK);
        let client = Arc::clone(&self.client);
        self.ends.look = Some(tokio::task::spawn_blocking(move || {
            let end = |(id, topic, number): (u32, Arc<str>, i32)| {
                let bounds = client.fetch_watermarks(&topic, number, TIMEOUT).ok()?;
                Some((id, bounds.1))
            };
            // A broker that does not answer for one will not for the next: what is known stays.
            paused.into_iter().map_while(end).collect()
        }));
    }
}
