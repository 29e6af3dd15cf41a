//! The action `replica`: the store's rows in a table of a PostgreSQL, and a view of what lives.
//!
//! A row is alive or dead, and dead is for ever: rows are merged by the smaller `deleted_xid`. So the end is
//! right in whatever order changes come, and however often.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Deserialize;

use super::tables::{self, Tables};
use super::{Action, Applied, Group, Item, Kind, Repeats, options};
use crate::config::Beginning;
use crate::consumers::kessel::row::{LIVING, RowChange};
use crate::outage::Breaker;

/// What it declares.
pub static KIND: Kind = Kind {
    name: "replica",
    group: Group::Own(Some(Beginning::Earliest)),
    repeats: Repeats::Harmless,
    keeps_state: true,
    reads: true,
    // The view hides what has expired.
    expires: false,
    schemas: false,
    needs: &[&["kessel.database_url"]],
    check: |given| {
        let given: Options = options(given)?;
        tables::name(&given.table).and(tables::name(&given.view)).map(drop)
    },
    build: |configured, parts| {
        let given: Options = options(&configured.options).unwrap_or_default();
        let create = create(&given.table, &given.view);
        let tables = Tables::new(configured, parts, create, "replica_refused")?;
        Ok(Arc::new(Replica { tables, statement: merge(&given.table).into() }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    table: String,
    view: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { table: "kessel_rows".to_owned(), view: "kessel_relationships".to_owned() }
    }
}

/// Rows in a table.
struct Replica {
    tables: Arc<Tables>,
    statement: Arc<str>,
}

/// `deleted_xid` of a row that is dead and of which nobody knows who marked it.
const DEAD: i64 = 0;

fn create(table: &str, view: &str) -> String {
    format!(
        "create table if not exists {table} (
           id bytea primary key,
           namespace text not null,
           object_id text not null,
           relation text not null,
           subject_namespace text not null,
           subject_id text not null,
           subject_relation text not null,
           created_xid bigint not null,
           deleted_xid bigint not null,
           version bigint not null,
           caveat_name text,
           caveat_context jsonb,
           expiration timestamptz,
           lsn bigint
         );
         create index if not exists {table}_object on {table} (namespace, object_id);
         create index if not exists {table}_subject on {table} (subject_namespace, subject_id);
         create or replace view {view} as
           select distinct on (namespace, object_id, relation, subject_namespace, subject_id,
                               subject_relation)
                  namespace, object_id, relation, subject_namespace, subject_id, subject_relation,
                  caveat_name, caveat_context, expiration
           from {table}
           where deleted_xid = {LIVING} and (expiration is null or expiration > now())
           order by namespace, object_id, relation, subject_namespace, subject_id,
                    subject_relation, created_xid desc;"
    )
}

/// Merges rows. With `created_xid` a row's own columns never change, and a deletion leaves them out. Without,
/// the row stands for its relationship, and the later version counts.
fn merge(table: &str) -> String {
    format!(
        "insert into {table} as kept
           select id, namespace, object_id, relation, subject_namespace, subject_id,
                  subject_relation, created_xid, deleted_xid, version, caveat_name,
                  caveat_context::jsonb, expiration::timestamptz, lsn
           from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                       $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[],
                       $12::text[], $13::text[], $14::bigint[])
             as given (id, namespace, object_id, relation, subject_namespace, subject_id,
                       subject_relation, created_xid, deleted_xid, version, caveat_name,
                       caveat_context, expiration, lsn)
         on conflict (id) do update set
           deleted_xid = case when kept.created_xid = 0 then excluded.deleted_xid
                              else least(kept.deleted_xid, excluded.deleted_xid) end,
           version = greatest(kept.version, excluded.version),
           caveat_name = case when kept.created_xid = 0 then excluded.caveat_name
                              else coalesce(kept.caveat_name, excluded.caveat_name) end,
           caveat_context = case when kept.created_xid = 0 then excluded.caveat_context
                                 else coalesce(kept.caveat_context, excluded.caveat_context) end,
           expiration = case when kept.created_xid = 0 then excluded.expiration
                             else coalesce(kept.expiration, excluded.expiration) end,
           lsn = case when kept.created_xid = 0 then excluded.lsn
                      else coalesce(kept.lsn, excluded.lsn) end
         where case when kept.created_xid = 0 then excluded.version > kept.version
                    else excluded.deleted_xid < kept.deleted_xid
                      or (kept.caveat_name is null and excluded.caveat_name is not null)
                      or (kept.caveat_context is null and excluded.caveat_context is not null)
                      or (kept.expiration is null and excluded.expiration is not null)
                      or (kept.lsn is null and excluded.lsn is not null) end"
    )
}

/// A row as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row<'a> {
    change: &'a RowChange,
    deleted_xid: i64,
    version: i64,
    caveat: Option<&'a str>,
    context: Option<&'a str>,
    expiration: Option<jiff::Timestamp>,
    /// Where the row was created in the log.
    lsn: Option<i64>,
}

impl<'a> Row<'a> {
    fn of(change: &'a RowChange) -> Self {
        let deleted_xid = match (change.operation.lives(), change.deleted_xid) {
            (true, _) => LIVING as i64,
            (false, deleted) => deleted.map_or(DEAD, |xid| xid as i64),
        };
        let caveat = change.caveat.as_ref();
        let created = change.place.filter(|_| change.operation.lives());
        Self {
            change,
            deleted_xid,
            version: change.at.1,
            caveat: caveat.map(|caveat| &*caveat.name),
            context: caveat.and_then(|caveat| caveat.context.as_deref()),
            expiration: change.expires,
            lsn: created.and_then(|(lsn, _)| i64::try_from(lsn).ok()),
        }
    }

