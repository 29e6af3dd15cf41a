//! Claims of work in flight do not run out: one look for all of them, and one request for those
//! that are due, instead of a timer for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{ClaimReply, Claims, KeyAndAsker};

/// Looks in the life of a claim. What is older than three of them is renewed, so a claim is renewed
/// before a third of its life is over.
const LOOKS: u32 = 12;
const RENEW_AFTER: u32 = 3;
/// Claims in one request.
const AT_A_TIME: usize = 512;

/// The claims that are kept.
#[derive(Debug, Default)]
pub(super) struct Renewals(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    all: HashMap<u64, Entry, ahash::RandomState>,
}

#[derive(Debug)]
struct Entry {
    key: Arc<str>,
    asker: Arc<str>,
    granted: Instant,
    lost: oneshot::Sender<()>,
}

/// Keeps a claim while it lives.
#[derive(Debug)]
pub struct Renewal {
    renewals: Arc<Renewals>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Renewals {
    /// Keeps the claim `key` of `asker`, which was granted at `granted`.
    pub(super) fn keep(
        self: &Arc<Self>,
        key: Arc<str>,
        asker: Arc<str>,
        granted: Instant,
    ) -> Renewal {
        let (sender, lost) = oneshot::channel();
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        entries.all.insert(number, Entry { key, asker, granted, lost: sender });
        Renewal { renewals: Arc::clone(self), number, lost }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that were granted before `before`, with their askers.
    fn due(&self, before: Instant) -> (Vec<u64>, Vec<KeyAndAsker>) {
        let entries = self.lock();
        let due = entries.all.iter().filter(|(_, entry)| entry.granted < before);
        due.map(|(number, Entry { key, asker, .. })| {
            (*number, (Arc::clone(key), Arc::clone(asker)))
        })
        .unzip()
    }

    /// Takes in what was answered about a claim that was asked for at `asked`.
    fn answered(&self, number: u64, reply: &ClaimReply, asked: Instant) {
        let mut entries = self.lock();
        if *reply == ClaimReply::Granted {
            if let Some(entry) = entries.all.get_mut(&number) {
                entry.granted = asked;
            }
        } else if let Some(entry) = entries.all.remove(&number) {
            // Its work may have ended meanwhile.
            entry.lost.send(()).ok();
        }
    }
}

impl Renewal {
    /// Ends when another record has the claim all the same, or has done the work.
    pub async fn lost(&mut self) {
        // Its other end is dropped only with this one.
        if (&mut self.lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// When the claim was last granted; `None` once it is lost.
    #[must_use]
    pub fn granted(&self) -> Option<Instant> {
        self.renewals.lock().all.get(&self.number).map(|entry| entry.granted)
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.renewals.lock().all.remove(&self.number);
    }
}

/// Renews what is due until nobody has these claims any more. Claims that are away are no reason to
/// break off: what could not be renewed is due at the next look.
pub(super) async fn run(renewals: Weak<Renewals>, window: Duration, claims: Claims) {
    let look = window / LOOKS;
    loop {
        tokio::time::sleep(look).await;
        let Some(renewals) = renewals.upgrade() else { return };
        let Some(before) = Instant::now().checked_sub(look * RENEW_AFTER) else { continue };
        let (numbers, keys) = renewals.due(before);
        if keys.is_empty() {
            continue;
        }
        // A request that is too large for a slow store must not keep the others from being renewed.
        for (numbers, keys) in numbers.chunks(AT_A_TIME).zip(keys.chunks(AT_A_TIME)) {
            let asked = Instant::now();
            let Ok(Some(replies)) = claims.claim_all(keys.to_vec()).await else { continue };
            for (number, reply) in numbers.iter().zip(&replies) {
                renewals.answered(*number, reply, asked);
            }
        }
    }
}
