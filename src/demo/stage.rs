//! Everything that a demo starts, and how the recordings are fed into it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use rdkafka::producer::DeliveryFuture;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::daemon_run::DaemonRun;
use super::expectation::{self, Allowed, CHECKS, Evaluations, Expectation, Letter};
use super::faults::{Fault, OUTAGE};
use super::members::Members;
use super::progress::{DemoError, Options, Progress};
use super::recordings::{Bundled, Round};
use super::settings::{DEAD_LETTER_TOPIC, settings};
use super::watch::{Tally, Watch};
use crate::config::Settings;
use crate::consumers::currency;
use crate::dedup::MemoryStore;
use crate::fakes::broker::{Broker, BrokerError};
use crate::fakes::{self, Fake};
use crate::recording::Recorded;

/// Partitions of every topic, as many as the recordings have.
const PARTITIONS: i32 = 6;
/// The most fed records without an outcome. The broker drops what it cannot hold, so it is fed only
/// as it drains.
const MOST_OPEN: usize = 1_000;
/// How long the last records may take.
const FINISH_WITHIN: Duration = Duration::from_secs(60);
/// Rounds whose rows Supabase's fake still knows; the changes of older ones are long handled.
const ROUNDS_KNOWN: usize = 64;

/// Everything that runs.
pub(super) struct Stage {
    pub(super) fake: Arc<Fake>,
    members: Arc<Members>,
    broker: Arc<Broker>,
    claims: Arc<MemoryStore>,
    watch: Arc<Watch>,
    settings: Settings,
    /// `None` only while one daemon is replaced by the next.
    daemon: Option<DaemonRun>,
    progress: mpsc::UnboundedSender<Progress>,
    shipped: Bundled,
    /// Names of the consumers that take a topic.
    takers: BTreeMap<Arc<str>, Vec<&'static str>>,
    known: VecDeque<Rows>,
    expectation: Expectation,
    allowed: Allowed,
    fed: usize,
}

/// Rows of Supabase's tables that one round brings.
struct Rows {
    purchases: Vec<Map<String, Value>>,
    merchants: BTreeSet<String>,
}

/// What is left when all is over.
pub(super) struct Played {
    pub(super) fed: usize,
    pub(super) tallies: BTreeMap<&'static str, Tally>,
    pub(super) dead_letters: Vec<Letter>,
    pub(super) evaluated: BTreeMap<String, Evaluations>,
    pub(super) applied: BTreeMap<String, Vec<Value>>,
    pub(super) expectation: Expectation,
    pub(super) allowed: Allowed,
    /// Outcomes and commits that are missing.
    pub(super) unfinished: Vec<String>,
}

