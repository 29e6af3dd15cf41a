//! Whole and partial refunds add up, in SQL and through a real Debezium: every order of them, and whatever else may
//! happen to a purchase meanwhile. At the end all that sleeps is woken, and the wallets are counted.

mod play;
mod stage;
mod table;
mod tripwire;
mod verdict;

use std::time::Instant;

use self::play::{Merchant, Play, Style};
use self::stage::{Stage, Way};
use self::tripwire::Trip;
use self::verdict::{Act, judge};

/// Merchants whose awards are either credited or asleep during the whole test.
const STEADY: [Merchant; 3] = [Merchant::Now, Merchant::Hour, Merchant::Day];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refunds_add_up_over_one_partition() {
    refunds_add_up(1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refunds_add_up_over_three_partitions() {
    refunds_add_up(3, 100).await;
}

async fn refunds_add_up(partitions: i32, first_act: u64) {
    let mut stage = Stage::start(partitions).await;
    stage.run_daemon();
    let mut acts = Vec::new();
    // Its awards are due while the rest is played.
    let minute = after_the_sleep(first_act);
    stage.step(&minute, 0).await;

    for (number, identity) in ["FULL", "DEFAULT"].into_iter().enumerate() {
        for table in ["purchase_ledger", "referral_ledger", "mission_claims"] {
            stage.sql(&format!("ALTER TABLE {table} REPLICA IDENTITY {identity}")).await;
        }
        let act = first_act + 11 * number as u64;
        let began = Instant::now();
        let mut lap = |mut act: Act| {
            act.name = format!("{identity}, {}", act.name);
            println!("{}: done after {:?}", act.name, began.elapsed());
            acts.push(act);
        };
        lap(step_by_step(&stage, act).await);
        lap(at_once(&stage, act + 1).await);
        lap(from_a_backlog(&mut stage, act + 2).await);
        lap(with_crashes(&mut stage, act + 3, number).await);
        lap(with_an_empty_redis(&mut stage, act + 4, identity).await);
    }

    let slept = Merchant::Minute.id();
    until_credited(&stage, &slept, &minute).await;
    stage.play(&minute, 1).await;
    stage.settled().await;
    acts.push(Act { name: "after the sleep".to_owned(), plays: minute, emptied: false });

    stage.workflows.wake().await;
    judge(&stage, &acts).await;
    stage.stop().await;
}

/// Each step's effects are complete before the next step.
async fn step_by_step(stage: &Stage, act: u64) -> Act {
    let mut plays = table::permutations(act, &STEADY);
    plays.extend(table::lives(&STEADY));
    plays.extend(table::hard());
    plays.extend(table::others());
    for step in 0..steps(&plays) {
        stage.step(&plays, step).await;
        stage.settled().await;
    }
    Act { name: "step by step".to_owned(), plays, emptied: false }
}

/// The daemon runs, and nobody waits for it.
async fn at_once(stage: &Stage, act: u64) -> Act {
    let mut plays = table::every_other(act, &STEADY);
    plays.extend(table::steady_lives(&STEADY));
    plays.extend(table::others());
    stage.play(&plays, 0).await;
    stage.settled().await;
    Act { name: "at once".to_owned(), plays, emptied: false }
}

/// The daemon starts after all steps.
async fn from_a_backlog(stage: &mut Stage, act: u64) -> Act {
    let mut plays = table::permutations(act, &STEADY);
    plays.extend(table::steady_lives(&STEADY));
    plays.extend(table::hard());
    stage.kill_daemon();
    stage.play(&plays, 0).await;
    stage.streamed().await;
    stage.run_daemon();
    stage.settled().await;
    Act { name: "from a backlog".to_owned(), plays, emptied: false }
}

/// As from a backlog, and the daemon is killed between any two steps.
async fn with_crashes(stage: &mut Stage, act: u64, part: usize) -> Act {
    let mut plays = table::every_other(act, &STEADY);
    plays.extend(table::steady_lives(&STEADY));
    // The purchases are awarded first, since one that is taken back before would earn nothing.
    plays.sort_by_key(|play| play.style == Style::Whole);
    let last = plays.partition_point(|play| play.style != Style::Whole);
    let (first, whole) = plays.split_at(last);
    stage.kill_daemon();
    let born = |play: &Play| Play { ops: play.ops[..play.born].to_vec(), tail: 0, ..play.clone() };
    let births: Vec<_> = first.iter().map(born).collect();
    crash(stage, &births, 0, &CRASHES[..3], part).await;
    crash(stage, first, usize::MAX, &CRASHES[3..], part).await;
    crash(stage, whole, 0, &CRASHES, part).await;
    Act { name: "with crashes".to_owned(), plays, emptied: false }
}

/// Before each crash plays some of the plays from a step on (`MAX`: after their birth), then the
/// rest.
async fn crash(
    stage: &mut Stage,
    plays: &[Play],
    from: usize,
    at: &[(Way, &'static str)],
    part: usize,
) {
    let mut portions = plays.chunks(plays.len().div_ceil(2 * at.len()));
    let (mut crashes, mut missed) = (0, Vec::new());
    for (number, &(way, text)) in at.iter().enumerate() {
        for handled in [false, true] {
            stage.play(portions.next().unwrap_or_default(), from).await;
            stage.streamed().await;
            let later = plays.len() > 50 && (number + part + usize::from(handled)) % 2 == 1;
            let nth = if later { 4 } else { 1 };
            let trip = Trip { text, nth, handled };
            if stage.crash_at(way, trip).await {
                crashes += 1;
            } else {
                missed.push(trip);
            }
        }
    }
    println!("{crashes} crashes; none at {missed:?}");
    assert!(crashes > at.len(), "only {crashes} crashes");
    stage.run_daemon();
    stage.settled().await;
    stage.kill_daemon();
}

/// Requests at which the daemon is killed.
const CRASHES: [(Way, &str); 9] = [
    (Way::Http, "calc_currency_for_source"),
    (Way::Redis, "award:purchase:"),
    (Way::Http, "\"currency/award\""),
    (Way::Http, "/rest/v1/purchase_ledger"),
    (Way::Redis, "refund:"),
    (Way::Redis, "cancel:purchase:"),
    (Way::Http, "\"currency/cancelled\""),
    (Way::Redis, "reverse:purchase:"),
    (Way::Http, "\"currency/reverse\""),
];

/// Redis forgets everything between the steps. Every other time the daemon restarts too.
async fn with_an_empty_redis(stage: &mut Stage, act: u64, identity: &str) -> Act {
    stage.run_daemon();
    let mut plays = table::every_other(act, &STEADY);
    plays.extend(table::forgettable_lives(&STEADY, identity == "FULL"));
    for step in 0..steps(&plays) {
        stage.step(&plays, step).await;
        stage.settled().await;
        stage.settled_awards().await;
        if step % 2 == 0 {
            stage.kill_daemon();
            stage.empty_redis().await;
            stage.run_daemon();
        } else {
            stage.empty_redis().await;
        }
    }
    Act { name: "with an empty Redis".to_owned(), plays, emptied: true }
}

/// Plays whose awards have slept, and are credited before anything is taken back.
fn after_the_sleep(act: u64) -> Vec<Play> {
    let mut plays = table::every_other(act + 99, &[Merchant::Minute]);
    plays.retain(|play| play.style != Style::Whole && play.born == 1);
    plays
}

async fn until_credited(stage: &Stage, merchant: &str, plays: &[Play]) {
    let count = format!(
        "SELECT count(*) FROM wallet_ledger WHERE merchant_id = '{merchant}' AND component <> 'reversal'"
    );
    test_support::until_within(
        std::time::Duration::from_secs(90),
        "awards to be due",
        async || {
            let row = stage.crm.query_one(&count, &[]).await.expect("a count");
            let credited: i64 = row.get(0);
            (credited >= i64::try_from(plays.len()).expect("few")).then_some(())
        },
    )
    .await;
}

fn steps(plays: &[Play]) -> usize {
    plays.iter().map(|play| play.steps().len()).max().unwrap_or_default()
}
