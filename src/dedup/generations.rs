//! A map whose entries run out, for claims in memory.
//!
//! Most live no longer than the window. They lie in two generations: every window a new one begins,
//! or when one is full, and the last but one is dropped whole. So nobody looks for what has run out, however many there
//! are. Keys are kept as hashes of 128 bits: that two of them are the same is out of the question.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Entries, each until its time.
#[derive(Debug)]
pub(super) struct Generations<T> {
    window: Duration,
    hashers: [ahash::RandomState; 2],
    young: Generation<T>,
    old: Generation<T>,
    young_since: Option<Instant>,
    /// What lives longer than the window: decisions, and what sleeps.
    long: Generation<T>,
    /// At so many of those one looks for what has run out.
    sweep_at: usize,
}

type Generation<T> = HashMap<u128, (T, Instant), ahash::RandomState>;

/// At so many entries a generation ends before its time, so that memory is bounded whatever comes:
/// some 50 MiB in two of them.
const MOST: usize = 250_000;
/// Below this many entries those that have run out are not worth looking for.
const SWEEP_FROM: usize = 1_000;

impl<T> Generations<T> {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            hashers: [ahash::RandomState::new(), ahash::RandomState::new()],
            young: HashMap::default(),
            old: HashMap::default(),
            young_since: None,
            long: HashMap::default(),
            sweep_at: SWEEP_FROM,
        }
    }

    fn hash(&self, key: &str) -> u128 {
        let [high, low] = &self.hashers;
        u128::from(high.hash_one(key)) << 64 | u128::from(low.hash_one(key))
    }

    /// What lives under `key`, and until when.
    pub(super) fn get(&self, key: &str, now: Instant) -> Option<&(T, Instant)> {
        let hash = self.hash(key);
        let mut all = [&self.young, &self.old, &self.long].into_iter();
        all.find_map(|generation| generation.get(&hash)).filter(|(_, until)| *until > now)
    }

    /// Keeps `value` in place of what was there.
    pub(super) fn insert(&mut self, key: &str, value: T, now: Instant, lives: Duration) {
        self.turn(now);
        let hash = self.hash(key);
        let entry = (value, now + lives);
        if lives <= self.window {
            if self.young.insert(hash, entry).is_none() {
                self.old.remove(&hash);
                self.long.remove(&hash);
            }
            return;
        }
        self.young.remove(&hash);
        self.old.remove(&hash);
        self.long.insert(hash, entry);
        // Each is looked at about once, however long the number stays where it is.
        if self.long.len() >= self.sweep_at {
            self.long.retain(|_, (_, until)| *until > now);
            self.sweep_at = (self.long.len() * 2).max(SWEEP_FROM);
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        let hash = self.hash(key);
        for generation in [&mut self.young, &mut self.old, &mut self.long] {
            generation.remove(&hash);
        }
    }

    pub(super) fn clear(&mut self) {
        for generation in [&mut self.young, &mut self.old, &mut self.long] {
            generation.clear();
        }
    }

    fn turn(&mut self, now: Instant) {
        let since = *self.young_since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age < self.window && self.young.len() < MOST {
            return;
        }
        self.old = std::mem::take(&mut self.young);
        if age >= self.window * 2 {
            self.old.clear();
        }
        self.young_since = Some(now);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len() + self.long.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    #[test]
    fn what_has_run_out_takes_no_memory_for_long() {
        let mut all = Generations::new(WINDOW);
        let now = Instant::now();
        for minute in 0..60_u32 {
            for number in 0..1_000 {
                let key = format!("{minute}:{number}");
                all.insert(&key, (), now + Duration::from_secs(60) * minute, WINDOW);
            }
        }
        assert!(all.len() <= 10_000, "those of two windows: {}", all.len());
        for number in 0..10_000 {
            all.insert(&number.to_string(), (), now, WINDOW * 2);
        }
        let later = now + WINDOW * 20;
        for number in 0..10_000 {
            all.insert(&format!("later {number}"), (), later, WINDOW * 2);
        }
        assert!(all.long.len() < 20_000, "the first have gone: {}", all.long.len());
    }

    #[test]
    fn what_comes_faster_than_it_runs_out_is_bounded_in_number() {
        let mut all = Generations::new(WINDOW);
        let now = Instant::now();
        for number in 0..MOST * 4 {
            all.insert(&number.to_string(), (), now, WINDOW);
        }
        assert!(all.len() <= MOST * 2, "{}", all.len());
        let known = |number: usize| all.get(&number.to_string(), now).is_some();
        assert!(known(MOST * 4 - 1) && known(MOST * 3) && !known(0), "the latest are kept");
    }

    proptest! {
        /// As a plain map with times, whatever comes.
        #[test]
        fn an_entry_lives_as_long_as_it_was_given(
            steps in prop::collection::vec((0_u8..4, 0_u8..4, 0_u64..900), 1..80),
        ) {
            let mut all = Generations::new(WINDOW);
            let mut plain: HashMap<String, (usize, Instant)> = HashMap::new();
            let mut now = Instant::now();
            for (number, (what, key, seconds)) in steps.into_iter().enumerate() {
                let (key, time) = (key.to_string(), Duration::from_secs(seconds));
                match what {
                    0 => now += time,
                    1 => {
                        all.insert(&key, number, now, time);
                        plain.insert(key, (number, now + time));
                    }
                    2 => {
                        all.remove(&key);
                        plain.remove(&key);
                    }
                    _ => {
                        let expected = plain.get(&key).filter(|(_, until)| *until > now);
                        prop_assert_eq!(all.get(&key, now), expected);
                    }
                }
            }
        }
    }
}
