//! Room for what work produces while it waits: bytes, within a bound (behaviour section 8.5).
//!
//! What is produced is charged without waiting. Only work that holds nothing of the room yet waits,
//! in a line. So the work inside always ends, and no two pieces wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, MutexGuard, Notify};

/// A bound on bytes that are held at a time.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    held: AtomicUsize,
    door: Mutex<()>,
    freed: Notify,
}

/// The first place in the line. Its holder has found room, and keeps others out until it has
/// charged what it produces.
#[derive(Debug)]
#[must_use]
pub struct Turn<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

/// Bytes that are held until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Charge {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    /// Room for `limit` bytes, and for what one more turn produces.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let (held, door, freed) = (AtomicUsize::new(0), Mutex::default(), Notify::new());
        Arc::new(Self { limit, held, door, freed })
    }

    /// Waits until there is room, first come, first served.
    pub async fn enter(&self) -> Turn<'_> {
        let turn = self.door.lock().await;
        while self.held() >= self.limit.max(1) {
            self.freed.notified().await;
        }
        Turn(turn)
    }

    /// Takes `bytes`, whether there is room or not.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Charge { room: Arc::clone(self), bytes }
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }
}

impl Charge {
    /// Takes `bytes` more.
    pub fn grow(&mut self, bytes: usize) {
        self.room.held.fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.room.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_comes_waits_in_line_until_what_is_held_is_below_the_bound() {
        let room = Room::new(100);
        drop(room.enter().await);
        let (mut large, small) = (room.charge(60), room.charge(30));
        drop(room.enter().now_or_never().expect("there is room left"));
        large.grow(50);
        assert_eq!(room.held(), 140, "what is produced is charged without waiting");
        let mut first = Box::pin(room.enter());
        let mut second = Box::pin(room.enter());
        assert!(
            futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending()
        );
        drop(small);
        assert!(futures::poll!(&mut first).is_pending(), "110 are held");
        drop(large);
        assert!(futures::poll!(&mut second).is_pending(), "the first goes first");
        let turn = first.await;
        assert!(futures::poll!(&mut second).is_pending(), "one at a time");
        drop(turn);
        drop(second.await);
    }

    #[tokio::test]
    async fn who_leaves_the_line_holds_nobody_up() {
        let room = Room::new(1);
        let held = room.charge(1);
        let mut leaves = Box::pin(room.enter());
        let mut stays = Box::pin(room.enter());
        assert!(
            futures::poll!(&mut leaves).is_pending() && futures::poll!(&mut stays).is_pending()
        );
        drop(held);
        drop(leaves);
        drop(stays.await);
    }
}
