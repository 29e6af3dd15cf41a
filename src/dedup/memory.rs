//! Claims in the process's own memory: for the demo and for tests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::generations::Generations;
use super::{
    ClaimOp, ClaimReply, LockOp, LockReply, Op, Reply, Store, StoreUnavailable, TakenBack,
};

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
        match op {
            Op::Claim(op) => Reply::Claim(self.apply_claim(entries, op, now)),
            Op::Lock(op) => Reply::Lock(self.apply_lock(entries, op, now)),
        }
    }

    fn apply_claim(
        &self,
        entries: &mut Generations<State>,
        op: &ClaimOp,
        now: Instant,
    ) -> ClaimReply {
        let present = |key: &str| entries.get(key, now).map(|(state, _)| state);
        match op {
            ClaimOp::Take { key, asker } => match present(key) {
                Some(State::Claimed(holder)) if holder != asker => ClaimReply::Held,
                None | Some(State::Claimed(_)) => {
                    entries.insert(key, State::Claimed(asker.clone()), now, self.window);
                    ClaimReply::Granted
                }
                Some(state) => done(state),
            },
            ClaimOp::Confirm { key, accepted_ms, due_ms, keep } => {
                let state = State::Done { accepted_ms: *accepted_ms, due_ms: *due_ms };
                entries.insert(key, state, now, *keep);
                ClaimReply::Noted
            }
            ClaimOp::ConfirmTaken { key, accepted_ms } => {
                let left = entries.get(key, now).map(|(_, until)| *until - now);
                let state = State::Done { accepted_ms: *accepted_ms, due_ms: 0 };
                entries.insert(key, state, now, left.unwrap_or(self.window));
                ClaimReply::Noted
            }
            ClaimOp::TakeBack { key, by, keep } => {
                let (accepted_ms, due_ms) = match present(key) {
                    Some(State::Done { accepted_ms, due_ms }) => (Some(*accepted_ms), *due_ms),
                    Some(State::TakenBack { accepted_ms, due_ms, .. }) => (*accepted_ms, *due_ms),
                    _ => (None, 0),
                };
                let state = State::TakenBack { accepted_ms, due_ms, by: *by };
                entries.insert(key, state, now, *keep);
                ClaimReply::Noted
            }
            ClaimOp::Release { key, asker } => {
                if matches!(present(key), Some(State::Claimed(holder)) if holder == asker) {
                    entries.remove(key);
                }
                ClaimReply::Noted
            }
            ClaimOp::Look { key, asker } => match present(key) {
                Some(State::Claimed(holder)) if Some(holder) == asker.as_ref() => {
                    ClaimReply::Granted
                }
                known => known.map_or(ClaimReply::Free, done),
            },
        }
    }

    fn apply_lock(&self, entries: &mut Generations<State>, op: &LockOp, now: Instant) -> LockReply {
        let present = |key: &str| entries.get(key, now).map(|(state, _)| state);
        match op {
            LockOp::Acquire { key, asker, left_by, lease } => {
                let (accepted_ms, resumed) = match present(key) {
                    None => (None, false),
                    Some(State::Free { accepted_ms }) => (Some(*accepted_ms), false),
                    Some(State::Acquired { holder, accepted_ms })
                        if holder == asker || Some(holder) == left_by.as_ref() =>
                    {
                        (Some(*accepted_ms), true)
                    }
                    Some(State::Acquired { holder, .. } | State::Claimed(holder)) => {
                        return LockReply::Taken { holder: holder.clone() };
                    }
                    Some(_) => return LockReply::Taken { holder: "".into() },
                };
                let state = State::Acquired {
                    holder: asker.clone(),
                    accepted_ms: accepted_ms.unwrap_or(0),
                };
                entries.insert(key, state, now, *lease);
                LockReply::Acquired { accepted_ms, resumed }
            }
            LockOp::Free { key, asker, accepted_ms } => {
                match present(key) {
                    Some(State::Acquired { holder, .. }) if holder != asker => {}
                    _ => {
                        let state = State::Free { accepted_ms: *accepted_ms };
                        entries.insert(key, state, now, self.window);
                    }
                }
                LockReply::Noted
            }
            LockOp::Keep { key, text, keep, lock, asker } => match present(lock) {
                Some(State::Acquired { holder, .. }) if holder == asker => {
                    entries.insert(key, State::Text(text.clone()), now, *keep);
                    LockReply::Noted
                }
                _ => LockReply::Lost,
            },
            LockOp::Recall { key } => LockReply::Text(match present(key) {
                Some(State::Text(text)) => Some(text.clone()),
                _ => None,
            }),
            LockOp::Since { key, now_ms } => {
                if let Some(State::Text(ms)) = present(key) {
                    return LockReply::Since { ms: ms.parse().unwrap_or(*now_ms) };
                }
                entries.insert(key, State::Text(now_ms.to_string()), now, FOR_GOOD);
                LockReply::Since { ms: *now_ms }
            }
        }
    }
}

