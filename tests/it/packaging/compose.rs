//! `docker-compose.yml`, as far as can be told without an engine, and what the README says of it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::file;

/// What a health check may start in each image; nothing in other images.
const PROGRAMS: [(&str, &[&str]); 9] = [
    ("apache/kafka:", &["bash"]),
    ("redis:", &["redis-cli", "sh", "wget"]), // Alpine: busybox has them
    ("postgres:", &["pg_isready"]),
    ("postgrest/postgrest:", &["postgrest"]),
    ("caddy:", &["sh", "wget"]),
    ("quay.io/debezium/connect:", &["bash", "curl"]),
    ("authzed/spicedb:", &["grpc_health_probe"]), // it has no shell
    ("opensearchproject/opensearch:", &["bash", "curl"]),
    ("crm-event-processors", &["bash"]), // debian:bookworm-slim, see the Dockerfile
];

/// The lines of every service, by its name.
fn services() -> BTreeMap<String, String> {
    let text = file("docker-compose.yml");
    let (_, text) = text.split_once("\nservices:\n").expect("services");
    let mut services = BTreeMap::<String, String>::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match line.strip_prefix("  ").and_then(|line| line.strip_suffix(':')) {
            Some(service) if !service.starts_with(' ') => name = service.to_owned(),
            _ => *services.entry(name.clone()).or_default() += &format!("{line}\n"),
        }
    }
    services
}

/// The value of `key:` in a service.
fn value<'s>(service: &'s str, key: &str) -> Option<&'s str> {
    service.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "))
}

fn image(service: &str) -> &str {
    // Without an image it is built here: the daemon.
    value(service, "image").unwrap_or("crm-event-processors")
}

/// What a service waits for, and for which condition.
fn awaited(service: &str) -> Vec<(&str, &str)> {
    let conditions = service.lines().filter_map(|line| line.trim().split_once(": { condition: "));
    conditions.filter_map(|(name, rest)| Some((name, rest.strip_suffix(" }")?))).collect()
}

/// The first word of what a health check starts.
fn checked_with(service: &str) -> Option<&str> {
    let (_, check) = service.split_once("    healthcheck:\n")?;
    if check.contains("[\"CMD-SHELL\",") {
        return Some("sh");
    }
    let (_, command) = check.split_once("CMD")?;
    let mut words = command.split(|c: char| c.is_whitespace() || "\",[".contains(c));
    words.find(|word| !matches!(*word, "" | "-"))
}

#[test]
fn a_health_check_starts_what_its_image_has() {
    let mut checks = 0;
    for (name, service) in services() {
        let Some(program) = checked_with(&service) else { continue };
        checks += 1;
        let found = PROGRAMS.iter().find(|(image_of, _)| image(&service).starts_with(image_of));
        let there = found.is_some_and(|(_, programs)| programs.contains(&program));
        assert!(there, "{name}: is there a {program} in {}?", image(&service));
    }
    assert_eq!(checks, 9);
}

#[test]
fn what_is_waited_for_comes() {
    let services = services();
    let mut waits = 0;
    for (name, service) in &services {
        for (awaited, until) in awaited(service) {
            waits += 1;
            let awaited = services.get(awaited).unwrap_or_else(|| panic!("{name}: no {awaited}"));
            let comes = match until {
                "service_healthy" => awaited.contains("    healthcheck:\n"),
                // Services with an entrypoint of their own run to an end.
                "service_completed_successfully" => awaited.contains("    entrypoint:"),
                _ => false,
            };
            assert!(comes, "{name} waits for {until}");
        }
    }
    assert_eq!(waits, 23);
    let daemon = awaited(&services["daemon"]);
    for needed in ["kafka", "redis", "supabase", "inngest-answers", "topics", "connector"] {
        assert!(daemon.iter().any(|(name, _)| *name == needed), "the daemon waits for {needed}");
    }
}

/// The environment of a service, with the defaults of what may be set outside.
fn environment(service: &str) -> Vec<(String, String)> {
    let (_, rest) = service.split_once("    environment:\n").expect("an environment");
    let lines = rest.lines().take_while(|line| line.starts_with("      "));
    let set = |line: &str| {
        let (name, value) = line.trim().split_once(": ")?;
        Some((name.to_owned(), with_defaults(value.trim_matches('"'))))
    };
    lines.filter_map(set).collect()
}

