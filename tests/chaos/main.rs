//! Chaos: the real daemon in several processes, on a real Kafka of three brokers and a real Redis,
//! while members, brokers, Redis, Inngest and Supabase fail as a seed says. An independent checker
//! reads what was written, what arrived and what was committed, and holds it against the promises
//! of behaviour section 8.
//!
//! ```text
//! cargo test --test chaos                                     short seeds, and sabotage
//! cargo test --test chaos -- --seed 7 --minutes 10            one seed
//! cargo test --test chaos -- --seeds 1..=100 --minutes 0.5    many, as a table
//! ```

mod checker;
mod evidence;
mod explain;
mod history;
mod load;
mod members;
mod offsets;
mod plan;
mod report;
mod run;
mod sabotage;
mod services;
mod writer;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};
use jiff::Timestamp;

use crate::checker::{Bounds, Promise, Verdict, check};
use crate::history::History;
use crate::load::Load;
use crate::plan::{MINUTES, Plan, RATE, SEEDS, records};
use crate::report::{Figures, Summary, head};
use crate::run::Spec;
use crate::sabotage::Sabotage;
use crate::services::Services;
use test_support::daemon::program;
use test_support::unique;

/// Bounds for a debug build of the daemon with four consumers.
const BOUNDS: Bounds = Bounds {
    memory: 224 << 10,
    settle: Duration::from_secs(1),
    session: Duration::from_secs(6),
    drain: Duration::from_secs(2),
    renewal: Duration::from_secs(5),
    request: Duration::from_secs(3),
    near: Duration::from_secs(2),
};

/// How long, after the last disturbance, the members may take to commit every record.
const CATCH_UP: Duration = Duration::from_secs(90);

/// The runs that fill a member's memory: their minutes of load, and how large a note may be.
const BACKLOG: f64 = 0.125;
const LARGE: usize = 256 << 10;

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
    /// As of every test binary: runs only what has one of these in its name, such as `seeds` or
    /// `no-lanes`
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

impl Args {
    fn wants(&self, name: &str) -> bool {
        let named = |filter: &String| name.contains(&**filter) || "chaos".contains(&**filter);
        self.filters.is_empty() || self.filters.iter().any(named)
    }
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once("..=").ok_or("as in 1..=100")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(first)?..=number(last)?)
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.wants("seeds") && !exposing().any(|(name, ..)| args.wants(&name)) {
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
        (Some(seeds), _) => table(&services, seeds.clone(), args.minutes, Plays::Once).await.0,
        (None, Some(seed)) => seeded(&services, seed, args).await,
        (None, None) => {
            let good = !args.wants("seeds") || usual(&services).await;
            good & sabotaged(&services, args).await
        }
    };
    tokio::task::spawn_blocking(move || drop(services)).await.expect("the services stop");
    good
}

/// One seed, reported in full.
async fn seeded(services: &Arc<Services>, seed: u64, args: &Args) -> bool {
    let Args { minutes, logs, .. } = *args;
    let run = Run { keep_logs: logs, ..Run::seeded(seed, minutes) };
    println!("seed {seed}, {} records in {minutes} minutes\n{}", run.load.items.len(), run.plan);
    let Played { history, verdict, objections } = run.play(services).await;
    println!("{}", Summary(&history, &verdict));
    objections.is_empty()
}

/// Many seeds, a line for each.
async fn table(
    services: &Arc<Services>,
    seeds: impl IntoIterator<Item = u64>,
    minutes: f64,
    plays: Plays,
) -> (bool, Figures) {
    let mut total = Figures { caught_up: Some(0.0), ..Figures::default() };
    let mut good = true;
    println!("{}", head());
    for seed in seeds {
        let members = Run::seeded(seed, minutes).plan.membership();
        let played = play(services, plays, || Run::seeded(seed, minutes)).await;
        let Played { history, verdict, objections } = played;
        let figures = Figures::of(&history, &verdict);
        println!("{}", figures.line(&seed.to_string(), &members));
        if !objections.is_empty() {
            println!("{}", Summary(&history, &verdict));
            good = false;
        }
        total.add(&figures);
    }
    println!("{}", total.line("total", ""));
    (good, total)
}

/// How often a run is played.
#[derive(Clone, Copy, PartialEq)]
enum Plays {
    Once,
    /// Once more, if all objections are a matter of judgement.
    OnceMore,
}

/// Plays a run. Times decide whether a repeat is explained or a pause was long enough, and a
/// machine that stands still for a moment falsifies them. So in the tests such an objection counts
/// only if it comes again. The same goes for what a sabotaged member must break, since that depends
/// on a race. Lost, out of order or committed early is never a matter of judgement.
async fn play(services: &Arc<Services>, plays: Plays, run: impl Fn() -> Run) -> Played {
    let first = run();
    let sabotaged = first.sabotage != Sabotage::Nothing;
    let played = first.play(services).await;
    let judged = |promise: &Promise| matches!(promise, Promise::NothingTwice | Promise::Settle);
    let doubtful = sabotaged || played.verdict.problems.keys().all(judged);
    if plays == Plays::Once || played.objections.is_empty() || !doubtful {
        return played;
    }
    println!("{}", Summary(&played.history, &played.verdict));
    println!("played again: {}", played.objections.join(", "));
    run().play(services).await
}

