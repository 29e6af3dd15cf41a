//! `check`: shows the configuration that a start would use, and what is wrong with it.

use std::io::{self, Write};

use serde::Serialize;

use crate::config::{Effective, Loaded, Problem, Source};

/// Arguments of `check`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Prints the effective values with their sources, the warnings, then the verdict. Secrets were
/// redacted when the configuration was loaded. Returns whether it is good; if not, the exit status
/// is 64.
///
/// # Errors
/// When `out` cannot be written to.
pub fn check(loaded: &Loaded, json: bool, out: &mut impl Write) -> io::Result<bool> {
    let problems = match &loaded.settings {
        Ok(_) => &[][..],
        Err(problems) => &problems.0,
    };
    if json {
        let report = Report {
            good: problems.is_empty(),
            values: &loaded.values,
            warnings: &loaded.warnings,
            problems,
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(problems.is_empty());
    }

    table(&loaded.values, out)?;
    for warning in &loaded.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    match &loaded.settings {
        Ok(_) => writeln!(out, "\nconfiguration is good")?,
        Err(problems) => writeln!(out, "\n{problems}")?,
    }
    Ok(problems.is_empty())
}

#[derive(Serialize)]
struct Report<'a> {
    good: bool,
    values: &'a [Effective],
    warnings: &'a [String],
    problems: &'a [Problem],
}

/// One line a setting, a blank line between sections: path, value, source, and for an unset one the
/// variable that would set it.
fn table(values: &[Effective], out: &mut impl Write) -> io::Result<()> {
    let path_width = values.iter().map(|value| value.path.len()).max().unwrap_or(0);
    let value_width = values
        .iter()
        .map(|value| value.value.chars().count())
        .filter(|width| *width <= MOST_ALIGNED)
        .max()
        .unwrap_or(0);
    let mut section = None;
    for value in values {
        let this = value.path.split_once('.').map(|(section, _)| section);
        if section.is_some_and(|section| section != this) {
            writeln!(out)?;
        }
        section = Some(this);
        let (path, text, source) = (value.path, one_line(&value.value), &value.source);
        write!(out, "{path:path_width$}  {text:value_width$}  {source}")?;
        match source {
            Source::Default => writeln!(out, " ({})", value.variable)?,
            _ => writeln!(out)?,
        }
    }
    Ok(())
}

/// A longer value does not push the sources of all others out of sight.
const MOST_ALIGNED: usize = 48;

fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;
    use crate::consumers::registry::load;

    fn run(env: &[(&str, &str)], json: bool) -> (bool, String) {
        let env: Environment =
            env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let mut out = Vec::new();
        let good = check(&load(&env, Path::new("no/such/file.toml")), json, &mut out);
        (good.expect("memory takes all"), String::from_utf8(out).expect("UTF-8"))
    }

    const GOOD: [(&str, &str); 6] = [
        ("CONSUMERS", "currency"),
        ("KAFKA_BROKER", "broker:9092"),
        ("REDIS_URL", "rediss://me:hunter2@redis:6379"),
        ("SUPABASE_URL", "https://project.supabase.co"),
        ("SUPABASE_SERVICE_ROLE_KEY", "hunter2-hunter2-hunter2-hunter2-"),
        ("INNGEST_EVENT_KEY", "hunter2"),
    ];

    #[test]
    fn shows_values_with_their_sources_and_no_secret() {
        let (good, text) = run(&GOOD, false);
        assert!(good);
        assert!(text.ends_with("\nconfiguration is good\n"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        let line = |path: &str| {
            let line = text.lines().find(|line| line.split(' ').next() == Some(path));
            line.expect(path).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("kafka.bootstrap"), "kafka.bootstrap broker:9092 environment KAFKA_BROKER");
        assert_eq!(
            line("supabase.service_role_key"),
            "supabase.service_role_key (set, 32 characters) environment SUPABASE_SERVICE_ROLE_KEY"
        );
        assert_eq!(
            line("redis.cache_url"),
            "redis.cache_url rediss://***@redis:6379 from redis.url"
        );
        assert_eq!(line("dedup.window"), "dedup.window 300s default (DEDUP_WINDOW)");
    }

    #[test]
    fn shows_every_problem_and_says_no() {
        let (good, text) = run(&[("CONSUMERS", "currency"), ("DEDUP_WINDOW", "5")], false);
        assert!(!good);
        assert!(text.contains("the configuration has 6 problems"), "{text}");
        assert!(text.contains("DEDUP_WINDOW: \"5\" is not a duration"), "{text}");
        assert!(!text.contains("configuration is good"), "{text}");
    }

    #[test]
    fn json_carries_the_same() {
        let env = [GOOD.as_slice(), &[("INGEST_EVENT_KEY", "hunter2"), ("PORT", "x")]].concat();
        let (good, text) = run(&env, true);
        assert!(!good && !text.contains("hunter2"), "{text}");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["good"], false);
        assert_eq!(report["problems"][0]["variable"], "PORT");
        assert_eq!(report["problems"][0]["source"], "environment PORT");
        assert_eq!(report["warnings"].as_array().map(Vec::len), Some(1));
        assert_eq!(report["values"][1]["path"], "kafka.bootstrap");
        assert_eq!(report["values"][1]["source"], "environment KAFKA_BROKER");
    }
}
