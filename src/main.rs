//! The command line; exit codes; nothing else.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
#[cfg(feature = "demo")]
use crm_event_processors::commands::demo;
use crm_event_processors::commands::{check, decisions, explain, run};
use crm_event_processors::config::{self, Loaded, Problems, Settings};
use crm_event_processors::consumers::registry;
use crm_event_processors::telemetry::logs;

/// Exit status of a configuration that cannot work.
const BAD_CONFIGURATION: u8 = 64;
/// Exit status of everything else that went wrong.
const FAILED: u8 = 70;

/// Turns Debezium changes of a loyalty CRM into Inngest events: nothing lost, nothing twice.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (the default)
    Run(run::Args),
    /// Show the daemon at work on recorded changes, with nothing installed
    #[cfg(feature = "demo")]
    Demo(demo::Args),
    /// Show the configuration that a start would use, and what is wrong with it
    Check(check::Args),
    /// Tell why a change is or is not handled, without handling it
    Explain(explain::Args),
}

fn main() -> ExitCode {
    use_small_pages();
    match Cli::parse().command.unwrap_or(Command::Run(run::Args::default())) {
        Command::Run(args) => run_daemon(&args, &load()),
        #[cfg(feature = "demo")]
        Command::Demo(args) => run_demo(&args),
        Command::Check(args) => check(&args),
        Command::Explain(args) => report(decisions::explain(&args, &config::process_environment())),
    }
}

/// The allocator asks for pages of 2 MiB, which are in memory whole for a few bytes: with all five
/// consumers that is twice the memory, and not faster. A kernel without them has nothing to refuse.
fn use_small_pages() {
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true).ok();
}

fn load() -> Loaded {
    registry::load(&config::process_environment(), Path::new(config::LOCAL_FILE))
}

fn check(args: &check::Args) -> ExitCode {
    match check::check(&load(), args.json, &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(BAD_CONFIGURATION),
        Err(error) => report(Err(error.into())),
    }
}

fn run_daemon(args: &run::Args, loaded: &Loaded) -> ExitCode {
    let settings: &Settings = match &loaded.settings {
        Ok(settings) => settings,
        Err(problems) => {
            print_error(&problems.to_string());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if let Err(error) = logs::init(&settings.log) {
        print_error(&error.to_string());
    }
    for warning in &loaded.warnings {
        tracing::warn!(warning, "configuration");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&format!("the async runtime cannot be started: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let ended = runtime.block_on(async {
        match args.shadow {
            true => run::shadow(settings.clone()).await,
            false => run::run(settings.clone()).await,
        }
    });
    let code = ended.err().map_or(0, |error| {
        let code = error.exit_code();
        tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "ended");
        code
    });
    // Blocking calls into librdkafka may still be under way, and nothing depends on them any more.
    // But what OpenSSL does at the exit of a process frees what their threads are using: a crash
    // after a clean stop. So without it.
    signal_hook::low_level::exit(code.into())
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("{error:#}"));
            if error.is::<Problems>() {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

#[cfg(feature = "demo")]
fn run_demo(args: &demo::Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&format!("the async runtime cannot be started: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let ended = runtime.block_on(demo::demo(args));
    runtime.shutdown_background();
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let bad = matches!(error, crm_event_processors::demo::DemoError::Settings(_));
            print_error(&format!("{:#}", anyhow::Error::from(error)));
            ExitCode::from(if bad { BAD_CONFIGURATION } else { FAILED })
        }
    }
}

/// Nothing can be done where even standard error is closed.
fn print_error(message: &str) {
    writeln!(std::io::stderr(), "error: {message}").ok();
}
