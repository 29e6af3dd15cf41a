//! Configuration (behaviour section 10): types, loading, validation, redaction.
//!
//! Three layers, each over the one before: `config/default.toml`, which is built in and documents
//! every setting; `config/local.toml` or the file that `CRM_CONFIG` names; environment variables.
//! Every value remembers where it came from, and everything that is wrong is reported at once.

mod address;
mod bound;
mod build;
mod layers;
mod problem;
mod properties;
mod redact;
mod settings;
mod spec;
mod start_at;
#[cfg(test)]
mod tests;
pub mod value;
pub mod variables;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use self::variables::Variable;

pub use bound::Bound;
pub use problem::{Problem, Problems, Source};
pub use properties::Properties;
pub use settings::*;
pub use spec::{AnySetting, Commands, Declared, Family, Need, Service, Setting, Spec};
pub use start_at::{Beginning, OffsetReset, StartAt};

/// The file that is read when `CRM_CONFIG` names none; it need not exist.
pub const LOCAL_FILE: &str = "config/local.toml";

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// The environment of this process; what is not UTF-8 is replaced.
#[must_use]
pub fn process_environment() -> Environment {
    std::env::vars_os()
        .map(|(name, text)| (name.to_string_lossy().into(), text.to_string_lossy().into()))
        .collect()
}

/// One setting as it is in effect.
#[derive(Debug, Clone, Serialize)]
pub struct Effective {
    /// `section.key`.
    pub path: &'static str,
    /// The value without secrets.
    pub value: String,
    /// Where it came from.
    pub source: Source,
    /// The variable that sets it, by its strongest name.
    #[serde(skip)]
    pub variable: &'static str,
}

/// The result of loading the configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The settings, or everything that is wrong with them.
    pub settings: Result<Box<Settings>, Problems>,
    /// Every setting as it is in effect, right or wrong, in the order of the table.
    pub values: Vec<Effective>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
}

/// Merges the layers and validates the result. `local` is read if it exists and `env` names no
/// other file; usually it is [`LOCAL_FILE`]. `declared` are the consumers that can be enabled.
#[must_use]
pub fn load(env: &Environment, local: &Path, declared: &Declared) -> Loaded {
    let layers::Layers { values, mut problems, mut warnings } = layers::merge(env, local, declared);
    let built = build::build(declared, &values);
    problems.extend(built.problems);
    warnings.extend(built.warnings);

    let effective = declared.variables().iter().map(|variable| {
        let Variable { path, env, .. } = *variable;
        let layered = &values[path];
        let derived = built.derived.iter().find(|(derived, ..)| *derived == path);
        let (value, source) = match derived {
            Some((_, value, source)) => (value.clone(), source.clone()),
            None => (redact::shown(variable, &layered.text), layered.source.clone()),
        };
        Effective { path, value, source, variable: env.first().copied().unwrap_or_default() }
    });
    let effective = effective.collect();
    let settings =
        if problems.is_empty() { Ok(Box::new(built.settings)) } else { Err(Problems(problems)) };
    Loaded { settings, values: effective, warnings }
}
