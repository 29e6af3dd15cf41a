//! Behaviour section 8.2: a finished change is recognised without any claim, however late it comes
//! again. No true change is taken for a replay.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crm_event_processors::cdc::{self, Decoded, Options};
use crm_event_processors::engine::intake;
use crm_event_processors::engine::partition::replay_index::{Finished, LoggedChange, ReplayIndex};
use crm_event_processors::recording::Recorded;

use super::world::World;
use test_support::recordings::recorded;

/// The logged changes of a recording's changes, in order.
fn logged_changes(records: impl Iterator<Item = Recorded>) -> Vec<LoggedChange> {
    let logged = |record: Recorded| {
        record.lend(|record| match cdc::decode(record, &Options::default()) {
            Ok(Decoded::Change(change)) => intake::logged(&change, record.key),
            _ => None,
        })
    };
    records.filter_map(logged).collect()
}

type Identity = (u32, u32, u64, Option<u64>);

fn identity(logged: &LoggedChange) -> Identity {
    (logged.source, logged.tie, logged.position.lsn, logged.position.tx_id)
}

/// Plays a partition's changes, which end in random order while up to `lag` of them are open.
/// Answers how many copies of ended changes were not recognised, and how many true changes were
/// taken for copies.
fn play(logged_changes: &[LoggedChange], lag: usize, random: &mut fastrand::Rng) -> (usize, usize) {
    let (mut replay_index, mut finished) = (ReplayIndex::default(), Finished::default());
    let mut open: VecDeque<(LoggedChange, bool)> = VecDeque::new();
    let (mut seen, mut ended) = (HashSet::new(), HashSet::new());
    let (mut missed, mut false_replays) = (0, 0);
    for logged in logged_changes {
        let replay = replay_index.covers(logged) || finished.contains(logged);
        let copy = !seen.insert(identity(logged));
        missed += usize::from(ended.contains(&identity(logged)) && !replay);
        false_replays += usize::from(!copy && replay);
        open.push_back((*logged, false));
        while open.iter().filter(|(_, done)| !done).count() >= lag {
            let at = random.usize(0..open.len());
            if std::mem::replace(&mut open[at].1, true) {
                continue;
            }
            finished.insert(&open[at].0);
            ended.insert(identity(&open[at].0));
            while let Some((logged, true)) = open.front() {
                finished.remove(logged);
                replay_index.pass(logged);
                open.pop_front();
            }
        }
    }
    (missed, false_replays)
}

#[test]
fn whatever_ends_first_every_finished_change_is_known_and_no_true_change_is_taken_for_one() {
    let mut random = fastrand::Rng::with_seed(11);
    for name in [
        "load_50k.jsonl.gz",
        "J_restart_replay.jsonl.gz",
        "A_json_precise_adaptive.jsonl.gz",
        "life/full.jsonl.gz",
        "life/default.jsonl.gz",
    ] {
        let mut partitions: BTreeMap<(String, i32), Vec<Recorded>> = BTreeMap::new();
        for record in recorded(name) {
            let partition = (record.topic.clone(), record.partition);
            partitions.entry(partition).or_default().push(record);
        }
        let mut changes = 0;
        for (partition, records) in partitions {
            let logged_changes = logged_changes(records.into_iter());
            changes += logged_changes.len();
            for lag in [1, 5, 60] {
                let found = play(&logged_changes, lag, &mut random);
                let place = format!("{name} {partition:?} with {lag} open");
                assert_eq!(found, (0, 0), "{place}: (missed, taken for copies)");
            }
        }
        assert!(changes > 0, "{name} holds changes");
    }
}

/// The purchases of a recording without debits, since their originals would be missing.
fn purchases(name: &str) -> Vec<Recorded> {
    let debit = |record: &Recorded| {
        let value = record.value.as_deref().unwrap_or_default();
        String::from_utf8_lossy(value).contains(r#""record_type":"debit""#)
    };
    recorded(name)
        .filter(|record| record.topic.ends_with(".purchase_ledger") && !debit(record))
        .collect()
}

/// The index of each copy's original.
fn copies(records: &[Recorded]) -> Vec<(usize, usize)> {
    let mut first = HashMap::new();
    let mut copies = Vec::new();
    for (at, record) in records.iter().enumerate() {
        for logged in logged_changes(std::iter::once(record.clone())) {
            let original = *first.entry(identity(&logged)).or_insert(at);
            if original != at {
                copies.push((original, at));
            }
        }
    }
    copies
}

/// Each event that has an id once, each cancel once.
fn assert_once_each(world: &World) -> usize {
    world.fake.inspect(|log| {
        let mut seen = HashSet::new();
        for event in &log.events {
            let name = match &event.id {
                Some(id) => id.to_string(),
                None => format!("{} {:?}", event.name, event.data),
            };
            assert!(seen.insert(name.clone()), "{name} was sent twice");
        }
        seen.len()
    })
}

#[tokio::test]
async fn copies_that_come_after_a_restart_and_without_claims_send_nothing() {
    let records = purchases("load_50k.jsonl.gz");
    let copies = copies(&records);
    let (original, copy) = copies[0];
    let originals: Vec<&Recorded> = records[original..copy].iter().collect();
    let again: Vec<&Recorded> = copies
        .iter()
        .filter(|(original, _)| *original < copy)
        .map(|(_, copy)| &records[*copy])
        .collect();
    // Only the last stretch before the copies, to save time: the rest proves the same.
    let originals = &originals[originals.len().saturating_sub(400)..];
    assert!(!again.is_empty() && !originals.is_empty());

    let world = World::new().await;
    world.replay(originals).await;
    let daemon = world.start_with("INNGEST_CANCEL_SETTLE", "10ms");
    world.until_committed(originals.len() as i64).await;
    daemon.kill();
    let (events, calls) = (assert_once_each(&world), world.calls());
    assert!(events > 0);

    world.forget_claims().await;
    world.replay(&again).await;
    let daemon = world.start_with("INNGEST_CANCEL_SETTLE", "10ms");
    world.until_committed((originals.len() + again.len()) as i64).await;
    daemon.kill();
    assert_eq!((assert_once_each(&world), world.calls()), (events, calls));
}

#[tokio::test]
async fn a_connector_that_was_killed_and_sends_again_causes_one_event_each() {
    let records = purchases("J_restart_replay.jsonl.gz");
    let first_copy = copies(&records)[0].1;
    let all: Vec<&Recorded> = records.iter().collect();
    let world = World::new().await;
    let start = || world.start_with("SNAPSHOT_POLICY", "skip");
    let daemon = start();
    world.replay(&all[..first_copy]).await;
    world.until_committed(first_copy as i64).await;
    world.forget_claims().await;
    world.replay(&all[first_copy..]).await;
    world.until_committed(all.len() as i64).await;
    daemon.kill();
    assert!(assert_once_each(&world) > 0);
}

#[tokio::test]
async fn a_record_that_was_set_aside_is_recognised_too_when_the_connector_sends_it_again() {
    let mut world = World::new().await;
    let daemon = world.start();
    let first = world.purchase().await;
    let malformed = world.malformed();
    world.replay(&[&malformed]).await;
    world.until_committed(2).await;
    world.replay(&[&malformed]).await;
    let last = world.purchase().await;
    world.until_awarded(&last).await;
    world.until_committed(4).await;
    assert!(daemon.stop().success(), "a clean stop");
    assert_eq!((world.awards(&first), world.letters().await), (1, 1), "set aside once");
}
