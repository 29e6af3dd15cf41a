//! The old service left a group behind: the daemon goes on exactly where it stood.
//!
//! KafkaJS, seen with version 2.2: protocol type `consumer`, assignor `RoundRobinAssigner`, offsets
//! of the next record with null metadata (librdkafka writes an empty text), and none for a
//! partition that it never got a record of. A plain client with `roundrobin` stands in for it here.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crm_event_processors::fakes::{Fake, Options};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::producer::FutureRecord;
use rdkafka::{Offset, TopicPartitionList};

use super::fleet::{Fleet, Place};
use super::traffic::{self, Stream, merchant, name_of};
use test_support::daemon::Environment;
use test_support::http::Health;
use test_support::{PATIENCE, feed, kafka, services, unique, until};

/// Bundles of records in each partition.
const BUNDLES: u64 = 4;
const PARTITIONS: i32 = 4;
const REFUSED: &str = "another member of this group uses another assignor: stop the old service, \
                       this one joins when it is gone";
pub(super) const STREAMS: [(Stream, &str); 2] =
    [(Stream::Purchases, "currency"), (Stream::Orders, "marketplace")];

/// What the old service has committed, by partition: in the middle of the records, behind the last
/// one, before the first, and nothing at all.
fn stood_at(partition: i32, records: i64) -> Option<i64> {
    [Some(records / 2), Some(records), Some(0), None][usize::try_from(partition).expect("few")]
}

pub(super) struct Scene {
    pub(super) brokers: &'static str,
    pub(super) prefix: String,
    pub(super) fake: Fake,
    /// The events for each partition's records, record by record.
    called_for: BTreeMap<(Stream, i32), Vec<Vec<String>>>,
}

impl Scene {
    pub(super) async fn new() -> Self {
        let (brokers, prefix) = (services::kafka(), unique("cut"));
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Fake::start(options).await.expect("a fake");
        fake.fill("merchant_master", vec![merchant()]);
        let mut scene = Self { brokers, prefix, fake, called_for: BTreeMap::new() };
        let mut number = 0;
        for (stream, _) in STREAMS {
            let topic = scene.topic(stream);
            kafka::create_topic(brokers, &topic, PARTITIONS).await;
            for partition in 0..PARTITIONS {
                let numbers = (number..number + BUNDLES).map(|before| before + 1);
                let bundles: Vec<_> =
                    numbers.map(|number| traffic::bundle((stream, partition), number)).collect();
                number += BUNDLES;
                let records = bundles.iter().flat_map(|bundle| {
                    let send = |value| FutureRecord::to(&topic).partition(partition).payload(value);
                    let key = bundle.key.as_bytes();
                    bundle.values.iter().map(move |value: &String| send(value.as_bytes()).key(key))
                });
                kafka::produce(brokers, records).await;
                let events = bundles.into_iter().flat_map(|bundle| bundle.events).collect();
                scene.called_for.insert((stream, partition), events);
            }
        }
        for table in ["referral_ledger", "mission_claims"] {
            kafka::create_topic(brokers, &format!("{}.{table}", scene.prefix), 1).await;
        }
        scene
    }

    pub(super) fn topic(&self, stream: Stream) -> String {
        match stream {
            Stream::Purchases => format!("{}.purchase_ledger", self.prefix),
            Stream::Orders => format!("{}.orders", self.prefix),
        }
    }

    pub(super) fn group(&self, consumer: &str) -> String {
        format!("{}-{consumer}", self.prefix)
    }

