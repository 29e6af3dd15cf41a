//! Metrics of the process, rendered for Prometheus: the recorder, and what it learns from the
//! engine.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use metrics::{Counter, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use crate::engine::vitals::Vitals;
use crate::engine::{Observed, Observer, Outcome};
use crate::metric_names::*;
use crate::outage::Breakers;

/// Upper bounds of latency buckets, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
/// Upper bounds of size buckets.
const SIZES: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 5_000.0];

/// How often samples are put into their buckets. Until then each of them is kept.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a gauge is shown after it was last set. A partition that was given up must not keep its
/// last lag for ever. Every scrape sets the current gauges.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Installs the process's recorder. Must be called inside a tokio runtime, which keeps it up.
///
/// # Errors
/// When one is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder(FORGOTTEN)?.install_recorder()?;
    describe();
    tokio::spawn(keep_up(handle.clone(), UPKEEP));
    Ok(handle)
}

fn builder(forgotten: Duration) -> Result<PrometheusBuilder, BuildError> {
    let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(forgotten));
    for (name, buckets) in
        [(LATENCY, &SECONDS[..]), (REQUESTS, &SECONDS), (BATCH, &SIZES), (PIPELINE, &SIZES)]
    {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
    }
    Ok(builder)
}

/// Puts samples into their buckets regularly, so that memory stays bounded even if nobody scrapes.
async fn keep_up(handle: PrometheusHandle, period: Duration) {
    let mut next = tokio::time::interval(period);
    loop {
        next.tick().await;
        handle.run_upkeep();
    }
}

fn describe() {
    for (name, text) in ALL {
        if name.ends_with("_total") {
            metrics::describe_counter!(name, text);
        } else if [LATENCY, REQUESTS, BATCH, PIPELINE].contains(&name) {
            metrics::describe_histogram!(name, text);
        } else {
            metrics::describe_gauge!(name, text);
        }
    }
}

/// Sets the gauges that each scrape reads from the consumers and breakers.
pub fn gauges<'a>(consumers: impl Iterator<Item = (&'a str, Vitals)>, breakers: &Breakers) {
    for (consumer, vitals) in consumers {
        let name = consumer.to_owned();
        gauge!(OPEN, "consumer" => name.clone()).set(vitals.open as f64);
        let held = vitals.held.topics.len();
        gauge!(HELD_TOPICS, "consumer" => name.clone()).set(held as f64);
        for partition in vitals.partitions {
            let labels = [
                ("consumer", name.clone()),
                ("topic", partition.topic.to_string()),
                ("partition", partition.number.to_string()),
            ];
            gauge!(LAG, &labels).set(partition.lag as f64);
            gauge!(COMMITTABLE_AGE, &labels).set(partition.waiting.as_secs_f64());
        }
    }
    for breaker in breakers.all() {
        let away = f64::from(u8::from(breaker.away().is_some()));
        gauge!(BREAKER, "dependency" => breaker.name().to_owned()).set(away);
    }
}

/// Handles by label values, made once each: a look-up instead of a registration a record.
struct Handles<K, H>(RwLock<HashMap<K, H, ahash::RandomState>>);

impl<K, H> Default for Handles<K, H> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Hash + Eq + Clone, H: Clone> Handles<K, H> {
    fn get(&self, key: &K, make: impl FnOnce() -> H) -> H {
        if let Some(handle) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return handle.clone();
        }
        let handle = make();
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(key.clone(), handle.clone());
        handle
    }
}

/// Counts what happens in the engine.
#[derive(Default)]
pub struct Recorder {
    records: Handles<(&'static str, Arc<str>, &'static str), Counter>,
    skipped: Handles<(&'static str, &'static str), Counter>,
    latency: Handles<&'static str, Histogram>,
}

