//! What changes call for, by behaviour.md alone.

use crm_event_processors::fakes::{active_missions, currency_rows, tier_status};
use serde_json::json;

use super::lives::Maker;
use crate::history::{Consumer, Effect};

pub(super) fn effect(consumer: Consumer, chain: Vec<String>) -> Effect {
    Effect { consumer, chain, fresh: false, order: None, content: None }
}

impl Maker {
    /// What a purchase calls for once it counts; the award first.
    pub(super) fn counts(&self, id: &str, number: usize, user: &str) -> Vec<Effect> {
        let merchant = merchant(number);
        let mut effects = vec![self.award("purchase", id, number, user)];
        effects.extend(missions("purchase", id, &merchant, user));
        effects.push(evaluated(user, &merchant));
        effects
    }

    pub(super) fn award(&self, kind: &str, id: &str, number: usize, user: &str) -> Effect {
        let rows = currency_rows(id);
        if rows.is_empty() {
            return effect("currency", vec![format!("calc_currency_for_source:{kind}:{id}")]);
        }
        let content = json!({
            "source_type": kind, "source_id": id, "user_id": user,
            "merchant_id": merchant(number), "currency_rows": rows,
            "award_datetime": self.delays[number], "is_delayed": self.delays[number] > 0,
        });
        Effect {
            order: Some(format!("{kind}:{id}")),
            content: Some(content),
            ..effect("currency", vec![format!("currency/award:{kind}:{id}")])
        }
    }
}

pub(super) fn merchant(number: usize) -> String {
    format!("00000000-0000-4000-9000-{number:012x}")
}

/// The name of a dead letter: whose, and the record's key.
pub(crate) fn letter(consumer: &str, key: &str) -> String {
    format!("letter:{consumer}:{key}")
}

pub(super) fn cancelled(id: &str) -> Effect {
    Effect {
        order: Some(format!("purchase:{id}")),
        ..effect("currency", vec![format!("currency/cancelled:purchase:{id}")])
    }
}

pub(super) fn reversed(id: &str) -> Vec<String> {
    ["currency/cancelled", "currency/reverse"].map(|name| format!("{name}:purchase:{id}")).into()
}

pub(super) fn missions(event_type: &str, id: &str, merchant: &str, user: &str) -> Vec<Effect> {
    let one = |mission: String| {
        let content = json!({
            "user_id": user, "merchant_id": merchant, "mission_id": mission,
            "event_type": event_type, "trigger_id": id,
        });
        Effect {
            // Order matters between the changes of a row, not within one change.
            order: Some(id.to_owned()),
            content: Some(content),
            ..effect("mission", vec![format!("mission/evaluate:{mission}:{event_type}:{id}")])
        }
    };
    active_missions(merchant, event_type).into_iter().map(one).collect()
}

/// What an evaluation of the member after this change leads to.
pub(super) fn evaluated(user: &str, merchant: &str) -> Effect {
    let status = tier_status(user, merchant);
    let then: &[&str] = match status["recommended_action"].as_str() {
        Some("upgrade") if status["upgrade_timing"].is_null() => {
            &["tier/upgrade-cancelled", "apply_tier_upgrade"]
        }
        Some("upgrade") => &["tier/upgrade-cancelled", "tier/upgrade"],
        Some("maintain" | "downgrade") => &["tier/upgrade-cancelled"],
        _ => &[],
    };
    let chain = ["evaluate_user_tier_status"].iter().chain(then);
    let chain = chain.map(|what| format!("{what}:{user}:{merchant}")).collect();
    Effect { fresh: true, ..effect("tier", chain) }
}
