//! The loop: one task owns all state of one consumer and its client.
//!
//! It selects, in this order, over: the stop signal, rebalance events, finished work, the plan of
//! an assignment, recovered dependencies, timers, and new records. New records come last, so that
//! nothing that frees memory or answers the group ever waits for something that takes memory.
//! Backpressure is a pause of partitions, never of polling. Work runs in tasks of its own, and
//! nothing here blocks: what must block (reading committed offsets) runs on a blocking thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use rdkafka::message::BorrowedMessage;

use super::Consumer;
use super::session::{End, Session};
use super::settings::EngineError;
use crate::kafka::Signals;

/// Records taken in one go before anything else gets its turn.
const BURST: usize = 128;
/// How often the loop looks after itself.
const TICK: Duration = Duration::from_millis(250);
/// The same while there is nothing in hand: a daemon that waits should cost next to nothing.
const IDLE_TICK: Duration = Duration::from_secs(1);

impl<C: Consumer> Session<'_, C> {
    pub(crate) async fn run(mut self, mut signals: Signals) -> Result<End, EngineError> {
        self.join_group()?;
        let client = Arc::clone(&self.client);
        let mut stream = client.stream();
        let mut recovered = self.engine.breakers.recoveries();
        let mut batch = Vec::new();
        let mut ticked = Instant::now();
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            let tick_at = ticked + if self.is_idle() { IDLE_TICK } else { TICK };
            let wake_at =
                self.dispatch.lanes.next_wake().map_or(tick_at, |wake| wake.min(tick_at)).into();
            if sleep.deadline() != wake_at {
                sleep.as_mut().reset(wake_at);
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if self.times.stopping.is_none() => self.begin_stop(),
                Some(rebalance) = signals.rebalances.recv() => self.rebalanced(rebalance, &signals),
                _ = self.dispatch.finished.recv_many(&mut batch, BURST) => {
                    self.times.turn = Instant::now();
                    batch.drain(..).for_each(|finished| self.finish(finished));
                }
                planned = self.membership.assignment.planned() => self.assign(planned),
                _ = recovered.changed() => {
                    self.on_recovery();
                }
                () = &mut sleep => {
                    let now = Instant::now();
                    self.times.turn = now;
                    self.dispatch.lanes.wake(now);
                    if now >= tick_at {
                        ticked = now;
                        self.tick(now, &signals);
                        self.finish_joining()?;
                        if let Some((code, _)) = self.client.client().fatal_error() {
                            self.kill_tasks().await;
                            return self.fatal(code);
                        }
                    }
                }
                Some(message) = stream.next(), if self.pressure.polling && self.times.stopping.is_none() => {
                    if let Some(end) = self.on_records(message, &mut stream) {
                        self.kill_tasks().await;
                        return end;
                    }
                }
            }
            self.start_ready();
            self.finish_revoke();
            if !self.pressure.polling || self.pressure.pausing {
                self.apply_backpressure();
            }
            if let Some(how) = self.membership.distrusted.take() {
                self.drain_before_reset().await;
                return Ok(End::Anew(how));
            }
            if self.may_end() {
                self.commit_for_good(&signals).await;
                return Ok(End::Stopped);
            }
        }
    }

    /// Takes in `message` and those that lie ready behind it.
    fn on_records<'m>(
        &mut self,
        mut message: KafkaResult<BorrowedMessage<'m>>,
        ready: &mut (impl Stream<Item = KafkaResult<BorrowedMessage<'m>>> + Unpin),
    ) -> Option<Result<End, EngineError>> {
        self.times.turn = Instant::now();
        let now = Timestamp::now();
        let mut taken = 0;
        loop {
            match message {
                Ok(message) => {
                    self.times.progress = self.times.turn;
                    self.on_record(&message, now);
                }
                Err(error) => {
                    if let Some(end) = self.client_error(&error) {
                        return Some(end);
                    }
                }
            }
            taken += 1;
            // What is fetched here must be taken: it does not come again.
            if taken == BURST || !self.pressure.polling {
                return None;
            }
            message = ready.next().now_or_never().flatten()?;
        }
    }

    /// A dependency answers again: what waits for it goes on.
    fn on_recovery(&mut self) {
        self.dispatch.lanes.wake_where(|job| {
            let breaker = job.waits_for.breaker.as_ref();
            breaker.is_some_and(|breaker| breaker.away().is_none())
        });
    }

    fn is_idle(&self) -> bool {
        self.pressure.total.records == 0
            && self.pressure.polling
            && self.membership.assignment.is_idle()
    }

    /// What is due now and then.
    fn tick(&mut self, now: Instant, signals: &Signals) {
        self.apply_backpressure();
        self.expire_revoke(now);
        self.report_snapshot(now);
        if self.times.stopping.is_none() {
            self.finish_repairs();
            self.plan_repairs(signals);
            let kafka = &self.engine.kafka;
            if let Some(ids) = self.membership.known.look(
                now,
                self.partitions.ids_given(),
                &mut self.partitions,
                kafka,
            ) {
                self.compare_topics(&ids);
            }
            self.membership.ends.look(now, &mut self.partitions, &self.client);
            self.rejoin_for_unowned();
            self.rejoin_after_lost_heartbeat(now, signals);
            self.recheck_topics(now);
            self.look_at_unbegun(now);
            self.try_held(now);
        }
        if now >= self.times.commit_at {
            self.times.commit_at = now + self.engine.settings.commit_interval;
            self.commit_progress();
        }
        self.update_vitals(now, signals);
    }

    /// The stop signal: what merely waits is given up at once, what is in flight may finish.
    fn begin_stop(&mut self) {
        self.times.stopping = Some(Instant::now() + self.engine.settings.stop_deadline);
        self.dispatch.lanes.retain(|_| false);
        tracing::info!(messaging.consumer.group.name = %self.engine.settings.group,
            in_flight = self.dispatch.lanes.running(), "stopping, finishing what is in flight");
    }

    fn may_end(&self) -> bool {
        self.times.stopping.is_some_and(|deadline| {
            self.dispatch.lanes.running() == 0 || Instant::now() >= deadline
        })
    }
}
