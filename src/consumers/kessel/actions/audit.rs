//! The action `audit`: what happened, for good, in a table of a PostgreSQL. Row and operation are its key, so
//! that a repeat adds nothing.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Deserialize;

use super::item::Field;
use super::tables::{self, Tables};
use super::{Action, Applied, Group, Item, Kind, Repeats, options};
use crate::config::Beginning;
use crate::outage::Breaker;

/// What it declares.
pub static KIND: Kind = Kind {
    name: "audit",
    group: Group::Own(Some(Beginning::Earliest)),
    repeats: Repeats::Harmless,
    keeps_state: false,
    reads: true,
    expires: true,
    schemas: true,
    needs: &[&["kessel.database_url"]],
    check: |given| {
        let given: Options = options(given)?;
        tables::name(&given.table).map(drop)
    },
    build: |configured, parts| {
        let given: Options = options(&configured.options).unwrap_or_default();
        let tables = Tables::new(configured, parts, create(&given.table), "audit_refused")?;
        Ok(Arc::new(Audit { tables, statement: append(&given.table).into() }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    table: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { table: "kessel_audit".to_owned() }
    }
}

/// What happened, in a table.
struct Audit {
    tables: Arc<Tables>,
    statement: Arc<str>,
}

fn create(table: &str) -> String {
    format!(
        "create table if not exists {table} (
           id bytea primary key,
           action text not null,
           resource text not null,
           relation text not null,
           subject text not null,
           caveat text,
           \"timestamp\" timestamptz not null,
           lsn bigint,
           xid bigint
         );
         create index if not exists {table}_resource on {table} (resource, \"timestamp\");
         create index if not exists {table}_timestamp on {table} (\"timestamp\");"
    )
}

fn append(table: &str) -> String {
    format!(
        "insert into {table} (id, action, resource, relation, subject, caveat, \"timestamp\", lsn, xid)
           select id, action, resource, relation, subject, nullif(caveat, ''), at::timestamptz,
                  nullif(lsn, '')::bigint, nullif(xid, '')::bigint
           from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                       $7::text[], $8::text[], $9::text[])
             as given (id, action, resource, relation, subject, caveat, at, lsn, xid)
         on conflict (id) do nothing"
    )
}

impl Action for Audit {
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>> {
        let keys = items.iter().map(|item| tables::key([item.idempotency_key().as_str()]));
        let text = |field: Field| -> Vec<String> {
            items.iter().map(|item| item.field(field).into_owned()).collect()
        };
        self.tables.write(
            Arc::clone(&self.statement),
            vec![
                Box::new(keys.collect::<Vec<_>>()),
                Box::new(text(Field::Operation)),
                Box::new(text(Field::Resource)),
                Box::new(text(Field::Relation)),
                Box::new(text(Field::Subject)),
                Box::new(text(Field::Caveat)),
                Box::new(text(Field::Timestamp)),
                Box::new(text(Field::Lsn)),
                Box::new(text(Field::Xid)),
            ],
            items.len(),
        )
    }

    fn breaker(&self) -> Option<&Arc<Breaker>> {
        Some(self.tables.breaker())
    }
}
