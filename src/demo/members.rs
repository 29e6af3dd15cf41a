//! What Supabase's fake was asked about members, and how much had been fed by then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::expectation::Evaluations;
use crate::fakes::{Fake, Reply, tier_status};

/// The two functions of tier, watched.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fed: usize,
    evaluated: BTreeMap<String, Evaluations>,
    applied: BTreeMap<String, Vec<Value>>,
}

impl Members {
    /// Defines the functions in `fake`.
    pub(super) fn watch(fake: &Fake) -> Arc<Self> {
        let members = Arc::new(Self::default());
        let this = Arc::clone(&members);
        fake.define("evaluate_user_tier_status", move |arguments| {
            let (user, merchant) = (text(arguments, "p_user_id"), text(arguments, "p_merchant_id"));
            let mut guard = this.lock();
            let State { fed, evaluated, .. } = &mut *guard;
            let evaluations = evaluated.entry(format!("{user}|{merchant}")).or_default();
            evaluations.times += 1;
            evaluations.last_after = *fed;
            Reply::json(&tier_status(user, merchant))
        });
        let this = Arc::clone(&members);
        fake.define("apply_tier_upgrade", move |arguments| {
            let (user, merchant) = (text(arguments, "p_user_id"), text(arguments, "p_merchant_id"));
            let tier = arguments.get("p_to_tier_id").cloned().unwrap_or_default();
            this.lock().applied.entry(format!("{user}|{merchant}")).or_default().push(tier);
            Reply::void()
        });
        members
    }

    /// Sets how many records are fed. Called before the broker gets the last of them, so that the
    /// evaluation it causes cannot come first.
    pub(super) fn fed(&self, records: usize) {
        self.lock().fed = records;
    }

    /// Evaluations, and the tiers given at once, by member.
    pub(super) fn seen(&self) -> (BTreeMap<String, Evaluations>, BTreeMap<String, Vec<Value>>) {
        let state = self.lock();
        (state.evaluated.clone(), state.applied.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text<'a>(arguments: &'a Map<String, Value>, name: &str) -> &'a str {
    arguments.get(name).and_then(Value::as_str).unwrap_or_default()
}
