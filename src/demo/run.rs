//! One run of the demo: everything is started, the recordings are fed, and what arrived is judged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::expectation::{self, CHECKS, Differences, Event, Letter, Received};
use super::progress::{DemoError, Options, Progress};
use super::stage::Stage;
use super::watch::Tally;
use crate::fakes::{Endpoint, Fake, Stored};

/// The result of a run.
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
    pub differences: Option<Differences>,
}

/// Runs the demo. `stop` ends it: a demo that keeps running finishes its round and is judged, any
/// other is interrupted.
///
/// # Errors
/// When something cannot be started or the daemon ends by itself. A wrong result is not an error
/// but a finding.
pub async fn run(
    options: &Options,
    progress: mpsc::UnboundedSender<Progress>,
    stop: &CancellationToken,
) -> Result<Report, DemoError> {
    let mut stage = Stage::set(options, progress.clone()).await?;
    let fake = Arc::clone(&stage.fake);
    let over = CancellationToken::new();
    let follower = tokio::spawn(follow(Arc::clone(&fake), progress, over.clone()));
    let started = Instant::now();
    let interrupted = stage.play(options, stop).await?;
    let elapsed = started.elapsed();
    let played = stage.end().await?;
    over.cancel();
    follower.await?;

    let events = fake.inspect(|log| log.events.iter().map(event).collect());
    let met_fault = fake.inspect(|log| {
        let refused = log.posts.iter().filter(|post| post.status == 400).count();
        let faults: u64 = [Endpoint::Post, Endpoint::Rpc, Endpoint::Rest]
            .map(|endpoint| log.requests(endpoint).faults)
            .into_iter()
            .sum();
        faults + refused as u64
    });
    let seen = Received {
        events,
        dead_letters: played.dead_letters,
        evaluated: played.evaluated,
        applied: played.applied,
    };
    let differences = (!interrupted).then(|| {
        let mut differences = expectation::check(&played.expectation, &seen, &played.allowed);
        differences.missing.extend(played.unfinished);
        differences
    });
    let mut tallies = played.tallies;
    let consumers = CHECKS.iter().map(|judged| {
        let name = judged.spec.name;
        let prefix = format!("{name}/");
        let sent = seen.events.iter().filter(|event| event.name.starts_with(&prefix)).count();
        (name, tallies.remove(name).unwrap_or_default(), sent)
    });
    Ok(Report {
        fed: played.fed,
        elapsed,
        consumers: consumers.collect(),
        met_fault,
        dead_letters: seen.dead_letters,
        differences,
    })
}

/// Reports every event that the fake stores, until `over`.
async fn follow(
    fake: Arc<Fake>,
    progress: mpsc::UnboundedSender<Progress>,
    over: CancellationToken,
) {
    let mut seen = 0;
    loop {
        let ended = tokio::select! {
            () = fake.until(|log| log.events.len() > seen) => false,
            () = over.cancelled() => true,
        };
        let new: Vec<Event> = fake.inspect(|log| log.events[seen..].iter().map(event).collect());
        seen += new.len();
        for event in new {
            // Nobody may be listening any more.
            drop(progress.send(Progress::Event(event)));
        }
        if ended {
            drop(progress.send(Progress::Over));
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
