//! Answers kept in the process for a moment. Callers that wait for the same key share one request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::engine::Failure;

/// How long an answer stays. Short, because a changed setting or mission should soon count.
const FRESH: Duration = Duration::from_secs(15);
/// Keys remembered at most.
const MOST: usize = 10_000;

type Slot<T> = Arc<OnceCell<T>>;

/// What was looked up a moment ago, by key.
pub(crate) struct LookupCache<T> {
    known: Mutex<HashMap<String, (Instant, Slot<T>)>>,
}

impl<T> Default for LookupCache<T> {
    fn default() -> Self {
        Self { known: Mutex::default() }
    }
}

impl<T: Clone> LookupCache<T> {
    /// The answer for `key`, from memory or from `load`. While one caller loads, the others wait;
    /// when it fails, the next of them tries.
    pub(crate) async fn get<F>(&self, key: &str, load: impl FnOnce() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let slot = self.slot(key, Instant::now());
        // Boxed: thousands may wait for the one that loads.
        slot.get_or_try_init(|| Box::pin(load())).await.cloned()
    }

    /// The answer for `key`, if it is known.
    pub(crate) fn known(&self, key: &str) -> Option<T> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, slot) = known.get(key)?;
        slot.get().filter(|_| at.elapsed() < FRESH).cloned()
    }

    fn slot(&self, key: &str, now: Instant) -> Slot<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < FRESH;
        if let Some((at, slot)) = known.get(key)
            && fresh(at)
        {
            return Arc::clone(slot);
        }
        if known.len() >= MOST {
            known.retain(|_, (at, _)| fresh(at));
        }
        // All are fresh: loading them again is cheaper than searching them each time.
        if known.len() >= MOST {
            known.clear();
        }
        let slot = Slot::default();
        known.insert(key.to_owned(), (now, Arc::clone(&slot)));
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn many_who_wait_for_one_key_cause_one_request() {
        let (cache, asked) = (LookupCache::default(), AtomicU32::new(0));
        let load = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
            Ok(7)
        };
        let answers = join_all((0..100).map(|_| cache.get("a", load))).await;
        assert!(answers.into_iter().all(|answer| matches!(answer, Ok(7))));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        cache.get("b", load).await.expect("loaded");
        assert_eq!(asked.load(Ordering::Relaxed), 2, "another key is another request");
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let cache = LookupCache::default();
        let failed = cache.get("a", || async { Err(Failure::GivenUp) }).await;
        assert!(matches!(failed, Err(Failure::GivenUp)));
        assert!(matches!(cache.get("a", || async { Ok(1) }).await, Ok(1)));
    }

    #[test]
    fn an_answer_is_forgotten_after_a_moment_and_memory_is_bounded() {
        let (cache, now) = (LookupCache::<u32>::default(), Instant::now());
        let slot = cache.slot("a", now);
        assert!(Arc::ptr_eq(&slot, &cache.slot("a", now + FRESH / 2)));
        assert_eq!(cache.known("a"), None, "nobody has answered yet");
        slot.set(7).expect("empty");
        assert_eq!(cache.known("a"), Some(7));
        assert!(!Arc::ptr_eq(&slot, &cache.slot("a", now + FRESH)));
        for key in 0..3 * MOST {
            cache.slot(&key.to_string(), now);
        }
        assert!(cache.known.lock().expect("not poisoned").len() <= MOST);
    }
}
