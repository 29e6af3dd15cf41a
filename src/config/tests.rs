use std::path::PathBuf;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::variables::{FILE, Kind};
use super::*;
use crate::consumers::currency;
use crate::consumers::registry::{CONSUMERS, DECLARED, load};

const SECRET: &str = "hunter2-hunter2";

/// What every consumer needs, and nothing else.
const NEEDED: [(&str, &str); 5] = [
    ("KAFKA_BOOTSTRAP_SERVERS", "broker:9092"),
    ("REDIS_URL", "redis://redis:6379"),
    ("SUPABASE_URL", "https://project.supabase.co"),
    ("SUPABASE_SERVICE_ROLE_KEY", "role-key"),
    ("INNGEST_EVENT_KEY", "event-key"),
];

fn environment(more: &[(&str, &str)]) -> Environment {
    NEEDED.iter().chain(more).map(|(name, text)| (name.to_string(), text.to_string())).collect()
}

fn load_env(env: &Environment) -> Loaded {
    load(env, Path::new("no/such/file.toml"))
}

fn good(more: &[(&str, &str)]) -> Settings {
    *load_env(&environment(more)).settings.expect("good configuration")
}

fn problems(more: &[(&str, &str)]) -> Vec<Problem> {
    load_env(&environment(more)).settings.expect_err("bad configuration").0
}

fn effective<'a>(loaded: &'a Loaded, path: &str) -> &'a Effective {
    loaded.values.iter().find(|value| value.path == path).expect("a known path")
}

/// A file of its own for each test, gone afterwards.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("crm-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("a writable temporary directory");
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("the file is still there");
    }
}

/// Valid, and not the default.
fn example(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or(path, |(_, key)| key) {
        "consumers" => "currency",
        "bootstrap" => "other:9092",
        "group_protocol" => "consumer",
        "auto_offset_reset" => "latest",
        "start_at" => "crm.public.referral_ledger=latest,reward_redemptions=2026-01-02T03:04:05Z",
        "properties" | "kafka_properties" => "fetch.wait.max.ms=51",
        "actions" => r#"[{"action": "log", "name": "lines"}]"#,
        "database_url" => "postgres://me@other/kessel",
        "search_url" => "https://other:9200",
        "webhook_secrets" => "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "url" if path == "redis.url" => "redis://other:6379",
        "cache_url" => "rediss://cache:6379",
        "ca_file" => concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        "on_outage" => "proceed",
        "replay_recognition" => "off",
        "url" | "event_api_base_url" | "base_url" => "https://other.example",
        "dev" => "http://localhost:8289",
        "policy" => "all",
        "decimal_mode" => "precise",
        "numeric_scales" => "purchase_ledger.final_amount=4,codes.face_value=0",
        "tombstones" => "delete",
        "hard_deletes" => "true",
        "snapshot" => "trust",
        "numeric_scale" | "requests" | "poison_attempts" | "breaker_threshold" | "dlq_flood" => "7",
        "batch_events" | "buffer_records" => "4999",
        "batch_bytes" | "max_event_bytes" | "buffer_bytes" => "2MiB",
        "concurrency" => "7..9",
        "listen" => "9464",
        "level" => "debug",
        "format" => "json",
        "backoff_max" | "cancel_settle" | "original_patience" => "31s",
        "taken_back_statuses" => "void",
        "window" => "310s",
        "dead_rows" | "session_timeout" | "max_age" | "refund_memory" | "shutdown_grace"
        | "stall_timeout" | "drain_deadline" | "poison_after" | "backoff_base"
        | "commit_interval" | "metadata_refresh" | "batch_wait" | "connect_timeout"
        | "request_timeout" => "29s",
        _ => "another",
    }
}

