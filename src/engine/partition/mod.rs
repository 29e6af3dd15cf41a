//! What the loop keeps of one assigned partition.

pub(in crate::engine) mod assigned;
mod confirmed;
pub mod metadata;
pub mod offsets;
pub mod recognition;
pub mod replay_index;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::confirmed::Confirmed;
use self::metadata::Log;
use self::offsets::{Admission, Offsets};
use self::replay_index::{Finished, LoggedChange, ReplayIndex};
use crate::engine::dispatch::backpressure::{Load, Pace, View};
use crate::engine::dispatch::work::Origin;
use crate::engine::group::start::Start;
use crate::kafka::TopicId;

/// How many further statistics must say that nobody fetches a partition: it may have been assigned
/// just now, or wait for a commit.
const STOPPED_FOR: u64 = 2;

/// How often a committable offset is committed that the automatic commit passes over.
const REPEATS: u8 = 5;

/// What a partition was when it was last given up here.
#[derive(Debug)]
pub(in crate::engine) struct Left {
    /// The highest offset that this client has committed.
    pub(in crate::engine) committed: i64,
    /// What was finished.
    pub(in crate::engine) replay_index: ReplayIndex,
    /// Changes that were finished behind others that may not be.
    pub(in crate::engine) finished: Vec<LoggedChange>,
    /// The topic that it belonged to, where that is known.
    pub(in crate::engine) topic_id: Option<TopicId>,
}

/// What is known of a delivered record when the committable offset passes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Its place in the database's log.
    pub(crate) logged: Option<LoggedChange>,
    /// Its timestamp in milliseconds since 1970, not later than when it was delivered, and its
    /// offset.
    pub(crate) written: Option<(i64, i64)>,
}

/// One assignment of one partition. A partition that comes back is a new one, so that a late
/// completion of the old cannot touch it.
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) assigned_at: Timestamp,
    /// Cancelled when the partition is to be given up: what merely waits ends.
    pub(crate) drain: CancellationToken,
    /// Cancelled when its time is up: what is still in flight ends, unfinished.
    pub(crate) kill: CancellationToken,
    pub(crate) paused: bool,
    /// Records of a partition that is being given up are no longer taken.
    pub(crate) draining: bool,
    /// Jobs in flight with an offset of this partition.
    pub(crate) running: usize,
    offsets: Offsets<Passed>,
    replay_index: ReplayIndex,
    finished: Finished,
    bytes: usize,
    /// How fast it finishes what it holds.
    pub(in crate::engine) pace: Pace,
    stored: Option<i64>,
    /// The highest offset that this client has committed, whatever the topic was then.
    remembered: i64,
    /// It began below that: the automatic commit, which never goes back, passes over it until then.
    rewound: bool,
    /// What was last committed for that reason, and how often it will be again.
    repeats: Option<(i64, u8)>,
    /// The topic that the name stands for, and what is finished of that for sure.
    confirmed: Confirmed,
    /// The timestamp of the newest record that the committable offset has passed, and its offset
    /// where it was delivered here.
    newest: (Option<i64>, Option<i64>),
    /// Outcomes above the committable offset since the last commit that carried them.
    uncommitted: usize,
    /// Where its log ends, as far as was asked while it is paused.
    end: Option<i64>,
    /// Where its log begins is not known yet.
    unknown: bool,
    /// Nobody fetches it: since which statistics, and what was to come next then.
    stopped: Option<(u64, i64)>,
    /// Since when the oldest record without an outcome has been in hand, or when there last was
    /// none.
    oldest_since: Instant,
}

/// What a commit of one partition carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

