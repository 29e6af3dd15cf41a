//! The schema that the rows build up, whatever the order in which partitions bring them.
//!
//! There are two forms: a row for each definition and caveat, and the whole schema in chunks. Some
//! of SpiceDB's modes write one, some the other, some both, and nothing says which form is in use.
//! The one with the later commit is. If one transaction wrote both, the chunks count, because they
//! are always the whole, while the rows may have gone stale before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::model::{Caveat, Definition, Schema, Stored};
use super::rows::{Commit, Part, SchemaRow};

/// A form in which a schema is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `namespace_config` and `caveat`.
    Legacy,
    /// `schema` and `schema_revision`.
    Unified,
}

/// All rows that were read, and the schema that they build up.
#[derive(Debug, Default)]
pub struct SchemaState {
    definitions: BTreeMap<Box<str>, Versions<Arc<Definition>>>,
    caveats: BTreeMap<Box<str>, Versions<Arc<Caveat>>>,
    chunks: BTreeMap<u32, Versions<Chunk>>,
    hash: Versions<Box<str>>,
    /// The last commit of each form.
    legacy: Option<Commit>,
    unified: Option<Commit>,
    /// The last stored schema that was whole, and who wrote it.
    stored: Option<(u64, Stored)>,
}

/// A piece of the stored schema.
#[derive(Debug)]
struct Chunk {
    written_by: u64,
    bytes: Arc<[u8]>,
}

impl SchemaState {
    /// Takes a row. Whether it changed anything: a repeat does not.
    pub fn apply(&mut self, row: SchemaRow) -> bool {
        let SchemaRow { part, created_xid, commit, written_by, offset } = row;
        let version = (created_xid, offset);
        let (form, news) = match part {
            Part::Definition(name, content) => {
                let versions = self.definitions.entry(name).or_default();
                (Form::Legacy, versions.take(version, content))
            }
            Part::Caveat(name, content) => {
                let versions = self.caveats.entry(name).or_default();
                (Form::Legacy, versions.take(version, content))
            }
            Part::Chunk(index, content) => {
                let versions = self.chunks.entry(index).or_default();
                let content = content.map(|bytes| Chunk { written_by, bytes });
                let news = versions.take(version, content);
                if news {
                    self.store();
                }
                (Form::Unified, news)
            }
            Part::Hash(content) => (Form::Unified, self.hash.take(version, content)),
        };
        let last = match form {
            Form::Legacy => &mut self.legacy,
            Form::Unified => &mut self.unified,
        };
        let later = last.is_none_or(|known| known < commit);
        if later {
            *last = Some(commit);
        }
        news || later
    }

    /// Which form counts. `None` before the first row.
    #[must_use]
    pub fn form(&self) -> Option<Form> {
        match (self.legacy, self.unified) {
            (None, None) => None,
            (Some(_), None) => Some(Form::Legacy),
            (None, Some(_)) => Some(Form::Unified),
            // One snapshot read both, and does not say when they were written. SpiceDB's default
            // mode leaves the stored schema as a migration wrote it.
            (Some(legacy @ Commit::Place { streamed: false, .. }), Some(unified))
                if legacy == unified =>
            {
                Some(Form::Legacy)
            }
            (Some(legacy), Some(unified)) if legacy > unified => Some(Form::Legacy),
            (Some(_), Some(_)) => Some(Form::Unified),
        }
    }

    /// The schema as far as it was read. `None` before there is one. While a write of the schema is
    /// half read, it is some of both (see the module's word on when to look).
    #[must_use]
    pub fn current(&self) -> Option<Arc<Schema>> {
        let stored = self.stored.as_ref().map(|(_, stored)| &stored.schema);
        if self.form()? == Form::Unified && stored.is_some() {
            return stored.cloned();
        }
        self.legacy?;
        let schema = Schema {
            definitions: living(&self.definitions),
            caveats: living(&self.caveats),
            text: None,
        };
        // Where both say the same, one of them has the text.
        let same = stored.filter(|stored| ***stored == schema).cloned();
        Some(same.unwrap_or_else(|| Arc::new(schema)))
    }

