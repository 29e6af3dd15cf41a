//! Every setting and the environment variables that set it, in one table; the settings of consumers
//! come from what they declare.
//!
//! Where several names mean one setting, the first of the list that is set wins (behaviour
//! section 10). Defaults and documentation for operators stand in `config/default.toml`.

/// One setting.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Where it stands in a file: `section.key`.
    pub path: &'static str,
    /// Its names in the environment, the strongest first.
    pub env: &'static [&'static str],
    /// What of its value may be shown.
    pub kind: Kind,
    /// What it is and what it looks like, in a few words.
    pub about: &'static str,
    /// Its default, where a consumer declares it; `config/default.toml` has all others.
    pub default: Option<&'static str>,
}

/// What of a value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Plain,
    /// Its length.
    Secret,
    /// An address that may carry a password: scheme, host and path.
    SecretUrl,
    /// librdkafka properties: those that cannot be secrets.
    Properties,
    /// A list of tables: the name of each.
    Tables,
}

/// Names the file that is read in place of `config/local.toml`.
pub const FILE: &str = "CRM_CONFIG";

pub(super) const fn plain(
    path: &'static str,
    env: &'static [&'static str],
    about: &'static str,
) -> Variable {
    Variable { path, env, kind: Kind::Plain, about, default: None }
}

const fn secret(path: &'static str, env: &'static [&'static str], about: &'static str) -> Variable {
    Variable { path, env, kind: Kind::Secret, about, default: None }
}

const fn secret_url(
    path: &'static str,
    env: &'static [&'static str],
    about: &'static str,
) -> Variable {
    Variable { path, env, kind: Kind::SecretUrl, about, default: None }
}

