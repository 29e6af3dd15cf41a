//! Chaos: the real daemon in several processes, on a real Kafka of three brokers and a real Redis,
//! while members, brokers, Redis, Inngest and Supabase fail as a seed says. An independent checker
//! reads what was written, what arrived and what was committed, and holds it against the promises of
//! contract section 8.
//!
//! ```text
//! cargo test --test chaos                                     a short run, and the checker's own tests
//! cargo test --test chaos -- --seed 7 --minutes 10            one seed
//! cargo test --test chaos -- --seeds 1..=100 --minutes 0.5    many, as a table
//! ```

mod checker;
mod disturb;
mod evidence;
mod explain;
mod history;
mod load;
mod members;
mod offsets;
mod report;
mod run;
mod sabotage;
mod services;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the other tests, which use more of it")]
mod support;
mod writer;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use jiff::Timestamp;

use crate::checker::{Bounds, Verdict, check};
use crate::disturb::Plan;
use crate::history::History;
use crate::load::Load;
use crate::report::{Figures, HEAD, Summary};
use crate::run::Spec;
use crate::sabotage::Sabotage;
use crate::services::Services;
use crate::support::daemon::DAEMON;
use crate::support::unique;

/// Records a second that are written on average.
const RATE: f64 = 120.0;

/// What a debug build of the daemon with four consumers is held against.
const BOUNDS: Bounds = Bounds {
    memory: 256 << 10,
    settle: Duration::from_secs(1),
    session: Duration::from_secs(6),
    drain: Duration::from_secs(2),
    request: Duration::from_secs(3),
    near: Duration::from_secs(2),
};

/// How long the members may take, after the last disturbance, until every record is committed.
const CATCH_UP: Duration = Duration::from_secs(90);

/// Minutes of load of the runs that show what the checker finds.
const SABOTAGED: f64 = 0.2;

#[derive(Parser)]
#[command(about = "The daemon while everything around it fails", disable_version_flag = true)]
struct Args {
    /// Replays this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Runs these seeds, such as 1..=100, and prints a table
    #[arg(long, value_parser = seeds)]
    seeds: Option<RangeInclusive<u64>>,
    /// Minutes of load
    #[arg(long, default_value_t = 0.5)]
    minutes: f64,
    /// Keeps the logs of members also where every promise was kept
    #[arg(long)]
    logs: bool,
    /// As of every test binary: runs only what has one of these in its name
    filters: Vec<String>,
    #[command(flatten)]
    harness: Harness,
    /// Is a member that breaks a promise, as the runs that must fail start it
    #[arg(long, hide = true)]
    member: Option<Sabotage>,
}