    /// Whether the stored schema, where it counts, has all its chunks and its hash. If not, more rows
    /// are to come. If so, more may be to come: nothing tells how many rows of the older form a
    /// transaction changes.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        if self.form() != Some(Form::Unified) {
            return true;
        }
        self.stored.as_ref().is_some_and(|(written_by, stored)| {
            let hash = self.hash.newest();
            self.newest_chunk() == Some(*written_by)
                && (self.hash.is_empty() || hash.is_some_and(|hash| *hash == stored.hash))
        })
    }

    /// Who wrote the newest chunk that lives.
    fn newest_chunk(&self) -> Option<u64> {
        let newest = self.chunks.values().filter_map(Versions::newest);
        newest.map(|chunk| chunk.written_by).max()
    }

    /// Puts the newest stored schema together, if all of its chunks are there.
    fn store(&mut self) {
        let Some(newest) = self.newest_chunk() else { return };
        let mut bytes = Vec::new();
        for (place, (index, versions)) in self.chunks.iter().enumerate() {
            let chunk = versions.living().find(|chunk| chunk.written_by == newest);
            // Earlier schemas had more chunks. They live only until their markings come.
            let Some(chunk) = chunk else { break };
            if u32::try_from(place) != Ok(*index) {
                return;
            }
            bytes.extend_from_slice(&chunk.bytes);
        }
        if let Ok(stored) = Stored::decode(&bytes) {
            self.stored = Some((newest, stored));
        }
    }
}

/// What lives, by name. While a marking has yet to come, the row that was written later counts.
fn living<T>(names: &BTreeMap<Box<str>, Versions<Arc<T>>>) -> BTreeMap<Box<str>, Arc<T>> {
    let newest = names.iter().filter_map(|(name, versions)| Some((name, versions.newest()?)));
    newest.map(|(name, content)| (name.clone(), content.clone())).collect()
}

/// The rows of one name.
#[derive(Debug)]
struct Versions<T> {
    /// Those that live, by the transaction that wrote them.
    living: BTreeMap<u64, T>,
    /// Those that do not, which are dead for ever.
    dead: BTreeSet<u64>,
    /// Without transactions a name has one row: what the last record says about it.
    untold: Option<(i64, Option<T>)>,
}

// Derived, it would ask for a default content.
impl<T> Default for Versions<T> {
    fn default() -> Self {
        Self { living: BTreeMap::new(), dead: BTreeSet::new(), untold: None }
    }
}

impl<T> Versions<T> {
    /// Takes what is told of a row, whether it was news.
    fn take(&mut self, (created_xid, offset): (Option<u64>, i64), content: Option<T>) -> bool {
        match (created_xid, content) {
            (Some(xid), None) => {
                self.living.remove(&xid);
                self.dead.insert(xid)
            }
            (Some(xid), Some(_)) if self.dead.contains(&xid) => false,
            (Some(xid), Some(content)) => {
                let news = !self.living.contains_key(&xid);
                self.living.entry(xid).or_insert(content);
                news
            }
            (None, content) => {
                let later = self.untold.as_ref().is_none_or(|(known, _)| *known < offset);
                if later {
                    self.untold = Some((offset, content));
                }
                later
            }
        }
    }

    /// The contents that live, the newest first. Rows whose transactions are shown say more.
    fn living(&self) -> impl Iterator<Item = &T> {
        let untold = self.untold.as_ref().and_then(|(_, content)| content.as_ref());
        let untold = untold.filter(|_| self.living.is_empty() && self.dead.is_empty());
        self.living.values().rev().chain(untold)
    }

    fn newest(&self) -> Option<&T> {
        self.living().next()
    }

    /// Whether nothing was ever told.
    fn is_empty(&self) -> bool {
        self.living.is_empty() && self.dead.is_empty() && self.untold.is_none()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
