//! The actions that a consumer's configuration lists.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Filter, Group, Item, KINDS, Kind, Options};
use crate::config::variables::{Kind as Shown, Variable};
use crate::config::{AnySetting, Beginning, Need, Setting};
use crate::consumers::kessel::row::Operation;

/// How often a refusal that is about the change is tried again, where the configuration is silent.
const RETRIES: u32 = 3;
/// The longest name of an action: it goes into group ids and labels.
const LONGEST_NAME: usize = 40;

/// An action as it is configured.
#[derive(Debug, Clone)]
pub struct Configured {
    /// What kind of action.
    pub kind: &'static Kind,
    /// Its name, unique among those of its consumer; the kind's unless it has one of its own.
    pub name: String,
    /// Which changes it takes.
    pub filter: Filter,
    /// Where a group of its own begins.
    pub start: Option<Beginning>,
    /// How often a refusal that is about the change is tried again.
    pub retries: u32,
    /// Its own options.
    pub options: Options,
}

/// What every action may have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Common {
    action: String,
    name: Option<String>,
    filter: Filter,
    start: Option<String>,
    retries: Option<u32>,
}

const COMMON: [&str; 5] = ["action", "name", "filter", "start", "retries"];

impl Configured {
    /// Whether it takes a change.
    #[must_use]
    pub fn takes(&self, item: &Item) -> bool {
        let read = item.operation() == Operation::Read.as_str();
        self.filter.takes(item) && (!read || self.kind.reads || self.filter.names(Operation::Read))
    }

    fn of(given: Map<String, Value>, schemas: bool) -> Result<Self, String> {
        let (common, options): (Map<_, _>, Options) =
            given.into_iter().partition(|(key, _)| COMMON.contains(&key.as_str()));
        let common: Common =
            serde_json::from_value(Value::Object(common)).map_err(|error| error.to_string())?;
        let kind = kind(&common.action)?;
        if schemas && !kind.schemas {
            return Err("acts on relationships alone".to_owned());
        }
        let name = common.name.unwrap_or_else(|| common.action.clone());
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(valid) {
            return Err(format!(
                "name {name:?} must be 1 to {LONGEST_NAME} letters, digits, dots, dashes or underscores"
            ));
        }
        let start = start(kind, common.start.as_deref())?;
        (kind.check)(&options)?;
        let retries = common.retries.unwrap_or(RETRIES);
        Ok(Self { kind, name, filter: common.filter, start, retries, options })
    }
}

fn kind(name: &str) -> Result<&'static Kind, String> {
    KINDS.into_iter().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        format!("is none of {}", names.join(", "))
    })
}

fn start(kind: &Kind, text: Option<&str>) -> Result<Option<Beginning>, String> {
    let given = text.map(str::parse::<Beginning>).transpose();
    let given = given.map_err(|wrong| format!("start {wrong}"))?;
    match (kind.group, given) {
        (Group::Consumers, None) => Ok(None),
        (Group::Consumers, Some(_)) => {
            Err("start: it runs in the consumer's group and begins where that does".to_owned())
        }
        (Group::Own(default), given) => given
            .or(default)
            .map(Some)
            .ok_or_else(|| "start is missing: earliest, latest or a time".to_owned()),
    }
}

/// Reads a list of actions: names, comma separated, or a JSON list of tables.
fn read(text: &str, schemas: bool) -> Result<Vec<Configured>, String> {
    let tables: Vec<Map<String, Value>> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|error| format!("is not a list of actions: {error}"))?
    } else {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(|name| Map::from_iter([("action".to_owned(), name.into())])).collect()
    };
    if tables.is_empty() {
        return Err("names no action".to_owned());
    }
    let mut names = HashSet::new();
    let mut actions = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let label = |key| table.get(key).and_then(Value::as_str);
        let which = label("name").or(label("action")).unwrap_or("(without an action)").to_owned();
        let action = Configured::of(table, schemas)
            .map_err(|wrong| format!("has a problem in action {} ({which}): {wrong}", index + 1))?;
        if !names.insert(action.name.clone()) {
            return Err(format!("has two actions named {which}: give one of them another name"));
        }
        actions.push(action);
    }
    Ok(actions)
}

