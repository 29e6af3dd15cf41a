use super::*;
use crate::engine::partition::metadata::Kept;

fn partition(start: Start) -> Partition {
    Partition::new(start, None, &CancellationToken::new(), Timestamp::UNIX_EPOCH)
}

fn start(offset: i64) -> Start {
    let text =
        metadata::encode(offset, Log::default(), &ReplayIndex::default(), &Default::default());
    let Kept { log, replay_index, completed } = metadata::decode(offset, &text).expect("its own");
    Start {
        topic: "t".to_owned(),
        partition: 0,
        offset,
        replay_index,
        log,
        completed,
        committed: Some(offset),
        unknown: false,
        lost: None,
        metadata_of: None,
    }
}

fn handle(partition: &mut Partition, offset: i64, written_ms: i64) {
    let passed = Passed { logged: None, written: Some((written_ms, offset)) };
    assert_eq!(partition.admit(offset, passed, 1, Instant::now()), Admission::Fresh);
    assert!(partition.complete(offset, 1, Instant::now()));
}

#[test]
fn metadata_that_was_made_for_another_offset_is_replaced_at_once() {
    assert!(!partition(start(5)).has_uncommitted());
    let mut partition = partition(Start { metadata_of: Some(9), ..start(5) });
    assert!(partition.has_uncommitted());
    let commit = partition.commit();
    assert!(metadata::decode(5, &commit.metadata).is_ok());
    assert!(!partition.has_uncommitted());
}

#[test]
fn a_commit_tells_when_the_newest_record_that_it_passed_was_written() {
    let mut partition = partition(start(5));
    for (offset, written_ms) in [(5, 100), (6, 300), (7, 200)] {
        handle(&mut partition, offset, written_ms);
    }
    let open = Passed { logged: None, written: Some((400, 8)) };
    assert_eq!(partition.admit(8, open, 1, Instant::now()), Admission::Fresh);
    let commit = partition.commit();
    let kept = metadata::decode(commit.offset, &commit.metadata).expect("its own");
    assert_eq!((commit.offset, kept.log.newest_ms), (8, Some(300)));
}

#[test]
fn a_log_in_which_a_newer_record_has_the_place_of_a_finished_one_was_cut_back() {
    let mut partition = partition(start(5));
    for (offset, written_ms) in [(5, 100), (6, 200), (7, 300)] {
        handle(&mut partition, offset, written_ms);
    }
    assert!(!partition.was_cut_back(20, 7), "the newest one is where it was");
    assert!(partition.was_cut_back(20, 6), "another has its place");
    assert!(partition.was_cut_back(6, 6), "it ends before what comes next");
}
