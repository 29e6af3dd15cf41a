use super::super::proto;
use super::super::rows::Part;
use super::super::testing::{fixture, live_schema, partitions, read, records, schema};
use super::*;
use crate::consumers::kessel::row::Reading;

const RECORDINGS: [&str; 9] = [
    "spicedb/default.jsonl.gz",
    "spicedb/xids_keyed.jsonl.gz",
    "spicedb2/default.jsonl.gz",
    "spicedb2/xids.jsonl.gz",
    "spicedb2/xids_keyed.jsonl.gz",
    "spicedb2/big_schema/big_schema.jsonl.gz",
    "spicedb2/lost_place/lost_place_xids.jsonl.gz",
    "spicedb2/replayed/replayed_xids.jsonl.gz",
    "spicedb2/replayed/replayed_default_living.jsonl.gz",
];

#[test]
fn every_recorded_definition_and_caveat_is_read_and_nothing_in_it_is_unknown() {
    let mut seen = BTreeSet::new();
    for recording in RECORDINGS {
        for row in partitions(recording).into_iter().flatten() {
            match row.part {
                Part::Definition(_, Some(definition)) => {
                    let known =
                        definition.permissions.values().all(|of| !of.to_string().contains('?'));
                    assert!(known, "{recording}: {definition:?}");
                    for (name, relation) in &definition.relations {
                        assert!(
                            !relation.to_string().is_empty(),
                            "{recording}: {name} allows nobody"
                        );
                        assert_eq!(relation.computed, None, "{recording}: {name}");
                    }
                    seen.insert("definition");
                }
                Part::Caveat(_, Some(caveat)) => {
                    assert!(!caveat.parameters.is_empty() && !caveat.expression.is_empty());
                    seen.insert("caveat");
                }
                Part::Chunk(_, Some(_)) => drop(seen.insert("chunk")),
                Part::Hash(Some(hash)) => {
                    assert_eq!(hash.len(), 64, "{recording}");
                    seen.insert("hash");
                }
                _ => drop(seen.insert("dead")),
            }
        }
    }
    assert_eq!(seen, BTreeSet::from(["caveat", "chunk", "dead", "definition", "hash"]));
}

#[test]
fn no_recorded_row_is_refused() {
    let reasons: BTreeSet<_> = RECORDINGS
        .iter()
        .flat_map(|recording| records(recording))
        .filter_map(|record| read(&record, Reading::default()).err())
        .collect();
    let expected = ["garbage_collected", "key_change", "snapshot_not_trusted", "tombstone"];
    assert_eq!(reasons, BTreeSet::from(expected));
}

#[test]
fn the_stored_schema_says_what_its_text_says() {
    let text = fixture("spicedb2/schema.txt.gz");
    let stored = live_schema("spicedb2/live_schema.jsonl.gz");
    let expected = schema(&text);
    assert_eq!(stored.schema.definitions, expected.definitions);
    assert!(stored.schema.caveats.keys().eq(expected.caveats.keys()));
    assert_eq!(stored.schema.text.as_deref().map(str::trim), Some(text.trim()));
    let document = &stored.schema.definitions["document"];
    let view = document.permissions["view"].to_string();
    assert_eq!(view, "(viewer + owner + guest + parent->view) - banned");
}

#[test]
fn a_part_of_a_stored_schema_is_never_taken_for_the_whole() {
    let v1 =
        proto::V1StoredSchema { schema_text: "definition user {}".into(), ..Default::default() };
    let bytes = proto::StoredSchema { version: 1, v1: Some(v1) }.encode_to_vec();
    assert!(Stored::decode(&bytes).is_ok());
    for end in 0..bytes.len() {
        assert!(Stored::decode(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
    }
}

#[test]
fn subjects_read_as_in_a_schemas_text() {
    for text in [
        "user",
        "user:*",
        "group#member",
        "user with office_hours",
        "user:* with expiration",
        "group#member with office_hours and expiration",
    ] {
        let schema = schema(&format!("definition doc {{ relation reader: {text} }}"));
        assert_eq!(schema.definitions["doc"].relations["reader"].to_string(), text);
    }
}

#[test]
fn expressions_read_as_in_a_schemas_text() {
    for text in [
        "nil",
        "owner",
        "self + owner",
        "parent->view + parent.any(view) + parent.all(view)",
        "(owner + parent->view) & approved",
        "(owner & reader) - (banned + (late - pardoned))",
    ] {
        let schema = schema(&format!("definition doc {{ permission view = {text} }}"));
        assert_eq!(schema.definitions["doc"].permissions["view"].to_string(), text);
    }
}

fn child(child_type: Option<proto::ChildType>) -> proto::UsersetRewrite {
    let operation = proto::SetOperation { child: vec![proto::Child { child_type }] };
    proto::UsersetRewrite { rewrite_operation: Some(proto::RewriteOperation::Union(operation)) }
}

#[test]
fn an_operand_that_a_newer_spicedb_has_added_is_unknown_and_not_left_out() {
    let unknown = Expression::Union([Expression::Unknown].into());
    assert_eq!(Expression::read(&child(None)), unknown);
    let function = proto::FunctionedTupleToUserset { function: 7, ..Default::default() };
    let function = proto::ChildType::FunctionedTupleToUserset(function);
    assert_eq!(Expression::read(&child(Some(function))), unknown);
    assert_eq!(Expression::read(&proto::UsersetRewrite::default()), Expression::Unknown);
}

#[test]
fn a_relation_without_metadata_is_one_although_it_is_computed() {
    let relation = proto::Relation {
        name: "viewer".into(),
        userset_rewrite: Some(child(Some(proto::ChildType::This(proto::Empty {})))),
        ..Default::default()
    };
    let definition = proto::NamespaceDefinition { name: "doc".into(), relation: vec![relation] };
    let definition = Definition::decode(&definition.encode_to_vec()).expect("a definition");
    let computed = Some(Expression::Union([Expression::This].into()));
    assert_eq!(definition.relations["viewer"], Relation { subjects: None, computed });
    assert!(definition.permissions.is_empty());
}

#[test]
fn where_a_caveats_parts_stand_in_its_text_and_in_which_order_they_are_stored_is_no_difference() {
    let caveat = |maps: [&[u8]; 2], positions: &[u8]| {
        let cel = proto::CheckedExpr {
            reference_map: maps.map(Into::into).into(),
            type_map: maps.map(Into::into).into(),
            expr: b"expression".into(),
        };
        // `source_info` has the tag 5.
        let mut cel = cel.encode_to_vec();
        cel.extend([0x2a, u8::try_from(positions.len()).expect("short")]);
        cel.extend(positions);
        let mut bytes = vec![0x0a, u8::try_from(cel.len()).expect("short")];
        bytes.extend(cel);
        without_positions(&bytes)
    };
    let was = caveat([b"a", b"b"], b"line 1");
    assert_eq!(was, caveat([b"b", b"a"], b"line 17"));
    assert_ne!(was, caveat([b"a", b"c"], b"line 1"));
    assert!(!was.is_empty());
    assert_eq!(&*without_positions(b"no CEL"), b"no CEL");
}
