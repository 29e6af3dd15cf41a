//! One run: members, load and disturbances, and at the end the history of what happened.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crm_event_processors::demo::double::{Double, Endpoint, Fault, Lasting, Options, Poison};
use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::disturb::{Act, Plan, Steps};
use crate::evidence;
use crate::history::{Disturbance, Harm, History, Kind};
use crate::load::{CONSUMERS, Load, TOPICS, full_name};
use crate::members::{Process, Recipe};
use crate::offsets::{Group, Sampler};
use crate::services::{self, REDIS, Services};
use crate::support::daemon::Environment;

use crate::support::{kafka, unique};
use crate::writer;

/// The signal that asks a process to stop.
const SIGTERM: i32 = 15;

/// What a run is to be.
pub(crate) struct Spec {
    pub(crate) load: Load,
    pub(crate) plan: Plan,
    /// Records a second.
    pub(crate) rate: f64,
    /// Members: the program and its arguments.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// How long Inngest and Supabase take for an answer.
    pub(crate) latency: Duration,
    /// Where the members' logs go.
    pub(crate) logs: PathBuf,
    /// How long the members may take, after the last disturbance, until every record is committed.
    pub(crate) catch_up: Duration,
}

/// Times of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) start: Instant,
    /// The same moment on the wall's clock.
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
    double: Double,
    /// Records written so far, copies apart.
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
    incidents: Vec<String>,
}

/// Runs to the end and answers what happened.
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
    let double = Double::start(Options { keep_data: true, ..Options::default() });
    let double = double.await.expect("a double");
    let calls = evidence::listen(&double, clock);
    prepare(&double, &spec);
    let environment = environment(services, &double, &prefix, spec.plan.new_protocol);
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
        double,
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
    let samples = sampler.finish(stopped).await;

    let mut history = History { written, samples, caught_up, ..History::default() };
    evidence::read_back(bootstrap, &mut history, &prefix).await;
    history.arrivals = evidence::arrivals(&world.double, clock, &calls);
    history.arrivals.extend(evidence::letters(bootstrap, clock, &letters).await);
    let Notes { disturbances, memory, mut incidents } = std::mem::take(&mut *world.notes());
    history.disturbances = disturbances;
    history.disturbances.extend(replays);
    history.disturbances.sort_by_key(|disturbance| disturbance.from);
    history.memory = memory;
    history.incidents.append(&mut incidents);
    let topics = TOPICS.iter().map(|(topic, _)| full_name(&prefix, topic));
    evidence::delete_topics(bootstrap, topics.chain([letters])).await;
    history
}

fn restart_empty(services: &Services) {
    services.kill(REDIS);
    services.start(REDIS);
}

fn prepare(double: &Double, spec: &Spec) {
    let Load { refused, originals, merchants, .. } = &spec.load;
    for id in refused {
        double.poison(id, Some(Poison::Refused("refused for good reason".to_owned())));
    }
    double.fill("purchase_ledger", originals.clone());
    double.fill("merchant_master", merchants.clone());
    for endpoint in [Endpoint::Post, Endpoint::Rpc, Endpoint::Rest] {
        double.set_latency(endpoint, spec.latency);
    }
}

