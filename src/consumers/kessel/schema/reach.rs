//! Which types depend on a relation: whose permissions can change when a relationship of it does.
//!
//! Every relation and permission is a node. It depends on those that it is computed from, that an
//! arrow leads to, and that may be its subjects. Whoever reaches a relation so may depend on it.
//! Operators do not matter: an operand of an intersection or an exclusion changes the result too.
//! Neither do caveats: they decide whether a relationship holds, not which other ones it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diff::{Difference, Kind};
use super::expression::Expression;
use super::model::{Definition, Relation, Schema, Which};

/// Names of types, in order.
type Types = Arc<[Arc<str>]>;

/// What depends on what in one schema.
#[derive(Debug, Default)]
pub struct Reach {
    /// By type, then by relation or permission: the types that depend on it.
    members: BTreeMap<Arc<str>, BTreeMap<Box<str>, Types>>,
    /// The types that depend on a caveat.
    caveats: BTreeMap<Box<str>, Types>,
    /// The types that depend on relations which do not say what they allow, so on any caveat.
    any_caveat: Types,
}

impl Reach {
    /// Follows every relation and permission of the schema.
    #[must_use]
    pub fn new(schema: &Schema) -> Self {
        Graph::of(schema).reach()
    }

    /// The types whose permissions can depend on relationships of this relation, or on this
    /// permission. Its own type is always among them. `None` where the schema does not know it: then
    /// nothing but its own type is known to depend on it.
    #[must_use]
    pub fn of(&self, namespace: &str, member: &str) -> Option<&[Arc<str>]> {
        Some(self.members.get(namespace)?.get(member)?)
    }

    /// The types whose permissions can change by these differences between two schemas. What is gone
    /// counts by the schema before, and what is new by the schema after.
    #[must_use]
    pub fn affected(before: &Self, after: &Self, differences: &[Difference]) -> BTreeSet<Arc<str>> {
        let mut affected = BTreeSet::new();
        for difference in differences {
            before.add_affected(difference, &mut affected);
            after.add_affected(difference, &mut affected);
        }
        affected
    }

    fn add_affected(&self, difference: &Difference, affected: &mut BTreeSet<Arc<str>>) {
        let Difference { change, definition, member, .. } = difference;
        if change.is_of_caveat() {
            let named = self.caveats.get(definition).into_iter();
            affected
                .extend(named.chain([&self.any_caveat]).flat_map(|types| types.iter()).cloned());
            return;
        }
        if let Some((own, _)) = self.members.get_key_value(&**definition) {
            affected.insert(own.clone());
        }
        let all = self.members.get(&**definition).into_iter().flatten();
        let whole = matches!(change, Kind::NamespaceAdded | Kind::NamespaceRemoved);
        let concerned = all.filter(|(name, _)| whole || Some(*name) == member.as_ref());
        affected.extend(concerned.flat_map(|(_, types)| types.iter()).cloned());
    }
}

/// A relation or permission by its number.
type Node = usize;

struct Graph<'a> {
    schema: &'a Schema,
    /// Type and name of each node.
    names: Vec<(&'a str, &'a str)>,
    nodes: BTreeMap<(&'a str, &'a str), Node>,
    /// Those that depend on each node directly.
    dependents: Vec<Vec<Node>>,
    /// Those that may depend on every node, since the schema does not say on which.
    on_anything: Vec<Node>,
}

impl<'a> Graph<'a> {
    fn of(schema: &'a Schema) -> Self {
        let names: Vec<_> = schema
            .definitions
            .iter()
            .flat_map(|(namespace, definition)| {
                let Definition { relations, permissions } = &**definition;
                relations.keys().chain(permissions.keys()).map(|name| (&**namespace, &**name))
            })
            .collect();
        let mut graph = Self {
            schema,
            nodes: names.iter().enumerate().map(|(node, name)| (*name, node)).collect(),
            dependents: vec![Vec::new(); names.len()],
            names,
            on_anything: Vec::new(),
        };
        for (namespace, definition) in &schema.definitions {
            for (name, relation) in &definition.relations {
                graph.add_relation(namespace, name, relation);
            }
            for (name, expression) in &definition.permissions {
                graph.add_expression(namespace, name, expression);
            }
        }
        graph
    }

    /// `dependent` depends on a relation or permission, if there is one of this name.
    fn depends(&mut self, dependent: (&str, &str), on: (&str, &str)) {
        let (Some(dependent), Some(on)) = (self.nodes.get(&dependent), self.nodes.get(&on)) else {
            return;
        };
        self.dependents[*on].push(*dependent);
    }

    fn add_relation(&mut self, namespace: &str, name: &str, relation: &Relation) {
        if relation.subjects.is_none() {
            self.on_anything.extend(self.nodes.get(&(namespace, name)));
        }
        for subject in relation.subjects.iter().flatten() {
            if let Which::Related(related) = &subject.which {
                self.depends((namespace, name), (&subject.namespace, related));
            }
        }
        if let Some(expression) = &relation.computed {
            self.add_expression(namespace, name, expression);
        }
    }

