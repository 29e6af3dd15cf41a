//! Builds the settings from their text and collects everything that is wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;

use super::address;
use super::layers::Value;
use super::problem::{Problem, Source};
use super::properties::Properties;
use super::redact;
use super::settings::{
    Clients, Consumer, Dedup, Engine, GroupProtocol, Http, Inngest, Kafka, KafkaCredentials,
    Kessel, Log, Redis, ReplayRecognition, Settings, Snapshot, Supabase,
};
use super::spec::{Commands, Declared, Family, Need, Service, Spec};
use super::value;
use super::variables::Kind;
use crate::cdc;

/// Dead letters where none but Kessel's consumers run.
const KESSEL_DLQ: &str = "kessel.dlq";
/// The setting whose entries may be for the webhook of one name.
const SECRETS: &str = "kessel.webhook_secrets";
const INNGEST_CLOUD: &str = "https://inn.gs";
/// What Inngest's SDKs send to a dev server when no key is set. A dev server takes any key.
const INNGEST_DEV_KEY: &str = "NO_EVENT_KEY_SET";
/// Inngest drops a repeated event id for this long; an older snapshot row would be awarded again.
const INNGEST_IDEMPOTENCY: Duration = Duration::from_secs(24 * 3_600);

/// The settings. With `problems` they are only what could be read.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) settings: Settings,
    /// Values that follow from other settings: path, value without secrets, source.
    pub(super) derived: Vec<(&'static str, String, Source)>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn build(declared: &Declared, values: &BTreeMap<&'static str, Value>) -> Built {
    let mut reader = Reader { values, problems: Vec::new() };
    let mut derived = Vec::new();
    let consumers = consumers(&mut reader, declared, &mut derived);
    let settings = Settings {
        kafka: kafka(&mut reader, &consumers, &mut derived),
        redis: redis(&mut reader, &consumers, &mut derived),
        dedup: Dedup {
            window: reader.read("dedup.window", value::positive_duration),
            on_outage: reader.read("dedup.on_outage", value::dedup_outage),
            replay_recognition: reader.read("dedup.replay_recognition", value::replay_recognition),
        },
        supabase: supabase(&mut reader, &consumers),
        inngest: inngest(&mut reader, &consumers, &mut derived),
        snapshot: Snapshot {
            policy: reader.read("snapshot.policy", value::snapshot_policy),
            max_age: reader.read("snapshot.max_age", value::positive_duration),
        },
        engine: engine(&mut reader),
        cdc: cdc::Options {
            default_scale: reader.read("cdc.numeric_scale", value::count(0, 38)),
            scales: reader.read("cdc.numeric_scales", str::parse),
            decimal_mode: reader.read("cdc.decimal_mode", str::parse),
            tombstones: reader.read("cdc.tombstones", str::parse),
        },
        of_consumers: declared
            .specs
            .iter()
            .map(|spec| (spec.name, reader.consumer(spec, consumers.contains(spec))))
            .collect(),
        http: Http { listen: reader.optional("http.listen", value::listen) },
        clients: Clients {
            connect_timeout: reader.read("clients.connect_timeout", value::positive_duration),
            request_timeout: reader.read("clients.request_timeout", value::positive_duration),
        },
        kessel: Kessel {
            database_url: reader.optional("kessel.database_url", address::postgres),
            search_url: reader.optional("kessel.search_url", address::search),
            webhook_secrets: reader.read(SECRETS, value::webhook_secrets),
            dead_rows: reader.read("kessel.dead_rows", value::positive_duration),
        },
        log: Log {
            level: reader.read("log.level", value::log_level),
            format: reader.read("log.format", value::log_format),
        },
        consumers,
    };
    let warnings = cross_checks(&mut reader, &settings);
    Built { settings, derived, problems: reader.problems, warnings }
}

