//! The differences between two schemas, in the words of SpiceDB's own diff.
//!
//! Its words for changed comments are left out: a comment decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::model::{Caveat, Definition, Relation, Schema};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What has changed.
    pub change: Kind,
    /// The definition, or the caveat, in which it has.
    pub definition: Box<str>,
    /// The relation, permission or parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<Box<str>>,
    /// What was added or removed, or what it is now, as in a schema's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Box<str>>,
}

/// What can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A definition is new. Its members are not told one by one.
    NamespaceAdded,
    /// A definition is gone, with its members.
    NamespaceRemoved,
    /// A relation is new.
    AddedRelation,
    /// A relation is gone.
    RemovedRelation,
    /// A permission is new.
    AddedPermission,
    /// A permission is gone.
    RemovedPermission,
    /// A permission is computed in another way.
    ChangedPermissionImplementation,
    /// A relation that is computed, as before there were permissions, is so in another way.
    LegacyChangedRelationImplementation,
    /// A relation allows a further kind of subject.
    RelationAllowedTypeAdded,
    /// A relation allows a kind of subject no longer.
    RelationAllowedTypeRemoved,
    /// A caveat is new.
    CaveatAdded,
    /// A caveat is gone.
    CaveatRemoved,
    /// A caveat has a further parameter.
    AddedParameter,
    /// A caveat has a parameter no longer.
    RemovedParameter,
    /// A parameter is of another type.
    ParameterTypeChanged,
    /// A caveat's expression is another one.
    ExpressionHasChanged,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::NamespaceAdded,
        Self::NamespaceRemoved,
        Self::AddedRelation,
        Self::RemovedRelation,
        Self::AddedPermission,
        Self::RemovedPermission,
        Self::ChangedPermissionImplementation,
        Self::LegacyChangedRelationImplementation,
        Self::RelationAllowedTypeAdded,
        Self::RelationAllowedTypeRemoved,
        Self::CaveatAdded,
        Self::CaveatRemoved,
        Self::AddedParameter,
        Self::RemovedParameter,
        Self::ParameterTypeChanged,
        Self::ExpressionHasChanged,
    ];

    /// SpiceDB's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NamespaceAdded => "namespace-added",
            Self::NamespaceRemoved => "namespace-removed",
            Self::AddedRelation => "added-relation",
            Self::RemovedRelation => "removed-relation",
            Self::AddedPermission => "added-permission",
            Self::RemovedPermission => "removed-permission",
            Self::ChangedPermissionImplementation => "changed-permission-implementation",
            Self::LegacyChangedRelationImplementation => "legacy-changed-relation-implementation",
            Self::RelationAllowedTypeAdded => "relation-allowed-type-added",
            Self::RelationAllowedTypeRemoved => "relation-allowed-type-removed",
            Self::CaveatAdded => "caveat-added",
            Self::CaveatRemoved => "caveat-removed",
            Self::AddedParameter => "added-parameter",
            Self::RemovedParameter => "removed-parameter",
            Self::ParameterTypeChanged => "parameter-type-changed",
            Self::ExpressionHasChanged => "expression-has-changed",
        }
    }

    /// Whether it is about a caveat, and not about a definition.
    #[must_use]
    pub fn is_of_caveat(self) -> bool {
        matches!(
            self,
            Self::CaveatAdded
                | Self::CaveatRemoved
                | Self::AddedParameter
                | Self::RemovedParameter
                | Self::ParameterTypeChanged
                | Self::ExpressionHasChanged
        )
    }
}

/// What has changed from one schema to the next, by name: definitions, then caveats.
#[must_use]
pub fn diff(before: &Schema, after: &Schema) -> Vec<Difference> {
    let mut all = Differences::default();
    let kinds = (Kind::NamespaceRemoved, Kind::NamespaceAdded);
    for (name, change) in paired(&before.definitions, &after.definitions) {
        all.of = name;
        all.whole(&change, kinds, Differences::definition);
    }
    for (name, change) in paired(&before.caveats, &after.caveats) {
        all.of = name;
        all.whole(&change, (Kind::CaveatRemoved, Kind::CaveatAdded), Differences::caveat);
    }
    all.found
}

