use super::super::diff::diff;
use super::super::testing::{live_schema, schema};
use super::*;

/// The types that depend on `type#relation`, in a line.
fn reached(text: &str, relation: &str) -> String {
    of(&Reach::new(&schema(text)), relation)
}

fn of(reach: &Reach, relation: &str) -> String {
    let (namespace, member) = relation.split_once('#').expect("a relation");
    reach.of(namespace, member).unwrap_or_else(|| panic!("{relation} is not known")).join(" ")
}

const GROUPS: &str = "definition user {}
    definition group { relation member: user | group#member relation owner: user }
    definition document { relation viewer: user | group#member permission view = viewer }
    definition lonely { relation viewer: user permission view = viewer }";

#[test]
fn members_of_a_group_that_may_view_reach_what_they_view() {
    assert_eq!(reached(GROUPS, "group#member"), "document group");
}

#[test]
fn what_nobody_depends_on_reaches_its_own_type_alone() {
    assert_eq!(reached(GROUPS, "group#owner"), "group");
    assert_eq!(reached(GROUPS, "document#viewer"), "document");
    assert_eq!(reached(GROUPS, "lonely#viewer"), "lonely");
}

#[test]
fn a_user_set_counts_although_no_permission_asks_for_it() {
    let text = "definition group { relation member: user }
        definition document { relation viewer: group#member }";
    assert_eq!(reached(text, "group#member"), "document group");
}

#[test]
fn a_wildcard_depends_on_no_relation_of_its_type() {
    let text = "definition user { relation friend: user }
        definition document { relation viewer: user:* permission view = viewer }";
    assert_eq!(reached(text, "user#friend"), "user");
}

#[test]
fn an_arrow_reaches_by_the_relation_it_walks_and_by_what_it_walks_to() {
    let text =
        "definition folder { relation viewer: user relation other: user permission view = viewer }
        definition document { relation parent: folder permission view = parent->view }
        definition comment { relation on: document permission view = on->view }";
    assert_eq!(reached(text, "folder#viewer"), "comment document folder");
    assert_eq!(reached(text, "document#parent"), "comment document");
    assert_eq!(reached(text, "comment#on"), "comment");
    assert_eq!(reached(text, "folder#other"), "folder");
}

#[test]
fn an_arrow_leads_only_to_the_types_that_its_relation_allows() {
    let text = "definition folder { relation viewer: user permission view = viewer }
        definition shelf { relation viewer: user permission view = viewer }
        definition document { relation parent: folder permission view = parent->view }";
    assert_eq!(reached(text, "shelf#viewer"), "shelf");
    assert_eq!(reached(text, "folder#viewer"), "document folder");
}

#[test]
fn functioned_arrows_reach_as_others_do() {
    for arrow in ["team.any(member)", "team.all(member)"] {
        let text = format!(
            "definition team {{ relation member: user }}
             definition project {{ relation team: team permission edit = {arrow} }}"
        );
        assert_eq!(reached(&text, "team#member"), "project team", "{arrow}");
    }
}

#[test]
fn every_operand_of_intersections_and_exclusions_counts() {
    for expression in ["one & (two - three)", "(one + two) - three", "nil - (one & two & three)"] {
        let text = format!(
            "definition part {{ relation one: user relation two: user relation three: user
                 permission all = {expression} }}
             definition whole {{ relation part: part permission view = part->all }}"
        );
        for relation in ["part#one", "part#two", "part#three"] {
            assert_eq!(reached(&text, relation), "part whole", "{expression}: {relation}");
        }
    }
}

#[test]
fn a_permission_may_be_the_relation_of_a_subject() {
    let text = "definition group { relation lead: user relation member: user relation guest: user
            permission all = lead + member }
        definition document { relation viewer: group#all permission view = viewer }";
    assert_eq!(reached(text, "group#lead"), "document group");
    assert_eq!(reached(text, "group#guest"), "group");
}

#[test]
fn an_arrow_over_user_sets_walks_to_their_objects() {
    let text = "definition team { relation member: user relation boss: user }
        definition task { relation by: team#member permission judge = by->boss }";
    assert_eq!(reached(text, "team#boss"), "task team");
    assert_eq!(reached(text, "team#member"), "task team");
}

#[test]
fn caveats_and_expirations_change_nothing_of_what_reaches() {
    let text = "caveat hours() {}
        definition group { relation member: user with hours }
        definition document {
            relation viewer: group#member with hours and expiration permission view = viewer }";
    assert_eq!(reached(text, "group#member"), "document group");
}

#[test]
fn recursion_ends_and_goes_through_every_type_of_the_ring() {
    let text = "definition one { relation up: two permission view = up->view }
        definition two { relation up: three permission view = up->view }
        definition three { relation up: one | three relation viewer: user
            permission view = viewer + up->view }
        definition beside { relation viewer: user }";
    for relation in ["one#up", "two#up", "three#up", "three#viewer"] {
        assert_eq!(reached(text, relation), "one three two", "{relation}");
    }
}

#[test]
fn a_long_way_over_many_types_is_followed_to_its_end() {
    let mut text = "definition t0 { relation r: user permission p = r }".to_owned();
    for at in 1..50 {
        let below = at - 1;
        let link =
            ["relation r: t_#p permission p = r", "relation r: t_ permission p = r->p"][at % 2];
        text += &format!(" definition t{at} {{ {} }}", link.replace('_', &below.to_string()));
    }
    let reach = Reach::new(&schema(&text));
    assert_eq!(reach.of("t0", "r").expect("known").len(), 50);
    assert_eq!(reach.of("t40", "r").expect("known").len(), 10);
}

#[test]
fn nil_and_self_depend_on_nothing() {
    let text =
        "definition user { relation friend: user permission me = self permission none = nil }
        definition document { relation owner: user permission own = owner->me + owner->none }";
    assert_eq!(reached(text, "user#friend"), "user");
    assert_eq!(reached(text, "user#me"), "document user");
}

#[test]
fn what_is_unknown_may_depend_on_everything() {
    let mut unknown = schema(GROUPS);
    let document = unknown.definitions.get_mut("lonely").map(Arc::make_mut).expect("it");
    document.permissions.insert("new".into(), Expression::Unknown);
    assert_eq!(of(&Reach::new(&unknown), "group#owner"), "group lonely");

    let mut untyped = schema(GROUPS);
    let document = untyped.definitions.get_mut("document").map(Arc::make_mut).expect("it");
    document.relations.insert("old".into(), Relation::default());
    assert_eq!(of(&Reach::new(&untyped), "group#owner"), "document group");
    let old = Expression::Arrow {
        tupleset: "old".into(),
        of: super::super::expression::Of::Arrow,
        member: "owner".into(),
    };
    let lonely = untyped.definitions.get_mut("document").map(Arc::make_mut).expect("it");
    lonely.permissions.insert("new".into(), old);
    assert_eq!(of(&Reach::new(&untyped), "group#owner"), "document group");
}

#[test]
fn a_relation_that_is_computed_reaches_as_a_permission_does() {
    let mut text = schema(GROUPS);
    let lonely = text.definitions.get_mut("lonely").map(Arc::make_mut).expect("it");
    let computed =
        Some(Expression::Union([Expression::This, Expression::Member("viewer".into())].into()));
    lonely.relations.insert("old".into(), Relation { subjects: Some([].into()), computed });
    let document = text.definitions.get_mut("document").map(Arc::make_mut).expect("it");
    let subject = super::super::model::Subject {
        namespace: "lonely".into(),
        which: Which::Related("old".into()),
        caveat: None,
        expires: false,
    };
    let relation = Relation { subjects: Some([subject].into()), computed: None };
    document.relations.insert("reader".into(), relation);
    assert_eq!(of(&Reach::new(&text), "lonely#viewer"), "document lonely");
}

#[test]
fn the_recorded_schema_reaches_as_one_reads_it() {
    let reach = Reach::new(&live_schema("spicedb2/live_schema.jsonl.gz").schema);
    assert_eq!(of(&reach, "team#member"), "document folder team");
    assert_eq!(of(&reach, "team#lead"), "team");
    assert_eq!(of(&reach, "folder#viewer"), "document folder");
    assert_eq!(of(&reach, "document#banned"), "document");
}

#[test]
fn what_the_schema_does_not_know_has_no_answer() {
    let reach = Reach::new(&schema(GROUPS));
    assert_eq!(reach.of("group", "stranger"), None);
    assert_eq!(reach.of("stranger", "member"), None);
    assert_eq!(Reach::default().of("group", "member"), None);
}

fn affected(before: &str, after: &str) -> String {
    let (before, after) = (schema(before), schema(after));
    let differences = diff(&before, &after);
    let reaches = (Reach::new(&before), Reach::new(&after));
    Vec::from_iter(Reach::affected(&reaches.0, &reaches.1, &differences)).join(" ")
}

#[test]
fn a_changed_permission_affects_its_type_and_all_that_reach_it() {
    let changed = |view: &str| {
        format!(
            "definition folder {{ relation viewer: user relation owner: user permission view = {view} }}
             definition document {{ relation parent: folder permission view = parent->view }}
             definition lonely {{ relation viewer: user }}"
        )
    };
    let affected = affected(&changed("viewer"), &changed("viewer + owner"));
    assert_eq!(affected, "document folder");
}

#[test]
fn what_is_new_counts_by_the_schema_after_and_what_is_gone_by_the_one_before() {
    let with = "definition group { relation member: user }
        definition document { relation viewer: group#member }";
    let without = "definition group {} definition document { relation viewer: user }";
    assert_eq!(affected(with, without), "document group");
    assert_eq!(affected(without, with), "document group");
    assert_eq!(affected("", with), "document group");
    assert_eq!(affected(with, ""), "document group");
    assert_eq!(affected(with, with), "");
}

#[test]
fn a_caveats_change_affects_what_depends_on_relations_that_allow_it() {
    let text = "caveat hours() {} caveat other() {}
        definition group { relation member: user with hours }
        definition document { relation viewer: group#member | user with other }
        definition lonely { relation viewer: user }";
    let schema = schema(text);
    let reach = Reach::new(&schema);
    let changed = |caveat: &str| {
        let difference = Difference {
            change: Kind::ExpressionHasChanged,
            definition: caveat.into(),
            member: None,
            detail: None,
        };
        Vec::from_iter(Reach::affected(&reach, &reach, &[difference])).join(" ")
    };
    assert_eq!(changed("hours"), "document group");
    assert_eq!(changed("other"), "document");
    assert_eq!(changed("unused"), "");
}