fn environment(
    services: &Arc<Services>,
    double: &Double,
    prefix: &str,
    new_protocol: bool,
) -> Environment {
    let consumers: Vec<&str> = CONSUMERS.iter().map(|(name, _)| *name).collect();
    let bootstrap = services.kafka();
    let environment = Environment::new(bootstrap, services.redis(), double.url(), prefix)
        .with("CONSUMERS", &consumers.join(","))
        .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &format!("{prefix}.marketplace.orders"))
        // Short, so that much happens in half a minute.
        .with("INNGEST_CANCEL_SETTLE", "1s")
        .with("SHUTDOWN_GRACE", "10s")
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

    /// Does what happens to one member; answers what runs at the end.
    async fn member(self: Arc<Self>, number: usize, steps: Steps) -> (usize, u32, Process) {
        let (mut incarnation, mut process) = (0, None);
        if !matches!(steps.first(), Some((_, Act::Join))) {
            process = Some(self.start(number, &mut incarnation));
        }
        for (at, act) in steps {
            self.guard(number, &mut incarnation, &mut process, at).await;
            if self.over() && act != Act::Join {
                break;
            }
            process = Some(match process.take() {
                Some(running) => self.disturb(number, &mut incarnation, running, act).await,
                None => self.start(number, &mut incarnation),
            });
        }
        self.guard(number, &mut incarnation, &mut process, self.records).await;
        let running = process.unwrap_or_else(|| self.start(number, &mut incarnation));
        (number, incarnation, running)
    }

    fn start(&self, number: usize, incarnation: &mut u32) -> Process {
        *incarnation += 1;
        let name = format!("{number}.{incarnation}");
        let process = self.recipe.start(&name, self.static_members.then_some(number));
        self.note(Harm::Joined, Some(&name), self.clock.now(), format!("member {name} starts"));
        process
    }

    /// Waits for the load to come so far, while the member must not end by itself.
    async fn guard(
        &self,
        number: usize,
        incarnation: &mut u32,
        process: &mut Option<Process>,
        until: usize,
    ) {
        let mut progress = self.progress.subscribe();
        while *progress.borrow_and_update() < until {
            if let Some(running) = process {
                self.measure(running);
                if self.ended_by_itself(running) {
                    *process = Some(self.start(number, incarnation));
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn measure(&self, process: &Process) {
        if let Some(peak) = process.peak_memory() {
            self.notes().memory.insert(process.name.clone(), peak);
        }
    }

    fn ended_by_itself(&self, process: &mut Process) -> bool {
        let Some(status) = process.ended() else { return false };
        if self.fenced(process, status) {
            return true;
        }
        let (at, name) = (self.clock.now().as_secs_f64(), &process.name);
        let incident = format!("member {name} ended by itself at {at:.3} s: {status}");
        self.notes().incidents.push(incident);
        true
    }

    /// The brokers take a static member that stood still for longer than a session for another with
    /// its name. It ends then, as the contract says, and is started again.
    fn fenced(&self, process: &Process, status: ExitStatus) -> bool {
        let stood_still = |found: &Disturbance| {
            found.harm == Harm::Frozen && found.who.as_deref() == Some(&process.name)
        };
        self.static_members
            && status.code() == Some(70)
            && self.notes().disturbances.iter().any(stood_still)
    }

    async fn disturb(
        &self,
        number: usize,
        incarnation: &mut u32,
        mut running: Process,
        act: Act,
    ) -> Process {
        self.measure(&running);
        let (from, name) = (self.clock.now(), running.name.clone());
        let text = format!("member {name} {act}");
        match act {
            Act::Kill { down } => {
                running.kill();
                self.note(Harm::Killed, Some(&name), from, text);
                sleep(down).await;
                self.start(number, incarnation)
            }
            Act::Stop { down } => {
                self.stop_one(&mut running).await;
                self.note(Harm::Stopped, Some(&name), from, text);
                sleep(down).await;
                self.start(number, incarnation)
            }
            Act::Freeze { time } => {
                running.freeze(time).await;
                self.note(Harm::Frozen, Some(&name), from, text);
                running
            }
            _ => running,
        }
    }

    async fn stop_one(&self, process: &mut Process) {
        let begun = process.has_begun();
        let status = process.stop().await;
        if !begun && status.is_some_and(|status| status.signal() == Some(SIGTERM)) {
            return;
        }
        if !status.is_some_and(|status| status.success() || self.fenced(process, status)) {
            let (name, at) = (&process.name, self.clock.now().as_secs_f64());
            let ended = status.map_or("not at all".to_owned(), |status| status.to_string());
            self.notes().incidents.push(format!("member {name} stopped, at {at:.3} s: {ended}"));
        }
    }

    /// Does what happens to one service, one thing after the other.
    async fn service(&self, steps: Steps) {
        for (at, act) in steps {
            let mut progress = self.progress.subscribe();
            progress.wait_for(|written| *written >= at).await.expect("the load is written");
            if self.over() {
                return;
            }
            let from = self.clock.now();
            let harm = self.harm(&act).await;
            let (service, hits) = match &act {
                Act::Inngest { .. } => ("inngest ", Some(Kind::Event)),
                Act::Supabase { .. } => ("supabase ", Some(Kind::Call)),
                Act::EmptyRedis | Act::RedisAway { .. } | Act::FreezeRedis { .. } => {
                    ("redis ", None)
                }
                _ => ("", None),
            };
            self.note_at(harm, hits, None, from, format!("{service}{act}"));
        }
    }

    async fn harm(&self, act: &Act) -> Harm {
        let services = Arc::clone(&self.services);
        match act.clone() {
            Act::KillBroker { broker, down } | Act::StopBroker { broker, down } => {
                let kill = matches!(act, Act::KillBroker { .. });
                let task = spawn_blocking(move || {
                    let broker = services::broker(broker);
                    if kill {
                        services.kill(&broker)
                    } else {
                        services.stop(&broker)
                    }
                    std::thread::sleep(down);
                    services.start(&broker);
                });
                task.await.expect("the broker is back");
                Harm::Broker
            }
            Act::EmptyRedis => {
                spawn_blocking(move || restart_empty(&services)).await.expect("redis is back");
                Harm::Forgets
            }
            Act::RedisAway { time } => {
                let task = spawn_blocking(move || {
                    services.kill(REDIS);
                    std::thread::sleep(time);
                    services.start(REDIS);
                });
                task.await.expect("redis is back");
                Harm::Forgets
            }
            Act::FreezeRedis { time } => {
                let task = spawn_blocking(move || {
                    services.freeze(REDIS);
                    std::thread::sleep(time);
                    services.thaw(REDIS);
                });
                task.await.expect("redis goes on");
                Harm::RedisAway
            }
            Act::Inngest { fault, time } => self.fail(&[Endpoint::Post], &fault, time).await,
            Act::Supabase { fault, time } => {
                self.fail(&[Endpoint::Rpc, Endpoint::Rest], &fault, time).await
            }
            Act::Kill { .. } | Act::Stop { .. } | Act::Freeze { .. } | Act::Join => {
                unreachable!("members have hands of their own")
            }
        }
    }

    async fn fail(&self, endpoints: &[Endpoint], fault: &Fault, time: Duration) -> Harm {
        for endpoint in endpoints {
            self.double.fail(*endpoint, fault.clone(), Lasting::UntilHealed);
        }
        sleep(time).await;
        for endpoint in endpoints {
            self.double.heal(*endpoint);
        }
        match fault {
            Fault::HandledThenReset | Fault::Truncated => Harm::AnswerLost,
            _ => Harm::Refused,
        }
    }

    /// Waits until every record is committed; answers how long that took.
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

    async fn stop(&self, processes: Vec<(usize, u32, Process)>) {
        join_all(processes.into_iter().map(async |(_, _, mut process)| {
            self.measure(&process);
            self.stop_one(&mut process).await;
        }))
        .await;
    }
}
