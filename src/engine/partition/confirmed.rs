//! What a partition has finished of the topic that its name is known to stand for.
//!
//! Pure. That a topic was deleted and made again under its name is noticed a while later, when it
//! is looked for; records of the new topic may have been finished by then, behind others that were
//! not even read. They say that they are done themselves, and nothing about what lies before them.
//! So what was finished counts as a replay index only up to the start of the last look that found
//! the same topic, and what came since counts change by change.

use crate::engine::partition::replay_index::{LoggedChange, ReplayIndex};
use crate::kafka::TopicId;

/// Changes since the last look that are remembered one by one. Of more than that the oldest are
/// forgotten, which costs repeats.
const REMEMBERED: usize = 1_000;

/// What is known for sure, and what came since.
#[derive(Debug, Default)]
pub(in crate::engine) struct Confirmed {
    topic: Option<TopicId>,
    replay_index: ReplayIndex,
    since: Vec<LoggedChange>,
    /// What was finished when the look that is under way began, and how many of `since` are from
    /// before.
    asked: Option<(ReplayIndex, usize)>,
}

impl Confirmed {
    /// Of a partition that begins with this replay index; `topic` is what its name stood for when
    /// that was last known.
    pub(in crate::engine) fn new(topic: Option<TopicId>, replay_index: ReplayIndex) -> Self {
        Self { topic, replay_index, ..Self::default() }
    }

    /// What the name stood for when that was last known.
    pub(in crate::engine) fn topic(&self) -> Option<TopicId> {
        self.topic
    }

    /// The committable offset has passed a change.
    pub(in crate::engine) fn pass(&mut self, logged: LoggedChange) {
        if self.since.len() >= REMEMBERED * 2 {
            let forgotten = self.since.len() - REMEMBERED;
            self.since.drain(..forgotten);
            if let Some((_, before)) = &mut self.asked {
                *before = before.saturating_sub(forgotten);
            }
        }
        self.since.push(logged);
    }

    /// A look begins, and this is finished.
    pub(in crate::engine) fn ask(&mut self, replay_index: &ReplayIndex) {
        self.asked = Some((replay_index.clone(), self.since.len()));
    }

    /// Whether `found` was made in the place of what the name stood for.
    pub(in crate::engine) fn is_replaced_by(&self, found: TopicId) -> bool {
        self.topic.is_some_and(|topic| found.replaces(topic))
    }

    /// The look found this topic. Answers whether it is another than before.
    pub(in crate::engine) fn is_another(&mut self, found: TopicId) -> bool {
        if self.is_replaced_by(found) {
            return true;
        }
        self.topic = Some(found);
        if let Some((replay_index, before)) = self.asked.take() {
            self.replay_index = replay_index;
            self.since.drain(..before);
        }
        false
    }

    /// What was finished for sure, and what came since, one by one.
    pub(in crate::engine) fn take(&mut self) -> (ReplayIndex, Vec<LoggedChange>) {
        (std::mem::take(&mut self.replay_index), std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::Position;

    const OLD: TopicId = TopicId { cluster: 1, id: (1, 1) };
    const NEW: TopicId = TopicId { cluster: 1, id: (2, 2) };

    fn logged(at: u64) -> LoggedChange {
        let position = Position { first: Some(at), lsn: at, tx_id: Some(at), commit_us: 1 };
        LoggedChange { source: 1, position, tie: 0 }
    }

    fn replay_index(at: u64) -> ReplayIndex {
        let mut replay_index = ReplayIndex::default();
        replay_index.pass(&logged(at));
        replay_index
    }

    #[test]
    fn what_came_after_the_last_look_that_found_the_topic_says_nothing_of_what_lies_before_it() {
        let mut confirmed = Confirmed::new(None, ReplayIndex::default());
        confirmed.pass(logged(7));
        confirmed.ask(&replay_index(7));
        confirmed.pass(logged(8));
        assert!(!confirmed.is_another(OLD));
        // Recreated here; 20 is the new topic's, and 10 to 19 are not read yet.
        confirmed.pass(logged(20));
        confirmed.ask(&replay_index(20));
        confirmed.pass(logged(21));
        assert!(confirmed.is_another(NEW));
        assert_eq!(confirmed.take(), (replay_index(7), vec![logged(8), logged(20), logged(21)]));
    }

    #[test]
    fn a_topic_that_a_commit_names_is_held_against_the_first_look() {
        let mut confirmed = Confirmed::new(Some(OLD), replay_index(5));
        confirmed.pass(logged(9));
        confirmed.ask(&replay_index(9));
        assert!(confirmed.is_another(NEW));
        assert_eq!(confirmed.take(), (replay_index(5), vec![logged(9)]));
    }

    #[test]
    fn another_cluster_s_topic_is_no_other_topic() {
        let mut confirmed = Confirmed::new(Some(OLD), replay_index(5));
        assert!(!confirmed.is_another(TopicId { cluster: 2, ..NEW }));
        assert!(!confirmed.is_another(TopicId { cluster: 2, ..NEW }));
    }

    #[test]
    fn what_is_remembered_one_by_one_is_bounded() {
        let mut confirmed = Confirmed::new(Some(OLD), replay_index(5));
        for at in 0..10_000 {
            if at == 5_000 {
                confirmed.ask(&replay_index(at));
            }
            confirmed.pass(logged(at));
        }
        assert!(confirmed.since.len() <= REMEMBERED * 2);
        assert!(!confirmed.is_another(OLD));
        assert_eq!(confirmed.since.last(), Some(&logged(9_999)));
    }
}