    /// A daemon's environment without a beginning for new groups: this group is not new.
    pub(super) fn environment(&self) -> Environment {
        Environment::new(self.brokers, services::redis(), self.fake.url(), &self.prefix)
            .without("KAFKA_AUTO_OFFSET_RESET")
            .with("CONSUMERS", "currency,marketplace")
            .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &self.topic(Stream::Orders))
            .with("INNGEST_CANCEL_SETTLE", "1s")
    }

    fn records(&self, stream: Stream, partition: i32) -> i64 {
        self.called_for[&(stream, partition)].len().try_into().expect("a number")
    }

    /// The old service's offsets in a topic, by partition.
    pub(super) fn stands(&self, stream: Stream) -> BTreeMap<i32, i64> {
        let stood = |p| Some((p, stood_at(p, self.records(stream, p))?));
        (0..PARTITIONS).filter_map(stood).collect()
    }

    pub(super) async fn caught_up(&self) {
        for (stream, consumer) in STREAMS {
            feed::caught_up(self.brokers, &self.group(consumer), &self.topic(stream)).await;
        }
    }

    /// Checks that a stopped daemon started each partition at the old service's offset, and did
    /// everything from there on once, and nothing before it.
    fn verify(&self, fleet: &Fleet, stood: impl Fn(Stream) -> BTreeMap<i32, i64>) {
        let turns = fleet.turns();
        let mut due = BTreeSet::new();
        for (stream, consumer) in STREAMS {
            let stood = stood(stream);
            for partition in 0..PARTITIONS {
                let first = stood.get(&partition).copied().unwrap_or(0);
                let place: Place = (self.group(consumer), self.topic(stream), partition);
                let starts = turns.iter().filter(|turn| turn.taken && turn.place == place);
                assert_eq!(
                    starts.map(|turn| turn.offset).collect::<Vec<_>>(),
                    [first],
                    "{place:?}"
                );
                let rest = self.called_for[&(stream, partition)].iter();
                due.extend(rest.skip(usize::try_from(first).expect("an index")).flatten().cloned());
            }
        }
        let arrived: Vec<String> =
            self.fake.inspect(|log| log.events.iter().map(name_of).collect());
        let once: BTreeSet<String> = arrived.iter().cloned().collect();
        assert_eq!(once.len(), arrived.len(), "each once");
        let (lost, extra) = (due.difference(&once).next(), once.difference(&due).next());
        assert_eq!((lost, extra), (None, None), "lost, and done again");
    }
}

/// A member like the old service's, on a thread of its own: it consumes and commits on request.
pub(super) struct OldService {
    leave: Arc<AtomicBool>,
    rebalances: Arc<AtomicUsize>,
    member: JoinHandle<()>,
}

/// Counts how often its group has rebalanced.
struct Counting(Arc<AtomicUsize>);

impl ClientContext for Counting {}

impl ConsumerContext for Counting {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl OldService {
    /// Joins `group` and has committed these offsets when this returns.
    pub(super) async fn join(
        brokers: &str,
        group: &str,
        topic: &str,
        commits: BTreeMap<i32, i64>,
    ) -> Self {
        let rebalances = Arc::new(AtomicUsize::new(0));
        let consumer: BaseConsumer<Counting> = kafka::client(brokers)
            .set("group.id", group)
            .set("partition.assignment.strategy", "roundrobin")
            .set("enable.auto.commit", "false")
            .create_with_context(Counting(Arc::clone(&rebalances)))
            .expect("a consumer");
        let leave = Arc::new(AtomicBool::new(false));
        let left = Arc::clone(&leave);
        let topic = topic.to_owned();
        let (joined, wait) = tokio::sync::oneshot::channel();
        let member = std::thread::spawn(move || {
            consumer.subscribe(&[&topic]).expect("a subscription");
            let deadline = Instant::now() + PATIENCE;
            let poll = || drop(consumer.poll(Duration::from_millis(50)));
            while consumer.assignment().expect("an assignment").count() == 0 {
                assert!(Instant::now() < deadline, "the old service does not join");
                poll();
            }
            let mut list = TopicPartitionList::new();
            for (partition, offset) in commits {
                let offset = Offset::Offset(offset);
                list.add_partition_offset(&topic, partition, offset).expect("an offset");
            }
            consumer.commit(&list, CommitMode::Sync).expect("a commit");
            joined.send(()).expect("somebody waits");
            while !left.load(Ordering::Acquire) {
                poll();
            }
        });
        wait.await.expect("the old service joins");
        Self { leave, rebalances, member }
    }

