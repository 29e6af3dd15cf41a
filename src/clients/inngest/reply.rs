//! Tells callers what became of their events: each alone, or many in one place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::{Accepted, SendError};

/// What became of a caller's events.
pub type Outcome = Result<Accepted, SendError>;

/// Where one caller hears of its events.
#[derive(Debug)]
pub(super) enum Reply {
    One(oneshot::Sender<Outcome>),
    OfMany(Place),
}

impl Reply {
    pub(super) fn send(self, outcome: Outcome) {
        match self {
            // A caller that has gone wants no answer.
            Self::One(reply) => drop(reply.send(outcome)),
            Self::OfMany(mut place) => place.answer(outcome),
        }
    }

    /// Whether the caller has gone.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::One(reply) => reply.is_closed(),
            Self::OfMany(place) => place.many.gone[place.index].load(Ordering::Acquire),
        }
    }
}

/// One of the callers of [`Replies`].
#[derive(Debug)]
pub(super) struct Place {
    many: Arc<Many>,
    index: usize,
    answered: bool,
}

impl Place {
    fn answer(&mut self, outcome: Outcome) {
        self.answered = true;
        let mut answers = self.many.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push((self.index, outcome));
        drop(answers);
        self.many.answered.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(SendError::Closed));
        }
    }
}

#[derive(Debug)]
struct Many {
    answers: Mutex<Vec<(usize, Outcome)>>,
    answered: Notify,
    gone: Box<[AtomicBool]>,
}

/// The answers to many callers, one each, as they come. A caller has gone once this is dropped or
/// the caller abandoned.
#[derive(Debug)]
pub struct Replies {
    many: Arc<Many>,
    open: usize,
}

impl Replies {
    /// Replies for `count` callers, with a place for each.
    pub(super) fn new(count: usize) -> (Self, impl Iterator<Item = Reply>) {
        let many = Arc::new(Many {
            answers: Mutex::new(Vec::with_capacity(count)),
            answered: Notify::new(),
            gone: (0..count).map(|_| AtomicBool::new(false)).collect(),
        });
        let places = Arc::clone(&many);
        let place =
            move |index| Reply::OfMany(Place { many: Arc::clone(&places), index, answered: false });
        (Self { many, open: count }, (0..count).map(place))
    }

    /// The answers that have come since the last call, with the numbers of their callers; `None` once
    /// all have. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<(usize, Outcome)>> {
        while self.open > 0 {
            let answers = self.ready();
            if !answers.is_empty() {
                return Some(answers);
            }
            self.many.answered.notified().await;
            // One request usually answers many callers: let all of them come in.
            tokio::task::yield_now().await;
        }
        None
    }

    /// The answers that have come, without waiting.
    pub fn ready(&mut self) -> Vec<(usize, Outcome)> {
        let mut answers = self.many.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = std::mem::take(&mut *answers);
        self.open -= answers.len();
        answers
    }

    /// Caller number `index` has gone: its events are left out of requests that are not sent yet.
    pub fn abandon(&self, index: usize) {
        if let Some(gone) = self.many.gone.get(index) {
            gone.store(true, Ordering::Release);
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        for gone in &self.many.gone {
            gone.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_is_answered_once_and_one_that_nobody_answers_is_closed() {
        let (mut replies, places) = Replies::new(3);
        let mut places: Vec<Reply> = places.collect();
        let accepted = Accepted { at: jiff::Timestamp::now(), served: 1 };
        places.remove(1).send(Ok(accepted));
        let answers = replies.next().await.expect("one");
        assert!(matches!(answers[..], [(1, Ok(_))]), "{answers:?}");
        replies.abandon(2);
        assert!(!places[0].is_closed() && places[1].is_closed());
        drop(places);
        let answers = replies.next().await.expect("the others");
        assert!(matches!(answers[..], [(0, Err(SendError::Closed)), (2, Err(SendError::Closed))]));
        assert!(replies.next().await.is_none(), "all have come");
    }

    #[test]
    fn who_no_longer_listens_has_gone() {
        let (replies, places) = Replies::new(2);
        let places: Vec<Reply> = places.collect();
        drop(replies);
        assert!(places.iter().all(Reply::is_closed));
    }
}
