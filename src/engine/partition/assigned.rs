//! The partitions that are assigned.

use std::collections::HashMap;
use std::sync::Arc;

use super::Partition;

/// Assigned partitions, each under an id that is unique over the life of its session: one that comes
/// back is another.
#[derive(Default)]
pub(in crate::engine) struct Partitions {
    by_id: Map<u32, Partition>,
    ids: Map<Arc<str>, Map<i32, u32>>,
    /// Where the last record came from: most come from there again.
    last: Option<(Arc<str>, i32, u32)>,
    ids_given: u32,
}

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

impl Partitions {
    /// An id that nothing else has.
    pub(in crate::engine) fn new_id(&mut self) -> u32 {
        self.ids_given += 1;
        self.ids_given
    }

    /// How many ids were given: it changes with every assignment.
    pub(in crate::engine) fn ids_given(&self) -> u32 {
        self.ids_given
    }

    pub(in crate::engine) fn insert(&mut self, partition: Partition) -> u32 {
        let id = self.new_id();
        self.ids.entry(Arc::clone(&partition.topic)).or_default().insert(partition.number, id);
        self.by_id.insert(id, partition);
        self.last = None;
        id
    }

    pub(in crate::engine) fn remove(&mut self, id: u32) -> Option<Partition> {
        let partition = self.by_id.remove(&id)?;
        if let Some(numbers) = self.ids.get_mut(&partition.topic) {
            numbers.remove(&partition.number);
        }
        self.last = None;
        Some(partition)
    }

    pub(in crate::engine) fn id_of(&self, topic: &str, number: i32) -> Option<u32> {
        self.ids.get(topic)?.get(&number).copied()
    }

    /// The id of the partition that a record comes from.
    pub(in crate::engine) fn id_of_record(&mut self, topic: &str, number: i32) -> Option<u32> {
        if let Some((last, of, id)) = &self.last
            && *of == number
            && **last == *topic
        {
            return Some(*id);
        }
        let id = self.id_of(topic, number)?;
        self.last = Some((Arc::clone(&self.by_id.get(&id)?.topic), number, id));
        Some(id)
    }

    pub(in crate::engine) fn get(&self, id: &u32) -> Option<&Partition> {
        self.by_id.get(id)
    }

    pub(in crate::engine) fn get_mut(&mut self, id: &u32) -> Option<&mut Partition> {
        self.by_id.get_mut(id)
    }

    pub(in crate::engine) fn iter(&self) -> impl Iterator<Item = (&u32, &Partition)> + Clone {
        self.by_id.iter()
    }

    pub(in crate::engine) fn iter_mut(&mut self) -> impl Iterator<Item = (&u32, &mut Partition)> {
        self.by_id.iter_mut()
    }

    pub(in crate::engine) fn values(&self) -> impl Iterator<Item = &Partition> + Clone {
        self.by_id.values()
    }

    pub(in crate::engine) fn values_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.by_id.values_mut()
    }

    pub(in crate::engine) fn len(&self) -> usize {
        self.by_id.len()
    }
}