impl Observer for Recorder {
    fn observe(&self, consumer: &'static str, observed: &Observed<'_>) {
        match observed {
            Observed::Outcome { origin, outcome, committed_at } => {
                let topic = Arc::clone(&origin.topic);
                let name = outcome.as_str();
                let key = (consumer, topic, name);
                let make = || {
                    let topic = origin.topic.to_string();
                    counter!(RECORDS, "consumer" => consumer, "topic" => topic, "outcome" => name)
                };
                self.records.get(&key, make).increment(1);
                match outcome {
                    Outcome::Skipped(reason) => {
                        let reason = *reason;
                        let make = || counter!(SKIPPED, "consumer" => consumer, "reason" => reason);
                        self.skipped.get(&(consumer, reason), make).increment(1);
                    }
                    Outcome::DeadLettered(kind) => {
                        let topic = origin.topic.to_string();
                        counter!(DEAD_LETTERS, "consumer" => consumer, "topic" => topic, "kind" => *kind)
                            .increment(1);
                    }
                    Outcome::Sent => {
                        if let Some(committed) = committed_at {
                            let took = Timestamp::now().duration_since(*committed);
                            let make = || histogram!(LATENCY, "consumer" => consumer);
                            self.latency.get(&consumer, make).record(took.as_secs_f64().max(0.0));
                        }
                    }
                    Outcome::Duplicate | Outcome::Replayed => {}
                }
            }
            Observed::Retry { reason, .. } => {
                let reason = (*reason).to_owned();
                counter!(RETRIES, "consumer" => consumer, "reason" => reason).increment(1);
            }
            Observed::Lost { topic, records, .. } => {
                let lost = records.and_then(|records| u64::try_from(records).ok()).unwrap_or(1);
                let topic = (*topic).to_owned();
                counter!(LOST, "consumer" => consumer, "topic" => topic).increment(lost);
            }
            Observed::Remarked { topic, remark } => {
                let (topic, remark) = (topic.to_string(), remark.as_str());
                counter!(REMARKS, "consumer" => consumer, "topic" => topic, "remark" => remark)
                    .increment(1);
            }
            Observed::Rebalanced { assigned, revoked } => {
                for (direction, partitions) in [("assigned", assigned), ("revoked", revoked)] {
                    if *partitions > 0 {
                        counter!(REBALANCES, "consumer" => consumer, "direction" => direction)
                            .increment(1);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::Remark;
    use crate::engine::Origin;
    use crate::engine::vitals::{PartitionVitals, Pulse};
    use crate::outage::Backoff;

    #[tokio::test]
    async fn samples_are_put_into_their_buckets_though_nobody_scrapes() {
        let recorder = builder(FORGOTTEN).expect("buckets").build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || histogram!(BATCH).record(3.0));
        // What the recorder holds; rendering it would empty the samples too.
        let held = || format!("{:?}", handle.clone());
        let bucketed = |held: &str| held.contains("sum: 3.0");
        assert!(!bucketed(&held()), "{}", held());
        let upkeep = tokio::spawn(keep_up(handle.clone(), Duration::from_millis(1)));
        while !bucketed(&held()) {
            assert!(!upkeep.is_finished(), "it goes on for ever");
            tokio::task::yield_now().await;
        }
        upkeep.abort();
    }

    #[test]
    fn a_partition_that_was_given_up_is_told_no_longer() {
        let recorder = builder(Duration::from_nanos(1)).expect("buckets").build_recorder();
        let handle = recorder.handle();
        let backoff = Backoff { base: Duration::ZERO, max: Duration::ZERO };
        let breakers = Breakers::new(1, backoff);
        breakers.get("inngest");
        let scrape = |partitions: &[i32]| {
            let mut vitals = Pulse::default().read();
            vitals.partitions.extend(partitions.iter().map(|number| PartitionVitals {
                topic: "t".into(),
                number: *number,
                lag: 5,
                waiting: Duration::ZERO,
            }));
            metrics::with_local_recorder(&recorder, || {
                counter!(BROADCASTS_LOST).increment(0);
                gauges([("tier", vitals)].into_iter(), &breakers);
            });
            handle.render()
        };
        let lag = |number| format!(r#"{LAG}{{consumer="tier",topic="t",partition="{number}"}} 5"#);
        let both = scrape(&[0, 1]);
        assert!(both.contains(&lag(0)) && both.contains(&lag(1)), "{both}");
        for _ in 0..2 {
            let left = scrape(&[1]);
            assert!(!left.contains(&lag(0)) && left.contains(&lag(1)), "{left}");
            assert!(left.contains(BREAKER) && left.contains(BROADCASTS_LOST), "{left}");
        }
    }

    #[test]
    fn names_are_pinned_and_each_is_rendered_with_its_description() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            let origin = Origin { topic: "t".into(), partition: 0, offset: 7 };
            let counted = Recorder::default();
            for outcome in
                [Outcome::Sent, Outcome::Skipped("anonymous"), Outcome::DeadLettered("avro")]
            {
                let committed_at = Some(Timestamp::now());
                counted.observe(
                    "currency",
                    &Observed::Outcome { origin: &origin, outcome, committed_at },
                );
            }
            counted.observe("currency", &Observed::Retry { origin: &origin, reason: "redis" });
            let lost = Observed::Lost { topic: "t", partition: 0, records: Some(3) };
            counted.observe("currency", &lost);
            let remarked = Observed::Remarked { topic: &"t".into(), remark: Remark::UnknownStatus };
            counted.observe("currency", &remarked);
            counted.observe("currency", &Observed::Rebalanced { assigned: 2, revoked: 0 });
            request("inngest", std::time::Duration::from_millis(5), true);
            gauge!(HELD).set(1.0);
            counter!(UNKNOWN_ZONES).increment(1);
            counter!(BROADCASTS_LOST).increment(1);
            histogram!(BATCH).record(3.0);
            histogram!(PIPELINE).record(3.0);
            counter!(KESSEL_EVENTS).increment(1);
        });
        let text = handle.render();
        for line in [
            r#"crm_records_total{consumer="currency",topic="t",outcome="sent"} 1"#,
            r#"crm_records_skipped_total{consumer="currency",reason="anonymous"} 1"#,
            r#"crm_dead_letters_total{consumer="currency",topic="t",kind="avro"} 1"#,
            r#"crm_retries_total{consumer="currency",reason="redis"} 1"#,
            r#"crm_records_lost_total{consumer="currency",topic="t"} 3"#,
            r#"crm_rebalances_total{consumer="currency",direction="assigned"} 1"#,
            r#"crm_commit_to_acceptance_seconds_count{consumer="currency"} 1"#,
            r#"crm_request_duration_seconds_count{dependency="inngest",result="ok"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        for (name, description) in ALL {
            if ![OPEN, HELD_TOPICS, LAG, COMMITTABLE_AGE, BREAKER].contains(&name) {
                assert!(text.contains(&format!("# HELP {name} {description}")), "{name}");
            }
        }
    }
}
