//! A decoded schema. It holds what decides about permissions: no comments, no line numbers, and no
//! order where order means nothing. So two schemas are equal where they decide the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use prost::{DecodeError, Message as _};

use super::expression::Expression;
use super::proto::{self, RelationMetadata, RelationOrWildcard};

/// The subject's relation where it has none.
const NO_RELATION: &str = "...";

/// A schema.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// The object types, by name.
    pub definitions: BTreeMap<Box<str>, Arc<Definition>>,
    /// The caveats, by name.
    pub caveats: BTreeMap<Box<str>, Arc<Caveat>>,
    /// The text that it was written from. The rows of the older form do not hold it.
    pub text: Option<Box<str>>,
}

/// Another text is not another schema.
impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.definitions == other.definitions && self.caveats == other.caveats
    }
}

/// An object type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// Its relations, by name.
    pub relations: BTreeMap<Box<str>, Relation>,
    /// Its permissions, by name.
    pub permissions: BTreeMap<Box<str>, Expression>,
}

/// A relation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relation {
    /// The subjects that it allows; `None` where it does not say, as before SpiceDB checked them.
    pub subjects: Option<BTreeSet<Subject>>,
    /// What it is computed from besides, before there were permissions.
    pub computed: Option<Expression>,
}

/// What may be the subject of a relation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// The subject's type.
    pub namespace: Box<str>,
    /// Which subjects of this type.
    pub which: Which,
    /// The caveat that every such relationship has.
    pub caveat: Option<Box<str>>,
    /// Whether every such relationship has an expiration.
    pub expires: bool,
}

/// Which subjects of a type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// An object.
    Object,
    /// `:*`: all objects at once.
    Everyone,
    /// `#member`: who stands in this relation, or has this permission, to an object.
    Related(Box<str>),
}

/// A caveat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caveat {
    /// The types of its parameters as text, by their names.
    pub parameters: BTreeMap<Box<str>, Box<str>>,
    /// The compiled expression without the positions in its text. It can only be compared.
    pub expression: Box<[u8]>,
}

/// The whole schema as the newer form stores it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The schema.
    pub schema: Arc<Schema>,
    /// Its hash, which `schema_revision` repeats.
    pub hash: Box<str>,
}

impl Definition {
    /// Decodes a `serialized_config`.
    ///
    /// # Errors
    /// It is no `core.v1.NamespaceDefinition`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        proto::NamespaceDefinition::decode(bytes).map(|definition| Self::of(&definition))
    }

    fn of(definition: &proto::NamespaceDefinition) -> Self {
        let mut of = Self::default();
        for relation in &definition.relation {
            let name = relation.name.as_str().into();
            let computed = relation.userset_rewrite.as_ref().map(Expression::read);
            if is_permission(relation) {
                of.permissions.insert(name, computed.unwrap_or(Expression::Unknown));
            } else {
                let subjects = relation.type_information.as_ref().map(|allowed| {
                    allowed.allowed_direct_relations.iter().map(Subject::of).collect()
                });
                of.relations.insert(name, Relation { subjects, computed });
            }
        }
        of
    }
}

/// As SpiceDB tells them apart. Its oldest definitions have no metadata: relations, all of them.
fn is_permission(relation: &proto::Relation) -> bool {
    let messages = relation.metadata.iter().flat_map(|metadata| &metadata.metadata_message);
    messages
        .filter(|message| message.type_url.rsplit('/').next() == Some(RelationMetadata::TYPE))
        .filter_map(|message| RelationMetadata::decode(message.value.as_slice()).ok())
        .any(|metadata| metadata.kind == RelationMetadata::PERMISSION)
}