/// Longer than any process lives.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

fn done(state: &State) -> ClaimReply {
    match *state {
        State::Done { accepted_ms, due_ms } => ClaimReply::Done { accepted_ms, due_ms },
        State::TakenBack { accepted_ms, due_ms, by } => {
            ClaimReply::TakenBack { accepted_ms, due_ms, by }
        }
        _ => ClaimReply::Held,
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
        ClaimOp::Take { key: "award:purchase:1".into(), asker: asker.into() }.into()
    }

    const GRANTED: Reply = Reply::Claim(ClaimReply::Granted);
    const HELD: Reply = Reply::Claim(ClaimReply::Held);

    #[test]
    fn a_claim_left_by_a_crash_is_known_by_its_own_record_and_held_against_others() {
        let store = MemoryStore::new(WINDOW);
        let now = Instant::now();
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/7"), now), GRANTED);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/7"), now), GRANTED);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now), HELD);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now + WINDOW), GRANTED);
    }

    #[test]
    fn done_is_done_for_everybody_until_the_window_ends() {
        let store = Arc::new(MemoryStore::new(WINDOW));
        let now = Instant::now();
        let done = ClaimOp::Confirm {
            key: "award:purchase:1".into(),
            accepted_ms: 42,
            due_ms: 0,
            keep: WINDOW,
        };
        store.apply(&mut store.lock(), &claim("g/t/0/7"), now);
        store.apply(&mut store.lock(), &done.clone().into(), now);
        assert_eq!(
            store.apply(&mut store.lock(), &claim("g/t/0/7"), now),
            Reply::Claim(ClaimReply::Done { accepted_ms: 42, due_ms: 0 })
        );
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now + WINDOW), GRANTED);
    }

    #[test]
    fn what_is_held_alone_by_a_record_that_nobody_knows_is_free_when_its_lease_ends() {
        let store = MemoryStore::new(WINDOW);
        let (now, lease) = (Instant::now(), WINDOW / 5);
        let acquire = |asker: &str| {
            let (key, asker) = ("tier:u:m".into(), asker.into());
            Op::Lock(LockOp::Acquire { key, asker, left_by: None, lease })
        };
        let acquired = Reply::Lock(LockReply::Acquired { accepted_ms: None, resumed: false });
        assert_eq!(store.apply(&mut store.lock(), &acquire("g/t/0/7"), now), acquired);
        let taken = Reply::Lock(LockReply::Taken { holder: "g/t/0/7".into() });
        assert_eq!(store.apply(&mut store.lock(), &acquire("g/t/0/9"), now + lease / 2), taken);
        assert_eq!(store.apply(&mut store.lock(), &acquire("g/t/0/9"), now + lease), acquired);
    }

    #[test]
    fn only_the_holder_gives_a_claim_back() {
        let store = MemoryStore::new(WINDOW);
        let now = Instant::now();
        let release = |asker: &str| {
            Op::Claim(ClaimOp::Release { key: "award:purchase:1".into(), asker: asker.into() })
        };
        store.apply(&mut store.lock(), &claim("g/t/0/7"), now);
        store.apply(&mut store.lock(), &release("g/t/0/9"), now);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now), HELD);
        store.apply(&mut store.lock(), &release("g/t/0/7"), now);
        assert_eq!(store.apply(&mut store.lock(), &claim("g/t/0/9"), now), GRANTED);
    }
}
