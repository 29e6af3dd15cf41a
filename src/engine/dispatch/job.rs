//! A record in its lane, with what is to be done about it.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use smallvec::SmallVec;

use crate::engine::Consumer;
use crate::engine::dispatch::retry::Attempts;
use crate::engine::dispatch::work::Context;
use crate::engine::partition::replay_index::LoggedChange;
use crate::kafka::SavedRecord;
use crate::outage::Breaker;

/// An open offset of one assigned partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenOffset {
    /// The assigned partition, unique over the life of the process.
    pub(crate) partition: u32,
    /// The offset.
    pub(crate) offset: i64,
    /// Bytes that it holds of the budget.
    pub(crate) bytes: usize,
    /// When its change was committed.
    pub(crate) committed_at: Option<Timestamp>,
}

/// A record set aside, on its way to the dead letter topic.
#[derive(Debug, Clone)]
pub(crate) struct SetAside {
    /// The error's stable label.
    pub(crate) kind: &'static str,
    /// One line for people.
    pub(crate) message: String,
    /// When it was last tried, in wall-clock time.
    pub(crate) at: Timestamp,
    /// Failed attempts at writing it.
    pub(crate) attempts: Attempts,
    /// Whether it may go there, or is one of a flood.
    pub(crate) stage: Stage,
}

/// How far a record that is set aside has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not looked at yet.
    New,
    /// One of a flood of dead letters, and held.
    Held,
    /// On its way.
    Going,
}

impl SetAside {
    pub(crate) fn new(kind: &'static str, message: String, at: Timestamp) -> Self {
        Self { kind, message, at, attempts: Attempts::default(), stage: Stage::New }
    }
}

/// A piece of work in its lane.
pub(crate) struct Job<W> {
    pub(crate) todo: Todo<W>,
    /// Its own bytes, and those of what was coalesced into it, for the dead letter topic.
    pub(crate) records: SmallVec<[SavedRecord; 1]>,
    pub(crate) cx: Context,
    /// Their offsets, in the same order.
    pub(crate) open_offsets: SmallVec<[OpenOffset; 1]>,
    pub(crate) logged: Option<LoggedChange>,
    pub(crate) attempts: Attempts,
    /// When it first failed, in wall-clock time.
    pub(crate) failed_at: Option<Timestamp>,
    /// The cause that held it, once it is tried again.
    pub(crate) held_by: Option<&'static str>,
    /// What it waits for while parked.
    pub(crate) waits_for: Waits,
}

/// What is to be done about a record.
pub(crate) enum Todo<W> {
    /// What its consumer made of it.
    Process(W),
    /// It goes to the dead letter topic, unless it is held and its work is tried again; there is none
    /// where it could not be routed.
    SetAside(Box<SetAside>, Option<W>),
}

impl<W> Job<W> {
    /// The work that is to be done.
    pub(crate) fn work(&self) -> Option<&W> {
        match &self.todo {
            Todo::Process(work) => Some(work),
            Todo::SetAside(..) => None,
        }
    }

    /// The attempts at what is to be done.
    pub(crate) fn attempts(&mut self) -> &mut Attempts {
        match &mut self.todo {
            Todo::Process(_) => &mut self.attempts,
            Todo::SetAside(set_aside, _) => &mut set_aside.attempts,
        }
    }

    /// It is to be set aside, with its work kept for another try.
    pub(crate) fn into_set_aside(self, set_aside: SetAside) -> Box<Self> {
        let work = match self.todo {
            Todo::Process(work) => Some(work),
            Todo::SetAside(_, work) => work,
        };
        Box::new(Self { todo: Todo::SetAside(Box::new(set_aside), work), ..self })
    }

    /// The cause that holds it, if it is one of a flood.
    pub(crate) fn held(&self) -> Option<&'static str> {
        match &self.todo {
            Todo::SetAside(set_aside, _) if set_aside.stage == Stage::Held => Some(set_aside.kind),
            _ => None,
        }
    }
}

/// What a parked job waits for.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// A dependency, whose recovery ends the wait.
    pub(crate) breaker: Option<Arc<Breaker>>,
    /// A stable label.
    pub(crate) reason: Cow<'static, str>,
}

/// Merges `newer` into `waiting` where the consumer can, offsets included.
pub(in crate::engine) fn coalesce<C: Consumer>(
    consumer: &C,
    waiting: &mut Box<Job<C::Work>>,
    newer: Box<Job<C::Work>>,
) -> Option<Box<Job<C::Work>>> {
    let (Todo::Process(work), Todo::Process(other)) = (&mut waiting.todo, &newer.todo) else {
        return Some(newer);
    };
    if !consumer.coalesce(work, other) {
        return Some(newer);
    }
    let Job { records, open_offsets, .. } = *newer;
    waiting.open_offsets.extend(open_offsets);
    waiting.records.extend(records);
    None
}