    fn add_expression(&mut self, namespace: &str, name: &str, expression: &Expression) {
        match expression {
            Expression::Nil | Expression::Itself | Expression::This => {}
            Expression::Unknown => self.on_anything.extend(self.nodes.get(&(namespace, name))),
            Expression::Member(member) => self.depends((namespace, name), (namespace, member)),
            Expression::Arrow { tupleset, member, .. } => {
                self.depends((namespace, name), (namespace, tupleset));
                for target in self.targets(namespace, tupleset) {
                    self.depends((namespace, name), (target, member));
                }
            }
            Expression::Union(operands)
            | Expression::Intersection(operands)
            | Expression::Exclusion(operands) => {
                for operand in operands {
                    self.add_expression(namespace, name, operand);
                }
            }
        }
    }

    /// The types that an arrow over this relation leads to. Of a subject `team#member` the team
    /// counts. Every type, where it is not a plain relation that says what it allows.
    fn targets(&self, namespace: &str, tupleset: &str) -> Vec<&'a str> {
        let schema = self.schema;
        let definition = schema.definitions.get(namespace);
        let relation = definition.and_then(|definition| definition.relations.get(tupleset));
        match relation {
            Some(Relation { subjects: Some(subjects), computed: None }) => {
                let types: BTreeSet<&str> =
                    subjects.iter().map(|subject| &*subject.namespace).collect();
                types.into_iter().collect()
            }
            _ => schema.definitions.keys().map(|name| &**name).collect(),
        }
    }

    fn reach(self) -> Reach {
        let types: Vec<Arc<str>> =
            self.schema.definitions.keys().map(|name| Arc::from(&**name)).collect();
        // Definitions are in order, so a type's place in `types` grows with its nodes.
        let mut type_of = Vec::with_capacity(self.names.len());
        for (namespace, _) in &self.names {
            type_of.push(types.partition_point(|name| **name < **namespace));
        }
        let mut sets = Sets { types, shared: BTreeMap::new() };
        let mut reach = Reach { any_caveat: sets.of(BTreeSet::new()), ..Reach::default() };
        for name in &sets.types {
            reach.members.insert(name.clone(), BTreeMap::new());
        }
        let mut found = Found::new(self.names.len());
        for (node, (namespace, name)) in self.names.iter().enumerate() {
            let dependents = found.from(node, &self);
            let set = sets.of(dependents.iter().map(|node| type_of[*node]).collect());
            if let Some(members) = reach.members.get_mut(*namespace) {
                members.insert((*name).into(), set);
            }
        }
        self.add_caveats(&mut reach, &mut sets);
        reach
    }

    /// A caveat decides over the relationships of every relation that allows it.
    fn add_caveats(&self, reach: &mut Reach, sets: &mut Sets) {
        let mut by_caveat: BTreeMap<&str, BTreeSet<Arc<str>>> = BTreeMap::new();
        let mut any: BTreeSet<Arc<str>> = BTreeSet::new();
        for (namespace, definition) in &self.schema.definitions {
            for (name, relation) in &definition.relations {
                let types = reach.of(namespace, name).unwrap_or_default();
                if relation.subjects.is_none() {
                    any.extend(types.iter().cloned());
                }
                let subjects = relation.subjects.iter().flatten();
                for caveat in subjects.filter_map(|subject| subject.caveat.as_deref()) {
                    by_caveat.entry(caveat).or_default().extend(types.iter().cloned());
                }
            }
        }
        let by_caveat = by_caveat.into_iter();
        reach.caveats =
            by_caveat.map(|(caveat, types)| (caveat.into(), sets.named(&types))).collect();
        reach.any_caveat = sets.named(&any);
    }
}

/// Sets of types. Most nodes have the set of others, so each set is kept once.
struct Sets {
    types: Vec<Arc<str>>,
    shared: BTreeMap<BTreeSet<usize>, Types>,
}

impl Sets {
    fn of(&mut self, places: BTreeSet<usize>) -> Types {
        if let Some(shared) = self.shared.get(&places) {
            return shared.clone();
        }
        let set: Types = places.iter().map(|place| self.types[*place].clone()).collect();
        self.shared.insert(places, set.clone());
        set
    }

    fn named(&mut self, names: &BTreeSet<Arc<str>>) -> Types {
        self.of(names.iter().filter_map(|name| self.types.binary_search(name).ok()).collect())
    }
}

/// What was found from a node. The marks are those of the last node that asked, so that nothing is
/// cleared between.
struct Found {
    marks: Vec<Option<Node>>,
    nodes: Vec<Node>,
}

impl Found {
    fn new(nodes: usize) -> Self {
        Self { marks: vec![None; nodes], nodes: Vec::new() }
    }

    /// The node and all that depend on it.
    fn from(&mut self, start: Node, graph: &Graph<'_>) -> &[Node] {
        self.nodes.clear();
        self.add(start, start);
        for node in &graph.on_anything {
            self.add(*node, start);
        }
        let mut next = 0;
        while let Some(node) = self.nodes.get(next).copied() {
            for dependent in &graph.dependents[node] {
                self.add(*dependent, start);
            }
            next += 1;
        }
        &self.nodes
    }

    fn add(&mut self, node: Node, start: Node) {
        if self.marks[node] != Some(start) {
            self.marks[node] = Some(start);
            self.nodes.push(node);
        }
    }
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
