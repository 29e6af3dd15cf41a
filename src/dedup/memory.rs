//! Claims in the process's own memory: for the demo and for tests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::generations::Generations;
use super::{Op, Reply, Store, StoreUnavailable, TakenBack};

/// Behaves as [`super::RedisStore`], without surviving the process.
#[derive(Debug)]
pub struct MemoryStore {
    window: Duration,
    entries: Mutex<Generations<State>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Claimed(Arc<str>),
    Done { accepted_ms: i64, due_ms: i64 },
    TakenBack { accepted_ms: Option<i64>, due_ms: i64, by: TakenBack },
    Text(String),
    Acquired { holder: Arc<str>, accepted_ms: i64 },
    Free { accepted_ms: i64 },
}

impl MemoryStore {
    /// An empty store whose entries live for `window`.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self { window, entries: Mutex::new(Generations::new(window)) }
    }

    /// Forgets everything, as a Redis without persistence does on restart.
    pub fn clear(&self) {
        self.lock().clear();
    }

    #[cfg(test)]
    pub(crate) fn forget(&self, key: &str) {
        self.lock().remove(key);
    }

    #[cfg(test)]
    pub(crate) fn lives(&self, key: &str) -> Duration {
        let now = Instant::now();
        self.lock().get(key, now).map_or(Duration::ZERO, |(_, until)| *until - now)
    }

    #[cfg(test)]
    pub(crate) fn keep_text(&self, key: &str, text: String) {
        self.lock().insert(key, State::Text(text), Instant::now(), FOR_GOOD);
    }

    fn lock(&self) -> MutexGuard<'_, Generations<State>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, entries: &mut Generations<State>, op: &Op, now: Instant) -> Reply {
        let present = |key: &str| entries.get(key, now).map(|(state, _)| state.clone());
        let (key, state, reply) = match op {
            Op::Claim { key, asker } => match present(key) {
                Some(State::Claimed(holder)) if holder == *asker => {
                    (key, Some(State::Claimed(holder)), Reply::Granted)
                }
                None => (key, Some(State::Claimed(asker.clone())), Reply::Granted),
                Some(state) => return done(state),
            },
            Op::Confirm { key, accepted_ms, due_ms, .. } => {
                let state = State::Done { accepted_ms: *accepted_ms, due_ms: *due_ms };
                (key, Some(state), Reply::Granted)
            }
            Op::TakeBack { key, by, .. } => {
                let (accepted_ms, due_ms) = match present(key) {
                    Some(State::Done { accepted_ms, due_ms }) => (Some(accepted_ms), due_ms),
                    Some(State::TakenBack { accepted_ms, due_ms, .. }) => (accepted_ms, due_ms),
                    _ => (None, 0),
                };
                let state = State::TakenBack { accepted_ms, due_ms, by: *by };
                (key, Some(state), Reply::Granted)
            }
            Op::Keep { key, text, lock, asker, .. } => match present(lock) {
                Some(State::Acquired { holder, .. }) if holder == *asker => {
                    (key, Some(State::Text(text.clone())), Reply::Granted)
                }
                _ => return Reply::Held,
            },
            Op::Recall { key } => {
                return Reply::Kept(match present(key) {
                    Some(State::Text(text)) => Some(text),
                    _ => None,
                });
            }
            Op::Since { key, now_ms } => match present(key) {
                Some(State::Text(ms)) => return Reply::Since { ms: ms.parse().unwrap_or(*now_ms) },
                _ => (key, Some(State::Text(now_ms.to_string())), Reply::Since { ms: *now_ms }),
            },
            Op::Release { key, asker } => {
                if present(key) != Some(State::Claimed(asker.clone())) {
                    return Reply::Granted;
                }
                (key, None, Reply::Granted)
            }
            Op::Acquire { key, asker, left_by, .. } => {
                let (accepted_ms, resumed) = match present(key) {
                    None => (None, false),
                    Some(State::Free { accepted_ms }) => (Some(accepted_ms), false),
                    Some(State::Acquired { holder, accepted_ms })
                        if holder == *asker || Some(&holder) == left_by.as_ref() =>
                    {
                        (Some(accepted_ms), true)
                    }
                    Some(State::Acquired { holder, .. } | State::Claimed(holder)) => {
                        return Reply::Taken { holder };
                    }
                    Some(_) => return Reply::Taken { holder: "".into() },
                };
                let state = State::Acquired {
                    holder: asker.clone(),
                    accepted_ms: accepted_ms.unwrap_or(0),
                };
                (key, Some(state), Reply::Acquired { accepted_ms, resumed })
            }
            Op::Free { key, asker, accepted_ms } => match present(key) {
                Some(State::Acquired { holder, .. }) if holder != *asker => return Reply::Granted,
                _ => (key, Some(State::Free { accepted_ms: *accepted_ms }), Reply::Granted),
            },
            Op::Look { key, asker } if present(key) == Some(State::Claimed(asker.clone())) => {
                return Reply::Granted;
            }
            Op::Read { key } | Op::Look { key, .. } => {
                return present(key).map_or(Reply::Free, done);
            }
        };
        let lives = match op {
            Op::Acquire { lease, .. } => *lease,
            Op::Confirm { keep, .. } | Op::TakeBack { keep, .. } | Op::Keep { keep, .. } => *keep,
            Op::Since { .. } => FOR_GOOD,
            _ => self.window,
        };
        match state {
            Some(state) => entries.insert(key, state, now, lives),
            None => entries.remove(key),
        };
        reply
    }
}

