//! Logs: one JSON object a line for machines, short coloured lines for people.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat};

/// Targets whose logs below a warning are shown only if asked for by name.
const QUIET: [&str; 7] =
    ["h2", "hyper", "hyper_util", "librdkafka", "rdkafka", "reqwest", "rustls"];

/// Sends the logs of this process to standard error; standard output belongs to the commands.
///
/// # Errors
/// When a subscriber is installed already.
pub fn init(log: &Log) -> Result<(), TryInitError> {
    let terminal = io::stderr().is_terminal();
    std::panic::set_hook(Box::new(report_panic));
    let ansi = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    subscriber(log, terminal, ansi, io::stderr).try_init()
}

/// Logs a panic. Its formatted text is left out, as it may quote a row.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => backtrace.to_string(),
        _ => String::new(),
    };
    tracing::error!(location, what = shown(panic.payload()), backtrace, "panicked");
}

/// A panic's text if it is a literal of the program's own source.
fn shown(payload: &dyn Any) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(text not shown: it may quote data)")
}

/// What [`init`] installs, writing to `writer`.
fn subscriber<W>(
    log: &Log,
    terminal: bool,
    ansi: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Both forms stamp lines in UTC, RFC 3339.
    let registry = tracing_subscriber::registry().with(filter(&log.level));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let human = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Json => false,
        LogFormat::Human => true,
    };
    if human {
        Box::new(registry.with(lines.compact().with_ansi(ansi)))
    } else {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        Box::new(registry.with(lines))
    }
}

/// The configured level. Libraries stay quiet unless it names them.
fn filter(level: &str) -> EnvFilter {
    let mut directives = level.to_owned();
    let chatty = level
        .split(',')
        .any(|part| !part.contains('=') && matches!(part, "info" | "debug" | "trace"));
    if chatty {
        for target in QUIET {
            let named = |part: &str| part.split_once('=').is_some_and(|(named, _)| named == target);
            if !level.split(',').any(named) {
                directives.push_str(&format!(",{target}=warn"));
            }
        }
    }
    EnvFilter::new(directives)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The output of `events` with these settings of the log.
    fn written(level: &str, format: LogFormat, terminal: bool, events: impl FnOnce()) -> String {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let log = Log { level: level.to_owned(), format };
        let writer = Arc::clone(&buffer);
        let subscriber = subscriber(&log, terminal, terminal, move || Shared(Arc::clone(&writer)));
        tracing::subscriber::with_default(subscriber, events);
        let bytes = buffer.lock().expect("no writer panicked").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no writer panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_machine_gets_flat_json_with_a_time_in_utc() {
        let text = written("info", LogFormat::Auto, false, || {
            tracing::info!(target: "t", partition = 3, "assigned");
        });
        let line: serde_json::Value = serde_json::from_str(&text).expect("one object a line");
        assert_eq!(line["message"], "assigned");
        assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"t".into()));
        assert_eq!(line["partition"], 3);
        let logged = line["timestamp"].as_str().expect("a time");
        assert!(logged.ends_with('Z') && logged.parse::<jiff::Timestamp>().is_ok(), "{logged}");
    }

    #[test]
    fn a_person_gets_lines_which_are_coloured_on_a_terminal_alone() {
        let event = || tracing::warn!(target: "t", partition = 3, "assigned");
        let piped = written("info", LogFormat::Human, false, event);
        assert!(piped.contains(" WARN t: assigned partition=3"), "{piped}");
        assert!(!piped.contains('\u{1b}'), "{piped}");
        assert!(written("info", LogFormat::Auto, true, event).contains('\u{1b}'));
    }

    #[test]
    fn a_panics_text_is_shown_only_where_it_quotes_nothing() {
        let quoting = format!("byte 1 of {:?}", "a@b.c");
        assert!(!shown(&quoting).contains("a@b.c"));
        assert_eq!(shown(&"index is sound"), "index is sound");
    }

    #[test]
    fn libraries_are_quiet_unless_they_are_asked_for() {
        let events = || {
            tracing::info!(target: "librdkafka", "chatter");
            tracing::warn!(target: "librdkafka", "trouble");
            tracing::debug!(target: "crm_event_processors::engine", "ours");
        };
        let text = |level: &str| written(level, LogFormat::Json, false, events);
        let quiet = text("debug");
        assert!(!quiet.contains("chatter") && quiet.contains("trouble") && quiet.contains("ours"));
        assert!(text("info,librdkafka=debug").contains("chatter"));
        assert!(!text("error").contains("trouble"), "the level is not raised");
        assert!(text("off").is_empty());
    }
}
