//! The messages of SpiceDB's `core.v1` that a stored schema consists of, as far as they are needed.
//!
//! Source positions, comments and what can be derived are left out, so they cannot make a difference.

use std::collections::BTreeMap;

/// An object type. `serialized_config` of `namespace_config` holds one.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NamespaceDefinition {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) relation: Vec<Relation>,
}

/// A relation or permission; only its metadata tells which.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Relation {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) userset_rewrite: Option<UsersetRewrite>,
    #[prost(message, optional, tag = "3")]
    pub(super) type_information: Option<TypeInformation>,
    #[prost(message, optional, tag = "4")]
    pub(super) metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Metadata {
    #[prost(message, repeated, tag = "1")]
    pub(super) metadata_message: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `impl.v1.RelationMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RelationMetadata {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
}

impl RelationMetadata {
    /// How an [`Any`] names the message, behind its host.
    pub(super) const TYPE: &str = "impl.v1.RelationMetadata";
    /// [`Self::kind`] of a permission.
    pub(super) const PERMISSION: i32 = 2;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TypeInformation {
    #[prost(message, repeated, tag = "1")]
    pub(super) allowed_direct_relations: Vec<AllowedRelation>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AllowedRelation {
    #[prost(string, tag = "1")]
    pub(super) namespace: String,
    #[prost(oneof = "RelationOrWildcard", tags = "3, 4")]
    pub(super) relation_or_wildcard: Option<RelationOrWildcard>,
    #[prost(message, optional, tag = "6")]
    pub(super) required_caveat: Option<AllowedCaveat>,
    #[prost(message, optional, tag = "7")]
    pub(super) required_expiration: Option<Empty>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum RelationOrWildcard {
    #[prost(string, tag = "3")]
    Relation(String),
    #[prost(message, tag = "4")]
    PublicWildcard(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AllowedCaveat {
    #[prost(string, tag = "1")]
    pub(super) caveat_name: String,
}

/// A message whose being there is all that it says.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UsersetRewrite {
    #[prost(oneof = "RewriteOperation", tags = "1, 2, 3")]
    pub(super) rewrite_operation: Option<RewriteOperation>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum RewriteOperation {
    #[prost(message, tag = "1")]
    Union(SetOperation),
    #[prost(message, tag = "2")]
    Intersection(SetOperation),
    #[prost(message, tag = "3")]
    Exclusion(SetOperation),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetOperation {
    #[prost(message, repeated, tag = "1")]
    pub(super) child: Vec<Child>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Child {
    #[prost(oneof = "ChildType", tags = "1, 2, 3, 4, 6, 8, 9")]
    pub(super) child_type: Option<ChildType>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum ChildType {
    #[prost(message, tag = "1")]
    This(Empty),
    #[prost(message, tag = "2")]
    ComputedUserset(ComputedUserset),
    #[prost(message, tag = "3")]
    TupleToUserset(TupleToUserset),
    #[prost(message, tag = "4")]
    UsersetRewrite(UsersetRewrite),
    #[prost(message, tag = "6")]
    Nil(Empty),
    #[prost(message, tag = "8")]
    FunctionedTupleToUserset(FunctionedTupleToUserset),
    /// The resource itself as a subject.
    #[prost(message, tag = "9")]
    Itself(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ComputedUserset {
    #[prost(string, tag = "2")]
    pub(super) relation: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Tupleset {
    #[prost(string, tag = "1")]
    pub(super) relation: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TupleToUserset {
    #[prost(message, optional, tag = "1")]
    pub(super) tupleset: Option<Tupleset>,
    #[prost(message, optional, tag = "2")]
    pub(super) computed_userset: Option<ComputedUserset>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FunctionedTupleToUserset {
    #[prost(int32, tag = "1")]
    pub(super) function: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) tupleset: Option<Tupleset>,
    #[prost(message, optional, tag = "3")]
    pub(super) computed_userset: Option<ComputedUserset>,
}

impl FunctionedTupleToUserset {
    pub(super) const ANY: i32 = 1;
    pub(super) const ALL: i32 = 2;
}

/// `definition` of `caveat` holds one.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CaveatDefinition {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// A [`DecodedCaveat`].
    #[prost(bytes = "vec", tag = "2")]
    pub(super) serialized_expression: Vec<u8>,
    #[prost(btree_map = "string, message", tag = "3")]
    pub(super) parameter_types: BTreeMap<String, CaveatTypeReference>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CaveatTypeReference {
    #[prost(string, tag = "1")]
    pub(super) type_name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) child_types: Vec<CaveatTypeReference>,
}

/// `impl.v1.DecodedCaveat`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DecodedCaveat {
    #[prost(message, optional, tag = "1")]
    pub(super) cel: Option<CheckedExpr>,
}

/// CEL's `CheckedExpr` without its `source_info`, the positions of everything in the text. What it
/// consists of is only compared, so it stays encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckedExpr {
    /// Entries of a map, in no order.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(super) reference_map: Vec<Vec<u8>>,
    /// Entries of a map, in no order.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(super) type_map: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) expr: Vec<u8>,
}

/// The whole schema. The chunks of `schema`, put together, hold one.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StoredSchema {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(message, optional, tag = "2")]
    pub(super) v1: Option<V1StoredSchema>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct V1StoredSchema {
    #[prost(string, tag = "1")]
    pub(super) schema_text: String,
    #[prost(string, tag = "2")]
    pub(super) schema_hash: String,
    #[prost(btree_map = "string, message", tag = "3")]
    pub(super) namespace_definitions: BTreeMap<String, NamespaceDefinition>,
    #[prost(btree_map = "string, message", tag = "4")]
    pub(super) caveat_definitions: BTreeMap<String, CaveatDefinition>,
}
