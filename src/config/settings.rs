//! The settings: one value, a struct per section.
//!
//! Defaults stand in `config/default.toml`, environment names in [`super::variables`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

use super::bound::Bound;
use super::properties::Properties;
use super::spec::Spec;
use super::start_at::{Beginning, OffsetReset, StartAt};
use crate::cdc;

/// Everything that can be set, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which consumers run (`CONSUMERS`, default as they declare), each once, in the order given.
    pub consumers: Vec<&'static Spec>,
    /// The broker and the consumer groups.
    pub kafka: Kafka,
    /// Where claims and cached settings live.
    pub redis: Redis,
    /// The claim protocol (behaviour section 8.2).
    pub dedup: Dedup,
    /// Where RPCs and look-ups go. `None` only while no enabled consumer needs it.
    pub supabase: Option<Supabase>,
    /// Where events go.
    pub inngest: Inngest,
    /// What happens to snapshot rows (behaviour section 2).
    pub snapshot: Snapshot,
    /// Limits and waits of the consumer loop.
    pub engine: Engine,
    /// Decoding (`CDC_DECIMAL_MODE`, `CDC_NUMERIC_SCALES`, `CDC_NUMERIC_SCALE`, `CDC_TOMBSTONES`).
    pub cdc: cdc::Options,
    /// The settings of each consumer, by its name.
    pub(super) of_consumers: BTreeMap<&'static str, Consumer>,
    /// The health and metrics endpoint.
    pub http: Http,
    /// Time-outs of requests to Inngest and Supabase.
    pub clients: Clients,
    /// What the actions of Kessel's consumers need.
    pub kessel: Kessel,
    /// Logs.
    pub log: Log,
}

impl Settings {
    /// The settings of one consumer.
    #[must_use]
    pub fn consumer(&self, spec: &Spec) -> Consumer {
        self.of_consumers.get(spec.name).cloned().unwrap_or_default()
    }
}

/// Settings of one consumer.
#[derive(Clone, Default)]
pub struct Consumer {
    /// Requests to Supabase at a time (`<NAME>_CONCURRENCY`; behaviour section 1).
    pub concurrency: Bound,
    /// librdkafka properties of this consumer alone (`<NAME>_KAFKA_PROPERTIES`); they win over
    /// [`Kafka::properties`].
    pub kafka_properties: Properties,
    /// The texts of its own settings, by their keys; see [`Settings::of`].
    pub(super) own: BTreeMap<&'static str, String>,
}

impl fmt::Debug for Consumer {
    /// Without the texts of its own settings, which may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { concurrency, kafka_properties, own } = self;
        write!(f, "Consumer({concurrency:?}, {kafka_properties:?}, {:?})", own.keys())
    }
}

/// The broker and the consumer groups.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// Brokers, `host:port`, comma separated (`KAFKA_BOOTSTRAP_SERVERS`).
    pub bootstrap: String,
    /// Key and secret (`KAFKA_API_KEY`, `KAFKA_API_SECRET`): with them the connection is
    /// SASL_SSL / PLAIN, without them plaintext (behaviour section 10).
    pub credentials: Option<KafkaCredentials>,
    /// Certificates of the authorities that brokers are trusted by, PEM (`SSL_CERT_FILE`, default
    /// none: the system's). The other clients read the same variable themselves.
    pub ca_file: Option<String>,
    /// Prefix of a table's topic (`CDC_TOPIC_PREFIX`, default `crm.public`).
    pub topic_prefix: String,
    /// First part of every group id (`CONSUMER_GROUP_ID`, default `crm-event-processors`).
    pub group_id: String,
    /// `group_id` is the group of the only consumer as it stands. So it is where one of Kessel's runs
    /// alone in a group that was named: offsets that were committed before this daemon go on.
    pub group_as_it_stands: bool,
    /// Rebalance protocol (`KAFKA_GROUP_PROTOCOL`, default classic).
    pub group_protocol: GroupProtocol,
    /// A member silent for this long loses its partitions (`KAFKA_SESSION_TIMEOUT`, default 30 s).
    /// With [`GroupProtocol::Consumer`] the broker decides instead.
    pub session_timeout: Duration,
    /// Static membership (`KAFKA_INSTANCE_ID`, default none): unique per running process.
    pub instance_id: Option<String>,
    /// Where a group begins with topics that hold records but have no committed offset
    /// (`KAFKA_START_AT`, default none; behaviour section 1).
    pub start_at: StartAt,
    /// The same for all topics that [`Kafka::start_at`] does not name (`KAFKA_AUTO_OFFSET_RESET`,
    /// default none: such a topic is held; behaviour section 1).
    pub auto_offset_reset: Option<OffsetReset>,
    /// librdkafka properties of every client (`KAFKA_PROPERTIES`).
    pub properties: Properties,
    /// Dead letter topic (`DLQ_TOPIC`, default `<group_id>.dlq`, and `kessel.dlq` where none but
    /// Kessel's consumers run).
    pub dlq_topic: String,
    /// How often topics that are missing are looked for (`KAFKA_METADATA_REFRESH`, default 5 s).
    pub metadata_refresh: Duration,
}

