//! Merges the layers and remembers where each value came from: built-in defaults, then a file,
//! then the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{ConfigError, File, FileFormat, Map, Value as Merged, ValueKind};

use super::Environment;
use super::problem::{Problem, Source};
use super::spec::Declared;
use super::variables::{FILE, Kind, Variable};

/// The built-in defaults.
pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");

const ENV_ORIGIN: &str = "environment ";

/// The text of one setting and where it came from; empty where it is not set. Not `Debug`: the text
/// may be a secret.
pub(super) struct Value {
    pub(super) variable: Variable,
    pub(super) text: String,
    pub(super) source: Source,
}

/// All layers merged: a value for every row of the table.
pub(super) struct Layers {
    pub(super) values: BTreeMap<&'static str, Value>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn merge(env: &Environment, local: &Path, declared: &Declared) -> Layers {
    let mut problems = Vec::new();
    let file = file(env, local, &mut problems);
    let defaults = config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    let mut layers = defaults.clone();
    if let Some(path) = &file {
        layers = layers.add_source(File::from(path.as_path()).format(FileFormat::Toml));
    }
    layers = layers.add_source(EnvLayer::new(env, declared));

    let defaults = flattened(defaults, declared, &mut problems);
    let mut merged = flattened(layers, declared, &mut problems);
    let mut values = BTreeMap::new();
    for variable in declared.variables() {
        let default = defaults.get(variable.path).map(|(text, _)| text.as_str());
        let default = default.or(variable.default).unwrap_or_default();
        // An empty string means unset, so that it brings the default back.
        let (text, source) = match merged.remove(variable.path) {
            Some((text, origin)) if !text.is_empty() => (text, source(origin, file.as_deref())),
            _ => (default.to_owned(), Source::Default),
        };
        values.insert(variable.path, Value { variable: variable.clone(), text, source });
    }

    let mut warnings = near_misses(env, declared);
    let unknown = merged.keys().map(|path| unknown_key(path, file.as_deref(), declared));
    warnings.extend(unknown);
    Layers { values, problems, warnings }
}

/// The file to read, if there is one and it is TOML.
fn file(env: &Environment, local: &Path, problems: &mut Vec<Problem>) -> Option<PathBuf> {
    let named = env.get(FILE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if named.is_none() && !local.exists() {
        return None;
    }
    let (variable, path) = match named {
        Some(path) => (FILE.to_owned(), path),
        None => (local.display().to_string(), local.to_owned()),
    };
    let message = match std::fs::read_to_string(&path) {
        Err(error) => format!("the file cannot be read: {error}"),
        Ok(text) => match text.parse::<toml::Table>() {
            Ok(_) => return Some(path),
            // Only the position: the error's own text would quote the line, secrets included.
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start).min(text.len());
                let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
                format!("the file is not TOML: see line {line}")
            }
        },
    };
    let source = Some(Source::File(path.display().to_string()));
    problems.push(Problem { variable, message, source });
    None
}

fn source(origin: Option<String>, file: Option<&Path>) -> Source {
    match origin {
        Some(origin) => match origin.strip_prefix(ENV_ORIGIN) {
            Some(name) => Source::Env(name.to_owned()),
            None => Source::File(file.map_or(origin, |path| path.display().to_string())),
        },
        None => Source::Default,
    }
}

/// The environment as a layer. Of a setting's names the first that is set counts.
#[derive(Debug, Clone)]
struct EnvLayer(Map<String, Merged>);

impl EnvLayer {
    fn new(env: &Environment, declared: &Declared) -> Self {
        let mut values = Map::new();
        for variable in declared.variables() {
            let set = variable.env.iter().find_map(|name| {
                let text = env.get(*name)?.trim();
                (!text.is_empty()).then_some((name, text))
            });
            if let Some((name, text)) = set {
                let origin = format!("{ENV_ORIGIN}{name}");
                values.insert(variable.path.to_owned(), Merged::new(Some(&origin), text));
            }
        }
        Self(values)
    }
}