pub(super) const fn properties(path: &'static str, env: &'static [&'static str]) -> Variable {
    Variable {
        path,
        env,
        kind: Kind::Properties,
        about: "librdkafka properties, name=value, comma separated",
        default: None,
    }
}

/// The settings that `check` shows before those of the consumers.
pub(super) static BEFORE_CONSUMERS: &[Variable] = &[
    plain("consumers", &["CONSUMERS"], "names of the consumers that run, comma separated"),
    plain(
        "kafka.bootstrap",
        &["KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS", "KAFKA_BROKER"],
        "the brokers, host:port, comma separated",
    ),
    secret("kafka.username", &["KAFKA_API_KEY", "KAFKA_USERNAME"], "key of the broker account"),
    secret(
        "kafka.password",
        &["KAFKA_API_SECRET", "KAFKA_PASSWORD"],
        "secret of the broker account",
    ),
    plain("kafka.ca_file", &["SSL_CERT_FILE"], "a file of trusted authorities, PEM"),
    plain("kafka.topic_prefix", &["CDC_TOPIC_PREFIX"], "what a table's topic begins with"),
    plain(
        "kafka.group_id",
        &["CONSUMER_GROUP_ID", "CONSUMER_GROUP"],
        "first part of every consumer group's id",
    ),
    plain("kafka.group_protocol", &["KAFKA_GROUP_PROTOCOL"], "classic or consumer"),
    plain("kafka.session_timeout", &["KAFKA_SESSION_TIMEOUT"], "a duration such as 30s"),
    plain("kafka.instance_id", &["KAFKA_INSTANCE_ID"], "a name unique per running process"),
    plain(
        "kafka.start_at",
        &["KAFKA_START_AT"],
        "topics and where they begin, topic=latest, comma separated",
    ),
    plain("kafka.auto_offset_reset", &["KAFKA_AUTO_OFFSET_RESET"], "earliest or latest"),
    properties("kafka.properties", &["KAFKA_PROPERTIES"]),
    plain("kafka.dlq_topic", &["DLQ_TOPIC"], "the dead letter topic"),
    plain("kafka.metadata_refresh", &["KAFKA_METADATA_REFRESH"], "a duration such as 5s"),
    secret_url("redis.url", &["REDIS_URL"], "the claims' Redis, redis://host:6379 or rediss://..."),
    secret_url(
        "redis.cache_url",
        &["CRM_CACHE_REDIS_URL"],
        "the cache's Redis, redis://host:6379 or rediss://...",
    ),
    plain("redis.key_prefix", &["REDIS_KEY_PREFIX"], "what every claim's key begins with"),
    plain("dedup.window", &["DEDUP_WINDOW"], "a duration such as 300s"),
    plain("dedup.on_outage", &["DEDUP_ON_OUTAGE"], "wait or proceed"),
    plain(
        "dedup.replay_recognition",
        &["REPLAY_RECOGNITION"],
        "on, off, or a span of commit times that are left out",
    ),
    plain("supabase.url", &["SUPABASE_URL"], "the project's address, https://..."),
    secret(
        "supabase.service_role_key",
        &["SUPABASE_SERVICE_ROLE_KEY"],
        "the project's service_role or secret key",
    ),
    secret("inngest.event_key", &["INNGEST_EVENT_KEY"], "key of the event source"),
    plain(
        "inngest.event_api_base_url",
        &["INNGEST_EVENT_API_BASE_URL"],
        "address of the event API, https://...",
    ),
    plain("inngest.base_url", &["INNGEST_BASE_URL"], "address of the server, https://..."),
    plain("inngest.dev", &["INNGEST_DEV"], "1, 0 or the dev server's address"),
    plain("inngest.env", &["INNGEST_ENV"], "a branch environment's name"),
    plain("inngest.cancel_settle", &["INNGEST_CANCEL_SETTLE"], "a duration such as 30s"),
    plain("inngest.batch_wait", &["INNGEST_BATCH_WAIT"], "a duration such as 3ms"),
    plain("inngest.batch_events", &["INNGEST_BATCH_EVENTS"], "1 to 5000"),
    plain("inngest.batch_bytes", &["INNGEST_BATCH_BYTES"], "a size such as 4MiB"),
    plain("inngest.max_event_bytes", &["INNGEST_MAX_EVENT_BYTES"], "a size such as 3MiB"),
    plain("inngest.requests", &["INNGEST_REQUESTS"], "1 to 64"),
    plain("snapshot.policy", &["SNAPSHOT_POLICY"], "skip, all or recent"),
    plain("snapshot.max_age", &["SNAPSHOT_MAX_AGE"], "a duration such as 20h"),
    plain("engine.shutdown_grace", &["SHUTDOWN_GRACE"], "a duration such as 25s"),
    plain("engine.stall_timeout", &["STALL_TIMEOUT"], "a duration such as 5m"),
    plain("engine.buffer_records", &["BUFFER_RECORDS"], "a number of records"),
    plain("engine.buffer_bytes", &["BUFFER_BYTES"], "a size such as 16MiB"),
    plain("engine.drain_deadline", &["DRAIN_DEADLINE"], "a duration such as 5s"),
    plain("engine.poison_attempts", &["POISON_ATTEMPTS"], "a number of attempts"),
    plain("engine.dlq_flood", &["DLQ_FLOOD"], "a number of records, or off"),
    plain("engine.poison_after", &["POISON_AFTER"], "a duration such as 10m"),
    plain("engine.breaker_threshold", &["BREAKER_THRESHOLD"], "a number of failures"),
    plain("engine.backoff_base", &["BACKOFF_BASE"], "a duration such as 500ms"),
    plain("engine.backoff_max", &["BACKOFF_MAX"], "a duration such as 30s"),
    plain("engine.commit_interval", &["COMMIT_INTERVAL"], "a duration such as 1s"),
    plain("cdc.decimal_mode", &["CDC_DECIMAL_MODE"], "auto, precise, string or double"),
    plain("cdc.numeric_scale", &["CDC_NUMERIC_SCALE"], "0 to 38"),
    plain(
        "cdc.numeric_scales",
        &["CDC_NUMERIC_SCALES"],
        "scales of columns, purchase_ledger.final_amount=4,...",
    ),
    plain("cdc.tombstones", &["CDC_TOMBSTONES"], "ignore or delete"),
];

/// The settings that `check` shows after those of the consumers.
pub(super) static AFTER_CONSUMERS: &[Variable] = &[
    secret_url(
        "kessel.database_url",
        &["KESSEL_DATABASE_URL"],
        "the PostgreSQL of replica and audit, postgres://user:password@host/database",
    ),
    secret_url(
        "kessel.search_url",
        &["KESSEL_SEARCH_URL"],
        "the OpenSearch or Elasticsearch of the index, https://user:password@host:9200",
    ),
    secret(
        "kessel.webhook_secrets",
        &["KESSEL_WEBHOOK_SECRETS"],
        "what webhooks are signed with, whsec_... or action=whsec_..., comma separated",
    ),
    plain("kessel.dead_rows", &["KESSEL_DEAD_ROWS"], "a duration such as 7d"),
    plain("http.listen", &["HTTP_LISTEN", "PORT"], "address:port or a port"),
    plain("clients.connect_timeout", &["CLIENT_CONNECT_TIMEOUT"], "a duration such as 5s"),
    plain("clients.request_timeout", &["CLIENT_REQUEST_TIMEOUT"], "a duration such as 30s"),
    plain("log.level", &["LOG_LEVEL", "RUST_LOG"], "a level such as info"),
    plain("log.format", &["LOG_FORMAT"], "auto, json or human"),
];