impl Kafka {
    /// The group id of one consumer (behaviour section 1).
    #[must_use]
    pub fn group_of(&self, consumer: &str) -> String {
        if self.group_as_it_stands {
            return self.group_id.clone();
        }
        format!("{}-{consumer}", self.group_id)
    }

    /// The topic that carries one table's changes (behaviour section 1).
    #[must_use]
    pub fn topic_of(&self, table: &str) -> String {
        format!("{}.{table}", self.topic_prefix)
    }

    /// Where a group begins with a topic that holds records but has no committed offset; `None`
    /// while nobody has decided.
    #[must_use]
    pub fn beginning_of(&self, topic: &str) -> Option<Beginning> {
        self.start_at.of(topic).or_else(|| self.auto_offset_reset.map(Beginning::from))
    }
}

/// Key and secret of a broker account.
#[derive(Debug, Clone)]
pub struct KafkaCredentials {
    /// The account (`KAFKA_API_KEY`).
    pub username: SecretString,
    /// Its password (`KAFKA_API_SECRET`).
    pub password: SecretString,
}

/// How a group shares its partitions out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// The classic protocol with the cooperative-sticky assignor.
    #[default]
    Classic,
    /// KIP-848, from Kafka 4.0 on.
    Consumer,
}

/// Where claims and cached settings live.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Server of the claims (`REDIS_URL`), `redis://` or `rediss://`. `None` only where no enabled
    /// consumer needs it: claims are kept in memory then.
    pub url: Option<SecretString>,
    /// Server of cached settings and mission sets, shared with the rest of the CRM
    /// (`CRM_CACHE_REDIS_URL`, default the same as `url`).
    pub cache_url: Option<SecretString>,
    /// What every claim's key is put behind (`REDIS_KEY_PREFIX`, default `crm:`). Keys of the
    /// cache are fixed by behaviour.md and carry no prefix.
    pub key_prefix: String,
}

/// The claim protocol.
#[derive(Debug, Clone)]
pub struct Dedup {
    /// How long a claim stands (`DEDUP_WINDOW`, default 300 s).
    pub window: Duration,
    /// What happens while Redis is away (`DEDUP_ON_OUTAGE`, default wait).
    pub on_outage: DedupOutage,
    /// Which changes are recognised as replays (`REPLAY_RECOGNITION`, default all).
    pub replay_recognition: ReplayRecognition,
}

/// Which changes are taken for replays if they lie before what is finished. A change may come late
/// for the first time because the broker refused it until then. It looks just like a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplayRecognition {
    /// All.
    #[default]
    On,
    /// None: claims and event ids stand alone.
    Off,
    /// All but those that were committed at `from` or later and before `until`.
    Except {
        /// First commit time.
        from: Timestamp,
        /// The commit time after the last.
        until: Timestamp,
    },
}

impl ReplayRecognition {
    /// Whether a change committed at `commit_us`, microseconds since 1970, may count as a replay.
    #[must_use]
    pub fn compares(self, commit_us: i64) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Except { from, until } => {
                !(from.as_microsecond()..until.as_microsecond()).contains(&commit_us)
            }
        }
    }
}

/// What happens while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DedupOutage {
    /// Nothing is processed until it is back.
    #[default]
    Wait,
    /// Changes are processed without claims; event ids and replay recognition remain.
    Proceed,
}

/// Where RPCs and look-ups go.
#[derive(Debug, Clone)]
pub struct Supabase {
    /// Address of the project without a trailing slash (`SUPABASE_URL`).
    pub url: String,
    /// Key (`SUPABASE_SERVICE_ROLE_KEY`): a legacy JWT or a new `sb_secret_...`.
    pub service_role_key: SecretString,
}

