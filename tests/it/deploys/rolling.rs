//! Three members are replaced one after another while records flow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::fakes::{Endpoint, Fake, Log, Options};

use super::fleet::{Fleet, Owners, owners, shares};
use super::pauses;
use super::traffic::{Sent, Spot, Stream, Traffic, count_calls, merchant, spot_of};
use super::verdict;
use test_support::daemon::Environment;
use test_support::{PATIENCE, feed, kafka, services, unique, until};

const PURCHASES: i32 = 8;
const ORDERS: i32 = 9;
/// The old members, each with the new one that takes its place.
const ROUNDS: [(&str, &str); 3] = [("a", "d"), ("b", "e"), ("c", "f")];
/// Requests take as long as over a network, so that there is always something in flight.
const LATENCY: Duration = Duration::from_millis(30);
/// Events of each partition before the deploy, as a baseline.
const CALM: usize = 30;

/// How a platform replaces a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// As Render does: the new one starts beside the old one, which stops once it has its share.
    Overlapping,
    /// The old one stops, then the new one starts.
    StopFirst,
    /// The old member must stop while the group still makes room for the new one.
    Hasty,
}

/// A change to the group, and how it began and ended.
pub(super) struct Step {
    pub(super) what: &'static str,
    /// When, by the fake's clock.
    pub(super) from: Duration,
    pub(super) to: Duration,
    /// Which of the fleet's turns it took.
    pub(super) turns: std::ops::Range<usize>,
    pub(super) members_before: BTreeSet<String>,
    pub(super) members_after: BTreeSet<String>,
    pub(super) before: Owners,
    pub(super) after: Owners,
}

/// What was seen of a whole deploy.
pub(super) struct Deploy {
    pub(super) prefix: String,
    pub(super) steps: Vec<Step>,
    pub(super) sent: Vec<Sent>,
}

impl Deploy {
    pub(super) fn groups(&self) -> [String; 2] {
        ["currency", "marketplace"].map(|consumer| format!("{}-{consumer}", self.prefix))
    }

    pub(super) fn topic(&self, stream: Stream) -> String {
        topic(&self.prefix, stream)
    }
}

fn topic(prefix: &str, stream: Stream) -> String {
    match stream {
        Stream::Purchases => format!("{prefix}.purchase_ledger"),
        Stream::Orders => format!("{prefix}.orders"),
    }
}

struct Scene {
    brokers: &'static str,
    fake: Arc<Fake>,
    fleet: Fleet,
    deploy: Deploy,
}

impl Scene {
    async fn new(protocol: &str) -> Self {
        let (brokers, prefix) = (services::kafka(), unique("deploy"));
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Fake::start(options).await.expect("a fake");
        for endpoint in [Endpoint::Post, Endpoint::Rpc] {
            fake.set_latency(endpoint, LATENCY);
        }
        fake.fill("merchant_master", vec![merchant()]);
        kafka::create_topic(brokers, &topic(&prefix, Stream::Purchases), PURCHASES).await;
        kafka::create_topic(brokers, &topic(&prefix, Stream::Orders), ORDERS).await;
        for table in ["referral_ledger", "mission_claims"] {
            kafka::create_topic(brokers, &format!("{prefix}.{table}"), 1).await;
        }
        let environment = Environment::new(brokers, services::redis(), fake.url(), &prefix)
            .with("CONSUMERS", "currency,marketplace")
            .with("KAFKA_TOPIC_MARKETPLACE_ORDERS", &topic(&prefix, Stream::Orders))
            .with("KAFKA_GROUP_PROTOCOL", protocol)
            .with("CURRENCY_CONCURRENCY", "64")
            .with("INNGEST_CANCEL_SETTLE", "1s");
        let deploy = Deploy { prefix, steps: Vec::new(), sent: Vec::new() };
        Self { brokers, fake: Arc::new(fake), fleet: Fleet::new(environment), deploy }
    }

    /// Changes the group, and waits until it has come to rest and all partitions are worked on.
    async fn step(&mut self, what: &'static str, change: impl AsyncFnOnce(&mut Fleet)) {
        let turns = self.fleet.turns();
        let before = owners(&turns);
        let members_before = self.fleet.names();
        let (seen, from) = self.fake.inspect(|log| (log.events.len(), clock(log)));
        change(&mut self.fleet).await;
        self.until_rest(Some(seen)).await;
        let after = self.fleet.turns();
        self.deploy.steps.push(Step {
            what,
            from,
            to: self.fake.inspect(clock),
            turns: turns.len()..after.len(),
            members_before,
            members_after: self.fleet.names(),
            before,
            after: owners(&after),
        });
    }

    /// Waits until every partition has an owner and every member its share, and, where records
    /// flow, until each partition's owner has been seen at work since.
    async fn until_rest(&self, seen: Option<usize>) {
        let members = self.fleet.names();
        let partitions = usize::try_from(PURCHASES + 2 + ORDERS).expect("a number");
        until("the group to come to rest", async || {
            let owners = owners(&self.fleet.turns());
            let living = owners.values().all(|owner| members.contains(owner));
            let even = self.deploy.groups().iter().all(|group| {
                let shares = shares(&owners, group, &members);
                let most = shares.values().max().copied().unwrap_or_default();
                shares.values().all(|share| share + 1 >= most)
            });
            let at_rest = owners.len() == partitions && living && even;
            (at_rest && seen.is_none_or(|seen| self.all_at_work(&owners, seen))).then_some(())
        })
        .await;
    }