/// A value where nothing is set outside: `a${NAME:-b}c` is `abc`.
fn with_defaults(value: &str) -> String {
    let Some((before, rest)) = value.split_once("${") else { return value.to_owned() };
    let (variable, after) = rest.split_once('}').expect("an end");
    let (_, default) = variable.split_once(":-").expect("a default");
    format!("{before}{default}{}", with_defaults(after))
}

fn of_kessel(service: &str) -> bool {
    value(service, "profiles") == Some("[kessel]")
}

#[test]
fn without_its_profile_nothing_of_kessel_starts_and_nothing_waits_for_it() {
    let services = services();
    let names = services.iter().filter(|(_, service)| of_kessel(service)).map(|(name, _)| &**name);
    let names: Vec<&str> = names.collect();
    let steps = ["connector", "databases", "publication"].map(|step| format!("kessel-{step}"));
    let mut expected: Vec<&str> = steps.iter().map(String::as_str).collect();
    expected.extend(["kessel", "opensearch", "spicedb", "spicedb-migrate"]);
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (name, service) in services.iter().filter(|(_, service)| !of_kessel(service)) {
        for (awaited, _) in awaited(service) {
            assert!(!names.contains(&awaited), "{name} waits for {awaited}");
        }
    }
}

#[test]
fn the_connector_of_kessel_is_given_all_that_it_names_and_may_read_it() {
    let services = services();
    let connect = environment(&services["connect"]);
    let of = |name: &str| {
        let found = connect.iter().find(|(given, _)| given == name);
        &*found.unwrap_or_else(|| panic!("no {name}")).1
    };
    assert_eq!(
        of("CONNECT_CONFIG_PROVIDERS_ENV_PARAM_ALLOWLIST_PATTERN"),
        "(CDC|SPICEDB)_DATABASE_.*"
    );
    for connector in ["connector", "kessel"] {
        let config = file(&format!("config/debezium/{connector}.json"));
        let named = config.split("${env:").skip(1);
        let named: Vec<&str> = named.filter_map(|rest| Some(rest.split_once('}')?.0)).collect();
        assert_eq!(named.len(), 5, "{connector}");
        for name in named {
            assert!(name.starts_with("CDC_DATABASE_") || name.starts_with("SPICEDB_DATABASE_"));
            assert!(!of(name).is_empty(), "{name}");
        }
    }
    // As whom it logs in, and what it reads, are made by these.
    let role = of("SPICEDB_DATABASE_USER");
    assert!(file("config/spicedb/publication.sql").contains(&format!("TO {role};")));
    assert!(file("config/spicedb/local.sql").contains(&format!("ALTER ROLE {role} REPLICATION")));
    assert!(services["kessel-connector"].contains("./config/debezium/kessel.json:/connector.json"));
}

#[test]
fn every_password_is_known_to_everybody_and_can_be_another() {
    let text = file("docker-compose.yml");
    let (head, _) = text.split_once("\nservices:\n").expect("services");
    let mut found = 0;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((name, value)) = line.trim().split_once(": ") else { continue };
        let secret = ["PASSWORD", "_KEY"].iter().any(|end| name.ends_with(end));
        if !secret || value.starts_with('*') {
            continue;
        }
        let (_, variable) = value.split_once("${").unwrap_or_else(|| panic!("{line}"));
        let (variable, default) = variable.split_once(":-").unwrap_or_else(|| panic!("{line}"));
        assert!(default.ends_with("local-only}"), "{line}");
        assert!(head.contains(variable), "{variable} is not told of");
        found += 1;
    }
    assert_eq!(found, 8);
}

