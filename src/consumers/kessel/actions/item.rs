//! A change, as actions are given it.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::row::RowChange;

/// What an action is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A change of a relationship's row.
    Row(RowChange),
}

/// A field of a change, by its name in templates and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Type of the resource.
    Namespace,
    /// Its id.
    ObjectId,
    /// `type:id`.
    Resource,
    /// The relation.
    Relation,
    /// Type of the subject.
    SubjectNamespace,
    /// Its id.
    SubjectId,
    /// Its relation, or nothing.
    SubjectRelation,
    /// `type:id` or `type:id#relation`.
    Subject,
    /// `type:id#relation@type:id`.
    Relationship,
    /// `CREATE`, `DELETE`, ...
    Operation,
    /// The caveat's name, or nothing.
    Caveat,
    /// When the row expires, or nothing.
    Expiration,
    /// When it was committed.
    Timestamp,
    /// The transaction that wrote the row, or nothing.
    Xid,
    /// Its place in the log, or nothing.
    Lsn,
    /// What names the change, and each repeat of it the same.
    Key,
}

impl Field {
    /// Every field.
    pub const ALL: [(&'static str, Self); 16] = [
        ("namespace", Self::Namespace),
        ("object_id", Self::ObjectId),
        ("resource", Self::Resource),
        ("relation", Self::Relation),
        ("subject_namespace", Self::SubjectNamespace),
        ("subject_id", Self::SubjectId),
        ("subject_relation", Self::SubjectRelation),
        ("subject", Self::Subject),
        ("relationship", Self::Relationship),
        ("operation", Self::Operation),
        ("caveat", Self::Caveat),
        ("expiration", Self::Expiration),
        ("timestamp", Self::Timestamp),
        ("xid", Self::Xid),
        ("lsn", Self::Lsn),
        ("key", Self::Key),
    ];

    /// The field of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, field)| *field)
    }
}

impl Item {
    /// What names the change, and each repeat of it the same.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        match self {
            Self::Row(change) => change.idempotency_key(),
        }
    }

    /// Its operation's word.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Row(change) => change.operation.as_str(),
        }
    }

    /// The type that it is about.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self {
            Self::Row(change) => &change.relationship.namespace,
        }
    }

    /// What it is about, for people.
    #[must_use]
    pub fn about(&self) -> String {
        match self {
            Self::Row(change) => change.relationship.to_string(),
        }
    }

    /// The text of a field; nothing where it has none.
    #[must_use]
    pub fn field(&self, field: Field) -> Cow<'_, str> {
        match self {
            Self::Row(change) => of_row(change, field),
        }
    }

    /// The whole change, as it is posted where no template says otherwise.
    #[must_use]
    pub fn json(&self) -> Value {
        match self {
            Self::Row(change) => json_of_row(change),
        }
    }
}

fn of_row(change: &RowChange, field: Field) -> Cow<'_, str> {
    let relationship = &change.relationship;
    let number = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
    match field {
        Field::Namespace => Cow::Borrowed(&*relationship.namespace),
        Field::ObjectId => Cow::Borrowed(&*relationship.object_id),
        Field::Resource => relationship.resource().into(),
        Field::Relation => Cow::Borrowed(&*relationship.relation),
        Field::SubjectNamespace => Cow::Borrowed(&*relationship.subject_namespace),
        Field::SubjectId => Cow::Borrowed(&*relationship.subject_id),
        Field::SubjectRelation => {
            Cow::Borrowed(relationship.subject_relation.as_deref().unwrap_or_default())
        }
        Field::Subject => relationship.subject().into(),
        Field::Relationship => relationship.to_string().into(),
        Field::Operation => change.operation.as_str().into(),
        Field::Caveat => Cow::Borrowed(change.caveat.as_ref().map_or("", |caveat| &*caveat.name)),
        Field::Expiration => change.expires.map_or(String::new(), rfc3339).into(),
        Field::Timestamp => rfc3339(change.committed).into(),
        Field::Xid => number(change.created_xid).into(),
        Field::Lsn => number(change.place.map(|(lsn, _)| lsn)).into(),
        Field::Key => change.idempotency_key().into(),
    }
}

fn rfc3339(time: Timestamp) -> String {
    let mut text = String::new();
    write!(text, "{time}").ok();
    text
}

fn json_of_row(change: &RowChange) -> Value {
    let relationship = &change.relationship;
    let caveat = change.caveat.as_ref().map(|caveat| {
        let context = caveat.context.as_deref();
        json!({"name": caveat.name,
            "context": context.and_then(|text| serde_json::from_str::<Value>(text).ok())})
    });
    json!({
        "operation": change.operation.as_str(),
        "resource": {"type": relationship.namespace, "id": relationship.object_id},
        "relation": relationship.relation,
        "subject": {"type": relationship.subject_namespace, "id": relationship.subject_id,
            "relation": relationship.subject_relation},
        "caveat": caveat,
        "expiration": change.expires.map(rfc3339),
        "timestamp": rfc3339(change.committed),
        "xid": change.created_xid.map(|xid| xid.to_string()),
        "lsn": change.place.map(|(lsn, _)| lsn.to_string()),
        "key": change.idempotency_key(),
    })
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::consumers::kessel::row::{Operation, Relationship};

    /// `document:budget#viewer@group:eng#member`, created by transaction 826.
    pub(crate) fn created() -> Item {
        Item::Row(RowChange {
            operation: Operation::Create,
            relationship: Relationship {
                namespace: "document".into(),
                object_id: "budget".into(),
                relation: "viewer".into(),
                subject_namespace: "group".into(),
                subject_id: "eng".into(),
                subject_relation: Some("member".into()),
            },
            created_xid: Some(826),
            deleted_xid: None,
            caveat: None,
            expires: None,
            committed: Timestamp::from_second(1_764_379_327).expect("a time"),
            place: Some((42_000, Some(826))),
            at: (3, 42),
        })
    }
}
