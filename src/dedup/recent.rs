//! What was accepted a moment ago, remembered in the process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Acceptances of the last while in this process. Redis may be emptied at any time, and a cancel
/// must still know that its award was accepted a moment ago (behaviour section 3).
pub(super) struct Recent {
    remember_ms: i64,
    hasher: ahash::RandomState,
    known: Mutex<Remembered>,
}

/// Times by hash of the key, and the same in order of time.
type Remembered = (HashMap<u64, i64, ahash::RandomState>, VecDeque<(i64, u64)>);

/// Bounds the memory of [`Recent`] at about 4 MiB.
const RECENT_MAX: usize = 100_000;

impl Recent {
    pub(super) fn new(remember: Duration) -> Self {
        Self {
            remember_ms: i64::try_from(remember.as_millis()).unwrap_or(i64::MAX),
            hasher: ahash::RandomState::new(),
            known: Mutex::default(),
        }
    }

    pub(super) fn note(&self, key: &str, accepted_ms: i64) {
        let hash = self.hasher.hash_one(key);
        let mut guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, order) = &mut *guard;
        // A repeat of it must push out no other.
        if known.insert(hash, accepted_ms) == Some(accepted_ms) {
            return;
        }
        order.push_back((accepted_ms, hash));
        while order.len() > RECENT_MAX
            || order.front().is_some_and(|(at, _)| *at < accepted_ms - self.remember_ms)
        {
            if let Some((at, old)) = order.pop_front()
                && known.get(&old) == Some(&at)
            {
                known.remove(&old);
            }
        }
    }

    pub(super) fn find(&self, key: &str) -> Option<i64> {
        let hash = self.hasher.hash_one(key);
        let guard = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.get(&hash).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_acceptances_is_bounded_in_time_and_number() {
        let recent = Recent::new(Duration::from_secs(30));
        recent.note("old", 1_000);
        recent.note("new", 40_000);
        assert_eq!((recent.find("old"), recent.find("new")), (None, Some(40_000)));
        for number in 0..RECENT_MAX + 10 {
            recent.note(&number.to_string(), 40_000);
        }
        assert_eq!(recent.find("new"), None);
        assert_eq!(recent.known.lock().expect("not poisoned").1.len(), RECENT_MAX);
        for _ in 0..RECENT_MAX {
            recent.note("20", 40_000);
        }
        assert_eq!(recent.find("21"), Some(40_000), "a second phase that is tried again");
    }
}