#[test]
fn the_daemon_of_kessel_starts_on_what_it_is_given() {
    let service = &services()["kessel"];
    assert!(service.contains("./config/kessel.toml:/kessel.toml:ro"), "{service}");
    let settings = environment(service).into_iter().map(|(name, value)| match &*name {
        "CRM_CONFIG" => (name, super::root().join("config/kessel.toml").display().to_string()),
        _ => (name, value),
    });
    let checked = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .arg("check")
        .env_clear()
        .envs(settings)
        .output()
        .expect("check runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Ports on this machine, with their defaults.
fn published() -> Vec<String> {
    let of = |service: String| {
        let ports = value(&service, "ports")?.trim_matches(['[', ']', '"']).to_owned();
        let (host, _) = ports.rsplit_once(':').expect("host:inside");
        let (address, port) = host.split_once(':').expect("address:port");
        assert_eq!(address, "127.0.0.1", "passwords that everybody knows stay on this machine");
        let port = port.rsplit("-").next().expect("a default").trim_end_matches('}');
        Some(port.to_owned())
    };
    services().into_values().filter_map(of).collect()
}

#[test]
fn a_client_outside_is_told_an_address_of_kafka_that_is_published() {
    let kafka = &services()["kafka"];
    let advertised = value(kafka, "KAFKA_ADVERTISED_LISTENERS").expect("addresses");
    let (_, host) = advertised.split_once("HOST://").expect("one for the host");
    let ports = value(kafka, "ports").expect("a port").trim_matches(['[', ']', '"']);
    let (outside, inside) = ports.rsplit_once(':').expect("host:inside");
    assert_eq!(outside, host);
    let listeners = value(kafka, "KAFKA_LISTENERS").expect("listeners");
    assert!(listeners.contains(&format!("HOST://:{inside}")), "{listeners}");
}

/// The shell blocks of the README's section on docker compose.
fn readme() -> String {
    let readme = file("README.md");
    let (_, section) = readme.split_once("\n## Everything on one machine").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another section");
    section.split("```").skip(1).step_by(2).map(|block| block.trim_start_matches("sh\n")).collect()
}

#[test]
fn the_readme_s_daemon_outside_finds_everything_on_published_ports() {
    let (published, readme) = (published(), readme().replace("\\\n", ""));
    let line = readme.lines().find(|line| line.ends_with(" cargo run")).expect("a daemon outside");
    let settings: Vec<_> =
        line.split_whitespace().filter_map(|word| word.split_once('=')).collect();
    for (name, address) in &settings {
        let Some((_, port)) = address.rsplit_once("127.0.0.1:") else { continue };
        assert!(published.contains(&port.to_owned()), "{name}: is {port} published?");
    }
    assert!(published.contains(&"5432".to_owned()), "PostgreSQL can be reached too");
    let checked = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .arg("check")
        .env_clear()
        .envs(settings)
        .output()
        .expect("check runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn the_readme_s_redemption_and_order_are_handled() {
    let readme = readme();
    let mut lines = readme.lines();
    let mut records = Vec::new();
    while let Some(line) = lines.next() {
        let Some((_, rest)) = line.split_once("--topic ") else { continue };
        let topic = rest.split_whitespace().next().expect("a topic");
        let value = lines.next().expect("a value");
        records.push(json!({"topic": topic, "partition": 0, "offset": 0, "timestamp_ms": 1, "key": null, "value": value, "headers": []}));
    }
    let reports = explained(&records);
    let planned: Vec<_> = ["reward", "marketplace"]
        .iter()
        .zip(&reports)
        .map(|(consumer, report)| {
            let decision = &report["consumers"][consumer];
            assert_eq!(decision["decision"], "process", "{report}");
            decision["plan"].as_array().and_then(|plan| plan.first()).cloned().unwrap_or_default()
        })
        .collect();
    assert_eq!(
        planned,
        [
            "rpc redeem_reward_with_points",
            "event marketplace/order-received marketplace/order-received:shopee:4711:ORDER-1:READY_TO_SHIP"
        ]
    );
}

/// What `explain` says of these records.
fn explained(records: &[Value]) -> Vec<Value> {
    let mut explain = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .args(["explain", "--json"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("explain runs");
    let mut input = explain.stdin.take().expect("its input");
    for record in records {
        std::io::Write::write_all(&mut input, format!("{record}\n").as_bytes()).expect("it reads");
    }
    drop(input);
    let output = explain.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}
