//! A row as a document, and a batch as the lines of a `_bulk` request.

use jiff::Timestamp;
use ring::digest;
use serde::Serialize;

use crate::consumers::kessel::row::RowChange;

/// A longer id is replaced by its hash: an index takes no longer one.
const LONGEST_ID: usize = 512;

#[derive(Serialize)]
struct Head<'a> {
    index: Place<'a>,
}

#[derive(Serialize)]
struct Place<'a> {
    #[serde(rename = "_id")]
    id: &'a str,
    version: i64,
    version_type: &'static str,
}

#[derive(Serialize)]
struct Document<'a> {
    namespace: &'a str,
    object_id: &'a str,
    resource: &'a str,
    relation: &'a str,
    subject_namespace: &'a str,
    subject_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject_relation: Option<&'a str>,
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caveat: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caveat_context: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_xid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_xid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lsn: Option<u64>,
    alive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_since: Option<Timestamp>,
}

/// The id of a row's document: the same for every change of it.
pub(super) fn id(change: &RowChange) -> String {
    let it = &change.relationship;
    let xid = change.created_xid.map_or(String::new(), |xid| xid.to_string());
    let (namespace, object, relation) = (&it.namespace, &it.object_id, &it.relation);
    let id = format!("{namespace}:{object}:{relation}:{}:{xid}", it.subject());
    if id.len() <= LONGEST_ID {
        return id;
    }
    let hash = digest::digest(&digest::SHA256, id.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The version of a row's document. With `created_xid` a row is alive (1) or dead (2), and dead is for ever.
/// Without, the row stands for its relationship, and the later record counts.
fn version(change: &RowChange) -> i64 {
    match (change.created_xid, change.operation.lives()) {
        (None, _) => change.at.1 + 1,
        (Some(_), true) => 1,
        (Some(_), false) => 2,
    }
}

/// Appends the two lines of a change, which is written `now`. For how long a row has been dead counts from
/// then: in an old backlog its creation may come later from another partition.
pub(super) fn write(change: &RowChange, now: Timestamp, lines: &mut Vec<u8>) {
    let it = &change.relationship;
    let (id, resource, subject) = (id(change), it.resource(), it.subject());
    let alive = change.operation.lives();
    let place = Place { id: &id, version: version(change), version_type: "external" };
    let document = Document {
        namespace: &it.namespace,
        object_id: &it.object_id,
        resource: &resource,
        relation: &it.relation,
        subject_namespace: &it.subject_namespace,
        subject_id: &it.subject_id,
        subject_relation: it.subject_relation.as_deref(),
        subject: &subject,
        caveat: change.caveat.as_ref().map(|caveat| &*caveat.name),
        caveat_context: change.caveat.as_ref().and_then(|caveat| caveat.context.as_deref()),
        created_xid: change.created_xid,
        deleted_xid: change.deleted_xid,
        expiration: change.expires,
        lsn: change.place.map(|(lsn, _)| lsn).filter(|_| alive),
        alive,
        dead_since: (!alive).then_some(now),
    };
    // Writing to memory cannot fail.
    serde_json::to_writer(&mut *lines, &Head { index: place }).ok();
    lines.push(b'\n');
    serde_json::to_writer(&mut *lines, &document).ok();
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::consumers::kessel::actions::item::{Item, testing::created};
    use crate::consumers::kessel::row::Operation;

    fn change() -> RowChange {
        let Item::Row(change) = created();
        change
    }

    fn lines(change: &RowChange) -> [Value; 2] {
        let mut lines = Vec::new();
        write(change, Timestamp::now(), &mut lines);
        let text = String::from_utf8(lines).expect("text");
        let mut lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        [lines.next().expect("a head"), lines.next().expect("a document")]
    }

    #[test]
    fn a_dead_row_has_the_id_of_the_living_one_and_a_later_version() {
        let dead = RowChange { operation: Operation::Delete, deleted_xid: Some(830), ..change() };
        let ([head, living], [head_of_dead, dead]) = (lines(&change()), lines(&dead));
        assert_eq!(head["index"]["_id"], "document:budget:viewer:group:eng#member:826");
        assert_eq!(head["index"]["_id"], head_of_dead["index"]["_id"]);
        assert_eq!(
            (&head["index"]["version"], &head_of_dead["index"]["version"]),
            (&1.into(), &2.into())
        );
        assert_eq!((&living["alive"], &dead["alive"]), (&true.into(), &false.into()));
        assert!(living.get("dead_since").is_none() && dead.get("dead_since").is_some());
    }

    #[test]
    fn without_transactions_the_later_record_counts() {
        let first = RowChange { created_xid: None, at: (0, 0), ..change() };
        let later = RowChange { at: (0, 9), ..first.clone() };
        let version = |change| lines(change)[0]["index"]["version"].clone();
        assert_eq!((version(&first), version(&later)), (1.into(), 10.into()));
        assert_eq!(id(&first), id(&later));
    }

    #[test]
    fn a_long_id_is_a_hash() {
        let mut long = change();
        long.relationship.object_id = "x".repeat(1_000).into();
        assert_eq!(id(&long).len(), 64);
        let mut other = long.clone();
        other.relationship.object_id = "y".repeat(1_000).into();
        assert_ne!(id(&long), id(&other));
    }
}
