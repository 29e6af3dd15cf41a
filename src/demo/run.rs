//! One run of the demo: everything is started, the recordings are fed, and what arrived is judged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::demand::{self, Event, Findings, JUDGES, Letter, Seen};
use super::stage::Stage;
use super::told::{DemoError, Options, Told};
use super::watch::Tally;
use crate::double::{Double, Endpoint, Stored};

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Records fed.
    pub fed: usize,
    /// From the first record fed to the last outcome.
    pub elapsed: Duration,
    /// What became of each consumer's records, and how many events it sent.
    pub consumers: Vec<(&'static str, Tally, usize)>,
    /// Requests that met the fault.
    pub met_fault: u64,
    /// The dead letter topic.
    pub dead_letters: Vec<Letter>,
    /// The judgement; `None` when the run was interrupted.
    pub findings: Option<Findings>,
}

/// Runs the demo. `stop` ends it: a demo that keeps running finishes its round and is judged, any
/// other is interrupted.
///
/// # Errors
/// When something cannot be started or the daemon ends by itself. A wrong result is no error but a
/// finding.
pub async fn run(
    options: &Options,
    told: mpsc::UnboundedSender<Told>,
    stop: &CancellationToken,
) -> Result<Report, DemoError> {
    let mut stage = Stage::set(options, told.clone()).await?;
    let double = Arc::clone(&stage.double);
    let over = CancellationToken::new();
    let follower = tokio::spawn(follow(Arc::clone(&double), told, over.clone()));
    let started = Instant::now();
    let interrupted = stage.play(options, stop).await?;
    let elapsed = started.elapsed();
    let played = stage.end().await?;
    over.cancel();
    follower.await?;

    let events = double.inspect(|log| log.events.iter().map(event).collect());
    let met_fault = double.inspect(|log| {
        let refused = log.posts.iter().filter(|post| post.status == 400).count();
        let faults: u64 = [Endpoint::Post, Endpoint::Rpc, Endpoint::Rest]
            .map(|endpoint| log.requests(endpoint).faults)
            .into_iter()
            .sum();
        faults + refused as u64
    });
    let seen = Seen {
        events,
        dead_letters: played.dead_letters,
        evaluated: played.evaluated,
        applied: played.applied,
    };
    let findings = (!interrupted).then(|| {
        let mut findings = demand::judge(&played.demand, &seen, &played.allowance);
        findings.missing.extend(played.unfinished);
        findings
    });
    let mut tallies = played.tallies;
    let consumers = JUDGES.iter().map(|judged| {
        let name = judged.name;
        let prefix = format!("{name}/");
        let sent = seen.events.iter().filter(|event| event.name.starts_with(&prefix)).count();
        (name.as_str(), tallies.remove(name.as_str()).unwrap_or_default(), sent)
    });
    Ok(Report {
        fed: played.fed,
        elapsed,
        consumers: consumers.collect(),
        met_fault,
        dead_letters: seen.dead_letters,
        findings,
    })
}

/// Tells of every event that the double stores, until `over`.
async fn follow(double: Arc<Double>, told: mpsc::UnboundedSender<Told>, over: CancellationToken) {
    let mut seen = 0;
    loop {
        let ended = tokio::select! {
            () = double.until(|log| log.events.len() > seen) => false,
            () = over.cancelled() => true,
        };
        let new: Vec<Event> = double.inspect(|log| log.events[seen..].iter().map(event).collect());
        seen += new.len();
        for event in new {
            // Nobody may be listening any more.
            drop(told.send(Told::Event(event)));
        }
        if ended {
            drop(told.send(Told::Over));
            return;
        }
    }
}

fn event(stored: &Stored) -> Event {
    Event {
        name: stored.name.to_string(),
        id: stored.id.as_deref().map(str::to_owned),
        data: stored
            .data
            .as_deref()
            .and_then(|data| serde_json::from_str(data).ok())
            .unwrap_or_default(),
    }
}
