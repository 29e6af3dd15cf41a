use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::testing::schema;
use super::*;

/// `change definition#member: detail`.
fn told(before: &Schema, after: &Schema) -> Vec<String> {
    let line = |Difference { change, definition, member, detail }: Difference| {
        let member = member.map(|member| format!("#{member}")).unwrap_or_default();
        let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        format!("{} {definition}{member}{detail}", change.as_str())
    };
    diff(before, after).into_iter().map(line).collect()
}

#[test]
fn each_difference_has_spicedbs_word() {
    let before = schema(
        "definition user {} definition gone { relation r: user }
         definition doc {
             relation reader: user | user:* relation writer: user relation lost: user#r
             permission view = reader + writer permission edit = writer permission old = nil
         }",
    );
    let after = schema(
        "definition user {} definition fresh {}
         definition doc {
             relation reader: user | group#member with hours relation writer: user
             relation owner: user | user:* with expiration
             permission view = writer + reader permission edit = writer permission new = owner->x
         }",
    );
    assert_eq!(
        told(&before, &after),
        [
            "removed-relation doc#lost: user#r",
            "added-relation doc#owner: user | user:* with expiration",
            "relation-allowed-type-removed doc#reader: user:*",
            "relation-allowed-type-added doc#reader: group#member with hours",
            "added-permission doc#new: owner->x",
            "removed-permission doc#old: nil",
            "changed-permission-implementation doc#view: writer + reader",
            "namespace-added fresh",
            "namespace-removed gone",
        ]
    );
}

#[test]
fn what_becomes_a_permission_is_a_relation_no_longer() {
    let before = schema("definition doc { relation view: user }");
    let after = schema("definition doc { permission view = nil }");
    let expected = ["removed-relation doc#view: user", "added-permission doc#view: nil"];
    assert_eq!(told(&before, &after), expected);
}

/// Name, parameters with their types, and expression of a caveat.
type Parts<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

fn caveats<const N: usize>(all: [Parts<'_>; N]) -> Schema {
    let caveat = |(name, parameters, expression): Parts<'_>| {
        let parameters =
            parameters.iter().map(|(name, of)| ((*name).into(), (*of).into())).collect();
        let expression = expression.as_bytes().into();
        (name.into(), Arc::new(Caveat { parameters, expression }))
    };
    let caveats: BTreeMap<_, _> = all.into_iter().map(caveat).collect();
    Schema { caveats, ..Schema::default() }
}

#[test]
fn caveats_differ_by_parameters_types_and_expressions() {
    let before = caveats([
        ("gone", &[], ""),
        ("hours", &[("a", "int"), ("b", "list<int>"), ("c", "any")], "a"),
        ("same", &[("a", "int")], "same"),
    ]);
    let after = caveats([
        ("fresh", &[], ""),
        ("hours", &[("a", "uint"), ("c", "any"), ("d", "map<any>")], "b"),
        ("same", &[("a", "int")], "same"),
    ]);
    assert_eq!(
        told(&before, &after),
        [
            "caveat-added fresh",
            "caveat-removed gone",
            "parameter-type-changed hours#a: int to uint",
            "removed-parameter hours#b: list<int>",
            "added-parameter hours#d: map<any>",
            "expression-has-changed hours",
        ]
    );
}

#[test]
fn a_computed_relation_differs_in_the_word_for_it() {
    let with = |expression| {
        let mut definition = Definition::default();
        let relation = Relation { subjects: None, computed: Some(expression) };
        definition.relations.insert("viewer".into(), relation);
        let definitions = [("doc".into(), Arc::new(definition))].into();
        Schema { definitions, ..Schema::default() }
    };
    let (this, nil) = (
        with(super::super::expression::Expression::This),
        with(super::super::expression::Expression::Nil),
    );
    assert_eq!(told(&this, &nil), ["legacy-changed-relation-implementation doc#viewer: nil"]);
    assert_eq!(told(&this, &this), [""; 0]);
}

#[test]
fn the_word_in_json_is_the_same() {
    for kind in Kind::ALL {
        let json = serde_json::to_value(kind).expect("JSON");
        assert_eq!(json, kind.as_str());
    }
}
