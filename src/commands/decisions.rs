//! The consumers' decisions for `explain`: their own rules, with clients that are never asked.

use std::io::{self, BufWriter};
use std::path::Path;

use jiff::Timestamp;

use super::explain::{self, Context, Subject};
use crate::app;
use crate::cdc::Record;
use crate::config::{self, Environment, Settings};
use crate::consumers::entry;
use crate::consumers::registry::{self, CONSUMERS, DECLARED};
use crate::kafka::Kafka;

/// Explains with the rules of all consumers, whatever `CONSUMERS` says. Only reading needs a
/// service, so only reading needs settings.
///
/// # Errors
/// As [`explain::run`], and when the configuration cannot work.
pub fn explain(args: &explain::Args, environment: &Environment) -> anyhow::Result<()> {
    let settings = settings(args, environment)?;
    // Consumers are built around clients, which live on a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let parts = app::unasked(&settings)?;
    let mut consumers = Vec::new();
    for entry in &CONSUMERS {
        let topics = settings.topics_of(entry.spec);
        let name = entry.spec.name;
        for branch in (entry.branches)(&parts)? {
            let name = format!("{name}-{}", branch.name);
            consumers.push((name, topics.clone(), branch.consumer));
        }
        consumers.push((name.to_owned(), topics, (entry.build)(&parts)?));
    }
    let command_topics: Vec<String> =
        CONSUMERS.iter().flat_map(|entry| settings.command_topics_of(entry.spec)).collect();
    let decide = |record: &Record<'_>, subject: &Subject<'_>| {
        let now = Timestamp::now();
        let takers = consumers
            .iter()
            .filter(|(_, topics, _)| topics.iter().any(|topic| topic == record.topic));
        takers
            .filter_map(|(name, _, consumer)| {
                let decision = match subject {
                    Subject::Change(change) => consumer.explain_change(change, now),
                    Subject::Command(_) => consumer.explain_command(record),
                    Subject::Nothing(nothing) => entry::skip(nothing.as_str()),
                    Subject::Error(_) => return None,
                };
                Some((name.clone(), decision))
            })
            .collect()
    };
    let context = Context {
        options: settings.cdc.clone(),
        command_topics: &command_topics,
        decide: &decide,
        kafka: Kafka::of(&settings).base(),
    };
    explain::run(args, &context, &mut BufWriter::new(io::stdout().lock()))
}

/// The settings that rules depend on; services that are not asked need not be named.
fn settings(args: &explain::Args, environment: &Environment) -> anyhow::Result<Box<Settings>> {
    let mut environment = environment.clone();
    let mut needless = vec![
        ("SUPABASE_URL", "http://supabase.invalid"),
        ("SUPABASE_SERVICE_ROLE_KEY", "not-needed"),
        ("REDIS_URL", "redis://redis.invalid"),
        ("INNGEST_EVENT_KEY", "not-needed"),
    ];
    if args.topic.is_none() {
        needless.push(("KAFKA_BOOTSTRAP_SERVERS", "kafka.invalid:9092"));
    }
    for (name, value) in needless {
        let names = DECLARED
            .variables()
            .iter()
            .find(|variable| variable.env.contains(&name))
            .map_or(&[][..], |variable| variable.env);
        if names.iter().all(|name| environment.get(*name).is_none_or(String::is_empty)) {
            environment.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(registry::load(&environment, Path::new(config::LOCAL_FILE)).settings?)
}
