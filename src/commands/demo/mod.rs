//! `demo`: the daemon on recorded changes, with everything around it in this process.

mod screen;

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::screen::Screen;
use crate::config::process_environment;
use crate::demo::faults::Fault;
use crate::demo::{self, DemoError, Feed, Options, Progress};
use crate::fakes::Endpoint;
use crate::telemetry::logs;

/// Default rate in records a second: slow enough to be watched.
const WATCHABLE: f64 = 75.0;

/// What the demo is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Records a second, such as 200/s, or max [default: 75/s; max with --records]
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<Rate>,
    /// Feed at least so many records: the recording is repeated under fresh ids [default: once]
    #[arg(long, value_name = "N")]
    records: Option<usize>,
    /// Go on until CTRL-C, then check
    #[arg(long)]
    keep_running: bool,
    /// How long requests take at least: post=, rpc= and rest=, such as rpc=20ms,post=50ms
    #[arg(long, value_name = "KIND=TIME,...", value_delimiter = ',', value_parser = latency)]
    latency: Vec<(Endpoint, Duration)>,
    /// What goes wrong
    #[arg(long, value_enum, value_name = "FAULT")]
    fault: Option<Fault>,
}

/// How fast records are fed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rate {
    /// So many a second.
    PerSecond(f64),
    /// As fast as they drain.
    Max,
}

impl Args {
    /// The options of the run.
    fn options(&self) -> Options {
        let unsaid = if self.records.is_some() { Rate::Max } else { Rate::PerSecond(WATCHABLE) };
        let rate = match self.rate.unwrap_or(unsaid) {
            Rate::PerSecond(rate) => Some(rate),
            Rate::Max => None,
        };
        Options {
            feed: Feed {
                rate,
                records: self.records.unwrap_or(0),
                keep_running: self.keep_running,
            },
            latency: self.latency.clone(),
            fault: self.fault,
            environment: process_environment(),
        }
    }
}

/// Runs the demo and shows it on standard output. Returns whether what arrived is right. CTRL-C
/// ends it; only a demo that keeps running is judged then. A second CTRL-C ends it at once.
///
/// # Errors
/// When something cannot be started or the daemon ends by itself.
pub async fn demo(args: &Args) -> Result<bool, DemoError> {
    let options = args.options();
    // Logs go to standard error. This fails only for a second subscriber, and there is none.
    logs::init(&demo::log_settings(&options.environment)?).ok();
    let colours = io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (progress, mut heard) = mpsc::unbounded_channel();
    let screen = std::thread::spawn(move || {
        let mut screen = Screen::new(io::stdout(), colours);
        // Dependencies of a daemon that was torn down may keep their end of the channel for a
        // while.
        while let Some(progress) = heard.blocking_recv()
            && !matches!(progress, Progress::Over)
        {
            screen.tell(&progress);
        }
        screen
    });
    let stop = CancellationToken::new();
    let run = demo::run(&options, progress, &stop);
    tokio::pin!(run);
    let mut presses = 0;
    let report = loop {
        tokio::select! {
            report = &mut run => break report?,
            Ok(()) = tokio::signal::ctrl_c() => {
                presses += 1;
                if presses > 1 {
                    return Ok(false);
                }
                stop.cancel();
            }
        }
    };
    let right = report.differences.as_ref().is_some_and(|differences| differences.is_right());
    // A screen that panicked has shown that already.
    if let Ok(mut screen) = screen.join() {
        screen.conclude(&report);
    }
    Ok(right)
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    let number: f64 = text
        .strip_suffix("/s")
        .unwrap_or(text)
        .parse()
        .map_err(|_| "is no rate such as 200/s, nor max".to_owned())?;
    if number.is_finite() && (0.1..=1e6).contains(&number) {
        Ok(Rate::PerSecond(number))
    } else {
        Err("must lie between 0.1/s and 1000000/s".to_owned())
    }
}

fn latency(text: &str) -> Result<(Endpoint, Duration), String> {
    let (kind, time) = text.split_once('=').ok_or("is no kind=time such as rpc=20ms")?;
    let endpoint = match kind {
        "post" => Endpoint::Post,
        "rpc" => Endpoint::Rpc,
        "rest" => Endpoint::Rest,
        _ => return Err(format!("{kind} is none of post, rpc, rest")),
    };
    let milliseconds = match (time.strip_suffix("ms"), time.strip_suffix('s')) {
        (Some(number), _) => number.parse().ok(),
        (None, Some(number)) => {
            number.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1_000))
        }
        (None, None) => None,
    };
    let milliseconds = milliseconds.filter(|ms| *ms <= 20_000);
    let milliseconds = milliseconds.ok_or("the time must look like 20ms or 2s, at most 20s")?;
    Ok((endpoint, Duration::from_millis(milliseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_and_without_their_unit() {
        assert_eq!(rate("200/s"), Ok(Rate::PerSecond(200.0)));
        assert_eq!(rate("0.5"), Ok(Rate::PerSecond(0.5)));
        assert_eq!(rate("max"), Ok(Rate::Max));
        for wrong in ["", "fast", "0", "-1/s", "NaN", "inf"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn latencies_name_a_kind_of_request_and_a_time() {
        let ms = Duration::from_millis;
        assert_eq!(latency("rpc=20ms"), Ok((Endpoint::Rpc, ms(20))));
        assert_eq!(latency("post=2s"), Ok((Endpoint::Post, ms(2_000))));
        for wrong in
            ["", "rpc", "rpc=", "rpc=20", "disk=1ms", "rest=99999999999999999999s", "rest=21s"]
        {
            assert!(latency(wrong).is_err(), "{wrong}");
        }
    }
}