/// What `cargo test` hands to every test binary, and means nothing here.
#[derive(clap::Args)]
struct Harness {
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once("..=").ok_or("as in 1..=100")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(first)?..=number(last)?)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |filter: &String| "chaos".contains(&**filter);
    if !args.filters.is_empty() && !args.filters.iter().any(wanted) {
        println!("chaos: left out by {:?}", args.filters);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let good = match args.member {
        Some(sabotage) => {
            let ended = runtime.block_on(sabotage::member(sabotage));
            // Blocking calls into librdkafka may still be under way.
            runtime.shutdown_background();
            ended.is_ok()
        }
        None => runtime.block_on(runs(&args)),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn runs(args: &Args) -> bool {
    let services = tokio::task::spawn_blocking(|| Arc::new(Services::own()));
    let services = services.await.expect("the services start");
    let good = match (&args.seeds, args.seed) {
        (Some(seeds), _) => table(&services, seeds.clone(), args.minutes).await,
        (None, Some(seed)) => seeded(&services, seed, args).await,
        (None, None) => seeded(&services, 1, args).await & sabotaged(&services).await,
    };
    tokio::task::spawn_blocking(move || drop(services)).await.expect("the services stop");
    good
}

/// One seed, told in full.
async fn seeded(services: &Arc<Services>, seed: u64, args: &Args) -> bool {
    let Args { minutes, logs, .. } = *args;
    let run = Run { keep_logs: logs, ..Run::seeded(seed, minutes) };
    println!("seed {seed}, {} records in {minutes} minutes\n{}", run.load.items.len(), run.plan);
    let (history, verdict) = run.play(services).await;
    println!("{}", Summary(&history, &verdict));
    verdict.problems.is_empty()
}

/// Many seeds, a line for each.
async fn table(services: &Arc<Services>, seeds: RangeInclusive<u64>, minutes: f64) -> bool {
    let mut total = Figures { caught_up: Some(0.0), ..Figures::default() };
    let mut good = true;
    println!("{HEAD}");
    for seed in seeds {
        let run = Run::seeded(seed, minutes);
        let members = run.plan.membership();
        let (history, verdict) = run.play(services).await;
        let figures = Figures::of(&history, &verdict);
        println!("{}", figures.line(&seed.to_string(), &members));
        if !verdict.problems.is_empty() {
            println!("{}", Summary(&history, &verdict));
            good = false;
        }
        total.add(&figures);
    }
    println!("{}", total.line("total", ""));
    good
}

/// The same run with the real daemon, of which nothing may be said, and with members that break a
/// promise each, which must be found.
async fn sabotaged(services: &Arc<Services>) -> bool {
    let (history, verdict) = Run::sabotaged(None).play(services).await;
    println!("kills and resets, the daemon as it is\n{}", Summary(&history, &verdict));
    let mut good = verdict.problems.is_empty();
    for sabotage in Sabotage::ALL {
        let (_, verdict) = Run::sabotaged(Some(sabotage)).play(services).await;
        println!("kills and resets, a daemon that {}", sabotage.argument());
        for (promise, problems) in &verdict.problems {
            println!("  {promise:?} {} times, such as {}", problems.len(), problems[0]);
        }
        for promise in sabotage.breaks() {
            if verdict.broken(*promise) == 0 {
                println!("  NOT FOUND: {promise:?}");
                good = false;
            }
        }
    }
    good
}

/// A run that is about to be played.
struct Run {
    name: String,
    load: Load,
    plan: Plan,
    program: PathBuf,
    arguments: Vec<String>,
    latency: Duration,
    catch_up: Duration,
    keep_logs: bool,
}

impl Run {
    fn seeded(seed: u64, minutes: f64) -> Self {
        let load = load(seed, minutes);
        let plan = Plan::new(seed, load.items.len(), RATE);
        let (name, program) = (seed.to_string(), DAEMON.into());
        Self {
            name,
            load,
            plan,
            program,
            arguments: Vec::new(),
            latency: Duration::from_millis(5),
            catch_up: CATCH_UP,
            keep_logs: false,
        }
    }

    fn sabotaged(sabotage: Option<Sabotage>) -> Self {
        let load = load(0, SABOTAGED);
        let plan = sabotage::plan(sabotage, load.items.len(), RATE);
        let (program, arguments) = match sabotage {
            None => (DAEMON.into(), Vec::new()),
            Some(sabotage) => (
                std::env::current_exe().expect("this program"),
                vec!["--member".to_owned(), sabotage.argument()],
            ),
        };
        let name = sabotage.map_or("honest".to_owned(), Sabotage::argument);
        // Long enough that a kill meets something in flight.
        let latency = Duration::from_millis(200);
        // Some promises that are broken leave records behind that wait for a claim to run out.
        let catch_up = if sabotage.is_some() { CATCH_UP / 3 } else { CATCH_UP };
        Self { name, load, plan, program, arguments, latency, catch_up, keep_logs: false }
    }

    /// Plays it, and checks what happened. Logs of members stay where a promise was broken.
    async fn play(self, services: &Arc<Services>) -> (History, Verdict) {
        let Self { name, load, plan, program, arguments, latency, catch_up, keep_logs } = self;
        let logs = std::env::temp_dir().join(unique(&format!("chaos-{name}")));
        std::fs::create_dir(&logs).expect("a directory for logs");
        let spec = Spec {
            load,
            plan,
            rate: RATE,
            program,
            arguments: arguments.clone(),
            latency,
            logs: logs.clone(),
            catch_up,
        };
        let history = run::run(services, spec).await;
        let verdict = check(&history, &BOUNDS);
        let expected = arguments.is_empty() == verdict.problems.is_empty();
        if expected && !keep_logs {
            std::fs::remove_dir_all(&logs).expect("logs are removed");
        } else {
            println!("logs of {name}: {}", logs.display());
        }
        (history, verdict)
    }
}

fn load(seed: u64, minutes: f64) -> Load {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    let records = (minutes * 60.0 * RATE) as usize;
    Load::new(seed, records, RATE, Timestamp::now())
}
