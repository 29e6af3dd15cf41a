//! The documents hold together: links lead somewhere, and every setting and metric is named.

use std::collections::BTreeSet;
use std::path::Path;

use crm_event_processors::consumers::registry::DECLARED;
use crm_event_processors::metric_names;

use super::{file, root};

const DOCS: [&str; 6] = [
    "README.md",
    "docs/CHANGELOG.md",
    "docs/architecture.md",
    "docs/behaviour.md",
    "docs/contributing.md",
    "docs/operations.md",
];

/// The text outside code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// Anchors of a document's headings, as GitHub makes them.
fn anchors(path: &str) -> BTreeSet<String> {
    let text = file(path);
    let headings = prose(&text).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = prose(text).flat_map(|line| line.split("](").skip(1));
    let targets = targets.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://"))
}

/// The target of a link in `from`: a path from the root, and an anchor.
fn target<'a>(from: &str, link: &'a str) -> (String, Option<&'a str>) {
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    if path.is_empty() {
        return (from.to_owned(), anchor);
    }
    let beside = Path::new(from).parent().expect("a folder").join(path);
    let mut parts: Vec<String> = Vec::new();
    for part in beside.iter().map(|part| part.to_string_lossy().into_owned()) {
        if part == ".." { drop(parts.pop()) } else { parts.push(part) }
    }
    (parts.join("/"), anchor)
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for from in DOCS {
        let text = file(from);
        for link in links(&text) {
            let (path, anchor) = target(from, link);
            assert!(root().join(&path).exists(), "{from} links to {link}, which is not there");
            if let Some(anchor) = anchor {
                assert!(anchors(&path).contains(anchor), "{from}: {path} has no heading {anchor}");
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count} links were found");
}

#[test]
fn the_behaviour_names_every_variable() {
    let text = file("docs/behaviour.md");
    // Those that every consumer has are named once for all: <NAME>_CONCURRENCY.
    let common = [".concurrency", ".kafka_properties"];
    let missing: Vec<_> = DECLARED
        .variables()
        .iter()
        .filter(|variable| !common.iter().any(|end| variable.path.ends_with(end)))
        .flat_map(|variable| variable.env)
        .filter(|name| !text.contains(*name))
        .collect();
    assert!(missing.is_empty(), "not in docs/behaviour.md: {missing:?}");
}

#[test]
fn operations_name_the_metrics_that_there_are() {
    let text = file("docs/operations.md");
    let known: BTreeSet<&str> = metric_names::ALL.iter().map(|(name, _)| *name).collect();
    let part = |c: char| !(c.is_ascii_lowercase() || c == '_');
    let named = text.split(part).filter(|word| word.starts_with("crm_") && known_form(word));
    let of_a_histogram = ["_bucket", "_count", "_sum"];
    let unknown: Vec<_> = named
        .filter(|name| {
            let base = of_a_histogram.iter().find_map(|end| name.strip_suffix(end));
            !known.contains(base.unwrap_or(name)) && !known.contains(name)
        })
        .collect();
    assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
    let missing: Vec<_> = known.iter().filter(|name| !text.contains(**name)).collect();
    assert!(missing.is_empty(), "not in docs/operations.md: {missing:?}");
}

/// Other things are called `crm_` too: a slot, a publication, a database.
fn known_form(word: &str) -> bool {
    let others = ["crm_cdc_slot", "crm_cdc_publication", "crm_event_processors", "crm_"];
    !others.contains(&word)
}

#[test]
fn the_readme_is_short() {
    let lines = file("README.md").lines().count();
    assert!(lines < 150, "{lines} lines");
}

#[test]
fn the_image_is_built_with_the_toolchain_of_the_repository() {
    let toolchain = file("rust-toolchain.toml");
    let (_, channel) = toolchain.split_once("channel = \"").expect("a channel");
    let (channel, _) = channel.split_once('"').expect("its end");
    let (minor, _) = channel.rsplit_once('.').expect("a patch release");
    assert!(file("Dockerfile").contains(&format!("FROM rust:{minor}-")), "another than {channel}");
}
