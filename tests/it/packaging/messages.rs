//! Everything that the program and its files tell a reader to run exists.

use std::collections::BTreeSet;
use std::process::Command;

use super::{file, root, sources_below};

const PROGRAM: &str = env!("CARGO_BIN_EXE_crm-event-processors");

/// Commands and options that are planned.
const LATER: [&str; 6] = ["reconcile", "doctor", "dlq replay", "dlq list", "dlq show", "autoscale"];

/// Files that speak to users.
const FILES: [&str; 9] = [
    "README.md",
    "docs/operations.md",
    "docs/architecture.md",
    "docs/contributing.md",
    "config/default.toml",
    "config/kessel.toml",
    "render.yaml",
    "docker-compose.yml",
    "Dockerfile",
];

fn help(arguments: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(arguments).output().expect("it runs");
    String::from_utf8(output.stdout).expect("text")
}

fn commands() -> BTreeSet<String> {
    let help = help(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").expect("commands");
    let lines = list.lines().take_while(|line| !line.is_empty());
    lines.map(|line| line.split_whitespace().next().expect("a name").to_owned()).collect()
}

/// Everything that may be shown to a user or read by one, with its name.
fn texts() -> Vec<(String, String)> {
    let mut sources = Vec::new();
    sources_below(&root().join("src"), &mut sources);
    let name = |path: &std::path::PathBuf| {
        path.strip_prefix(root()).expect("below it").display().to_string()
    };
    let sources = sources.iter().map(name);
    sources
        .chain(FILES.map(str::to_owned))
        .map(|name| (file(&name), name))
        .map(|(text, name)| (name, text))
        .collect()
}

#[test]
fn no_message_names_a_command_that_is_not_there() {
    let there = commands().into_iter().collect::<Vec<_>>().join(" ") + &help(&["run", "--help"]);
    let missing: Vec<_> = LATER
        .into_iter()
        .filter(|later| !there.contains(later.split(' ').next().expect("a word")))
        .collect();
    for (name, text) in texts() {
        // The one section that names what is missing.
        let text = match text.split_once("\n## Not there yet\n") {
            Some((before, rest)) => {
                before.to_owned() + rest.split_once("\n## ").map_or("", |(_, after)| after)
            }
            None => text,
        };
        for later in &missing {
            assert!(!text.contains(later), "{name} names {later}");
        }
    }
}

#[test]
fn what_is_called_by_the_program_s_name_is_a_command() {
    let commands = commands();
    let mut called = BTreeSet::new();
    for (name, text) in texts().into_iter().filter(|(name, _)| !name.starts_with("Dockerfile")) {
        for rest in text.split("crm-event-processors ").skip(1) {
            let word: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            if !word.is_empty() {
                assert!(commands.contains(&word), "{name} calls {word}");
                called.insert(word);
            }
        }
    }
    assert!(called.contains("check") && called.contains("explain"), "{called:?}");
}

#[test]
fn the_readme_says_what_is_not_there_yet() {
    let there = commands();
    let readme = file("README.md");
    let (_, section) = readme.split_once("\n## Not there yet\n").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another one");
    for later in ["reconcile", "doctor", "dlq"].into_iter().filter(|later| !there.contains(*later))
    {
        assert!(section.contains(&format!("`{later}")), "{later}");
    }
}