#[test]
fn the_defaults_with_what_is_needed_are_those_of_behaviour_md() {
    let settings = good(&[]);
    let by_default = CONSUMERS.map(|entry| entry.spec).into_iter().filter(|spec| spec.by_default);
    assert_eq!(settings.consumers, by_default.collect::<Vec<_>>());
    assert_eq!(settings.kafka.group_of("tier"), "crm-event-processors-tier");
    assert_eq!(settings.kafka.topic_of("purchase_ledger"), "crm.public.purchase_ledger");
    assert_eq!(settings.kafka.dlq_topic, "crm-event-processors.dlq");
    assert!(settings.kafka.credentials.is_none());
    assert_eq!(settings.kafka.auto_offset_reset, None);
    assert_eq!(settings.dedup.window.as_secs(), 300);
    assert_eq!(settings.inngest.base_url, "https://inn.gs");
    assert_eq!(settings.inngest.cancel_settle.as_secs(), 30);
    assert_eq!(settings.of(&currency::SPEC, &currency::ORIGINAL_PATIENCE).as_secs(), 60);
    assert_eq!(settings.snapshot.policy, SnapshotPolicy::Recent);
    assert_eq!(settings.snapshot.max_age.as_secs(), 20 * 3_600);
    assert_eq!(settings.engine.shutdown_grace.as_secs(), 25);
    assert_eq!(settings.engine.stall_timeout.as_secs(), 300);
    let bounds = CONSUMERS.map(|entry| settings.consumer(entry.spec).concurrency.max);
    assert_eq!(bounds, [5, 3, 5, 5, 20, 5]);
    let orders = settings.command_topics_of(&crate::consumers::marketplace::SPEC);
    assert_eq!(orders, ["marketplace.orders"]);
    let loaded = load_env(&environment(&[]));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn default_toml_holds_every_setting_and_names_every_variable() {
    let table: toml::Table = layers::DEFAULTS.parse().expect("TOML");
    for variable in DECLARED.variables() {
        let value = match variable.path.split_once('.') {
            Some((section, key)) => table.get(section).and_then(|section| section.get(key)),
            None => table.get(variable.path),
        };
        // A consumer's setting has its default in its declaration, and nowhere else.
        assert_eq!(value.is_none(), variable.default.is_some(), "{}", variable.path);
        if variable.default.is_some() {
            continue;
        }
        let words = || layers::DEFAULTS.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in variable.env {
            assert!(words().any(|word| word == *name), "{name} is not documented");
        }
    }
}

#[test]
fn every_name_of_every_setting_works_and_is_named_as_the_source() {
    for variable in DECLARED.variables() {
        for name in variable.env {
            let mut env = environment(&[]);
            for both in ["KAFKA_API_KEY", "KAFKA_API_SECRET"] {
                env.insert(both.to_owned(), "account".to_owned());
            }
            env.retain(|set, _| !variable.env.contains(&set.as_str()));
            env.insert((*name).to_owned(), example(variable.path).to_owned());
            let loaded = load_env(&env);
            assert!(loaded.settings.is_ok(), "{name}: {:?}", loaded.settings);
            let value = effective(&loaded, variable.path);
            assert_eq!(value.source, Source::Env((*name).to_owned()), "{name}");
            if variable.kind == Kind::Plain {
                assert_eq!(value.value, example(variable.path), "{name}");
            }
        }
    }
}

#[test]
fn the_first_name_that_is_set_wins_and_an_empty_one_is_not_set() {
    let all =
        [("KAFKA_BROKER", "c:1"), ("KAFKA_BROKERS", "b:1"), ("KAFKA_BOOTSTRAP_SERVERS", "a:1")];
    assert_eq!(good(&all).kafka.bootstrap, "a:1");
    let empty =
        [("KAFKA_BROKER", "c:1"), ("KAFKA_BROKERS", "b:1"), ("KAFKA_BOOTSTRAP_SERVERS", " ")];
    assert_eq!(good(&empty).kafka.bootstrap, "b:1");
    assert_eq!(good(&[("LOG_LEVEL", ""), ("RUST_LOG", "debug")]).log.level, "debug");
    assert_eq!(good(&[("CONSUMER_GROUP", "g")]).kafka.dlq_topic, "g.dlq");
}

#[test]
fn one_of_kessels_consumers_alone_goes_on_in_the_group_that_was_named_for_it() {
    let kafka = |consumers: &str, group: &[(&str, &str)]| {
        let mut all = vec![("CONSUMERS", consumers)];
        all.extend(group);
        let kafka = good(&all).kafka;
        (kafka.group_of("relationships"), kafka.dlq_topic)
    };
    let named = [("CONSUMER_GROUP", "kessel-watchers")];
    let is = |group: &str, letters: &str| (group.to_owned(), letters.to_owned());
    assert_eq!(kafka("relationships", &named), is("kessel-watchers", "kessel.dlq"));
    assert_eq!(
        kafka("relationships", &[]),
        is("crm-event-processors-relationships", "kessel.dlq"),
        "nobody else's group by default"
    );
    assert_eq!(
        kafka("relationships,currency", &named),
        is("kessel-watchers-relationships", "kessel-watchers.dlq")
    );
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let file = TempFile::new(
        "layers",
        "[currency]\nconcurrency = \"6..8\"\n[tier]\nconcurrency = 4\n[dedup]\nwindow = \"\"\n\
         [kafka.properties]\n\"fetch.wait.max.ms\" = 50\n\"debug\" = \"broker,protocol\"\n",
    );
    let loaded = load(&environment(&[("CURRENCY_CONCURRENCY", "9")]), &file.0);
    let path = file.0.display().to_string();
    assert_eq!(effective(&loaded, "currency.concurrency").value, "9");
    assert_eq!(effective(&loaded, "tier.concurrency").value, "4");
    assert_eq!(effective(&loaded, "tier.concurrency").source, Source::File(path.clone()));
    assert_eq!(effective(&loaded, "kafka.properties").source, Source::File(path));
    assert_eq!(effective(&loaded, "mission.concurrency").source, Source::Default);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let settings = loaded.settings.expect("good configuration");
    assert_eq!(
        settings.consumer(&crate::consumers::tier::SPEC).concurrency,
        Bound { min: 4, max: 4 }
    );
    assert_eq!(settings.dedup.window.as_secs(), 300, "empty brings the default back");
    let properties: Vec<_> = settings.kafka.properties.iter().collect();
    assert_eq!(properties, [("debug", "broker,protocol"), ("fetch.wait.max.ms", "50")]);
}

#[test]
fn crm_config_names_another_file_which_must_be_there_and_be_toml() {
    let file = TempFile::new("named", "[tier]\nconcurrency = 4\n");
    let path = file.0.display().to_string();
    let tier = good(&[(FILE, &path)]).consumer(&crate::consumers::tier::SPEC);
    assert_eq!(tier.concurrency.max, 4);

    let gone = problems(&[(FILE, "no/such/file.toml")]);
    assert_eq!((gone.len(), gone[0].variable.as_str()), (1, FILE));

    let broken = format!("[supabase]\nservice_role_key = {SECRET}\n");
    let broken = TempFile::new("broken", &broken);
    let all = problems(&[(FILE, &broken.0.display().to_string()), ("TIER_CONCURRENCY", "x")]);
    assert_eq!(all.len(), 2, "the other layers are still looked at: {all:?}");
    assert!(all[0].message.contains("line 2") && !all[0].message.contains(SECRET), "{}", all[0]);
}

#[test]
fn all_problems_are_told_at_once_with_name_form_and_source() {
    let file = TempFile::new("bad", "[dedup]\nwindow = 300\n");
    let env: Environment = [
        ("CONSUMERS", "currency"),
        ("KAFKA_BROKERS", "http://broker"),
        ("KAFKA_API_KEY", "key"),
        ("CURRENCY_CONCURRENCY", "abc"),
        ("SUPABASE_URL", "project.supabase.co"),
        ("KAFKA_PROPERTIES", "enable.auto.commit=false"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into();
    let error = load(&env, &file.0).settings.expect_err("bad configuration");
    let text = error.to_string();
    let lines = [
        "KAFKA_BROKERS: \"http://broker\" is not a list of brokers (host:port, comma separated) \
         (environment KAFKA_BROKERS)",
        "KAFKA_API_SECRET: missing: secret of the broker account",
        "CURRENCY_CONCURRENCY: \"abc\" is not a bound between 1 and 10000 (5 or 5..64)",
        "SUPABASE_URL: \"project.supabase.co\" is not a web address",
        "SUPABASE_SERVICE_ROLE_KEY: missing",
        "REDIS_URL: missing",
        "INNGEST_EVENT_KEY: missing: key of the event source (needed by currency; in a file \
         inngest.event_key)",
        "KAFKA_PROPERTIES: the list is refused: enable.auto.commit cannot be set here: only \
         offsets with an outcome may be committed",
        &format!(
            "DEDUP_WINDOW: \"300\" is not a duration (250ms, 30s, 5m, 20h or 1d) ({})",
            file.0.display()
        ),
    ];
    for line in lines {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert_eq!(error.0.len(), lines.len(), "{text}");
}

#[test]
fn only_what_an_enabled_consumer_needs_is_required() {
    let without = |name: &str, consumers: &str| {
        let mut env = environment(&[("CONSUMERS", consumers)]);
        env.remove(name);
        load_env(&env).settings.map(|_| ()).map_err(|error| error.0.len())
    };
    for (name, _) in NEEDED {
        for Spec { name: consumer, needs, .. } in CONSUMERS.map(|entry| entry.spec) {
            let needed = match name.split('_').next() {
                Some("SUPABASE") => needs.contains(&Service::Supabase),
                Some("REDIS") => needs.contains(&Service::Redis),
                Some("INNGEST") => needs.contains(&Service::Inngest),
                _ => true,
            };
            let result = without(name, consumer);
            assert_eq!(result, if needed { Err(1) } else { Ok(()) }, "{name} for {consumer}");
        }
    }
    let nobody: Environment = [("CONSUMERS".to_owned(), "curency".to_owned())].into();
    let all = load_env(&nobody).settings.expect_err("bad configuration").to_string();
    assert!(
        all.contains("REDIS_URL: missing") && all.contains("needed by every consumer"),
        "{all}"
    );
    let unknown = problems(&[("CONSUMERS", "currency,curency")]);
    assert!(unknown[0].message.contains("curency"), "{}", unknown[0]);
    assert!(unknown[0].message.contains("known: currency, tier, mission, reward, marketplace"));
}

#[test]
fn inngest_is_addressed_as_by_its_sdks() {
    let url = |more: &[(&str, &str)]| good(more).inngest.base_url;
    let api = ("INNGEST_EVENT_API_BASE_URL", "https://a.example/");
    let base = ("INNGEST_BASE_URL", "https://b.example");
    let dev = ("INNGEST_DEV", "http://c.example:8288");
    assert_eq!(url(&[dev, base, api]), "https://a.example");
    assert_eq!(url(&[dev, base]), "https://b.example");
    assert_eq!(url(&[dev]), "http://c.example:8288");
    assert_eq!(url(&[("INNGEST_DEV", "1")]), "http://localhost:8288");
    assert_eq!(url(&[("INNGEST_DEV", "0")]), "https://inn.gs");

    let mut env = environment(&[("INNGEST_DEV", "1")]);
    env.remove("INNGEST_EVENT_KEY");
    let settings = load_env(&env).settings.expect("a dev server needs no key");
    assert!(!settings.inngest.event_key.expose_secret().is_empty());
    env.insert("INNGEST_DEV".to_owned(), "0".to_owned());
    assert!(load_env(&env).settings.is_err());
}

#[test]
fn key_and_secret_come_together_under_either_name() {
    let credentials = good(&[("KAFKA_USERNAME", "me"), ("KAFKA_API_SECRET", SECRET)])
        .kafka
        .credentials
        .expect("credentials");
    assert_eq!(credentials.username.expose_secret(), "me");
    assert_eq!(credentials.password.expose_secret(), SECRET);
    assert_eq!(problems(&[("KAFKA_PASSWORD", SECRET)])[0].variable, "KAFKA_API_KEY");
}

#[test]
fn what_a_start_would_refuse_is_told_before_it_with_its_source_and_without_its_value() {
    for (name, text) in [
        ("REDIS_URL", format!("redis://h:6379/{SECRET}")),
        ("CRM_CACHE_REDIS_URL", format!("redis://me:{SECRET}%FF@h:6379")),
        ("INNGEST_EVENT_KEY", format!("{SECRET} {SECRET}")),
        ("SUPABASE_SERVICE_ROLE_KEY", format!("{SECRET}\u{fc}")),
        ("INNGEST_ENV", "a\u{7}b".to_owned()),
        ("INNGEST_EVENT_API_BASE_URL", format!("https://inn.gs/e/{SECRET}")),
        ("INNGEST_DEV", format!("http://localhost:8288/e/{SECRET}")),
    ] {
        let all = problems(&[(name, &text)]);
        assert_eq!(all.len(), 1, "{name}: {all:?}");
        let line = all[0].to_string();
        assert!(line.contains(&format!("environment {name}")), "{line}");
        assert!(!line.contains(SECRET), "{line}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_told() {
    let settle = problems(&[("INNGEST_CANCEL_SETTLE", "5m"), ("DEDUP_WINDOW", "299s")]);
    assert!(settle[0].message.contains("DEDUP_WINDOW"), "{}", settle[0]);
    good(&[("INNGEST_CANCEL_SETTLE", "5m"), ("DEDUP_WINDOW", "300s")]);
    assert_eq!(problems(&[("BACKOFF_BASE", "1h")])[0].variable, "BACKOFF_BASE");
    let beat = problems(&[
        ("KAFKA_GROUP_PROTOCOL", "consumer"),
        ("TIER_KAFKA_PROPERTIES", "heartbeat.interval.ms=1000"),
    ]);
    assert_eq!(beat[0].variable, "TIER_KAFKA_PROPERTIES");

    let warned = |more: &[(&str, &str)], word: &str| {
        let warnings = load_env(&environment(more)).warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{word}: {warnings:?}");
    };
    warned(&[("KAFKA_SESSION_TIMEOUT", "20s")], "KAFKA_SESSION_TIMEOUT");
    warned(&[("SNAPSHOT_MAX_AGE", "24h")], "SNAPSHOT_MAX_AGE");
    warned(&[("DRAIN_DEADLINE", "26s")], "DRAIN_DEADLINE");
    warned(&[("REPLAY_RECOGNITION", "off")], "REPLAY_RECOGNITION");
}

#[test]
fn a_name_that_nobody_reads_is_met_with_the_likely_one() {
    let warned = |name: &str, likely: &str| {
        let warnings = load_env(&environment(&[(name, "5")])).warnings;
        assert!(
            warnings.len() == 1 && warnings[0].contains(name) && warnings[0].contains(likely),
            "{name}: {warnings:?}"
        );
    };
    warned("INGEST_EVENT_KEY", "INNGEST_EVENT_KEY");
    warned("CURRENCY_CONCURENCY", "CURRENCY_CONCURRENCY");
    warned("currency_concurrency", "CURRENCY_CONCURRENCY");
    warned("REDIS_URI", "REDIS_URL");
    for foreign in ["PATH", "HOME", "NODE_ENV", "DATABASE_URL", "RENDER_INSTANCE_ID", "SORT"] {
        let warnings = load_env(&environment(&[(foreign, "x")])).warnings;
        assert!(warnings.is_empty(), "{foreign}: {warnings:?}");
    }

    let file = TempFile::new("unknown", "[kafka]\nbootstrp = \"a:1\"\n[tire]\nconcurrency = 2\n");
    let warnings = load(&environment(&[]), &file.0).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("kafka.bootstrp") && warnings[0].contains("mean kafka.bootstrap?")
    );
    assert!(warnings[1].contains("did you mean tier.concurrency?"), "{warnings:?}");
}

/// Everything that a run could print of a configuration.
fn printed(loaded: &Loaded) -> String {
    let json = serde_json::to_string(&loaded.values).expect("JSON");
    let mut text = format!("{loaded:?}\n{json}\n{}", loaded.warnings.join("\n"));
    if let Err(error) = &loaded.settings {
        text.push_str(&error.to_string());
    }
    text
}

#[test]
fn a_secret_in_any_place_for_secrets_is_never_shown_whether_good_or_bad() {
    let shapes = |kind: Kind| match kind {
        Kind::Secret => vec![SECRET.to_owned(), format!("a\u{7}{SECRET}")],
        Kind::SecretUrl => vec![
            format!("rediss://me:{SECRET}@a:6379/0?token={SECRET}"),
            format!("redis://{SECRET}@a"),
            format!("me:{SECRET}@a:6379"),
            format!("redis://:{SECRET}#@a:6379"),
            SECRET.to_owned(),
        ],
        Kind::Properties => vec![
            format!("ssl.key.password={SECRET},fetch.wait.max.ms=50"),
            format!("fetch.wait.max.ms={SECRET}"),
            format!("sasl.password={SECRET}"),
            SECRET.to_owned(),
        ],
        Kind::Tables => vec![
            format!(r#"[{{"action": "log", "url": "https://a.example/{SECRET}"}}]"#),
            format!(r#"[{{"action": "log", "filter": {{"relation": "{SECRET}"}}}}]"#),
        ],
        Kind::Plain => vec![
            format!("https://me:{SECRET}@a.example"),
            format!("https://a.example/rest/v1/?apikey={SECRET}"),
            format!("https://a.example/e/{SECRET}"),
        ],
    };
    let mut seen = 0;
    for variable in DECLARED.variables() {
        for text in shapes(variable.kind) {
            let loaded = load_env(&environment(&[(variable.env[0], &text)]));
            let printed = printed(&loaded);
            let settings_can_show_it = variable.kind == Kind::Plain && loaded.settings.is_ok();
            if !settings_can_show_it {
                assert!(!printed.contains(SECRET), "{}: {printed}", variable.env[0]);
                seen += 1;
            }
        }
    }
    assert!(seen > DECLARED.variables().len(), "only {seen} looked at");
}

proptest! {
    #[test]
    fn no_text_in_any_variable_makes_loading_panic_or_both_good_and_bad(
        index in 0..DECLARED.variables().len(), text in "\\PC{0,40}",
    ) {
        let loaded = load_env(&environment(&[(DECLARED.variables()[index].env[0], &text)]));
        if let Err(error) = &loaded.settings {
            prop_assert!(!error.0.is_empty());
        }
        prop_assert_eq!(loaded.values.len(), DECLARED.variables().len());
    }
}

#[test]
fn where_topics_begin_is_said_of_topics_that_are_read() {
    let told = good(&[
        ("KAFKA_START_AT", "crm.public.codes=latest,orders=earliest"),
        ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
        ("KAFKA_TOPIC_MARKETPLACE_ORDERS", "orders"),
    ]);
    assert_eq!(told.kafka.beginning_of("crm.public.codes"), Some(Beginning::Latest));
    assert_eq!(told.kafka.beginning_of("crm.public.wallet_ledger"), Some(Beginning::Earliest));
    assert_eq!(good(&[]).kafka.beginning_of("crm.public.codes"), None);

    for (wrong, said) in [
        ("crm.public.code=latest", "did you mean crm.public.codes?"),
        ("crm.public.codes=now", "topic=2026-11-29T00:00:00Z"),
        ("crm.public.codes=latest,crm.public.codes=latest", "twice"),
    ] {
        let problems = problems(&[("KAFKA_START_AT", wrong)]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problem = problems[0].to_string();
        assert!(problem.starts_with("KAFKA_START_AT: ") && problem.contains(said), "{problem}");
        assert!(!problem.contains('\n'), "{problem}");
    }
    let enabled = problems(&[("KAFKA_START_AT", "orders=latest"), ("CONSUMERS", "tier")]);
    assert!(enabled[0].message.contains("no enabled consumer reads"), "{enabled:?}");
}