impl config::Source for EnvLayer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Merged>, ConfigError> {
        Ok(self.0.clone())
    }
}

type Flat = BTreeMap<String, (String, Option<String>)>;

/// Text and origin of every leaf, by path.
fn flattened(
    builder: config::ConfigBuilder<config::builder::DefaultState>,
    declared: &Declared,
    problems: &mut Vec<Problem>,
) -> Flat {
    let mut flat = Flat::new();
    match builder.build().and_then(|merged| config::Source::collect(&merged)) {
        Ok(sections) => {
            for (key, value) in sections {
                flatten(key, value, declared, &mut flat);
            }
        }
        Err(_) => problems.push(Problem {
            variable: FILE.to_owned(),
            message: "the layers of configuration cannot be merged".to_owned(),
            source: None,
        }),
    }
    flat
}

fn flatten(path: String, value: Merged, declared: &Declared, flat: &mut Flat) {
    let origin = value.origin().map(str::to_owned);
    match value.kind {
        ValueKind::Table(table) if is_properties(&path, declared) => {
            let origin = table.values().find_map(|value| value.origin().map(str::to_owned));
            let mut pairs: Vec<_> =
                table.into_iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
            pairs.sort();
            flat.insert(path, (pairs.join(","), origin));
        }
        ValueKind::Table(table) => {
            for (key, value) in table {
                flatten(format!("{path}.{key}"), value, declared, flat);
            }
        }
        ValueKind::Array(items)
            if items.iter().any(|item| matches!(item.kind, ValueKind::Table(_))) =>
        {
            let tables: Vec<_> = items.into_iter().map(json).collect();
            flat.insert(path, (serde_json::Value::Array(tables).to_string(), origin));
        }
        ValueKind::Array(items) => {
            let items: Vec<_> = items.into_iter().map(text).collect();
            flat.insert(path, (items.join(","), origin));
        }
        _ => {
            flat.insert(path, (text(value), origin));
        }
    }
}

/// A list of tables is kept as JSON, for whoever declares it to read.
fn json(value: Merged) -> serde_json::Value {
    match value.kind {
        ValueKind::Table(table) => {
            table.into_iter().map(|(key, value)| (key, json(value))).collect()
        }
        ValueKind::Array(items) => items.into_iter().map(json).collect(),
        ValueKind::Boolean(flag) => flag.into(),
        ValueKind::I64(number) => number.into(),
        ValueKind::Float(number) => number.into(),
        ValueKind::Nil => serde_json::Value::Null,
        _ => text(value).into(),
    }
}

fn is_properties(path: &str, declared: &Declared) -> bool {
    declared.variable(path).is_some_and(|variable| variable.kind == Kind::Properties)
}

fn text(value: Merged) -> String {
    value.into_string().map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Variables that nobody reads but whose names are close to one that is read.
fn near_misses(env: &Environment, declared: &Declared) -> Vec<String> {
    let known = || declared.variables().iter().flat_map(|variable| variable.env).chain([&FILE]);
    let mut warnings = Vec::new();
    for name in env.keys().filter(|name| !known().any(|known| known == name)) {
        let likely = known()
            .filter(|known| known.len() >= 6)
            .map(|known| (strsim::osa_distance(&name.to_ascii_uppercase(), known), known))
            .filter(|(distance, known)| *distance <= if known.len() < 9 { 1 } else { 2 })
            .min();
        if let Some((_, likely)) = likely {
            warnings
                .push(format!("environment variable {name} is not known; did you mean {likely}?"));
        }
    }
    warnings
}

fn unknown_key(path: &str, file: Option<&Path>, declared: &Declared) -> String {
    let likely = declared
        .variables()
        .iter()
        .map(|variable| (strsim::osa_distance(path, variable.path), variable.path))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map_or(String::new(), |(_, path)| format!("; did you mean {path}?"));
    let file = file.map_or(String::new(), |file| format!(" in {}", file.display()));
    format!("key {path}{file} is not known{likely}")
}
