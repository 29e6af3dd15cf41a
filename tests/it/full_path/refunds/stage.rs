//! The plays' surroundings: a database, a connector, a daemon that may be killed, and the services
//! behind it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crm_event_processors::fakes::{Fake, Options};
use futures::StreamExt as _;
use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::Client;

use super::play::{Merchant, Play, Step};
use super::tripwire::{Trip, Tripwire};
use crate::full_path::connector::Connector;
use crate::full_path::database::{Database, another};
use crate::full_path::postgrest::Postgrest;
use crate::full_path::workflows::{Progress, Workflows};
use test_support::daemon::{Daemon, Environment};
use test_support::{feed, kafka, services, unique, until};

const TABLES: [&str; 3] = ["purchase_ledger", "referral_ledger", "mission_claims"];
/// Plays that are played at once.
const AT_ONCE: usize = 6;
/// How long after its award a cancel waits.
const SETTLE: Duration = Duration::from_secs(1);

/// The kind of request that a trip waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Redis,
    Http,
}

pub(super) struct Stage {
    database: Database,
    pub(super) crm: Client,
    pub(super) fake: Arc<Fake>,
    pub(super) workflows: Workflows,
    prefix: String,
    brokers: &'static str,
    connector: Connector,
    environment: Environment,
    daemon: Option<Daemon>,
    redis: services::Redis,
    to_redis: Tripwire,
    to_http: Tripwire,
    /// Idle connections for parallel sessions.
    idle: Mutex<Vec<Vec<Client>>>,
}

impl Stage {
    /// Starts everything; topics have `partitions` partitions.
    pub(super) async fn start(partitions: i32) -> Self {
        let (brokers, prefix) = (services::kafka(), unique("refunds"));
        let (redis, database) = (services::Redis::own(), another().await);
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Arc::new(Fake::start(options).await.expect("a fake"));
        fake.delegate(Postgrest::new(database.as_authenticator()));
        let host = |url: &str| {
            let url = url::Url::parse(url).expect("a URL");
            format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
        };
        let to_redis = Tripwire::to(host(redis.url())).await;
        let to_http = Tripwire::to(host(fake.url())).await;
        let (redis_url, http_url) =
            (format!("redis://{}/", to_redis.address()), format!("http://{}", to_http.address()));
        let environment = Environment::new(brokers, &redis_url, &http_url, &prefix)
            .with("CDC_TOPIC_PREFIX", &format!("{prefix}.public"))
            .with("KAFKA_METADATA_REFRESH", "1s")
            // The partitions of a killed daemon are free at once.
            .with("KAFKA_INSTANCE_ID", &prefix)
            .with("INNGEST_CANCEL_SETTLE", &format!("{}s", SETTLE.as_secs()))
            .with("CURRENCY_ORIGINAL_PATIENCE", "2s")
            .with("CURRENCY_CONCURRENCY", "16")
            .with("COMMIT_INTERVAL", "100ms")
            .with("LOG_LEVEL", "warn");
        let crm = database.crm().await;
        for merchant in Merchant::ALL {
            crm.batch_execute(&merchant.insert()).await.expect("a merchant");
        }
        let settings = [
            ("slot.name", prefix.replace('-', "_")),
            ("topic.creation.default.partitions", partitions.to_string()),
            ("snapshot.mode", "no_data".to_owned()), // the sample's rows are another test's
        ];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        for table in feed::TABLES {
            kafka::create_topic(brokers, &format!("{prefix}.public.{table}"), partitions).await;
        }
        let connector = Connector::start_with(&database, &prefix, &settings).await;
        let workflows = Workflows::start(Arc::clone(&fake), database.crm().await);
        Self {
            database,
            crm,
            fake,
            workflows,
            prefix,
            brokers,
            connector,
            environment,
            daemon: None,
            redis,
            to_redis,
            to_http,
            idle: Mutex::default(),
        }
    }

    pub(super) fn run_daemon(&mut self) {
        self.to_redis.arm(None);
        self.to_http.arm(None);
        self.daemon = Some(self.environment.start());
    }

    /// Without any warning.
    pub(super) fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Runs a daemon and kills it at this request; false if it finishes without one.
    pub(super) async fn crash_at(&mut self, way: Way, trip: Trip) -> bool {
        self.run_daemon();
        let wire = if way == Way::Redis { &self.to_redis } else { &self.to_http };
        wire.arm(Some(trip));
        let tripped = tokio::select! {
            () = wire.tripped() => true,
            _ = self.settled() => false,
        };
        self.kill_daemon();
        tripped
    }