/// Reads the actions of relationships.
///
/// # Errors
/// Which action is wrong, and why.
pub fn of_relationships(text: &str) -> Result<Vec<Configured>, String> {
    read(text, false)
}

/// The setting of a consumer's actions.
#[derive(Debug)]
pub struct ActionList(pub Setting<Vec<Configured>>);

impl AnySetting for ActionList {
    fn key(&self) -> &'static str {
        self.0.key
    }

    fn variable(&self, consumer: &str) -> Variable {
        Variable { kind: Shown::Tables, ..self.0.variable(consumer) }
    }

    fn check(&self, text: &str) -> Result<(), String> {
        self.0.check(text)
    }

    fn needs(&self, text: &str) -> Vec<Need> {
        let actions = (self.0.parse)(text).unwrap_or_default();
        let needs = actions.iter().flat_map(|action| {
            let by = format!("the action {}", action.name);
            let name = &action.name;
            let need = move |paths| Need { paths, by: by.clone(), name: name.clone() };
            action.kind.needs.iter().copied().map(need)
        });
        needs.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumers::kessel::actions::Repeats;
    use crate::consumers::kessel::actions::item::testing::created;
    use crate::consumers::kessel::row::RowChange;

    #[test]
    fn names_alone_are_actions_with_their_defaults() {
        let actions = of_relationships("log").expect("actions");
        assert_eq!((actions.len(), &*actions[0].name, actions[0].retries), (1, "log", 3));
        assert!(actions[0].takes(&created()));
    }

    #[test]
    fn a_table_says_more_than_a_name() {
        let text = r#"[{"action": "log", "filter": {"namespace": "folder"}},
            {"action": "cache_invalidate", "name": "views", "key": "authz:{resource}", "retries": 0}]"#;
        let actions = of_relationships(text).expect("actions");
        assert!(!actions[0].takes(&created()));
        assert_eq!((&*actions[1].name, actions[1].retries), ("views", 0));
    }

    #[test]
    fn what_cannot_work_is_named_with_its_action() {
        for (text, said) in [
            ("logg", "action 1 (logg): is none of log, "),
            ("log, log", "has two actions named log"),
            (" , ", "names no action"),
            ("[{]", "is not a list of actions"),
            (r#"[{"name": "x"}]"#, "action 1 (x): is none of"),
            (r#"[{"action": "log", "formt": "block"}]"#, "unknown field `formt`"),
            (r#"[{"action": "log", "start": "latest"}]"#, "begins where that does"),
            (r#"[{"action": "log", "name": "two words"}]"#, "must be 1 to 40 letters"),
            ("cache_invalidate", "key or epoch is missing"),
            (
                r#"[{"action": "cache_invalidate", "key": "{namespce}"}]"#,
                "did you mean {namespace}?",
            ),
        ] {
            let wrong = of_relationships(text).expect_err(text);
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
    }

    #[test]
    fn an_action_names_the_settings_that_it_cannot_do_without() {
        let list = ActionList(Setting {
            key: "actions",
            variable: "X",
            default: "log",
            about: "",
            parse: of_relationships,
        });
        assert!(list.needs("log").is_empty());
        let needs = list.needs(r#"[{"action": "cache_invalidate", "key": "x"}]"#);
        assert_eq!((needs.len(), &*needs[0].by), (1, "the action cache_invalidate"));
    }

    #[test]
    fn a_snapshots_rows_reach_an_action_that_does_not_ask_for_them_only_by_name() {
        let Item::Row(change) = created();
        let read = Item::Row(RowChange { operation: Operation::Read, ..change });
        let mut action = of_relationships("log").expect("actions").remove(0);
        assert!(action.takes(&read));
        static QUIET: Kind = Kind {
            name: "quiet",
            group: Group::Consumers,
            repeats: Repeats::Claimed,
            keeps_state: false,
            reads: false,
            expires: true,
            schemas: false,
            needs: &[],
            check: |_| Ok(()),
            build: |_, _| unreachable!("never built"),
        };
        action.kind = &QUIET;
        assert!(!action.takes(&read) && action.takes(&created()));
        action.filter = serde_json::from_str(r#"{"operation": "READ"}"#).expect("a filter");
        assert!(action.takes(&read));
    }
}
