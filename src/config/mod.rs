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
mod start_at;
#[cfg(test)]
mod tests;
mod value;
pub mod variables;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

pub use bound::Bound;
pub use problem::{Problem, Problems, Source};
pub use properties::Properties;
pub use settings::*;
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
}

/// What loading the configuration came to.
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
/// other file; usually it is [`LOCAL_FILE`].
#[must_use]
pub fn load(env: &Environment, local: &Path) -> Loaded {
    let layers::Layers { values, mut problems, mut warnings } = layers::merge(env, local);
    let built = build::build(&values);
    problems.extend(built.problems);
    warnings.extend(built.warnings);

    let mut effective = Vec::with_capacity(values.len());
    for variable in variables::VARIABLES {
        let value = &values[variable.path];
        let derived = built.derived.iter().find(|(path, ..)| *path == variable.path);
        effective.push(match derived {
            Some((path, value, source)) => {
                Effective { path, value: value.clone(), source: source.clone() }
            }
            None => Effective {
                path: variable.path,
                value: redact::shown(variable, &value.text),
                source: value.source.clone(),
            },
        });
    }
    let settings =
        if problems.is_empty() { Ok(Box::new(built.settings)) } else { Err(Problems(problems)) };
    Loaded { settings, values: effective, warnings }
}
