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
use crate::disturb::{BROKERS, Plan};
use crate::history::History;
use crate::load::Load;
use crate::report::{Figures, HEAD, Summary};
use crate::run::{Ground, Spec};
use crate::support::daemon::DAEMON;
use crate::support::services::{Cluster, Redis};
use crate::support::unique;

/// Records a second that are written on average.
const RATE: f64 = 120.0;

/// What a debug build of the daemon with four consumers is held against.
const BOUNDS: Bounds = Bounds {
    memory: 256 << 10,
    settle: Duration::from_secs(1),
    session: Duration::from_secs(6),
    drain: Duration::from_secs(2),
    near: Duration::from_secs(2),
};

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
    /// As of every test binary: runs only what has one of these in its name
    filters: Vec<String>,
    /// Output is never captured
    #[arg(long, hide = true)]
    nocapture: bool,
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once("..=").ok_or("as in 1..=100")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(first)?..=number(last)?)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted =
        args.filters.is_empty() || args.filters.iter().any(|filter| "chaos".contains(&**filter));
    if !wanted {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let good = runtime.expect("a runtime").block_on(async {
        let ground = tokio::task::spawn_blocking(|| Ground {
            cluster: Arc::new(Cluster::own(BROKERS)),
            redis: Arc::new(Redis::own()),
        });
        let ground = ground.await.expect("the services start");
        let seeds = args.seeds.or(args.seed.map(|seed| seed..=seed)).unwrap_or(1..=1);
        let table = seeds.clone().count() > 1;
        let good = all(&ground, seeds, args.minutes, table).await;
        tokio::task::spawn_blocking(move || drop(ground)).await.expect("the services stop");
        good
    });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn all(ground: &Ground, seeds: RangeInclusive<u64>, minutes: f64, table: bool) -> bool {
    let (mut total, mut good) = (Figures { caught_up: Some(0.0), ..Figures::default() }, true);
    if table {
        println!("{HEAD}");
    }
    for seed in seeds {
        let (plan, history, verdict, logs) = one(ground, seed, minutes, !table).await;
        let kept = verdict.problems.is_empty();
        let figures = Figures::of(&history, &verdict);
        if table {
            println!("{}", figures.line(&seed.to_string(), &report::members(&plan)));
        }
        if !table || !kept {
            println!("{}", Summary(&history, &verdict));
        }
        if kept {
            std::fs::remove_dir_all(&logs).expect("logs are removed");
        } else {
            println!("  logs: {}", logs.display());
        }
        good &= kept;
        total.add(&figures);
    }
    if table {
        println!("{}", total.line("total", ""));
    }
    good
}

async fn one(
    ground: &Ground,
    seed: u64,
    minutes: f64,
    tell: bool,
) -> (Plan, History, Verdict, PathBuf) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of records"
    )]
    let records = (minutes * 60.0 * RATE) as usize;
    let start = Timestamp::now();
    let load = Load::new(seed, records, RATE, start);
    let plan = Plan::new(seed, load.items.len(), RATE);
    if tell {
        println!("seed {seed}, {} records in {minutes} minutes\n{plan}", load.items.len());
    }
    let logs = std::env::temp_dir().join(unique(&format!("chaos-{seed}")));
    std::fs::create_dir(&logs).expect("a directory for logs");
    let spec = Spec {
        load,
        plan: plan.clone(),
        rate: RATE,
        program: DAEMON.into(),
        arguments: Vec::new(),
        latency: Duration::from_millis(5),
        logs: logs.clone(),
    };
    let history = run::run(ground, spec).await;
    let verdict = check(&history, &BOUNDS);
    (plan, history, verdict, logs)
}