fn consumers(
    reader: &mut Reader<'_>,
    declared: &Declared,
    derived: &mut Vec<(&'static str, String, Source)>,
) -> Vec<&'static Spec> {
    if !reader.values["consumers"].text.is_empty() {
        return reader.read("consumers", |text| value::consumers(text, declared));
    }
    let specs: Vec<_> = declared.specs.iter().copied().filter(|spec| spec.by_default).collect();
    let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
    derived.push(("consumers", names.join(","), Source::Default));
    specs
}

fn kafka(
    reader: &mut Reader<'_>,
    consumers: &[&'static Spec],
    derived: &mut Vec<(&'static str, String, Source)>,
) -> Kafka {
    let username = reader.optional("kafka.username", secret);
    let password = reader.optional("kafka.password", secret);
    let credentials = match (username, password) {
        (Some(username), Some(password)) => Some(KafkaCredentials { username, password }),
        (Some(_), None) => {
            reader.missing("kafka.password", "the key is set, and both are needed");
            None
        }
        (None, Some(_)) => {
            reader.missing("kafka.username", "the secret is set, and both are needed");
            None
        }
        (None, None) => None,
    };
    let group_id: String = reader.read("kafka.group_id", text);
    let kessel_alone =
        !consumers.is_empty() && consumers.iter().all(|spec| spec.family == Family::Kessel);
    let named = reader.values["kafka.group_id"].source != Source::Default;
    let dlq_topic = reader.optional("kafka.dlq_topic", value::topic).unwrap_or_else(|| {
        if kessel_alone {
            derived.push(("kafka.dlq_topic", KESSEL_DLQ.to_owned(), Source::Default));
            return KESSEL_DLQ.to_owned();
        }
        let topic = format!("{group_id}.dlq");
        if value::topic(&topic).is_err() {
            reader.missing("kafka.dlq_topic", "the group id does not make a topic's name");
        } else {
            derived.push(("kafka.dlq_topic", topic.clone(), Source::Setting("kafka.group_id")));
        }
        topic
    });
    Kafka {
        bootstrap: reader.required("kafka.bootstrap", consumers, value::brokers),
        credentials,
        ca_file: reader.optional("kafka.ca_file", value::readable_file),
        topic_prefix: reader.read("kafka.topic_prefix", value::topic),
        group_id,
        group_as_it_stands: kessel_alone && consumers.len() == 1 && named,
        group_protocol: reader.read("kafka.group_protocol", value::group_protocol),
        session_timeout: reader.read("kafka.session_timeout", value::client_duration),
        instance_id: reader.optional("kafka.instance_id", text),
        start_at: reader.read("kafka.start_at", str::parse),
        auto_offset_reset: reader.optional("kafka.auto_offset_reset", value::offset_reset),
        properties: reader.properties("kafka.properties"),
        dlq_topic,
        metadata_refresh: reader.read("kafka.metadata_refresh", value::client_duration),
    }
}

fn redis(
    reader: &mut Reader<'_>,
    consumers: &[&'static Spec],
    derived: &mut Vec<(&'static str, String, Source)>,
) -> Redis {
    let url: Option<String> = match in_need(consumers, Service::Redis) {
        Some(consumers) => Some(reader.required("redis.url", &consumers, value::redis_url)),
        None => reader.optional("redis.url", value::redis_url),
    };
    let cache_url = reader.optional("redis.cache_url", value::redis_url).or_else(|| {
        let url = url.clone()?;
        let shown = redact::shown(&reader.values["redis.url"].variable, &url);
        derived.push(("redis.cache_url", shown, Source::Setting("redis.url")));
        Some(url)
    });
    Redis {
        url: url.map(Into::into),
        cache_url: cache_url.map(Into::into),
        key_prefix: reader.optional("redis.key_prefix", text).unwrap_or_default(),
    }
}

/// The enabled consumers that need a service; `None` if none does. If no consumer is enabled, all
/// count, and the message names none.
fn in_need(consumers: &[&'static Spec], service: Service) -> Option<Vec<&'static Spec>> {
    let needing: Vec<_> =
        consumers.iter().copied().filter(|spec| spec.needs.contains(&service)).collect();
    (!needing.is_empty() || consumers.is_empty() && service != Service::Supabase).then_some(needing)
}

fn supabase(reader: &mut Reader<'_>, consumers: &[&'static Spec]) -> Option<Supabase> {
    let Some(consumers) = in_need(consumers, Service::Supabase) else {
        let url = reader.optional("supabase.url", address::supabase)?;
        let service_role_key = reader.optional("supabase.service_role_key", value::key)?;
        return Some(Supabase { url, service_role_key });
    };
    Some(Supabase {
        url: reader.required("supabase.url", &consumers, address::supabase),
        service_role_key: reader.required("supabase.service_role_key", &consumers, value::key),
    })
}

fn inngest(
    reader: &mut Reader<'_>,
    consumers: &[&'static Spec],
    derived: &mut Vec<(&'static str, String, Source)>,
) -> Inngest {
    let api = reader.optional("inngest.event_api_base_url", address::inngest);
    let base = reader.optional("inngest.base_url", address::inngest);
    let dev = reader.optional("inngest.dev", value::inngest_dev).flatten();
    let in_dev = dev.is_some();
    let (base_url, source) = match (api, base, dev) {
        (Some(url), _, _) => (url, None),
        (_, Some(url), _) => (url, Some(Source::Setting("inngest.base_url"))),
        (_, _, Some(url)) => (url, Some(Source::Setting("inngest.dev"))),
        _ => (INNGEST_CLOUD.to_owned(), Some(Source::Default)),
    };
    if let Some(source) = source {
        derived.push(("inngest.event_api_base_url", base_url.clone(), source));
    }
    let event_key = match in_need(consumers, Service::Inngest) {
        Some(consumers) if !in_dev => reader.required("inngest.event_key", &consumers, value::key),
        _ => {
            let key = reader.optional("inngest.event_key", value::key);
            key.unwrap_or_else(|| INNGEST_DEV_KEY.into())
        }
    };
    Inngest {
        event_key,
        base_url,
        env: reader.optional("inngest.env", value::header),
        cancel_settle: reader.read("inngest.cancel_settle", value::duration),
        batch_wait: reader.read("inngest.batch_wait", value::duration),
        batch_events: reader.read("inngest.batch_events", value::count(1, 5_000)),
        batch_bytes: reader.read("inngest.batch_bytes", value::size),
        max_event_bytes: reader.read("inngest.max_event_bytes", value::size),
        requests: reader.read("inngest.requests", value::count(1, 64)),
    }
}

fn engine(reader: &mut Reader<'_>) -> Engine {
    Engine {
        shutdown_grace: reader.read("engine.shutdown_grace", value::positive_duration),
        stall_timeout: reader.read("engine.stall_timeout", value::positive_duration),
        buffer_records: reader.read("engine.buffer_records", value::count(1, 10_000_000)),
        buffer_bytes: reader.read("engine.buffer_bytes", value::size),
        drain_deadline: reader.read("engine.drain_deadline", value::positive_duration),
        poison_attempts: reader.read("engine.poison_attempts", value::count(1, 1_000_000)),
        poison_after: reader.read("engine.poison_after", value::duration),
        dlq_flood: reader.read("engine.dlq_flood", value::count_or_off(1, 1_000_000)),
        breaker_threshold: reader.read("engine.breaker_threshold", value::count(1, 1_000_000)),
        backoff_base: reader.read("engine.backoff_base", value::positive_duration),
        backoff_max: reader.read("engine.backoff_max", value::positive_duration),
        commit_interval: reader.read("engine.commit_interval", value::client_duration),
    }
}

/// Checks that concern several settings together. Returns the warnings.
fn cross_checks(reader: &mut Reader<'_>, settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    let (kafka, engine, snapshot) = (&settings.kafka, &settings.engine, &settings.snapshot);
    if reader.sound(&["inngest.cancel_settle", "dedup.window"])
        && settings.inngest.cancel_settle > settings.dedup.window
    {
        reader.problem(
            "inngest.cancel_settle",
            "is longer than DEDUP_WINDOW: the claim that tells when an award was accepted would \
             be gone before its cancel goes out",
        );
    }
    let mut topics: Vec<String> =
        settings.consumers.iter().flat_map(|spec| settings.topics_of(spec)).collect();
    topics.sort();
    topics.dedup();
    let names_topics = |setting: &Commands| matches!(setting, Commands::Setting(_));
    let of_commands =
        settings.consumers.iter().filter(|spec| spec.commands.iter().any(names_topics));
    let of = |spec: &'static Spec| {
        spec.settings.iter().map(|setting| format!("{}.{}", spec.name, setting.key()))
    };
    let own_are_sound = of_commands.flat_map(|spec| of(spec)).all(|path| reader.sound(&[&path]));
    if own_are_sound
        && reader.sound(&["kafka.start_at", "kafka.topic_prefix", "consumers"])
        && let Some(wrong) = kafka.start_at.unknown(&topics)
    {
        reader.problem("kafka.start_at", &wrong);
    }
    if reader.sound(&["engine.backoff_base", "engine.backoff_max"])
        && engine.backoff_base > engine.backoff_max
    {
        reader.problem("engine.backoff_base", "is longer than BACKOFF_MAX");
    }
    if kafka.group_protocol == GroupProtocol::Consumer {
        if reader.values["kafka.session_timeout"].source != Source::Default {
            warnings.push(
                "KAFKA_SESSION_TIMEOUT has no effect with KAFKA_GROUP_PROTOCOL=consumer: the \
                 broker's group.consumer.session.timeout.ms decides"
                    .to_owned(),
            );
        }
        let lists = reader.values.values().filter(|it| it.variable.kind == Kind::Properties);
        let lists: Vec<_> = lists.map(|it| (it.variable.path, it.text.clone())).collect();
        for (path, text) in lists {
            if Properties::parse(&text)
                .is_ok_and(|all| all.iter().any(|(name, _)| name == "heartbeat.interval.ms"))
            {
                reader.problem(
                    path,
                    "holds heartbeat.interval.ms, which KAFKA_GROUP_PROTOCOL=consumer leaves to \
                     the broker",
                );
            }
        }
    } else if kafka.session_timeout < engine.shutdown_grace {
        warnings.push(
            "KAFKA_SESSION_TIMEOUT is below SHUTDOWN_GRACE: a member that stops slowly is thrown \
             out of its group before its last commit"
                .to_owned(),
        );
    }
    if engine.drain_deadline > engine.shutdown_grace {
        warnings.push("DRAIN_DEADLINE is above SHUTDOWN_GRACE, which ends first".to_owned());
    }
    if snapshot.max_age >= INNGEST_IDEMPOTENCY {
        warnings.push(
            "SNAPSHOT_MAX_AGE reaches beyond Inngest's 24-hour idempotency window: a snapshot \
             would award rows again"
                .to_owned(),
        );
    }
    if settings.dedup.replay_recognition == ReplayRecognition::Off {
        warnings.push(
            "REPLAY_RECOGNITION is off: a connector that sends changes of more than a day ago again \
             has them awarded again; name the span of commit times that it is needed for"
                .to_owned(),
        );
    }
    warnings
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn secret(text: &str) -> Result<SecretString, String> {
    if text.contains(char::is_control) {
        return Err("must not contain line breaks or control characters".to_owned());
    }
    Ok(text.into())
}

/// Reads settings and collects their problems. What cannot be read becomes the type's default: the
/// settings are thrown away anyway once there is a problem.
struct Reader<'a> {
    values: &'a BTreeMap<&'static str, Value>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn optional<T>(
        &mut self,
        path: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = &self.values[path];
        if value.text.is_empty() {
            return None;
        }
        match parse(&value.text) {
            Ok(parsed) => Some(parsed),
            Err(wrong) => {
                self.problem(path, &wrong);
                None
            }
        }
    }

    fn read<T: Default>(&mut self, path: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        self.optional(path, parse).unwrap_or_default()
    }

    /// `consumers` are those that need it; an empty list means all of them.
    fn required<T: Default>(
        &mut self,
        path: &str,
        consumers: &[&'static Spec],
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        if self.values[path].text.is_empty() {
            let names: Vec<_> = consumers.iter().map(|spec| spec.name).collect();
            let who = if names.is_empty() { "every consumer".to_owned() } else { names.join(", ") };
            self.missing(path, &format!("needed by {who}"));
        }
        self.read(path, parse)
    }

    fn properties(&mut self, path: &str) -> Properties {
        self.read(path, Properties::parse)
    }

    fn consumer(&mut self, spec: &Spec, enabled: bool) -> Consumer {
        let path = |key: &str| format!("{}.{key}", spec.name);
        let concurrency = self.read(&path("concurrency"), str::parse);
        let kafka_properties = self.properties(&path("kafka_properties"));
        let mut own = BTreeMap::new();
        for setting in spec.settings {
            let path = path(setting.key());
            if self.optional(&path, |text| setting.check(text)).is_some() {
                own.insert(setting.key(), self.values[&*path].text.clone());
            }
            for need in setting.needs(&self.values[&*path].text) {
                self.need(&need, enabled);
            }
        }
        Consumer { concurrency, kafka_properties, own }
    }

    fn need(&mut self, need: &Need, enabled: bool) {
        let unset = need.paths.iter().all(|path| self.values[path].text.is_empty());
        if let (true, true, Some(path)) = (enabled, unset, need.paths.first()) {
            self.missing(path, &format!("needed by {}", need.by));
        }
        if enabled && need.paths.contains(&SECRETS) {
            self.need_secret(need);
        }
    }

    /// Nothing goes out unsigned: of the secrets one must be for whoever needs them.
    fn need_secret(&mut self, Need { by, name, .. }: &Need) {
        let of = |(whose, _): &(Option<String>, _)| whose.as_ref().is_none_or(|it| it == name);
        let secrets = value::webhook_secrets(&self.values[SECRETS].text).unwrap_or_default();
        if !secrets.is_empty() && !secrets.iter().any(of) {
            let wrong = format!("has none for {by}: add whsec_... or {name}=whsec_...");
            self.problem(SECRETS, &wrong);
        }
    }

    /// Whether none of these settings has a problem. Only then does comparing them make sense.
    fn sound(&self, paths: &[&str]) -> bool {
        paths.iter().all(|path| {
            let names = self.values[path].variable.env;
            !self.problems.iter().any(|problem| names.contains(&problem.variable.as_str()))
        })
    }

    fn missing(&mut self, path: &str, why: &str) {
        let variable = &self.values[path].variable;
        self.problems.push(Problem {
            variable: variable.env[0].to_owned(),
            message: format!("missing: {} ({why}; in a file {path})", variable.about),
            source: None,
        });
    }

    fn problem(&mut self, path: &str, wrong: &str) {
        let value = &self.values[path];
        let name = match &value.source {
            Source::Env(name) => name.as_str(),
            _ => value.variable.env[0],
        };
        let quoted = redact::quoted(&value.variable, &value.text);
        let what = match value.variable.kind {
            Kind::Properties => "the list",
            _ => quoted.as_deref().unwrap_or("the value"),
        };
        self.problems.push(Problem {
            variable: name.to_owned(),
            message: format!("{what} {wrong}"),
            source: Some(value.source.clone()),
        });
    }
}