/// Longer than any process lives.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

fn done(state: State) -> Reply {
    match state {
        State::Done { accepted_ms, due_ms } => Reply::Done { accepted_ms, due_ms },
        State::TakenBack { accepted_ms, due_ms, by } => {
            Reply::TakenBack { accepted_ms, due_ms, by }
        }
        _ => Reply::Held,
    }
}

impl Store for Arc<MemoryStore> {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        let now = Instant::now();
        let mut entries = self.lock();
        let replies = ops.iter().map(|op| self.apply(&mut entries, op, now)).collect();
        Box::pin(std::future::ready(Ok(replies)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn claim(asker: &str) -> Op {
        Op::Claim { key: "award:purchase:1".into(), asker: asker.into() }
    }

    #[test]
    fn a_claim_left_by_a_crash_is_known_by_its_own_record_and_held_against_others() {
        let store = MemoryStore::new(WINDOW);
        let now = Instant::now();
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/7"), now), Reply::Granted);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/7"), now), Reply::Granted);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now), Reply::Held);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now + WINDOW), Reply::Granted);
    }

    #[test]
    fn done_is_done_for_everybody_until_the_window_ends() {
        let store = Arc::new(MemoryStore::new(WINDOW));
        let now = Instant::now();
        let done = Op::Confirm {
            key: "award:purchase:1".into(),
            accepted_ms: 42,
            due_ms: 0,
            keep: WINDOW,
        };
        store.apply(&mut store.lock(), &claim("g/t/0/7"), now);
        store.apply(&mut store.lock(), &done, now);
        assert_eq!(
            store.apply(&mut store.lock(), &claim("g/t/0/7"), now),
            Reply::Done { accepted_ms: 42, due_ms: 0 }
        );
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now + WINDOW), Reply::Granted);
    }

    #[test]
    fn what_is_held_alone_by_a_record_that_nobody_knows_is_free_when_its_lease_ends() {
        let store = MemoryStore::new(WINDOW);
        let (now, lease) = (Instant::now(), WINDOW / 5);
        let acquire = |asker: &str| Op::Acquire {
            key: "tier:u:m".into(),
            asker: asker.into(),
            left_by: None,
            lease,
        };
        let acquired = Reply::Acquired { accepted_ms: None, resumed: false };
        assert_eq!(store.apply(&mut store.lock(), &acquire("g/t/0/7"), now), acquired);
        let taken = Reply::Taken { holder: "g/t/0/7".into() };
        assert_eq!(store.apply(&mut store.lock(), &acquire("g/t/0/9"), now + lease / 2), taken);
        assert_eq!(store.apply(&mut store.lock(), &acquire("g/t/0/9"), now + lease), acquired);
    }

    #[test]
    fn only_the_holder_gives_a_claim_back() {
        let store = MemoryStore::new(WINDOW);
        let now = Instant::now();
        let release =
            |asker: &str| Op::Release { key: "award:purchase:1".into(), asker: asker.into() };
        store.apply(&mut store.lock(), &claim("g/t/0/7"), now);
        store.apply(&mut store.lock(), &release("g/t/0/9"), now);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now), Reply::Held);
        store.apply(&mut store.lock(), &release("g/t/0/7"), now);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now), Reply::Granted);
    }
}
