use proptest::prelude::*;

use super::*;
use crate::engine::partition::replay_index::LoggedChange;

fn replay_index() -> impl Strategy<Value = ReplayIndex> {
    let logged = (
        0_u32..3,
        prop::option::of(any::<u64>()),
        any::<u64>(),
        prop::option::of(any::<u64>()),
        0..i64::MAX,
        any::<u32>(),
    )
        .prop_map(|(source, first, lsn, tx_id, commit_us, tie)| LoggedChange {
            source,
            position: Position { first, lsn, tx_id, commit_us },
            tie,
        });
    prop::collection::vec(logged, 0..20).prop_map(|logged_changes| {
        let mut replay_index = ReplayIndex::default();
        logged_changes.iter().for_each(|logged| replay_index.pass(logged));
        replay_index
    })
}

fn log() -> impl Strategy<Value = Log> {
    let id = (any::<u32>(), any::<(i64, i64)>());
    let topic = prop::option::of(id.prop_map(|(cluster, id)| TopicId { cluster, id }));
    let newest_ms = prop::option::of(0..i64::MAX);
    (topic, newest_ms).prop_map(|(topic, newest_ms)| Log { topic, newest_ms })
}

proptest! {
    #[test]
    fn what_is_committed_comes_back(
        log in log(),
        replay_index in replay_index(),
        committable in 0_i64..1_000_000,
        done in prop::collection::btree_set(1_i64..3_000, 0..500),
    ) {
        let map = OffsetMap::from_ascending(done.iter().map(|offset| committable + offset));
        let text = encode(committable, log, &replay_index, &map);
        prop_assert!(text.len() <= MAX_BYTES && text.is_ascii());
        prop_assert_eq!(decode(committable, &text), Ok(Kept { log, replay_index, completed: map }));
    }

    #[test]
    fn beside_another_offset_it_is_worth_nothing(
        replay_index in replay_index(),
        made_for in 0_i64..1_000,
        beside in 0_i64..1_000,
        done in prop::collection::btree_set(1_i64..100, 0..50),
    ) {
        prop_assume!(made_for != beside);
        let map = OffsetMap::from_ascending(done.iter().map(|offset| made_for + offset));
        let text = encode(made_for, Log::default(), &replay_index, &map);
        prop_assert_eq!(decode(beside, &text), Err(Untold::OfOffset(made_for)));
    }

    #[test]
    fn a_map_that_does_not_fit_loses_its_far_end_only(
        done in prop::collection::btree_set(1_i64..200_000, 0..40_000),
    ) {
        let map = OffsetMap::from_ascending(done.iter().copied());
        let text = encode(0, Log::default(), &ReplayIndex::default(), &map);
        prop_assert!(text.len() <= MAX_BYTES);
        let kept = decode(0, &text).expect("own encoding").completed;
        let last = kept.runs().last().map_or(0, |(_, end)| *end);
        for offset in &done {
            prop_assert_eq!(kept.contains(*offset), *offset < last);
        }
    }

    #[test]
    fn what_others_left_is_ignored(text in ".{0,200}") {
        let _known_or_not = decode(7, &text);
    }
}

#[test]
fn ten_thousand_in_flight_fit_easily() {
    let map = OffsetMap::from_ascending((1..10_000).filter(|offset| offset % 3 == 0));
    assert!(encode(0, Log::default(), &ReplayIndex::default(), &map).len() <= 1_700);
}

#[test]
fn of_metadata_that_does_not_name_its_offset_only_the_positions_count() {
    // Written for offset 7, with 9 and 10 completed.
    let text = "1AQEAAAACAcgBzQEBCegHAQIAAAAAAgI";
    let position = Position { first: Some(200), lsn: 205, tx_id: Some(9), commit_us: 1_000 };
    let mut replay_index = ReplayIndex::default();
    replay_index.pass(&LoggedChange { source: 1, position, tie: 2 });
    assert_eq!(decode(7, text), Ok(Kept { replay_index, ..Kept::default() }));
}

#[test]
fn many_changes_at_one_position_are_bounded() {
    let mut replay_index = ReplayIndex::default();
    for tie in 0..10_000 {
        let position = Position { first: Some(1), lsn: 2, tx_id: Some(3), commit_us: 4 };
        replay_index.pass(&LoggedChange { source: 1, position, tie });
    }
    assert!(encode(0, Log::default(), &replay_index, &OffsetMap::default()).len() <= MAX_BYTES);
}

#[test]
fn of_many_tables_with_many_changes_at_one_position_the_last_position_is_kept() {
    let mut replay_index = ReplayIndex::default();
    for (source, tie) in (0..20).flat_map(|source| (0..300).map(move |tie| (source, tie))) {
        let position = Position { first: Some(1), lsn: 2, tx_id: Some(3), commit_us: 4 };
        replay_index.pass(&LoggedChange { source, position, tie });
    }
    let text = encode(0, Log::default(), &replay_index, &OffsetMap::default());
    assert!(text.len() <= MAX_BYTES);
    let kept = decode(0, &text).expect("own encoding").replay_index;
    let before = Position { first: Some(1), lsn: 1, tx_id: Some(3), commit_us: 4 };
    assert!((0..20).all(|source| kept.covers(&LoggedChange { source, position: before, tie: 0 })));
}