/// What a name stands for before and after.
enum Pair<'a, T> {
    Removed(&'a T),
    Added(&'a T),
    Both(&'a T, &'a T),
}

/// Every name of both, in order.
fn paired<'a, T>(
    before: &'a BTreeMap<Box<str>, T>,
    after: &'a BTreeMap<Box<str>, T>,
) -> impl Iterator<Item = (&'a str, Pair<'a, T>)> {
    let names: BTreeSet<&Box<str>> = before.keys().chain(after.keys()).collect();
    names.into_iter().filter_map(|name| {
        let pair = match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => Pair::Both(before, after),
            (Some(before), None) => Pair::Removed(before),
            (None, Some(after)) => Pair::Added(after),
            (None, None) => return None,
        };
        Some((&**name, pair))
    })
}

#[derive(Default)]
struct Differences<'a> {
    /// The definition or caveat that is looked at.
    of: &'a str,
    found: Vec<Difference>,
}

impl Differences<'_> {
    fn add(&mut self, change: Kind, member: Option<&str>, detail: Option<String>) {
        let detail = detail.filter(|detail| !detail.is_empty()).map(Into::into);
        let (definition, member) = (self.of.into(), member.map(Into::into));
        self.found.push(Difference { change, definition, member, detail });
    }

    fn whole<T>(
        &mut self,
        change: &Pair<'_, T>,
        (removed, added): (Kind, Kind),
        both: impl FnOnce(&mut Self, &T, &T),
    ) {
        match change {
            Pair::Removed(_) => self.add(removed, None, None),
            Pair::Added(_) => self.add(added, None, None),
            Pair::Both(before, after) => both(self, before, after),
        }
    }

    fn definition(&mut self, before: &impl AsRef<Definition>, after: &impl AsRef<Definition>) {
        let (before, after) = (before.as_ref(), after.as_ref());
        for (name, change) in paired(&before.relations, &after.relations) {
            match change {
                Pair::Removed(was) => {
                    self.add(Kind::RemovedRelation, Some(name), Some(was.to_string()));
                }
                Pair::Added(is) => self.add(Kind::AddedRelation, Some(name), Some(is.to_string())),
                Pair::Both(before, after) => self.relation(name, before, after),
            }
        }
        for (name, change) in paired(&before.permissions, &after.permissions) {
            let (kind, expression) = match change {
                Pair::Removed(was) => (Kind::RemovedPermission, was),
                Pair::Added(is) => (Kind::AddedPermission, is),
                Pair::Both(was, is) if was != is => (Kind::ChangedPermissionImplementation, is),
                Pair::Both(..) => continue,
            };
            self.add(kind, Some(name), Some(expression.to_string()));
        }
    }

    fn relation(&mut self, name: &str, before: &Relation, after: &Relation) {
        if before.computed != after.computed {
            let is = after.computed.as_ref().map(ToString::to_string);
            self.add(Kind::LegacyChangedRelationImplementation, Some(name), is);
        }
        let none = BTreeSet::new();
        let was = before.subjects.as_ref().unwrap_or(&none);
        let is = after.subjects.as_ref().unwrap_or(&none);
        for subject in was.difference(is) {
            self.add(Kind::RelationAllowedTypeRemoved, Some(name), Some(subject.to_string()));
        }
        for subject in is.difference(was) {
            self.add(Kind::RelationAllowedTypeAdded, Some(name), Some(subject.to_string()));
        }
    }

    fn caveat(&mut self, before: &impl AsRef<Caveat>, after: &impl AsRef<Caveat>) {
        let (before, after) = (before.as_ref(), after.as_ref());
        for (name, change) in paired(&before.parameters, &after.parameters) {
            let (kind, detail) = match change {
                Pair::Removed(was) => (Kind::RemovedParameter, was.to_string()),
                Pair::Added(is) => (Kind::AddedParameter, is.to_string()),
                Pair::Both(was, is) if was != is => {
                    (Kind::ParameterTypeChanged, format!("{was} to {is}"))
                }
                Pair::Both(..) => continue,
            };
            self.add(kind, Some(name), Some(detail));
        }
        if before.expression != after.expression {
            self.add(Kind::ExpressionHasChanged, None, None);
        }
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