    fn all_at_work(&self, owners: &Owners, seen: usize) -> bool {
        self.fake.inspect(|log| {
            let at_work: BTreeSet<(Spot, &str)> = log.events[seen..]
                .iter()
                .filter_map(|event| Some((spot_of(event.id.as_deref()?), sender(log, event.post))))
                .collect();
            self.deploy.spots().all(|(spot, place)| {
                owners.get(&place).is_some_and(|owner| at_work.contains(&(spot, owner)))
            })
        })
    }

    async fn replace(&mut self, shape: Shape, old: &'static str, new: &'static str) {
        let stop = async |fleet: &mut Fleet| {
            assert_eq!(fleet.stop(old).await.code(), Some(0), "{old} stops cleanly");
        };
        let start = async |fleet: &mut Fleet| fleet.start(new);
        match shape {
            Shape::Overlapping => {
                self.step("start", start).await;
                self.step("stop", stop).await;
            }
            Shape::StopFirst => {
                self.step("stop", stop).await;
                self.step("start", start).await;
            }
            Shape::Hasty => {
                self.step("both", async |fleet: &mut Fleet| {
                    let turns = fleet.turns().len();
                    fleet.start(new);
                    until("the first partition to move", async || {
                        (fleet.turns().len() > turns).then_some(())
                    })
                    .await;
                    stop(fleet).await;
                })
                .await;
            }
        }
    }
}

impl Deploy {
    /// Every partition under load, and its name in the group.
    pub(super) fn spots(&self) -> impl Iterator<Item = (Spot, super::fleet::Place)> {
        let [currency, marketplace] = self.groups();
        let all = [(Stream::Purchases, currency, PURCHASES), (Stream::Orders, marketplace, ORDERS)];
        all.into_iter().flat_map(|(stream, group, partitions)| {
            let topic = self.topic(stream);
            (0..partitions).map(move |partition| {
                ((stream, partition), (group.clone(), topic.clone(), partition))
            })
        })
    }
}

/// When the last event was stored.
fn clock(log: &Log) -> Duration {
    log.events.last().map(|event| event.at).unwrap_or_default()
}

/// Which member sent a POST.
pub(super) fn sender(log: &Log, post: u32) -> &str {
    let post = &log.posts[usize::try_from(post).expect("an index")];
    post.environment.as_deref().expect("a member's name")
}

async fn roll(protocol: &str, shape: Shape) {
    let mut scene = Scene::new(protocol).await;
    let asked = count_calls(&scene.fake);
    for (old, _) in ROUNDS {
        scene.fleet.start(old);
    }
    scene.until_rest(None).await;
    let streams = [(Stream::Purchases, PURCHASES), (Stream::Orders, ORDERS)];
    let topics =
        streams.map(|(stream, partitions)| (stream, scene.deploy.topic(stream), partitions));
    let traffic = Traffic::start(scene.brokers, &scene.fake, &topics);
    let fake = Arc::clone(&scene.fake);
    let spots: Vec<Spot> = scene.deploy.spots().map(|(spot, _)| spot).collect();
    let flow = async |_: &mut Fleet| {
        let flowing = fake.until(|log| {
            let flows = |spot: &Spot| log.ids().filter(|id| spot_of(id) == *spot).count() >= CALM;
            log.events.len() >= CALM * spots.len() && spots.iter().all(flows)
        });
        tokio::time::timeout(PATIENCE, flowing).await.expect("records flow");
    };
    scene.step("calm", flow).await;
    for (old, new) in ROUNDS {
        scene.replace(shape, old, new).await;
    }
    scene.deploy.sent = tokio::time::timeout(PATIENCE, traffic.stop()).await.expect("they end");

    let Scene { brokers, fake, mut fleet, deploy } = scene;
    for (group, stream) in deploy.groups().iter().zip([Stream::Purchases, Stream::Orders]) {
        let topic = deploy.topic(stream);
        feed::caught_up(brokers, group, &topic).await;
    }
    for (_, new) in ROUNDS {
        assert_eq!(fleet.stop(new).await.code(), Some(0), "{new} stops cleanly");
    }
    verdict::committed_is_what_was_read(brokers, &deploy).await;
    verdict::quiet(&fleet);
    let turns = fleet.turns();
    fake.inspect(|log| {
        pauses::report(protocol, &format!("{shape:?}"), &deploy, log);
        verdict::each_once_and_in_order(&deploy, log);
        verdict::handed_over_where_it_was_done(&deploy, &turns, log);
    });
    verdict::each_asked_once(&deploy, &asked);
    if shape != Shape::Hasty {
        verdict::only_what_must_moves(&deploy, &turns);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_deploys_repeat_and_lose_nothing_with_the_classic_protocol() {
    roll("classic", Shape::Overlapping).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_deploys_repeat_and_lose_nothing_with_kip_848() {
    roll("consumer", Shape::Overlapping).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_each_start_repeats_and_loses_nothing_with_the_classic_protocol() {
    roll("classic", Shape::StopFirst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_each_start_repeats_and_loses_nothing_with_kip_848() {
    roll("consumer", Shape::StopFirst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_rebalance_repeats_nothing_with_the_classic_protocol() {
    roll("classic", Shape::Hasty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_rebalance_repeats_nothing_with_kip_848() {
    roll("consumer", Shape::Hasty).await;
}
