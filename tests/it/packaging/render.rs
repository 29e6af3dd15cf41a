//! `render.yaml`, as far as can be told without Render.

use std::process::Command;

use crm_event_processors::consumers::registry::DECLARED;

use super::file;

/// The value of a key of the service.
fn of_service(key: &str) -> String {
    let text = file("render.yaml");
    let line = text.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    let value = line.and_then(|rest| rest.strip_prefix(": ")).unwrap_or_else(|| panic!("no {key}"));
    value.split(" #").next().expect("a value").trim().to_owned()
}

/// The environment that Render gives the daemon; `<asked>` for a value that a person must enter.
fn environment() -> Vec<(String, String)> {
    let text = file("render.yaml");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(key) = line.strip_prefix("- key: ") else { continue };
        let value = match lines.next().expect("a value").split_once(": ").expect("key and value") {
            ("sync", "false") => "<asked>",
            ("value", value) => value.trim_matches('"'),
            other => panic!("{key}: {other:?}"),
        };
        found.push((key.to_owned(), value.to_owned()));
    }
    found
}

fn value(key: &str) -> String {
    let mut found = environment().into_iter().filter(|(name, _)| name == key);
    found.next().unwrap_or_else(|| panic!("no {key}")).1
}

#[test]
fn the_daemon_starts_with_what_render_gives_it() {
    let asked = |key: &str| match key {
        "KAFKA_BOOTSTRAP_SERVERS" => "kafka.example:9092",
        "REDIS_URL" | "CRM_CACHE_REDIS_URL" => "redis://redis.example:6379",
        "SUPABASE_URL" => "https://supabase.example",
        _ => "a-secret",
    };
    let given = environment().into_iter().map(|(key, value)| {
        let value = if value == "<asked>" { asked(&key).to_owned() } else { value };
        (key, value)
    });
    let known: Vec<&str> = DECLARED.variables().iter().flat_map(|it| it.env).copied().collect();
    for (key, _) in environment() {
        assert!(known.contains(&&*key), "{key} is no setting");
    }
    let checked = Command::new(env!("CARGO_BIN_EXE_crm-event-processors"))
        .arg("check")
        .env_clear()
        .envs(given)
        .output()
        .expect("check runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn dead_letters_go_where_the_old_account_may_write() {
    assert!(value("DLQ_TOPIC").starts_with("crm."), "its ACLs are for `crm.*`");
}

#[test]
fn the_redis_that_is_there_is_used() {
    assert_eq!(value("REDIS_URL"), "<asked>");
}

#[test]
fn metrics_can_be_scraped() {
    assert_eq!(of_service("type"), "pserv", "nothing reaches a worker");
    let listen = value("HTTP_LISTEN");
    let (address, port) = listen.split_once(':').expect("address:port");
    assert_eq!(address, "0.0.0.0");
    assert_ne!(port, "10000", "Render's private network does not carry it");
}

#[test]
fn render_kills_only_after_the_grace() {
    let kills: u32 = of_service("maxShutdownDelaySeconds").parse().expect("seconds");
    let grace: u32 = value("SHUTDOWN_GRACE").trim_end_matches('s').parse().expect("seconds");
    assert!(grace < kills, "{grace} s of {kills} s");
}
