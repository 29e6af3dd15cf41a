//! What a consumer declares. Its settings, its topics and its needs follow from that.

use super::Settings;
use super::variables::{self, Variable};

/// A consumer, as it declares itself.
#[derive(Debug)]
pub struct Spec {
    /// Its name in `CONSUMERS`, group ids, metrics and logs; its own variables begin with it.
    pub name: &'static str,
    /// What it belongs to.
    pub family: Family,
    /// Whether it runs where `CONSUMERS` names none.
    pub by_default: bool,
    /// The tables whose changes it takes. Their topics are `CDC_TOPIC_PREFIX`, a dot and the table.
    pub tables: &'static [&'static str],
    /// The settings that name further topics of changes, in full.
    pub changes: &'static [&'static Setting<String>],
    /// The topics of plain JSON commands that it takes.
    pub commands: &'static [Commands],
    /// Default of `<NAME>_CONCURRENCY`, its requests to Supabase at a time: `5`, or `5..64`.
    pub concurrency: &'static str,
    /// The services that it cannot do without, besides Kafka.
    pub needs: &'static [Service],
    /// Settings of its own, besides `<NAME>_CONCURRENCY` and `<NAME>_KAFKA_PROPERTIES`.
    pub settings: &'static [&'static dyn AnySetting],
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Spec {}

/// Consumers that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// They follow the ledgers of the CRM.
    Crm,
    /// They follow the store of a SpiceDB.
    Kessel,
}

/// A service that a consumer may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// It keeps claims there. If no enabled consumer needs it and no address is set, claims are
    /// kept in memory.
    Redis,
    /// It calls functions or reads tables there.
    Supabase,
    /// It sends events there.
    Inngest,
}

/// A topic of commands.
#[derive(Debug)]
pub enum Commands {
    /// This one, in full.
    Topic(&'static str),
    /// The one that a setting of the consumer names, in full.
    Setting(&'static Setting<String>),
}

/// A setting of one consumer alone.
#[derive(Debug)]
pub struct Setting<T> {
    /// The last part of its path: `<name>.<key>`.
    pub key: &'static str,
    /// Its name in the environment.
    pub variable: &'static str,
    /// The text of its default.
    pub default: &'static str,
    /// What it is and what it looks like, in a few words.
    pub about: &'static str,
    /// Reads its text, or says why it cannot; see [`super::value`].
    pub parse: fn(&str) -> Result<T, String>,
}

/// A [`Setting`], whatever its type.
pub trait AnySetting: Sync + std::fmt::Debug {
    /// The last part of its path.
    fn key(&self) -> &'static str;

    /// Its row in the table of settings.
    fn variable(&self, consumer: &str) -> Variable;

    /// Checks its text.
    ///
    /// # Errors
    /// Why the text cannot be read.
    fn check(&self, text: &str) -> Result<(), String>;

    /// Other settings that must be set where it has this text.
    fn needs(&self, text: &str) -> Vec<Need> {
        let _ = text;
        Vec::new()
    }
}

/// A setting that must be set because of what another one says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The paths of which one must be set.
    pub paths: &'static [&'static str],
    /// What needs it, for people.
    pub by: String,
    /// Its name, where entries of such a setting may be for one name alone.
    pub name: String,
}

impl<T> AnySetting for Setting<T>
where
    Setting<T>: std::fmt::Debug,
{
    fn key(&self) -> &'static str {
        self.key
    }

    fn variable(&self, consumer: &str) -> Variable {
        let path = kept(format!("{consumer}.{}", self.key));
        let env = names([self.variable.to_owned()]);
        Variable { default: Some(self.default), ..variables::plain(path, env, self.about) }
    }

    fn check(&self, text: &str) -> Result<(), String> {
        (self.parse)(text).map(|_| ())
    }
}

/// Every consumer that can be enabled, and every setting that there is. Made once, in a static.
#[derive(Debug)]
pub struct Declared {
    pub(super) specs: Vec<&'static Spec>,
    variables: Vec<Variable>,
}

impl Declared {
    /// Declares these consumers. People see them in this order.
    #[must_use]
    pub fn new(specs: impl IntoIterator<Item = &'static Spec>) -> Self {
        let specs: Vec<_> = specs.into_iter().collect();
        let own = specs.iter().flat_map(|spec| of_consumer(spec));
        let variables = variables::BEFORE_CONSUMERS.iter().cloned().chain(own);
        let variables = variables.chain(variables::AFTER_CONSUMERS.iter().cloned()).collect();
        Self { specs, variables }
    }

    /// Every setting, in the order in which `check` shows them.
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The setting that stands at `path`.
    #[must_use]
    pub fn variable(&self, path: &str) -> Option<&Variable> {
        self.variables.iter().find(|variable| variable.path == path)
    }

    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.specs.iter().map(|spec| spec.name).collect();
        names.join(", ")
    }
}

/// The settings of one consumer: those that every consumer has, then its own.
fn of_consumer(spec: &Spec) -> Vec<Variable> {
    let path = |key: &str| kept(format!("{}.{key}", spec.name));
    let name = |end: &str| names([format!("{}_{end}", spec.name.to_ascii_uppercase())]);
    let concurrency =
        variables::plain(path("concurrency"), name("CONCURRENCY"), "a bound, 5 or 5..64");
    let properties = variables::properties(path("kafka_properties"), name("KAFKA_PROPERTIES"));
    let mut variables = vec![
        Variable { default: Some(spec.concurrency), ..concurrency },
        Variable { default: Some(""), ..properties },
    ];
    variables.extend(spec.settings.iter().map(|setting| setting.variable(spec.name)));
    variables
}

/// A text that lives as long as the process: the table of settings is made once.
fn kept(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// The same of a list of names.
fn names<const N: usize>(names: [String; N]) -> &'static [&'static str] {
    Box::leak(Box::new(names.map(kept)))
}

impl Settings {
    /// A setting that a consumer declares.
    #[must_use]
    pub fn of<T: Default>(&self, spec: &Spec, setting: &Setting<T>) -> T {
        let own = self.consumer(spec).own;
        // Loading has already checked every text with `AnySetting::check`.
        let text = own.get(setting.key).map_or(setting.default, String::as_str);
        (setting.parse)(text).unwrap_or_default()
    }

    /// The topics that a consumer takes, in full: commands first.
    #[must_use]
    pub fn topics_of(&self, spec: &Spec) -> Vec<String> {
        let tables = spec.tables.iter().map(|table| self.kafka.topic_of(table));
        let changes = spec.changes.iter().map(|setting| self.of(spec, setting));
        self.command_topics_of(spec).into_iter().chain(changes).chain(tables).collect()
    }

    /// Those of its topics that carry commands.
    #[must_use]
    pub fn command_topics_of(&self, spec: &Spec) -> Vec<String> {
        let topic = |commands: &Commands| match commands {
            Commands::Topic(topic) => (*topic).to_owned(),
            Commands::Setting(setting) => self.of(spec, setting),
        };
        spec.commands.iter().map(topic).collect()
    }
}
