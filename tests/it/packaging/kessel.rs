//! The configuration of Kessel's consumers that is shipped.

use std::collections::BTreeMap;

use crm_event_processors::consumers::kessel::actions::KINDS;
use crm_event_processors::consumers::registry;

use super::{file, root};

fn problems(text: &str) -> Vec<String> {
    let path = std::env::temp_dir().join(test_support::unique("kessel.toml"));
    std::fs::write(&path, text).expect("written");
    let environment = BTreeMap::from([
        ("CRM_CONFIG", path.to_str().expect("text")),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092"),
        ("REDIS_URL", "redis://redis:6379"),
        ("KESSEL_DATABASE_URL", "postgres://kessel@postgres/kessel"),
        ("KESSEL_SEARCH_URL", "https://index:9200"),
        ("KESSEL_WEBHOOK_SECRETS", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ]);
    let environment =
        environment.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
    let loaded = registry::load(&environment.collect(), &root().join("no such file"));
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(loaded.warnings, [] as [&str; 0]);
    loaded
        .settings
        .err()
        .map_or_else(Vec::new, |all| all.0.iter().map(ToString::to_string).collect())
}

#[test]
fn the_shipped_configuration_works_and_shows_every_action() {
    let text = file("config/kessel.toml");
    assert_eq!(problems(&text), [] as [&str; 0]);
    // What is only shown works too, once its marks are taken away.
    let shown = text.replace("# [[", "[[");
    let (before, shown) = shown.rsplit_once("[[relationships.actions]]").expect("an action");
    let shown: Vec<&str> = shown.lines().map(|line| line.trim_start_matches("# ")).collect();
    let all = format!("{before}[[relationships.actions]]{}", shown.join("\n"));
    assert_eq!(problems(&all), [] as [&str; 0]);
    for kind in KINDS {
        assert!(all.contains(&format!("action = \"{}\"", kind.name)), "{}", kind.name);
    }
}

#[test]
fn what_an_action_lacks_or_misspells_is_told_with_its_name() {
    let text = file("config/kessel.toml").replace("{namespace}:{object_id}", "{namespce}");
    let wrong = problems(&text);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    let named = wrong[0].contains("action 2 (cache_invalidate)");
    assert!(named && wrong[0].contains("did you mean {namespace}?"), "{wrong:?}");
}
