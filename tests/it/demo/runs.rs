//! The demo as a newcomer runs it, with every fault: what arrives is what the recordings
//! call for.

use std::time::Duration;

use crm_event_processors::config::Environment;
use crm_event_processors::demo::faults::Fault;
use crm_event_processors::demo::{self, Feed, Options, Progress, Report};
use crm_event_processors::fakes::Endpoint;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Records of one round: the lives, the restart, redemptions and orders.
const ROUND: usize = 319 + 33 + 40 + 72;

/// Shorter waits, which do not change what is waited for.
fn options(fault: Option<Fault>) -> Options {
    let environment: Environment =
        [("INNGEST_CANCEL_SETTLE", "300ms"), ("CURRENCY_ORIGINAL_PATIENCE", "500ms")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    Options { fault, environment, ..Options::default() }
}

/// Runs the demo, and returns its report and progress.
async fn run(options: &Options) -> (Report, Vec<Progress>) {
    let (progress, mut heard) = mpsc::unbounded_channel();
    let report = demo::run(options, progress, &CancellationToken::new()).await.expect("it runs");
    let mut all = Vec::new();
    while let Ok(progress) = heard.try_recv() {
        all.push(progress);
    }
    (report, all)
}

/// The report of a run that must be right.
async fn right(options: &Options) -> (Report, Vec<Progress>) {
    let (report, progress) = run(options).await;
    let differences = report.differences.as_ref().expect("it was not interrupted");
    assert!(differences.is_right(), "{differences:#?}");
    (report, progress)
}

fn waited_for(report: &Report, reason: &str) -> u64 {
    let (_, tally, _) = &report.consumers[0];
    tally.waits.get(reason).copied().unwrap_or(0)
}

fn kinds(report: &Report) -> Vec<&str> {
    let mut kinds: Vec<&str> = report.dead_letters.iter().map(|l| l.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[tokio::test]
async fn the_plain_demo_is_right_and_shows_every_event() {
    let (report, progress) = right(&options(None)).await;
    assert_eq!(report.fed, ROUND);
    let names: Vec<&str> = report.consumers.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, ["currency", "tier", "mission", "reward", "marketplace"]);
    assert!(report.consumers.iter().all(|(_, tally, events)| tally.sent > 0 && *events > 0));
    for duplicates in &report.consumers[3..] {
        assert!(duplicates.1.duplicates > 0, "{} is given repeats", duplicates.0);
    }
    assert!(report.consumers[4].1.skipped["unpaid"] > 0);
    let (_, tally, _) = &report.consumers[0];
    let events: usize = report.consumers.iter().map(|(_, _, events)| events).sum();
    let shown = progress.iter().filter(|progress| matches!(progress, Progress::Event(_))).count();
    assert_eq!(shown, events);
    assert!(tally.replayed > 0, "the restarted connector repeats changes");
    assert_eq!(u64::try_from(tally.latencies.len()), Ok(tally.sent));
    assert_eq!(report.differences.as_ref().map(|differences| differences.repeated), Some(0));
    assert_eq!(report.dead_letters.len(), 6, "debits whose originals are missing");
    assert_eq!(kinds(&report), ["original_not_found"]);
    assert_eq!(report.met_fault, 0);
}

#[tokio::test]
async fn more_rounds_are_as_right_as_one() {
    let feed = Feed { records: 3 * ROUND - 1, ..Feed::default() };
    let (report, _) = right(&Options { feed, ..options(None) }).await;
    assert_eq!(report.fed, 3 * ROUND);
}

#[tokio::test]
async fn a_rate_and_latencies_change_nothing_but_the_time() {
    let feed = Feed { rate: Some(500.0), ..Feed::default() };
    let latency = vec![
        (Endpoint::Rpc, Duration::from_millis(5)),
        (Endpoint::Post, Duration::from_millis(20)),
    ];
    right(&Options { feed, latency, ..options(None) }).await;
}

#[tokio::test]
async fn inngest_that_refuses_with_429_loses_nothing() {
    let (report, _) = right(&options(Some(Fault::Inngest429))).await;
    assert_eq!(kinds(&report), ["original_not_found"]);
    assert!(report.met_fault > 0);
}

#[tokio::test]
async fn inngest_that_is_down_loses_nothing() {
    let (report, _) = right(&options(Some(Fault::InngestDown))).await;
    assert_eq!(kinds(&report), ["original_not_found"]);
    assert!(report.met_fault > 0);
}

#[tokio::test]
async fn an_event_that_inngest_refuses_is_set_aside_alone() {
    let (report, _) = right(&options(Some(Fault::InngestPartial))).await;
    assert_eq!(report.dead_letters.len(), 6 + 3);
    // More than its own three tries: it was first refused together with other events.
    assert!(report.met_fault > 3, "{}", report.met_fault);
    assert_eq!(kinds(&report).len(), 2, "{:?}", kinds(&report));
}

#[tokio::test]
async fn supabase_that_fails_with_500_loses_nothing() {
    let (report, _) = right(&options(Some(Fault::Supabase500))).await;
    assert_eq!(kinds(&report), ["original_not_found"]);
    assert!(report.met_fault > 0);
    assert!(waited_for(&report, "supabase/rpc/calc_currency_for_source") > 0);
}

#[tokio::test]
async fn claims_that_are_lost_award_nothing_twice() {
    let (report, progress) = right(&options(Some(Fault::RedisEmpty))).await;
    assert!(report.consumers[0].1.replayed > 0);
    let struck =
        |progress: &Progress| matches!(progress, Progress::Note(line) if line.starts_with("FAULT"));
    assert!(progress.iter().any(struck));
}

#[tokio::test]
async fn unreadable_records_are_set_aside_with_their_reason_and_hold_nothing_up() {
    let (report, _) = right(&options(Some(Fault::Poison))).await;
    assert_eq!(report.fed, ROUND + 5);
    assert_eq!(kinds(&report), ["avro", "command", "invalid_json", "original_not_found"]);
    let of = |consumer: &str| report.dead_letters.iter().filter(|l| l.consumer == consumer).count();
    let counts = ["currency", "tier", "mission", "reward", "marketplace"].map(of);
    assert_eq!(counts, [6 + 3, 3, 3, 1, 1], "each consumer sets aside what it was given");
    assert!(report.dead_letters.iter().all(|letter| !letter.message.is_empty()));
}

#[tokio::test]
async fn a_daemon_that_is_torn_down_and_started_again_loses_nothing() {
    let feed = Feed { rate: Some(300.0), ..Feed::default() };
    right(&Options { feed, ..options(Some(Fault::Kill)) }).await;
}

#[tokio::test]
async fn a_demo_that_keeps_running_finishes_its_round_when_told_to_stop_and_is_judged() {
    let stop = CancellationToken::new();
    let (progress, mut heard) = mpsc::unbounded_channel();
    let feed = Feed { keep_running: true, ..Feed::default() };
    let options = Options { feed, ..options(None) };
    let run = demo::run(&options, progress, &stop);
    tokio::pin!(run);
    let report = loop {
        tokio::select! {
            report = &mut run => break report.expect("it runs"),
            Some(progress) = heard.recv() => if matches!(progress, Progress::Event(_)) {
                stop.cancel();
            },
        }
    };
    assert!(report.fed >= ROUND && report.fed.is_multiple_of(ROUND), "{}", report.fed);
    let differences = report.differences.expect("judged");
    assert!(differences.is_right(), "{differences:#?}");
}

#[tokio::test]
async fn any_other_demo_is_interrupted_and_not_judged() {
    let stop = CancellationToken::new();
    stop.cancel();
    let (progress, _heard) = mpsc::unbounded_channel();
    let report = demo::run(&options(None), progress, &stop).await.expect("it ends cleanly");
    assert_eq!(report.differences, None);
}
