use proptest::prelude::*;

use super::super::diff::diff;
use super::super::testing::{
    change, fixture, live_schema, partitions, read, records, rows, schema,
};
use super::*;

/// Each with the schema that SQL showed at its end.
const RECORDINGS: [(&str, &str); 9] = [
    ("spicedb2/default.jsonl.gz", "spicedb2/live_schema.jsonl.gz"),
    ("spicedb2/default_living.jsonl.gz", "spicedb2/live_schema.jsonl.gz"),
    ("spicedb2/xids.jsonl.gz", "spicedb2/live_schema.jsonl.gz"),
    ("spicedb2/xids_keyed.jsonl.gz", "spicedb2/live_schema.jsonl.gz"),
    ("spicedb2/big_schema/big_schema.jsonl.gz", "spicedb2/big_schema/live_schema.jsonl.gz"),
    ("spicedb2/replayed/replayed_xids.jsonl.gz", "spicedb2/replayed/live_schema.jsonl.gz"),
    ("spicedb2/lost_place/lost_place_xids.jsonl.gz", "spicedb2/lost_place/live_schema.jsonl.gz"),
    (
        "spicedb2/lost_place/lost_place_xids_keyed.jsonl.gz",
        "spicedb2/lost_place/live_schema.jsonl.gz",
    ),
    (
        "spicedb2/lost_place/lost_place_default_living.jsonl.gz",
        "spicedb2/lost_place/live_schema.jsonl.gz",
    ),
];

fn current(state: &SchemaState) -> Schema {
    state.current().map(|schema| (*schema).clone()).unwrap_or_default()
}