    /// The same as the statement's own merge, for two of one batch.
    fn merge(&mut self, other: Self) {
        if self.change.created_xid.is_none() {
            if other.version > self.version {
                *self = other;
            }
            return;
        }
        self.deleted_xid = self.deleted_xid.min(other.deleted_xid);
        self.version = self.version.max(other.version);
        // A marking may show the caveat without its context.
        self.caveat = self.caveat.or(other.caveat);
        self.context = self.context.or(other.context);
        self.expiration = self.expiration.or(other.expiration);
        self.lsn = self.lsn.or(other.lsn);
    }
}

/// What these changes make of their rows, by id. In this order two batches never wait for each other.
fn merged<'a>(items: &[&'a Item]) -> BTreeMap<Vec<u8>, Row<'a>> {
    let mut rows: BTreeMap<Vec<u8>, Row<'a>> = BTreeMap::new();
    for item in items {
        let Item::Row(change) = *item;
        let row = Row::of(change);
        match rows.entry(id(change)) {
            Entry::Occupied(mut kept) => kept.get_mut().merge(row),
            Entry::Vacant(entry) => drop(entry.insert(row)),
        }
    }
    rows
}

fn id(change: &RowChange) -> Vec<u8> {
    let it = &change.relationship;
    let xid = change.created_xid.unwrap_or(0).to_string();
    let subject_relation = it.subject_relation.as_deref().unwrap_or_default();
    let parts = [&*it.namespace, &*it.object_id, &*it.relation, &*it.subject_namespace];
    tables::key(parts.into_iter().chain([&*it.subject_id, subject_relation, &*xid]))
}

impl Action for Replica {
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>> {
        let (ids, rows): (Vec<Vec<u8>>, Vec<Row<'_>>) = merged(items).into_iter().unzip();
        let text = |column: fn(&RowChange) -> &str| -> Vec<String> {
            rows.iter().map(|row| column(row.change).to_owned()).collect()
        };
        let number =
            |column: fn(&Row<'_>) -> i64| -> Vec<i64> { rows.iter().map(column).collect() };
        let caveats = rows.iter().map(|row| row.caveat.map(str::to_owned));
        let contexts = rows.iter().map(|row| row.context.map(str::to_owned));
        let expirations = rows.iter().map(|row| row.expiration.map(|at| at.to_string()));
        let lsns = rows.iter().map(|row| row.lsn);
        self.tables.write(
            Arc::clone(&self.statement),
            vec![
                Box::new(ids),
                Box::new(text(|change| &change.relationship.namespace)),
                Box::new(text(|change| &change.relationship.object_id)),
                Box::new(text(|change| &change.relationship.relation)),
                Box::new(text(|change| &change.relationship.subject_namespace)),
                Box::new(text(|change| &change.relationship.subject_id)),
                Box::new(text(|change| {
                    change.relationship.subject_relation.as_deref().unwrap_or_default()
                })),
                Box::new(number(|row| row.change.created_xid.unwrap_or(0) as i64)),
                Box::new(number(|row| row.deleted_xid)),
                Box::new(number(|row| row.version)),
                Box::new(caveats.collect::<Vec<_>>()),
                Box::new(contexts.collect::<Vec<_>>()),
                Box::new(expirations.collect::<Vec<_>>()),
                Box::new(lsns.collect::<Vec<_>>()),
            ],
            items.len(),
        )
    }

    fn breaker(&self) -> Option<&Arc<Breaker>> {
        Some(self.tables.breaker())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumers::kessel::actions::item::testing::created;
    use crate::consumers::kessel::row::{Caveat, Operation};

    fn change(with: impl FnOnce(&mut RowChange)) -> Item {
        let Item::Row(mut change) = created();
        with(&mut change);
        Item::Row(change)
    }

    fn one(items: &[&Item]) -> Row<'static> {
        let items: Vec<&Item> =
            items.iter().map(|item| &*Box::leak(Box::new((*item).clone()))).collect();
        let mut rows: Vec<Row<'_>> = merged(&items).into_values().collect();
        assert_eq!(rows.len(), 1, "one row");
        rows.remove(0)
    }

    #[test]
    fn a_row_is_the_same_whichever_of_its_changes_comes_first() {
        let caveat = |context: Option<&str>| {
            Some(Caveat { name: "office_hours".into(), context: context.map(Into::into) })
        };
        let created = change(|it| {
            it.caveat = caveat(Some(r#"{"from": 9}"#));
            it.expires = Some(it.committed);
        });
        // Its context was left out, for it did not change and is long.
        let marked = change(|it| {
            (it.operation, it.deleted_xid) = (Operation::Delete, Some(900));
            (it.caveat, it.place) = (caveat(None), Some((50_000, Some(900))));
        });
        for items in [[&created, &marked], [&marked, &created]] {
            let row = one(&items);
            assert_eq!((row.deleted_xid, row.lsn), (900, Some(42_000)));
            assert_eq!(row.context, Some(r#"{"from": 9}"#));
            assert!(row.expiration.is_some());
        }
    }

    #[test]
    fn without_transactions_the_later_record_counts() {
        let created = change(|it| (it.created_xid, it.at) = (None, (3, 42)));
        let deleted = change(|it| {
            (it.created_xid, it.at, it.operation) = (None, (3, 43), Operation::Delete);
        });
        let again = change(|it| (it.created_xid, it.at) = (None, (3, 44)));
        assert_eq!(one(&[&deleted, &created]).deleted_xid, DEAD);
        assert_eq!(one(&[&again, &created, &deleted]).deleted_xid, LIVING as i64);
    }
}
