//! One run: members, load and disturbances, and at the end the history of what happened.

mod member;
mod service;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crm_event_processors::fakes::{Endpoint, Fake, Options, Poison};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use self::service::restart_empty;
use crate::evidence;
use crate::history::{Disturbance, Harm, History, Kind};
use crate::load::{CONSUMERS, Load, TOPICS, full_name};
use crate::members::{Process, Recipe};
use crate::offsets::{Group, Sampler};
use crate::plan::Plan;
use crate::services::Services;
use crate::writer;
use test_support::daemon::Environment;
use test_support::{kafka, unique};

/// `SHUTDOWN_GRACE`.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Inngest's refusal of an event that it never takes. A text that does not name the event would
/// only make it suspect, and the run would end before there is enough evidence.
const REFUSAL: &str = "event name is reserved for internal use: inngest/x";

/// What to play.
pub(crate) struct Spec {
    pub(crate) load: Load,
    pub(crate) plan: Plan,
    /// Records a second.
    pub(crate) rate: f64,
    /// Members: the program and its arguments.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Their settings that differ.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
    /// How long Inngest and Supabase take for an answer.
    pub(crate) latency: Duration,
    /// Where the members' logs go.
    pub(crate) logs: PathBuf,
    /// How long, after the last disturbance, the members may take to commit every record.
    pub(crate) catch_up: Duration,
}

/// Times of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) start: Instant,
    /// The same moment by the wall clock.
    pub(crate) wall: Timestamp,
}

impl Clock {
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// What the hands of a run share.
struct World {
    clock: Clock,
    services: Arc<Services>,
    fake: Fake,
    /// Records written so far, without copies.
    progress: watch::Sender<usize>,
    notes: Mutex<Notes>,
    recipe: Recipe,
    static_members: bool,
    records: usize,
}

/// What the hands note.
#[derive(Default)]
struct Notes {
    disturbances: Vec<Disturbance>,
    memory: BTreeMap<String, u64>,
    slowest_stop: Duration,
    incidents: Vec<String>,
}

/// Plays a run to its end, and returns what happened.
pub(crate) async fn run(services: &Arc<Services>, spec: Spec) -> History {
    let bootstrap = services.kafka();
    let prefix = unique("chaos");
    for (topic, partitions) in TOPICS {
        kafka::create_topic(bootstrap, &full_name(&prefix, topic), partitions).await;
    }
    let letters = format!("{prefix}.dlq");
    kafka::create_topic(bootstrap, &letters, 1).await;
    let own = Arc::clone(services);
    spawn_blocking(move || restart_empty(&own)).await.expect("an empty Redis");

    let clock = Clock { start: Instant::now(), wall: Timestamp::now() };
    let fake = Fake::start(Options { keep_data: true, ..Options::default() });
    let fake = fake.await.expect("a fake");
    let calls = evidence::listen(&fake, clock);
    prepare(&fake, &spec);
    let mut environment = environment(services, &fake, &prefix, spec.plan.new_protocol);
    for (name, value) in &spec.settings {
        environment = environment.with(name, value);
    }
    let Spec { program, arguments, logs, .. } = &spec;
    let recipe = Recipe {
        program: program.clone(),
        arguments: arguments.clone(),
        environment,
        logs: logs.clone(),
    };
    let world = Arc::new(World {
        clock,
        services: Arc::clone(services),
        fake,
        progress: watch::Sender::new(0),
        notes: Mutex::default(),
        recipe,
        static_members: spec.plan.static_members,
        records: spec.load.items.len(),
    });
    let sampler = Sampler::start(bootstrap, clock, groups(&prefix));

    let members = spec.plan.members.iter().cloned().enumerate();
    let members = members.map(|(n, steps)| tokio::spawn(Arc::clone(&world).member(n + 1, steps)));
    let members: Vec<_> = members.collect();
    let Plan { brokers, redis, inngest, supabase, .. } = &spec.plan;
    let hands = [brokers, redis, inngest, supabase].map(|steps| {
        let (world, steps) = (Arc::clone(&world), steps.clone());
        tokio::spawn(async move { world.service(steps).await })
    });
    let write = writer::write(bootstrap, clock, &prefix, &spec, &world.progress);
    let mut writing = write.await;
    let replays = std::mem::take(&mut writing.replays);
    for hand in hands {
        hand.await.expect("a service's hand");
    }
    let mut processes = Vec::new();
    for hand in members {
        processes.push(hand.await.expect("a member's hand"));
    }
    let undisturbed = clock.now();
    let written = writing.acknowledged().await;

    let ends = writer::ends(&written);
    let caught_up =
        world.caught_up(&mut processes, &sampler, &ends, undisturbed, spec.catch_up).await;
    if caught_up.is_none() {
        let held = evidence::held_claims(services.redis()).await;
        world.notes().incidents.extend(held);
        world.notes().incidents.extend(sampler.behind(&ends));
    }
    world.stop(processes).await;
    let stopped = clock.now();
    let (samples, mut few) = sampler.finish(stopped).await;

    let mut history = History { written, samples, caught_up, ..History::default() };
    evidence::read_back(bootstrap, &mut history, &prefix).await;
    history.arrivals = evidence::arrivals(&world.fake, clock, &calls);
    history.met = evidence::met(&world.fake);
    history.arrivals.extend(evidence::letters(bootstrap, clock, &letters).await);
    let notes = std::mem::take(&mut *world.notes());
    let Notes { disturbances, memory, slowest_stop, mut incidents } = notes;
    history.disturbances = disturbances;
    history.disturbances.extend(replays);
    history.disturbances.sort_by_key(|disturbance| disturbance.from);
    history.memory = memory;
    history.slowest_stop = slowest_stop;
    history.incidents.append(&mut evidence::panics(&spec.logs));
    history.incidents.append(&mut incidents);
    history.incidents.append(&mut few);
    let topics = TOPICS.iter().map(|(topic, _)| full_name(&prefix, topic));
    evidence::delete_topics(bootstrap, topics.chain([letters])).await;
    history
}

fn prepare(fake: &Fake, spec: &Spec) {
    let Load { refused, originals, merchants, .. } = &spec.load;
    for id in refused {
        fake.poison(id, Some(Poison::Refused(REFUSAL.to_owned())));
    }
    fake.fill("purchase_ledger", originals.clone());
    fake.fill("wallet_ledger", Vec::new());
    fake.fill("merchant_master", merchants.clone());
    for endpoint in [Endpoint::Post, Endpoint::Rpc, Endpoint::Rest] {
        fake.set_latency(endpoint, spec.latency);
    }
}

fn environment(
    services: &Arc<Services>,
    fake: &Fake,
    prefix: &str,
    new_protocol: bool,
) -> Environment {
    let consumers: Vec<&str> = CONSUMERS.iter().map(|(name, _)| *name).collect();
    let bootstrap = services.kafka();
    let environment = Environment::new(bootstrap, services.redis(), fake.url(), prefix)
        .with("CONSUMERS", &consumers.join(","))
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &format!("{prefix}.marketplace.orders"))
        // Short, so that much happens in half a minute.
        .with("INNGEST_CANCEL_SETTLE", "1s")
        .with("SHUTDOWN_GRACE", &format!("{}s", GRACE.as_secs()))
        .with("DRAIN_DEADLINE", "2s")
        .with("BACKOFF_BASE", "100ms")
        .with("BACKOFF_MAX", "1s")
        .with("COMMIT_INTERVAL", "200ms")
        .with("CLIENT_CONNECT_TIMEOUT", "1s")
        .with("CLIENT_REQUEST_TIMEOUT", "3s")
        .with("CURRENCY_ORIGINAL_PATIENCE", "10s")
        .with("BUFFER_RECORDS", "2000");
    if new_protocol {
        return environment.with("KAFKA_GROUP_PROTOCOL", "consumer");
    }
    environment.with("KAFKA_SESSION_TIMEOUT", "6s")
}