impl Subject {
    fn of(allowed: &proto::AllowedRelation) -> Self {
        Self {
            namespace: allowed.namespace.as_str().into(),
            which: match &allowed.relation_or_wildcard {
                Some(RelationOrWildcard::PublicWildcard(_)) => Which::Everyone,
                Some(RelationOrWildcard::Relation(relation))
                    if !relation.is_empty() && relation != NO_RELATION =>
                {
                    Which::Related(relation.as_str().into())
                }
                Some(RelationOrWildcard::Relation(_)) | None => Which::Object,
            },
            caveat: allowed.required_caveat.as_ref().map(|caveat| (*caveat.caveat_name).into()),
            expires: allowed.required_expiration.is_some(),
        }
    }
}

/// As in a schema's text.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.namespace)?;
        match &self.which {
            Which::Object => {}
            Which::Everyone => f.write_str(":*")?,
            Which::Related(relation) => write!(f, "#{relation}")?,
        }
        match (&self.caveat, self.expires) {
            (Some(caveat), true) => write!(f, " with {caveat} and expiration"),
            (Some(caveat), false) => write!(f, " with {caveat}"),
            (None, true) => f.write_str(" with expiration"),
            (None, false) => Ok(()),
        }
    }
}

/// What it allows, as in a schema's text.
impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, subject) in self.subjects.iter().flatten().enumerate() {
            f.write_str(if at > 0 { " | " } else { "" })?;
            write!(f, "{subject}")?;
        }
        Ok(())
    }
}

impl Caveat {
    /// Decodes a `definition`.
    ///
    /// # Errors
    /// It is no `core.v1.CaveatDefinition`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        proto::CaveatDefinition::decode(bytes).map(|caveat| Self::of(&caveat))
    }

    fn of(caveat: &proto::CaveatDefinition) -> Self {
        let parameters = caveat.parameter_types.iter();
        Self {
            parameters: parameters
                .map(|(name, of)| (name.as_str().into(), type_text(of)))
                .collect(),
            expression: without_positions(&caveat.serialized_expression),
        }
    }
}

/// `list<string>`.
fn type_text(of: &proto::CaveatTypeReference) -> Box<str> {
    let children: Vec<Box<str>> = of.child_types.iter().map(type_text).collect();
    match children.as_slice() {
        [] => (*of.type_name).into(),
        children => format!("{}<{}>", of.type_name, children.join(", ")).into(),
    }
}

/// White space and comments move positions, and maps are encoded in any order. Neither is a
/// difference. What is not CEL is compared as it stands.
fn without_positions(expression: &[u8]) -> Box<[u8]> {
    let Ok(proto::DecodedCaveat { cel: Some(mut cel) }) = proto::DecodedCaveat::decode(expression)
    else {
        return expression.into();
    };
    cel.reference_map.sort_unstable();
    cel.type_map.sort_unstable();
    cel.encode_to_vec().into()
}

impl Stored {
    /// Decodes the joined chunks of `schema`. A part of them never decodes, since the message tells
    /// its length first.
    ///
    /// # Errors
    /// They are no `core.v1.StoredSchema` of a version that is known, or not all of one.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadSchema> {
        let proto::StoredSchema { version, v1 } = proto::StoredSchema::decode(bytes)?;
        let v1 = v1.ok_or(UnreadSchema::Version(version))?;
        let definitions = v1.namespace_definitions.iter();
        let caveats = v1.caveat_definitions.iter();
        let schema = Schema {
            definitions: definitions
                .map(|(name, definition)| (name.as_str().into(), Definition::of(definition).into()))
                .collect(),
            caveats: caveats
                .map(|(name, caveat)| (name.as_str().into(), Caveat::of(caveat).into()))
                .collect(),
            text: Some(v1.schema_text.into()),
        };
        Ok(Self { schema: Arc::new(schema), hash: v1.schema_hash.into() })
    }
}

/// Why a stored schema cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnreadSchema {
    /// The bytes are no such message, or not all of one.
    #[error("it is not a whole core.v1.StoredSchema")]
    Broken(#[from] DecodeError),
    /// It is of another version.
    #[error("it has version {0} of the stored schema, and only 1 is known")]
    Version(u32),
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