    /// Redis forgets everything.
    pub(super) async fn empty_redis(&self) {
        let url = url::Url::parse(self.redis.url()).expect("a URL");
        let address = (url.host_str().expect("a host"), url.port().expect("a port"));
        let mut redis = TcpStream::connect(address).await.expect("Redis is there");
        redis.write_all(b"FLUSHALL\r\n").await.expect("Redis listens");
        let mut answer = [0; 5];
        redis.read_exact(&mut answer).await.expect("Redis answers");
        assert_eq!(&answer, b"+OK\r\n");
    }

    /// Waits until no cancel could come too soon for its award, even if Redis forgot everything.
    pub(super) async fn settled_awards(&self) {
        until("the awards to settle", async || {
            let last = self.fake.inspect(|log| log.events.last().map(|event| event.at));
            let past = |at| self.fake.started().elapsed() > at + SETTLE;
            last.is_none_or(past).then_some(())
        })
        .await;
    }

    /// One step of each of these plays; those that have none left rest.
    pub(super) async fn step(&self, plays: &[Play], step: usize) {
        let steps = plays.iter().filter_map(|play| play.steps().into_iter().nth(step));
        futures::stream::iter(steps).for_each_concurrent(AT_ONCE, |step| self.commit(step)).await;
    }

    /// Each of these plays from a step on (`MAX`: after the purchase's birth) to its end, without
    /// waiting for what it causes.
    pub(super) async fn play(&self, plays: &[Play], from: usize) {
        let play = async |play: &Play| {
            let from = if from == usize::MAX { play.born } else { from };
            for step in play.steps().into_iter().skip(from) {
                self.commit(step).await;
            }
        };
        futures::stream::iter(plays).for_each_concurrent(AT_ONCE, play).await;
    }

    async fn commit(&self, step: Step) {
        let mut sessions = self.idle.lock().expect("not poisoned").pop().unwrap_or_default();
        let wanted = match &step {
            Step::One(_) => 1,
            Step::Sessions(all) | Step::Overlapping(all) => all.len(),
        };
        while sessions.len() < wanted {
            sessions.push(self.database.crm().await);
        }
        let run = async |session: &Client, sql: &str| {
            session.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        };
        match &step {
            Step::One(sql) => run(&sessions[0], sql).await,
            Step::Sessions(all) => {
                let all = all.iter().zip(&sessions).map(|(sql, session)| run(session, sql));
                join_all(all).await;
            }
            Step::Overlapping(all) => {
                for (sql, session) in all.iter().zip(&sessions) {
                    run(session, &format!("BEGIN; {sql}")).await;
                }
                for (_, session) in all.iter().zip(&sessions).rev() {
                    run(session, "COMMIT").await;
                }
            }
        }
        self.idle.lock().expect("not poisoned").push(sessions);
    }

    pub(super) async fn sql(&self, sql: &str) {
        self.crm.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until the daemon has done with all that is committed, and the workflows with what it
    /// sent.
    pub(super) async fn settled(&self) -> Progress {
        self.streamed().await;
        for table in TABLES {
            let topic = format!("{}.public.{table}", self.prefix);
            feed::caught_up(self.brokers, &format!("{}-currency", self.prefix), &topic).await;
        }
        let events = self.fake.inspect(|log| log.events.len());
        self.workflows.handled(events).await
    }

    /// Waits until all that is committed so far is in Kafka. A code that nobody gets comes after it
    /// as a marker.
    pub(super) async fn streamed(&self) {
        let code = format!("{:016x}", fastrand::u64(..));
        self.sql(&format!(
            "INSERT INTO codes (merchant_id, code, status) VALUES (gen_random_uuid(), '{code}', 'expired')"
        ))
        .await;
        let topic = format!("{}.public.codes", self.prefix);
        until("a change to come to Kafka", async || {
            use rdkafka::Message as _;
            let records = kafka::read_topic(self.brokers, &topic).await;
            let holds = |value: &[u8]| String::from_utf8_lossy(value).contains(&code);
            records.iter().any(|record| record.payload().is_some_and(holds)).then_some(())
        })
        .await;
    }

    /// The dead letters: why, and the record's value.
    pub(super) async fn letters(&self) -> Vec<(String, String)> {
        use rdkafka::Message as _;
        use rdkafka::message::Headers as _;
        let letters = kafka::read_topic(self.brokers, &format!("{}.dlq", self.prefix)).await;
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let letter = |letter: &rdkafka::message::OwnedMessage| {
            let headers = letter.headers().expect("headers");
            let kind = headers.iter().find(|header| header.key == "dlq.error.kind");
            (text(kind.and_then(|header| header.value)), text(letter.payload()))
        };
        letters.iter().map(letter).collect()
    }

    pub(super) async fn stop(mut self) {
        if let Some(daemon) = self.daemon.take() {
            assert!(daemon.stop().success(), "a clean stop");
        }
        self.connector.remove().await;
    }
}