fn groups(prefix: &str) -> Vec<Group> {
    let partitions = |topic: &str| {
        let found = TOPICS.iter().find(|(name, _)| *name == topic);
        (full_name(prefix, topic), found.expect("a topic of the load").1)
    };
    let group = |(consumer, topics): &(&'static str, &[&str])| Group {
        consumer,
        id: format!("{prefix}-{consumer}"),
        topics: topics.iter().map(|topic| partitions(topic)).collect(),
    };
    CONSUMERS.iter().map(group).collect()
}

impl World {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("not poisoned")
    }

    fn note(&self, harm: Harm, who: Option<&str>, from: Duration, text: String) {
        self.note_at(harm, None, who, from, text);
    }

    fn note_at(
        &self,
        harm: Harm,
        hits: Option<Kind>,
        who: Option<&str>,
        from: Duration,
        text: String,
    ) {
        let (who, to) = (who.map(str::to_owned), self.clock.now());
        self.notes().disturbances.push(Disturbance { harm, who, hits, from, to, text });
    }

    fn over(&self) -> bool {
        *self.progress.borrow() >= self.records
    }

    /// Waits until every record is committed, and returns how long that took.
    async fn caught_up(
        &self,
        processes: &mut [(usize, u32, Process)],
        sampler: &Sampler,
        ends: &BTreeMap<(String, i32), i64>,
        since: Duration,
        patience: Duration,
    ) -> Option<Duration> {
        loop {
            if sampler.caught_up(ends, since) {
                return Some(self.clock.now() - since);
            }
            if self.clock.now() > since + patience {
                return None;
            }
            for (number, incarnation, process) in &mut *processes {
                self.measure(process);
                if self.ended_by_itself(process) {
                    *process = self.start(*number, incarnation);
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}