/// Takes the partitions in an order that `random` decides, and some of the rows twice.
fn interleaved(state: &mut SchemaState, partitions: &[Vec<SchemaRow>], random: &mut fastrand::Rng) {
    let mut next = vec![0; partitions.len()];
    loop {
        let open: Vec<usize> =
            (0..partitions.len()).filter(|at| next[*at] < partitions[*at].len()).collect();
        let Some(at) = random.choice(open) else { return };
        // One partition may run far ahead of the others.
        for _ in 0..random.usize(1..30) {
            let Some(row) = partitions[at].get(next[at]) else { break };
            state.apply(row.clone());
            next[at] += 1;
        }
        if random.u8(0..4) == 0 {
            next[at] -= random.usize(0..=next[at].min(20));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The end is right in every setting, whatever the order of partitions, and after all of it again.
    #[test]
    fn exactly_the_living_schema_is_left_in_the_end(seed in any::<u64>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        for (recording, live) in RECORDINGS {
            let partitions = partitions(recording);
            let live = live_schema(live).schema;
            let mut state = SchemaState::default();
            for round in 0..2 {
                interleaved(&mut state, &partitions, &mut random);
                let current = current(&state);
                prop_assert_eq!(&current, &*live, "{}, round {}", recording, round);
                prop_assert_eq!(&current.text, &live.text, "{}", recording);
                prop_assert!(state.is_whole(), "{}", recording);
            }
        }
    }

    /// Looked at whenever, what is told leads from nothing to the end.
    #[test]
    fn the_differences_lead_from_nothing_to_the_end(seed in any::<u64>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        for (recording, live) in RECORDINGS {
            let mut state = SchemaState::default();
            let mut told = Schema::default();
            for (_, row) in rows(recording).iter() {
                state.apply(row.clone());
                if random.u8(0..4) == 0 {
                    let now = current(&state);
                    let differences = diff(&told, &now);
                    change(&mut told, &now, &differences);
                    prop_assert_eq!(&told, &now, "{}: something was not told", recording);
                }
            }
            let now = current(&state);
            let differences = diff(&told, &now);
            change(&mut told, &now, &differences);
            prop_assert_eq!(&told, &*live_schema(live).schema, "{}", recording);
        }
    }
}

/// The rows of one transaction after another, as one sees them who waits until all has settled. The
/// differences of each, where there are any.
fn by_transaction(recording: &str) -> Vec<(u64, String)> {
    let mut all: BTreeMap<u64, Vec<SchemaRow>> = BTreeMap::new();
    for (_, row) in rows(recording).iter() {
        let Commit::Xid(xid) = row.commit else { panic!("{row:?}") };
        all.entry(xid).or_default().push(row.clone());
    }
    let (mut state, mut before) = (SchemaState::default(), Schema::default());
    let mut told = Vec::new();
    for (xid, rows) in all {
        for row in rows {
            state.apply(row);
        }
        assert!(state.is_whole(), "{recording}: {xid}");
        let after = current(&state);
        let differences = diff(&before, &after).into_iter().map(|of| {
            let member = of.member.map(|member| format!("#{member}")).unwrap_or_default();
            format!("{} {}{member}", of.change.as_str(), of.definition)
        });
        told.push((xid, differences.collect::<Vec<_>>().join(", ")));
        before = after;
    }
    told.retain(|(_, differences)| !differences.is_empty());
    told
}

#[test]
fn what_changed_in_a_recording_is_told_once_and_by_the_transaction_that_changed_it() {
    let told = by_transaction("spicedb2/xids.jsonl.gz");
    assert_eq!(told, by_transaction("spicedb2/xids_keyed.jsonl.gz"));
    let xids: Vec<u64> = told.iter().map(|(xid, _)| *xid).collect();
    // Without 1063, in which a migration copies the schema into the newer form, and without 1068,
    // 1100 and 1114, which write the same text again. Only SpiceDB's cache keys come and go.
    let of_changes = [
        824, 894, 992, 993, 994, 995, 996, 997, 998, 999, 1004, 1005, 1064, 1065, 1066, 1067, 1097,
        1098, 1099, 1109, 1110, 1111, 1112, 1113, 1118, 1119, 1215,
    ];
    assert_eq!(xids, of_changes);
    let of = |xid: u64| told.iter().find(|(of, _)| *of == xid).map_or("", |(_, told)| told);
    let report = "relation-allowed-type-removed document#viewer, \
        relation-allowed-type-added document#viewer, relation-allowed-type-removed team#lead";
    // In the older form, in both, and in the newer one.
    assert_eq!(of(994), format!("namespace-added acme/report, {report}"));
    let with_caveat = format!("namespace-added acme/report, {report}, caveat-added under_quota");
    assert_eq!([of(1065), of(1110)], [&*with_caveat, &*with_caveat]);
    let parameter = "changed-permission-implementation document#view, \
        added-parameter under_quota#soft, expression-has-changed under_quota";
    assert_eq!([of(995), of(1111)], [parameter, parameter]);
    assert_eq!(of(1215), "added-relation document#approver, added-permission document#approve");
}

#[test]
fn without_transactions_and_without_trust_only_what_is_streamed_counts() {
    let mut state = SchemaState::default();
    for record in records("spicedb2/default.jsonl.gz") {
        if let Ok(row) = read(&record, crate::consumers::kessel::row::Reading::default()) {
            state.apply(row);
        }
    }
    assert_eq!(current(&state), *live_schema("spicedb2/live_schema.jsonl.gz").schema);
}

#[test]
fn the_older_form_alone_ends_with_the_living_definitions() {
    #[derive(serde::Deserialize)]
    struct Living {
        namespace: Option<String>,
        name: Option<String>,
    }
    let living = |name: &str| -> BTreeSet<String> {
        let text = fixture(name);
        let rows = text.lines().map(|line| serde_json::from_str::<Living>(line).expect("a row"));
        rows.filter_map(|row| row.namespace.or(row.name)).collect()
    };
    for (recording, folder) in [
        ("spicedb/xids.jsonl.gz", "spicedb"),
        ("spicedb/xids_keyed.jsonl.gz", "spicedb"),
        ("spicedb/default.jsonl.gz", "spicedb"),
        ("spicedb2/xids.jsonl.gz", "spicedb2"),
        ("spicedb2/xids_keyed.jsonl.gz", "spicedb2"),
    ] {
        let mut state = SchemaState::default();
        for row in partitions(recording).into_iter().flatten() {
            if matches!(row.part, Part::Definition(..) | Part::Caveat(..)) {
                state.apply(row);
            }
        }
        let schema = current(&state);
        let names: BTreeSet<String> =
            schema.definitions.keys().map(|name| (**name).into()).collect();
        assert_eq!(names, living(&format!("{folder}/live_namespaces.jsonl.gz")), "{recording}");
        if folder == "spicedb2" {
            let names: BTreeSet<String> =
                schema.caveats.keys().map(|name| (**name).into()).collect();
            assert_eq!(names, living("spicedb2/live_caveats.jsonl.gz"), "{recording}");
            assert_eq!(schema.text, None);
        }
    }
}

/// Rows that a test writes itself: `user` with a relation of this name.
fn definition(relation: &str, created: u64, deleted: Option<u64>) -> SchemaRow {
    let schema = schema(&format!("definition user {{ relation {relation}: user }}"));
    let content = schema.definitions["user"].clone();
    row(Part::Definition("user".into(), deleted.is_none().then_some(content)), created, deleted)
}

fn row(part: Part, created: u64, deleted: Option<u64>) -> SchemaRow {
    let commit = Commit::Xid(deleted.unwrap_or(created));
    SchemaRow { part, created_xid: Some(created), commit, written_by: created, offset: 0 }
}

/// A stored schema of one definition, in pieces of `size` bytes.
fn chunks(definition: &str, size: usize) -> Vec<Arc<[u8]>> {
    // StoredSchema { version: 1, v1: { hash, namespace_definitions: { definition: its name } } }
    let field = |tag: u8, bytes: &[u8]| {
        [&[tag << 3 | 2, u8::try_from(bytes.len()).expect("short")], bytes].concat()
    };
    let name = field(1, definition.as_bytes());
    let entry = [name.clone(), field(2, &name)].concat();
    let v1 = [field(2, definition.as_bytes()), field(3, &entry)].concat();
    let stored = [vec![8, 1], field(2, &v1)].concat();
    stored.chunks(size).map(Into::into).collect()
}

fn names(state: &SchemaState) -> String {
    let schema = current(state);
    schema.definitions.keys().map(|name| &**name).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_row_that_is_dead_never_lives_again() {
    let mut state = SchemaState::default();
    assert!(state.apply(definition("a", 5, Some(7))));
    assert!(!state.apply(definition("a", 5, None)));
    assert!(!state.apply(definition("a", 5, Some(7))));
    assert_eq!(names(&state), "");
    assert!(state.apply(definition("b", 7, None)));
    assert!(!state.apply(definition("b", 7, None)));
    assert_eq!(names(&state), "user");
}

#[test]
fn while_a_marking_has_yet_to_come_the_later_row_counts() {
    let mut state = SchemaState::default();
    state.apply(definition("late", 7, None));
    state.apply(definition("early", 5, None));
    let relations = current(&state).definitions["user"].relations.clone();
    assert_eq!(relations.keys().map(|name| &**name).collect::<Vec<_>>(), ["late"]);
}

#[test]
fn chunks_are_put_together_in_any_order() {
    let pieces = chunks("document", 6);
    assert!(pieces.len() > 3);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..50 {
        let mut rows: Vec<SchemaRow> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let index = u32::try_from(index).expect("few");
            rows.push(row(Part::Chunk(index, Some(piece.clone())), 5, None));
        }
        random.shuffle(&mut rows);
        let last = rows.pop().expect("a row");
        let mut state = SchemaState::default();
        for row in rows {
            state.apply(row);
            assert_eq!(names(&state), "", "not before all are there");
            assert!(!state.is_whole());
        }
        state.apply(last);
        assert_eq!(names(&state), "document");
        assert!(state.is_whole());
    }
}

#[test]
fn a_schema_of_fewer_chunks_needs_no_marking_of_the_former_ones() {
    let mut state = SchemaState::default();
    for (index, piece) in chunks("document", 6).into_iter().enumerate() {
        let index = u32::try_from(index).expect("few");
        state.apply(row(Part::Chunk(index, Some(piece)), 5, None));
    }
    let whole = chunks("report", 1000).remove(0);
    state.apply(row(Part::Chunk(0, Some(whole)), 9, None));
    assert_eq!(names(&state), "report");
    state.apply(row(Part::Chunk(0, None), 5, Some(9)));
    assert_eq!(names(&state), "report");
}

#[test]
fn the_last_whole_schema_stands_while_the_next_one_is_half_read() {
    let mut state = SchemaState::default();
    state.apply(row(Part::Chunk(0, Some(chunks("document", 1000).remove(0))), 5, None));
    state.apply(row(Part::Hash(Some("document".into())), 5, None));
    assert!(state.is_whole());
    state.apply(row(Part::Chunk(0, None), 5, Some(9)));
    assert_eq!((names(&state).as_str(), state.is_whole()), ("document", false));
    state.apply(row(Part::Chunk(0, Some(chunks("report", 6).remove(0))), 9, None));
    assert_eq!((names(&state).as_str(), state.is_whole()), ("document", false));
    for (index, piece) in chunks("report", 6).into_iter().enumerate() {
        let index = u32::try_from(index).expect("few");
        state.apply(row(Part::Chunk(index, Some(piece)), 9, None));
    }
    assert_eq!((names(&state).as_str(), state.is_whole()), ("report", false), "another hash");
    state.apply(row(Part::Hash(Some("report".into())), 9, None));
    assert!(state.is_whole());
}

#[test]
fn the_form_with_the_later_commit_counts() {
    let stored = |xid| row(Part::Chunk(0, Some(chunks("document", 1000).remove(0))), xid, None);
    for (legacy, unified, expected) in [(5, 4, "user"), (5, 5, "document"), (5, 6, "document")] {
        for legacy_first in [true, false] {
            let mut rows = vec![definition("a", legacy, None), stored(unified)];
            if !legacy_first {
                rows.reverse();
            }
            let mut state = SchemaState::default();
            for row in rows {
                state.apply(row);
            }
            assert_eq!(names(&state), expected, "{legacy} and {unified}");
        }
    }
    let mut state = SchemaState::default();
    state.apply(stored(6));
    state.apply(definition("a", 5, None));
    state.apply(definition("a", 5, Some(7)));
    assert_eq!(
        (state.form(), names(&state).as_str()),
        (Some(Form::Legacy), ""),
        "a marking counts"
    );
}

#[test]
fn of_a_snapshot_that_does_not_say_when_the_rows_were_written_the_older_form_counts() {
    for (streamed, expected) in [(false, "user"), (true, "document")] {
        let commit = Commit::Place { at: 5, streamed };
        let untold = |part| SchemaRow { part, created_xid: None, commit, written_by: 1, offset: 0 };
        let mut state = SchemaState::default();
        state.apply(untold(Part::Chunk(0, Some(chunks("document", 1000).remove(0)))));
        state.apply(untold(definition("a", 1, None).part));
        assert_eq!(names(&state), expected);
    }
}

#[test]
fn before_the_first_row_there_is_no_schema() {
    let state = SchemaState::default();
    assert_eq!((state.current(), state.form(), state.is_whole()), (None, None, true));
}
