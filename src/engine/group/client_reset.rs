//! A session whose client is no longer trusted: it ends, and the next one gets a new client.

use std::time::Instant;

use rdkafka::error::KafkaError;

use crate::engine::Consumer;
use crate::engine::session::Session;

impl<C: Consumer> Session<'_, C> {
    /// The client refused to take or to give up partitions. It has others than this session
    /// believes. It would read what belongs to another member, or leave unread what belongs to this
    /// one.
    pub(in crate::engine) fn distrust_client(&mut self, what: &'static str, error: KafkaError) {
        tracing::error!(messaging.consumer.group.name = %self.engine.settings.group, %error, what,
            "kafka client refused a change of its partitions");
        self.membership.distrusted = Some(format!("it refused to {what} partitions"));
    }

    /// Ends what is in flight as at a revoke. What is done is stored: the client commits it when it
    /// closes, and only where the partition is its own.
    pub(in crate::engine) async fn drain_before_reset(&mut self) {
        let all = self.ids_where(|_| true);
        self.mark_draining(&all);
        let deadline = Instant::now() + self.engine.settings.drain_deadline;
        while self.dispatch.lanes.running() > 0
            && let Ok(Some(finished)) =
                tokio::time::timeout_at(deadline.into(), self.dispatch.finished.recv()).await
        {
            self.finish(finished);
        }
        self.store(&all, false);
        self.kill_tasks().await;
    }

    /// Ends what is in flight, unfinished: the next client gets these records again, and must not
    /// work on them beside this one.
    pub(in crate::engine) async fn kill_tasks(&mut self) {
        for partition in self.partitions.values() {
            partition.drain.cancel();
            partition.kill.cancel();
        }
        while self.dispatch.lanes.running() > 0
            && let Some(finished) = self.dispatch.finished.recv().await
        {
            self.finish(finished);
        }
    }
}

#[cfg(test)]
mod tests;