/// The seeds that every run of the tests plays. Each kind of fault must have hit a request: one
/// that hits none proves nothing.
async fn usual(services: &Arc<Services>) -> bool {
    let (good, total) = table(services, SEEDS, MINUTES, Plays::OnceMore).await;
    let met = [
        ("Inngest failed no request", total.met.inngest),
        ("Supabase failed no request", total.met.supabase),
        ("Inngest took no request in part", total.met.partial),
    ];
    let missed = met.iter().filter(|(_, met)| *met == 0);
    good & (missed.inspect(|(what, _)| println!("  NOT MET: {what}")).count() == 0)
}

/// The same run with an honest member, which must pass, and with members that break a promise each.
/// The checker must find that promise, and no other.
async fn sabotaged(services: &Arc<Services>, args: &Args) -> bool {
    let mut good = true;
    for (name, sabotage, run) in exposing().filter(|(name, ..)| args.wants(name)) {
        let run = || Run { name: name.clone(), ..run(sabotage) };
        let Played { history, verdict, objections } = play(services, Plays::OnceMore, run).await;
        println!("{name}");
        if sabotage == Sabotage::Nothing {
            println!("{}", Summary(&history, &verdict));
        }
        for (promise, problems) in &verdict.problems {
            println!("  {promise:?} {} times, such as {}", problems.len(), problems[0]);
        }
        for objection in &objections {
            println!("  {objection}");
            good = false;
        }
    }
    good
}

/// Runs that show what the checker finds, and the same ones with an honest member, by name.
fn exposing() -> impl Iterator<Item = (String, Sabotage, fn(Sabotage) -> Run)> {
    let backlog = |sabotage: Sabotage| {
        (format!("backlog-{}", sabotage.argument()), sabotage, Run::backlog as fn(Sabotage) -> Run)
    };
    let others = Sabotage::value_variants().iter().filter(|other| **other != Sabotage::NoBounds);
    let others = others
        .map(|sabotage| (sabotage.argument(), *sabotage, Run::sabotaged as fn(Sabotage) -> Run));
    [Sabotage::Nothing, Sabotage::NoBounds].map(backlog).into_iter().chain(others)
}

/// A run that is about to be played.
struct Run {
    name: String,
    load: Load,
    plan: Plan,
    sabotage: Sabotage,
    program: PathBuf,
    arguments: Vec<String>,
    settings: Vec<(&'static str, &'static str)>,
    latency: Duration,
    catch_up: Duration,
    keep_logs: bool,
}

/// A run that was played, and the objections to it.
struct Played {
    history: History,
    verdict: Verdict,
    objections: Vec<String>,
}

impl Run {
    fn seeded(seed: u64, minutes: f64) -> Self {
        let load = load(seed, minutes);
        Self {
            name: seed.to_string(),
            plan: Plan::new(seed, load.items.len(), RATE),
            load,
            sabotage: Sabotage::Nothing,
            program: program(),
            arguments: Vec::new(),
            settings: Vec::new(),
            latency: Duration::from_millis(5),
            catch_up: CATCH_UP,
            keep_logs: false,
        }
    }

    fn sabotaged(sabotage: Sabotage) -> Self {
        let load = load(0, SABOTAGED);
        Self {
            name: String::new(),
            plan: sabotage::plan(load.items.len(), RATE),
            load,
            sabotage,
            program: std::env::current_exe().expect("this program"),
            arguments: vec!["--member".to_owned(), sabotage.argument()],
            settings: Vec::new(),
            // Long enough that a kill meets something in flight.
            latency: Duration::from_millis(200),
            // Its records wait for claims to run out. The run does not wait for that.
            catch_up: match sabotage {
                Sabotage::OnePhaseClaims => CATCH_UP / 6,
                _ => CATCH_UP,
            },
            keep_logs: false,
        }
    }

    /// One member, a backlog of a hundred megabytes, and room for 8 MiB of it.
    fn backlog(sabotage: Sabotage) -> Self {
        let load = Load::new(0, records(BACKLOG), RATE, Timestamp::now(), LARGE);
        let settings = match sabotage {
            Sabotage::NoBounds => vec![("BUFFER_BYTES", "1GiB"), ("BUFFER_RECORDS", "1000000")],
            _ => vec![("BUFFER_BYTES", "8MiB")],
        };
        Self { load, plan: sabotage::backlog(), sabotage, settings, ..Self::seeded(0, 0.0) }
    }

    /// Plays it, and checks what happened. Logs of members are kept if there are objections.
    async fn play(self, services: &Arc<Services>) -> Played {
        let Self { name, load, plan, sabotage, program, arguments, settings, .. } = self;
        let Self { latency, catch_up, keep_logs, .. } = self;
        let logs = std::env::temp_dir().join(unique(&format!("chaos-{name}")));
        std::fs::create_dir(&logs).expect("a directory for logs");
        let spec = Spec {
            load,
            plan,
            rate: RATE,
            program,
            arguments,
            settings,
            latency,
            logs: logs.clone(),
            catch_up,
        };
        let history = run::run(services, spec).await;
        let verdict = check(&history, &BOUNDS);
        let objections = sabotage.objections(&verdict);
        if objections.is_empty() && !keep_logs {
            std::fs::remove_dir_all(&logs).expect("logs are removed");
        } else {
            println!("logs of {name}: {}", logs.display());
        }
        Played { history, verdict, objections }
    }
}

fn load(seed: u64, minutes: f64) -> Load {
    Load::new(seed, records(minutes), RATE, Timestamp::now(), 200)
}
