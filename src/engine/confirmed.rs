//! What a partition has finished of the topic that its name is known to stand for.
//!
//! Pure. That a topic was deleted and made again under its name is noticed a while later, when it is
//! looked for; records of the new topic may have been finished by then, behind others that were not even
//! read. They say that they are done themselves, and nothing about what lies before them. So what was
//! finished counts as a frontier only up to the start of the last look that found the same topic, and
//! what came since counts change by change.

use super::frontier::{Frontier, Stamp};
use crate::kafka::TopicId;

/// Changes since the last look that are remembered one by one. Of more than that the oldest are
/// forgotten, which costs repeats.
const REMEMBERED: usize = 1_000;

/// What is known for sure, and what came since.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    topic: Option<TopicId>,
    frontier: Frontier,
    since: Vec<Stamp>,
    /// What was finished when the look that is under way began, and how many of `since` are from before.
    asked: Option<(Frontier, usize)>,
}

impl Confirmed {
    /// Of a partition that begins with this frontier; `topic` is what its name stood for when that was
    /// last known.
    pub(super) fn new(topic: Option<TopicId>, frontier: Frontier) -> Self {
        Self { topic, frontier, ..Self::default() }
    }

    /// What the name stood for when that was last known.
    pub(super) fn topic(&self) -> Option<TopicId> {
        self.topic
    }

    /// A change was passed by the watermark.
    pub(super) fn pass(&mut self, stamp: Stamp) {
        if self.since.len() >= REMEMBERED * 2 {
            let forgotten = self.since.len() - REMEMBERED;
            self.since.drain(..forgotten);
            if let Some((_, before)) = &mut self.asked {
                *before = before.saturating_sub(forgotten);
            }
        }
        self.since.push(stamp);
    }

    /// A look begins, and this is finished.
    pub(super) fn ask(&mut self, frontier: &Frontier) {
        self.asked = Some((frontier.clone(), self.since.len()));
    }

    /// Whether `found` was made in the place of what the name stood for.
    pub(super) fn is_replaced_by(&self, found: TopicId) -> bool {
        self.topic.is_some_and(|topic| found.replaces(topic))
    }

    /// The look found this topic. Answers whether it is another than before.
    pub(super) fn is_another(&mut self, found: TopicId) -> bool {
        if self.is_replaced_by(found) {
            return true;
        }
        self.topic = Some(found);
        if let Some((frontier, before)) = self.asked.take() {
            self.frontier = frontier;
            self.since.drain(..before);
        }
        false
    }

    /// What was finished for sure, and what came since, one by one.
    pub(super) fn take(&mut self) -> (Frontier, Vec<Stamp>) {
        (std::mem::take(&mut self.frontier), std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::Position;

    const OLD: TopicId = TopicId { cluster: 1, id: (1, 1) };
    const NEW: TopicId = TopicId { cluster: 1, id: (2, 2) };

    fn stamp(at: u64) -> Stamp {
        let position = Position { first: Some(at), lsn: at, tx_id: Some(at), commit_us: 1 };
        Stamp { source: 1, position, tie: 0 }
    }

    fn frontier(at: u64) -> Frontier {
        let mut frontier = Frontier::default();
        frontier.pass(&stamp(at));
        frontier
    }

    #[test]
    fn what_came_after_the_last_look_that_found_the_topic_says_nothing_of_what_lies_before_it() {
        let mut confirmed = Confirmed::new(None, Frontier::default());
        confirmed.pass(stamp(7));
        confirmed.ask(&frontier(7));
        confirmed.pass(stamp(8));
        assert!(!confirmed.is_another(OLD));
        // Made anew here; 20 is the new topic's, and 10 to 19 are not read yet.
        confirmed.pass(stamp(20));
        confirmed.ask(&frontier(20));
        confirmed.pass(stamp(21));
        assert!(confirmed.is_another(NEW));
        assert_eq!(confirmed.take(), (frontier(7), vec![stamp(8), stamp(20), stamp(21)]));
    }

    #[test]
    fn a_topic_that_a_commit_names_is_held_against_the_first_look() {
        let mut confirmed = Confirmed::new(Some(OLD), frontier(5));
        confirmed.pass(stamp(9));
        confirmed.ask(&frontier(9));
        assert!(confirmed.is_another(NEW));
        assert_eq!(confirmed.take(), (frontier(5), vec![stamp(9)]));
    }

    #[test]
    fn another_cluster_s_topic_is_no_other_topic() {
        let mut confirmed = Confirmed::new(Some(OLD), frontier(5));
        assert!(!confirmed.is_another(TopicId { cluster: 2, ..NEW }));
        assert!(!confirmed.is_another(TopicId { cluster: 2, ..NEW }));
    }

    #[test]
    fn what_is_remembered_one_by_one_is_bounded() {
        let mut confirmed = Confirmed::new(Some(OLD), frontier(5));
        for at in 0..10_000 {
            if at == 5_000 {
                confirmed.ask(&frontier(at));
            }
            confirmed.pass(stamp(at));
        }
        assert!(confirmed.since.len() <= REMEMBERED * 2);
        assert!(!confirmed.is_another(OLD));
        assert_eq!(confirmed.since.last(), Some(&stamp(9_999)));
    }
}