impl Partition {
    /// A partition that starts as `start` says; `left` is what was known when it was last given up
    /// here.
    pub(in crate::engine) fn new(
        start: Start,
        left: Option<Left>,
        stop: &CancellationToken,
        now: Timestamp,
    ) -> Self {
        let committed = start.committed.unwrap_or(0);
        let remembered = left.as_ref().map_or(committed, |left| left.committed.max(committed));
        // One that goes on where the group is may still be taken for the topic that it was, unless
        // the commit names a later one.
        let goes_on = start.committed == Some(start.offset);
        let known_here = left.as_ref().filter(|_| goes_on).and_then(|left| left.topic_id);
        let topic_id = start.log.topic.or(known_here);
        // The group's own word goes before what is remembered here.
        let mut finished = Finished::default();
        let replay_index = match left {
            Some(left) if start.committed.is_none() => {
                left.finished.iter().for_each(|logged| finished.insert(logged));
                left.replay_index
            }
            _ => start.replay_index,
        };
        let confirmed = Confirmed::new(topic_id, replay_index.clone());
        Self {
            topic: start.topic.into(),
            number: start.partition,
            assigned_at: now,
            drain: stop.child_token(),
            kill: CancellationToken::new(),
            paused: false,
            draining: false,
            running: 0,
            offsets: Offsets::new(start.offset, start.completed),
            replay_index,
            finished,
            bytes: 0,
            pace: Pace::new(Instant::now()),
            stored: None,
            remembered,
            rewound: start.offset < remembered,
            repeats: None,
            confirmed,
            newest: (start.log.newest_ms, None),
            // What others committed is replaced, or it would be warned of at every start.
            uncommitted: usize::from(start.metadata_of.is_some()),
            end: None,
            unknown: start.unknown,
            stopped: None,
            oldest_since: Instant::now(),
        }
    }

    /// Names one of its records.
    pub(crate) fn origin(&self, offset: i64) -> Origin {
        Origin { topic: Arc::clone(&self.topic), partition: self.number, offset }
    }

    /// Whether an offset has no outcome yet.
    pub(crate) fn is_open(&self, offset: i64) -> bool {
        self.offsets.is_open(offset)
    }

    pub(crate) fn load(&self) -> Load {
        Load { records: self.offsets.open(), bytes: self.bytes, span: self.offsets.span() }
    }

    /// As backpressure sees it.
    pub(crate) fn view(&self, id: u32) -> View<u32> {
        let speed = self.pace.speed();
        View { partition: id, load: self.load(), paused: self.paused, speed }
    }

    /// For how long the oldest record without an outcome has been in hand.
    pub(crate) fn waiting(&self, now: Instant) -> Duration {
        if self.offsets.open() == 0 {
            return Duration::ZERO;
        }
        now.saturating_duration_since(self.oldest_since)
    }

    pub(crate) fn admit(
        &mut self,
        offset: i64,
        passed: Passed,
        bytes: usize,
        now: Instant,
    ) -> Admission {
        if self.offsets.open() == 0 {
            self.oldest_since = now;
        }
        let admission = self.offsets.admit(offset, passed);
        match admission {
            Admission::Fresh => self.bytes += bytes,
            Admission::Completed => {
                // Its copies must still be recognised, although it is not worked on again.
                if let Some(logged) = &passed.logged {
                    self.finished.insert(logged);
                }
                self.advance(now);
            }
            Admission::Repeated => {}
        }
        admission
    }

    /// Whether this change was finished before.
    pub(crate) fn is_replay(&self, logged: &LoggedChange) -> bool {
        self.replay_index.covers(logged) || self.finished.contains(logged)
    }