/// Where events go.
#[derive(Debug, Clone)]
pub struct Inngest {
    /// Key of the event source (`INNGEST_EVENT_KEY`). A dev server takes any.
    pub event_key: SecretString,
    /// Base of the event API without a trailing slash, resolved as Inngest's SDKs do from
    /// `INNGEST_EVENT_API_BASE_URL`, `INNGEST_BASE_URL` and `INNGEST_DEV`.
    pub base_url: String,
    /// Branch environment (`INNGEST_ENV`, default none).
    pub env: Option<String>,
    /// How long a cancel waits after its award was accepted (`INNGEST_CANCEL_SETTLE`, default
    /// 30 s; behaviour section 3).
    pub cancel_settle: Duration,
    /// How long an event waits for others in its request (`INNGEST_BATCH_WAIT`, default 3 ms).
    pub batch_wait: Duration,
    /// Events a request (`INNGEST_BATCH_EVENTS`, default and most 5,000).
    pub batch_events: usize,
    /// Bytes a request (`INNGEST_BATCH_BYTES`, default 4 MiB).
    pub batch_bytes: usize,
    /// Bytes an event; a larger one is refused unsent (`INNGEST_MAX_EVENT_BYTES`, default 3 MiB).
    pub max_event_bytes: usize,
    /// Requests at a time (`INNGEST_REQUESTS`, default 4).
    pub requests: usize,
}

/// What happens to snapshot rows.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Which are handled (`SNAPSHOT_POLICY`, default recent).
    pub policy: SnapshotPolicy,
    /// What counts as recent (`SNAPSHOT_MAX_AGE`, default 20 h).
    pub max_age: Duration,
}

/// Which snapshot rows are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapshotPolicy {
    /// None.
    Skip,
    /// All.
    All,
    /// Those younger than [`Snapshot::max_age`].
    #[default]
    Recent,
}

/// Limits and waits of the consumer loop.
#[derive(Debug, Clone)]
pub struct Engine {
    /// How long a stop may take (`SHUTDOWN_GRACE`, default 25 s).
    pub shutdown_grace: Duration,
    /// A consumer with lag and without progress for this long ends the process (`STALL_TIMEOUT`,
    /// default 5 min).
    pub stall_timeout: Duration,
    /// Records in hand, shared out equally to all consumers (`BUFFER_RECORDS`, default 10,000).
    pub buffer_records: usize,
    /// Bytes in hand, with 768 for each record besides its own, shared out equally to all consumers
    /// (`BUFFER_BYTES`, default 16 MiB).
    pub buffer_bytes: usize,
    /// How long a revoked partition may finish what is in flight (`DRAIN_DEADLINE`, default 5 s).
    pub drain_deadline: Duration,
    /// Failures after which a record is suspected itself (`POISON_ATTEMPTS`, default 10).
    pub poison_attempts: u32,
    /// The time that these failures must span (`POISON_AFTER`, default 10 min).
    pub poison_after: Duration,
    /// Dead letters are held from this many of one cause within five minutes on, if they are more
    /// than half of what the consumer handled (`DLQ_FLOOD`, default 50; `None` is `off`).
    pub dlq_flood: Option<u32>,
    /// Failures in a row that open a dependency's breaker (`BREAKER_THRESHOLD`, default 5).
    pub breaker_threshold: u32,
    /// Upper bound of the first retry pause (`BACKOFF_BASE`, default 500 ms).
    pub backoff_base: Duration,
    /// Upper bound of every retry pause (`BACKOFF_MAX`, default 30 s).
    pub backoff_max: Duration,
    /// How often stored offsets are committed (`COMMIT_INTERVAL`, default 1 s).
    pub commit_interval: Duration,
}

/// The health and metrics endpoint.
#[derive(Debug, Clone)]
pub struct Http {
    /// Address to listen on (`HTTP_LISTEN` or `PORT`, default none: no endpoint).
    pub listen: Option<SocketAddr>,
}

/// Time-outs of requests to Inngest and Supabase.
#[derive(Debug, Clone)]
pub struct Clients {
    /// For a connection (`CLIENT_CONNECT_TIMEOUT`, default 5 s).
    pub connect_timeout: Duration,
    /// For a whole request (`CLIENT_REQUEST_TIMEOUT`, default 30 s).
    pub request_timeout: Duration,
}

/// What the actions of Kessel's consumers need (behaviour section 9).
#[derive(Debug, Clone)]
pub struct Kessel {
    /// The PostgreSQL of replica and audit (`KESSEL_DATABASE_URL`).
    pub database_url: Option<SecretString>,
    /// The OpenSearch or Elasticsearch of the index (`KESSEL_SEARCH_URL`).
    pub search_url: Option<SecretString>,
    /// What webhooks are signed with, and for the action of which name; `None` for every action
    /// (`KESSEL_WEBHOOK_SECRETS`).
    pub webhook_secrets: Vec<(Option<String>, SecretString)>,
    /// How long dead rows are kept in the index (`KESSEL_DEAD_ROWS`, default 7 days).
    pub dead_rows: Duration,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct Log {
    /// Level or directives such as `info,crm_event_processors=debug` (`LOG_LEVEL`, default info).
    pub level: String,
    /// Form (`LOG_FORMAT`, default auto).
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For reading.
    Human,
}