impl Stage {
    /// Starts everything.
    pub(super) async fn set(
        options: &Options,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> Result<Self, DemoError> {
        let shipped = Bundled::unpack()?;
        let keep_data = fakes::Options { keep_data: true, ..fakes::Options::default() };
        let fake = Arc::new(Fake::start(keep_data).await.map_err(DemoError::Fake)?);
        let members = Members::watch(&fake);
        for (endpoint, latency) in &options.latency {
            fake.set_latency(*endpoint, *latency);
        }
        let broker = Arc::new(Broker::start()?);
        let mut environment = options.environment.clone();
        for (name, value) in options.fault.map_or(&[][..], Fault::settings) {
            environment.insert((*name).to_owned(), (*value).to_owned());
        }
        let settings = settings(&environment, broker.bootstrap(), fake.url())?;

        let mut takers: BTreeMap<Arc<str>, Vec<&'static str>> = BTreeMap::new();
        for judged in &CHECKS {
            for topic in settings.topics_of(judged.spec) {
                takers.entry(topic.into()).or_default().push(judged.spec.name);
            }
        }
        for record in shipped.records() {
            if !takers.contains_key(&*record.topic) {
                takers.insert(record.topic.as_str().into(), Vec::new());
            }
        }
        for topic in takers.keys() {
            broker.create_topic(topic, PARTITIONS)?;
        }
        broker.create_topic(DEAD_LETTER_TOPIC, 1)?;

        let claims = Arc::new(MemoryStore::new(settings.dedup.window));
        let watch = Arc::new(Watch::new(progress.clone()));
        let daemon = Some(DaemonRun::start(&settings, &claims, &watch)?);
        let stage = Self {
            fake,
            members,
            broker,
            claims,
            watch,
            settings,
            daemon,
            progress,
            shipped,
            takers,
            known: VecDeque::new(),
            expectation: Expectation::default(),
            allowed: Allowed::default(),
            fed: 0,
        };
        stage.say_what_differs(options.fault);
        Ok(stage)
    }

    fn say(&self, line: impl Into<String>) {
        // Nobody may be listening any more.
        drop(self.progress.send(Progress::Note(line.into())));
    }

    fn say_what_differs(&self, fault: Option<Fault>) {
        let patience = self.settings.of(&currency::SPEC, &currency::ORIGINAL_PATIENCE);
        self.say(
            "Recorded changes of a real Debezium, and redemptions and orders made for the demo, go \
             through an embedded Kafka to the daemon, and from there to fakes of Inngest and \
             Supabase.",
        );
        self.say(format!(
            "Other than in production, to be quick: a cancel waits {:?} after its award (30 s \
             there), a debit's original is looked for during {:?} (60 s there). Snapshot rows are \
             skipped: the recorded ones get older every day.",
            self.settings.inngest.cancel_settle, patience,
        ));
        if let Some(fault) = fault {
            self.say(fault.promise());
        }
    }

    /// Feeds what `options` ask for until it is handled. Returns whether it was interrupted.
    pub(super) async fn play(
        &mut self,
        options: &Options,
        stop: &CancellationToken,
    ) -> Result<bool, DemoError> {
        let (sender, deliveries) = mpsc::channel(MOST_OPEN);
        let placing =
            tokio::spawn(locate(deliveries, Arc::clone(&self.watch), self.takers.clone()));
        let size = self.shipped.round_size();
        let rounds = options.feed.records.div_ceil(size).max(1);
        let mut pending = options.fault.map(|fault| {
            let all = size * if options.feed.keep_running { 1 } else { rounds };
            (fault, fault.moment(all, fastrand::f64()))
        });
        let mut next = tokio::time::Instant::now();
        for number in 0_u32.. {
            let enough = match options.feed.keep_running {
                true => number > 0 && stop.is_cancelled(),
                false => number as usize >= rounds,
            };
            if enough {
                break;
            }
            let round = self.shipped.round(number)?;
            let records = self.announce(round, options.fault.filter(|_| number == 0));
            let triggers = expectation::triggers(&records);
            for (record, trigger) in records.into_iter().zip(triggers) {
                if let Some((fault, moment)) = pending
                    && self.fed >= moment
                {
                    pending = None;
                    self.inject(fault).await?;
                }
                if stop.is_cancelled() && !options.feed.keep_running {
                    return Ok(true);
                }
                if let Some(rate) = options.feed.rate.filter(|_| !stop.is_cancelled()) {
                    next += Duration::from_secs_f64(1.0 / rate);
                    tokio::select! {
                        () = tokio::time::sleep_until(next) => {}
                        () = stop.cancelled() => {}
                    }
                }
                let watch = Arc::clone(&self.watch);
                self.while_alive(watch.at_most(MOST_OPEN)).await?;
                let at = Instant::now();
                watch.handed();
                if let Some(member) = trigger {
                    self.expectation.last_triggers.insert(member, self.fed);
                }
                self.fed += 1;
                self.members.fed(self.fed);
                let delivery = self.broker.produce(&record)?;
                if sender.send((record.topic, at, delivery)).await.is_err() {
                    break;
                }
            }
        }
        drop(sender);
        placing.await??;
        self.say(format!(
            "fed {} records; refunds may still wait out their settle time, debits their patience",
            self.fed
        ));
        let watch = Arc::clone(&self.watch);
        let drained = async {
            tokio::select! {
                // The judgement names the records that were not handled in time.
                _ = tokio::time::timeout(FINISH_WITHIN, watch.at_most(0)) => false,
                () = stop.cancelled(), if !options.feed.keep_running => true,
            }
        };
        self.while_alive(drained).await
    }

    /// Adds a round to the fake and to the expectation. Returns the records to feed.
    fn announce(&mut self, round: Round, fault: Option<Fault>) -> Vec<Recorded> {
        let Round { mut records, purchases, merchants, expectation } = round;
        if let Some(fault) = fault {
            let takers = |record: &Recorded| {
                self.takers.get(&*record.topic).map(Vec::as_slice).unwrap_or_default()
            };
            let sound = records.iter().find(|record| takers(record).len() > 1);
            let unreadable = sound.map(|sound| fault.unreadable(sound)).unwrap_or_default();
            let taken = unreadable.iter().flat_map(|record| {
                let row = row_of(record.key.as_deref());
                takers(record).iter().map(move |taker| (*taker, row.clone()))
            });
            self.allowed = fault.allowed(&expectation, taken.collect());
            fault.prepare(&self.fake, &self.allowed);
            let moment = fault.moment(records.len(), 0.0);
            records.splice(moment..moment, unreadable);
        }
        self.expectation.add(expectation);
        if self.known.len() == ROUNDS_KNOWN {
            self.known.pop_front();
        }
        self.known.push_back(Rows { purchases, merchants });
        let rows = self.known.iter().flat_map(|rows| &rows.purchases).cloned();
        self.fake.fill("purchase_ledger", rows.collect());
        let merchants = self.known.iter().flat_map(|rows| &rows.merchants);
        let settings = merchants.enumerate().map(|(at, id)| merchant(at, id));
        self.fake.fill("merchant_master", settings.collect());
        records
    }

    async fn inject(&mut self, fault: Fault) -> Result<(), DemoError> {
        if let Some((endpoints, how)) = fault.outage() {
            Fault::begin(endpoints, &how, &self.fake);
            self.say(format!("FAULT begins, for {OUTAGE:?}"));
            let (fake, progress) = (Arc::clone(&self.fake), self.progress.clone());
            tokio::spawn(async move {
                tokio::time::sleep(OUTAGE).await;
                for endpoint in endpoints {
                    fake.heal(*endpoint);
                }
                // Nobody may be listening any more.
                drop(progress.send(Progress::Note("FAULT is over".to_owned())));
            });
        }
        match fault {
            Fault::RedisEmpty => {
                self.claims.clear();
                self.say("FAULT: all claims are gone");
            }
            Fault::Kill => {
                if let Some(daemon) = self.daemon.take() {
                    daemon.tear_down().await?;
                }
                let next = DaemonRun::start(&self.settings, &self.claims, &self.watch)?;
                self.daemon = Some(next);
                self.say(
                    "FAULT: the daemon is torn down where it stands, and another one is started",
                );
            }
            Fault::InngestPartial => {
                let refused = self.allowed.refused.len();
                self.say(format!(
                    "FAULT: Inngest refuses {refused} of the awards, whatever is tried"
                ));
            }
            Fault::Poison => self.say("FAULT: five records that nobody can read are fed"),
            _ => {}
        }
        Ok(())
    }

    async fn while_alive<T>(&mut self, future: impl Future<Output = T>) -> Result<T, DemoError> {
        let Some(daemon) = &mut self.daemon else { return Ok(future.await) };
        tokio::select! {
            biased;
            done = future => Ok(done),
            error = daemon.failed() => Err(error),
        }
    }

    /// Stops the daemon and looks at what it left in the broker.
    pub(super) async fn end(self) -> Result<Played, DemoError> {
        let Self { daemon, broker, watch, members, settings, expectation, allowed, fed, .. } = self;
        if let Some(daemon) = daemon {
            daemon.stop().await?;
        }
        let left = watch.open();
        let mut unfinished = Vec::new();
        if left > 0 {
            unfinished.push(format!("outcomes of {left} records"));
        }
        let asking = tokio::task::spawn_blocking(move || {
            let letters = broker.read(DEAD_LETTER_TOPIC)?;
            let mut open = Vec::new();
            for judged in &CHECKS {
                let name = judged.spec.name;
                let group = settings.kafka.group_of(name);
                for topic in settings.topics_of(judged.spec) {
                    let records: i64 = broker.uncommitted(&group, &topic)?.values().sum();
                    if records > 0 {
                        open.push(format!("commits of {records} records of {topic} by {name}"));
                    }
                }
            }
            Ok::<_, BrokerError>((letters, open))
        });
        let (letters, open) = asking.await??;
        unfinished.extend(open);
        let dead_letters = letters.iter().map(letter).collect();
        let tallies = watch.tallies();
        let (evaluated, applied) = members.seen();
        Ok(Played {
            fed,
            tallies,
            dead_letters,
            evaluated,
            applied,
            expectation,
            allowed,
            unfinished,
        })
    }
}

type Delivery = (String, Instant, DeliveryFuture);

/// Learns where records are stored, in the order in which they were produced.
async fn locate(
    mut deliveries: mpsc::Receiver<Delivery>,
    watch: Arc<Watch>,
    takers: BTreeMap<Arc<str>, Vec<&'static str>>,
) -> Result<(), BrokerError> {
    while let Some((topic, at, delivery)) = deliveries.recv().await {
        let delivery = delivery.await.map_err(|_| BrokerError::Gone)?;
        let stored = delivery.map_err(|(error, _)| error)?;
        let Some((topic, takers)) = takers.get_key_value(&*topic) else { continue };
        watch.placed(at, takers.iter().copied(), (topic, stored.partition, stored.offset));
    }
    Ok(())
}

/// A merchant's row: every third awards at once, in half an hour, or in the morning three days on.
fn merchant(at: usize, id: &str) -> Map<String, Value> {
    let (days, minutes, time) = match at % 3 {
        0 => (0, 0, Value::Null),
        1 => (0, 30, Value::Null),
        _ => (3, 0, "09:00:00".into()),
    };
    let row = [
        ("id", json!(id)),
        ("currency_award_delay_days", json!(days)),
        ("currency_award_delay_minutes", json!(minutes)),
        ("currency_award_time", time),
        ("currency_award_timezone", json!("Asia/Bangkok")),
    ];
    row.map(|(column, value)| (column.to_owned(), value)).into_iter().collect()
}

fn letter(record: &OwnedMessage) -> Letter {
    let header = |name: &str| -> String {
        let found = record.headers().into_iter().flat_map(|headers| headers.iter());
        let value = found.filter(|header| header.key == name).find_map(|header| header.value);
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    };
    let origin = ["dlq.topic", "dlq.partition", "dlq.offset"].map(header);
    Letter {
        consumer: header("dlq.consumer"),
        row: row_of(record.key()),
        kind: header("dlq.error.kind"),
        message: header("dlq.error.message"),
        origin: format!("{} {}@{}", origin[0], origin[1], origin[2]),
    }
}

/// The row that a record's key names, or the key itself where it names none.
fn row_of(key: Option<&[u8]>) -> String {
    let key = key.unwrap_or_default();
    let row: Option<Value> = serde_json::from_slice(key).ok();
    match row.as_ref().and_then(|row| row.get("id")) {
        Some(Value::String(id)) => id.clone(),
        Some(id) => id.to_string(),
        None => String::from_utf8_lossy(key).into_owned(),
    }
}