    /// Records an outcome; `false` when the offset is not open.
    pub(crate) fn complete(&mut self, offset: i64, bytes: usize, now: Instant) -> bool {
        let Some(passed) = self.offsets.complete(offset) else { return false };
        if let Some(logged) = &passed.logged {
            self.finished.insert(logged);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.pace.finished();
        self.uncommitted += 1;
        self.advance(now);
        true
    }

    fn advance(&mut self, now: Instant) {
        let Self { offsets, replay_index, finished, confirmed, newest, .. } = self;
        let moved = offsets.advance(|Passed { logged, written }| {
            if let Some((ms, offset)) = written.filter(|(ms, _)| Some(*ms) > newest.0) {
                *newest = (Some(ms), Some(offset));
            }
            if let Some(logged) = logged {
                finished.remove(&logged);
                replay_index.pass(&logged);
                confirmed.pass(logged);
            }
        });
        if moved {
            self.oldest_since = now;
        }
    }

    /// What is kept of it when it is given up.
    pub(in crate::engine) fn left(&self) -> Left {
        Left {
            committed: self.remembered,
            replay_index: self.replay_index.clone(),
            finished: Vec::new(),
            topic_id: self.confirmed.topic(),
        }
    }

    /// What is kept of it when its name stands for another topic: what was finished of the old one
    /// for sure, and what may have been of the new one, which says nothing of what lies before it.
    pub(in crate::engine) fn left_of_old_topic(&mut self) -> Left {
        let (replay_index, finished) = self.confirmed.take();
        Left { committed: self.remembered, replay_index, finished, topic_id: None }
    }

    /// A look begins for the topic that its name stands for.
    pub(crate) fn ask_for_topic(&mut self) {
        self.confirmed.ask(&self.replay_index);
    }

    /// Whether its name stands for another topic, `id`, than before.
    pub(crate) fn is_of_another(&mut self, id: TopicId) -> bool {
        self.confirmed.is_another(id)
    }

    /// Whether topic `id` was made in the place of the one that its name stood for.
    pub(crate) fn is_replaced_by(&self, id: TopicId) -> bool {
        self.confirmed.is_replaced_by(id)
    }

    /// The log that it reads, as a commit names it.
    pub(crate) fn log(&self) -> Log {
        Log { topic: self.confirmed.topic(), newest_ms: self.newest.0 }
    }

    /// Whether its log was cut back, when the first record there that is not older than the newest
    /// finished one is at `resume`: what comes next lies beyond its end, or another record has the
    /// newest one's place.
    pub(crate) fn was_cut_back(&self, high: i64, resume: i64) -> bool {
        self.next_offset() > high || self.newest.1.is_some_and(|newest| resume < newest)
    }

    /// Whether its committable offset is to be committed by itself.
    pub(crate) fn commits_itself(&mut self) -> bool {
        let committable = self.offsets.committable();
        if !self.rewound || committable > self.remembered {
            self.rewound = false;
            return false;
        }
        let left = match self.repeats {
            Some((of, left)) if of == committable => left,
            _ => REPEATS,
        };
        self.repeats = Some((committable, left.saturating_sub(1)));
        left > 0
    }

    /// Goes on at `offset`; answers how many records before it are gone.
    pub(crate) fn skip_to(&mut self, offset: i64) -> i64 {
        let gone = self.offsets.skip_to(offset);
        // Where its log began was not known.
        if std::mem::take(&mut self.unknown) { 0 } else { gone }
    }

    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        if !paused {
            self.end = None;
        }
    }

    /// Its log ends there; statistics tell while it is fetched.
    pub(crate) fn ends_at(&mut self, end: i64) {
        if self.paused {
            self.end = Some(end);
        }
    }

    /// Records that were not taken yet, where statistics tell of so many.
    pub(crate) fn lag(&self, told: i64) -> i64 {
        self.end.map_or(told, |end| told.max(end - self.next_offset()))
    }

    /// Whether nobody has fetched it for a while, by statistics number `number`: it was assigned
    /// before the first that says so, and nothing has come since. Says so again only after as many.
    pub(crate) fn fetch_has_stopped(&mut self, number: u64, stopped: bool) -> bool {
        let next = self.next_offset();
        match self.stopped {
            _ if !stopped => self.stopped = None,
            Some((since, then)) if then == next && number >= since + STOPPED_FOR => {
                self.stopped = None;
                return true;
            }
            Some((_, then)) if then == next => {}
            _ => self.stopped = Some((number, next)),
        }
        false
    }

    /// The offset after the last delivered one.
    pub(crate) fn next_offset(&self) -> i64 {
        self.offsets.next()
    }

    /// The committable offset, and how many offsets are completed above it: what a commit would
    /// say.
    pub(crate) fn progress(&self) -> (i64, i64) {
        let completed = self.offsets.completed();
        (self.offsets.committable(), completed.runs().iter().map(|(start, end)| end - start).sum())
    }

    /// Whether the committable offset has moved since it was last stored.
    pub(crate) fn has_moved(&self) -> bool {
        self.stored != Some(self.offsets.committable())
    }

    /// Whether there are outcomes that no commit has carried yet, though the committable offset
    /// stands.
    pub(crate) fn has_uncommitted(&self) -> bool {
        self.uncommitted > 0
    }

    /// What to commit now; counts as stored.
    pub(crate) fn commit(&mut self) -> Commit {
        let committable = self.offsets.committable();
        self.stored = Some(committable);
        self.remembered = self.remembered.max(committable);
        self.uncommitted = 0;
        Commit {
            topic: Arc::clone(&self.topic),
            partition: self.number,
            offset: committable,
            metadata: metadata::encode(
                committable,
                self.log(),
                &self.replay_index,
                &self.offsets.completed(),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