    /// How often its group has rebalanced since it joined.
    pub(super) fn rebalances(&self) -> usize {
        self.rebalances.load(Ordering::Acquire)
    }

    pub(super) async fn leave(self) {
        self.leave.store(true, Ordering::Release);
        let left = tokio::task::spawn_blocking(|| self.member.join());
        left.await.expect("no panic").expect("it leaves");
    }
}

async fn taken_over(protocol: &str) {
    let scene = Scene::new().await;
    for (stream, consumer) in STREAMS {
        let (group, topic) = (scene.group(consumer), scene.topic(stream));
        OldService::join(scene.brokers, &group, &topic, scene.stands(stream)).await.leave().await;
    }
    let mut fleet = Fleet::new(scene.environment().with("KAFKA_GROUP_PROTOCOL", protocol));
    fleet.start("new");
    scene.caught_up().await;
    assert_eq!(fleet.stop("new").await.code(), Some(0));
    scene.verify(&fleet, |stream| scene.stands(stream));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_the_old_service_left_goes_on_where_it_stood() {
    taken_over("classic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_with_kip_848() {
    taken_over("consumer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_old_service_runs_the_daemon_says_what_to_do_and_goes_on_when_it_has_left() {
    waited_for("classic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_kip_848_it_does_not_share_the_partitions_with_the_old_service_either() {
    waited_for("consumer").await;
}

async fn waited_for(protocol: &str) {
    let scene = Scene::new().await;
    let mut old = Vec::new();
    for (stream, consumer) in STREAMS {
        let (group, topic) = (scene.group(consumer), scene.topic(stream));
        old.push(OldService::join(scene.brokers, &group, &topic, scene.stands(stream)).await);
    }
    let health = Health::free();
    let mut fleet = Fleet::new(
        scene
            .environment()
            .with("HTTP_LISTEN", health.listen())
            .with("KAFKA_GROUP_PROTOCOL", protocol),
    );
    fleet.start("new");
    let told = |fleet: &Fleet| -> Vec<String> {
        let lines = fleet.lines().into_iter().map(|(_, line)| line);
        let told = lines.filter(|line| line["message"] == REFUSED && line["level"] == "ERROR");
        told.map(|line| line["messaging.consumer.group.name"].as_str().expect("a group").to_owned())
            .collect()
    };
    let groups: BTreeSet<String> = STREAMS.map(|(_, consumer)| scene.group(consumer)).into();
    until("both groups to be told of", async || {
        (told(&fleet).into_iter().collect::<BTreeSet<_>>() == groups).then_some(())
    })
    .await;
    until("readiness to say so", async || {
        let (status, consumers) = health.readiness().await?;
        let says_so = consumers.values().all(|consumer| {
            consumer["state"] == "degraded"
                && consumer["waits_for"].to_string().contains("another assignor")
        });
        assert_eq!(status, 200, "a restart would not help");
        (says_so && consumers.len() == 2).then_some(())
    })
    .await;
    assert!(fleet.turns().is_empty() && scene.fake.inspect(|log| log.events.is_empty()));

    for member in old {
        member.leave().await;
    }
    scene.caught_up().await;
    until("readiness to be well again", async || {
        let (_, consumers) = health.readiness().await?;
        consumers.values().all(|consumer| consumer["state"] == "ready").then_some(())
    })
    .await;
    assert_eq!(fleet.stop("new").await.code(), Some(0));
    assert_eq!(told(&fleet).len(), groups.len(), "once a group");
    scene.verify(&fleet, |stream| scene.stands(stream));
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_of_a_group_with_another_name_are_moved_as_operators_are_told() {
    let scene = Scene::new().await;
    for (stream, consumer) in STREAMS {
        let (old, topic) = (unique("legacy"), scene.topic(stream));
        OldService::join(scene.brokers, &old, &topic, scene.stands(stream)).await.leave().await;
        let new = scene.group(consumer);
        let brokers = scene.brokers;
        let moved = tokio::task::spawn_blocking(move || move_offsets(brokers, &old, &new));
        moved.await.expect("the commands run");
    }
    let mut fleet = Fleet::new(scene.environment());
    fleet.start("new");
    scene.caught_up().await;
    assert_eq!(fleet.stop("new").await.code(), Some(0));
    scene.verify(&fleet, |stream| scene.stands(stream));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_the_old_service_never_read_are_held_until_they_begin_as_operators_are_told() {
    let scene = Scene::new().await;
    for (stream, consumer) in STREAMS {
        let (group, topic) = (scene.group(consumer), scene.topic(stream));
        OldService::join(scene.brokers, &group, &topic, scene.stands(stream)).await.leave().await;
    }
    let referrals = format!("{}.referral_ledger", scene.prefix);
    let refer = async |number| {
        let (award, value) = traffic::referral(number);
        let record = FutureRecord::to(&referrals).key(award.as_bytes()).payload(value.as_bytes());
        kafka::produce(scene.brokers, [record]).await;
        award
    };
    let old = refer(1_001).await;
    let health = Health::free();
    let environment = scene.environment().with("HTTP_LISTEN", health.listen());
    let mut fleet = Fleet::new(environment.clone());
    fleet.start("undecided");
    scene.caught_up().await;
    until("the topic to be held", async || {
        let (_, consumers) = health.readiness().await?;
        consumers["currency"]["waits_for"].to_string().contains(&referrals).then_some(())
    })
    .await;
    assert_eq!(fleet.stop("undecided").await.code(), Some(0));
    scene.verify(&fleet, |stream| scene.stands(stream));

    let mut fleet = Fleet::new(environment.with("KAFKA_START_AT", &start_at(&scene.prefix)));
    fleet.start("decided");
    until("it to begin", async || {
        kafka::committed(scene.brokers, &scene.group("currency"), &referrals).await.pop_first()
    })
    .await;
    let new = refer(1_002).await;
    feed::caught_up(scene.brokers, &scene.group("currency"), &referrals).await;
    assert_eq!(fleet.stop("decided").await.code(), Some(0));
    let awarded = |award: &str| {
        scene.fake.inspect(|log| log.events.iter().any(|event| event.id.as_deref() == Some(award)))
    };
    assert_eq!((awarded(&old), awarded(&new)), (false, true));
}

/// The `KAFKA_START_AT` that the documentation gives operators, for topics behind this prefix.
pub(super) fn start_at(prefix: &str) -> String {
    const OPERATIONS: &str = include_str!("../../../docs/operations.md");
    let mut lines = OPERATIONS.lines().filter_map(|line| line.strip_prefix("KAFKA_START_AT="));
    let told = lines.next().expect("operators are told where topics begin");
    told.replace("crm.public", prefix)
}

/// Runs the commands that operators are given, with the tool that comes with the broker.
fn move_offsets(brokers: &str, old: &str, new: &str) {
    const OPERATIONS: &str = include_str!("../../../docs/operations.md");
    const TOOL: &str = "kafka-consumer-groups.sh";
    let moves = |line: &&str| {
        line.starts_with(TOOL) && (line.contains("$OLD_GROUP") || line.contains("$NEW_GROUP"))
    };
    let commands: Vec<&str> = OPERATIONS.lines().filter(moves).collect();
    assert_eq!(commands.len(), 2, "out of the old group, and into the new one");
    let script = format!(
        "set -euo pipefail\n\
         here=tests/services\n\
         source \"$here/lib.sh\"; source \"$here/install.sh\"; install_for kafka\n\
         {TOOL}() {{ \"$java\" -cp \"$jars/*\" \
         org.apache.kafka.tools.consumer.group.ConsumerGroupCommand \"$@\"; }}\n\
         cd \"$(mktemp -d)\"; trap 'rm -r \"$PWD\"' EXIT\n\
         {}",
        commands.join("\n")
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .envs([("BROKERS", brokers), ("OLD_GROUP", old), ("NEW_GROUP", new)])
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stdout));
}
