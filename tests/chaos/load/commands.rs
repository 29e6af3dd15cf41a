//! What applications write themselves (commands and orders), and records that nobody can read.

use std::collections::VecDeque;

use crm_event_processors::fakes::redemption_result;
use serde_json::json;

use super::effects::{effect, letter, merchant};
use super::lives::Maker;
use super::{CONSUMERS, Change, ORDERS, PURCHASES, REDEMPTIONS};
use crate::history::Effect;

impl Maker {
    /// A command to turn points into a reward, which some apps send twice.
    pub(super) fn redemption(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let mut data = json!({
            "event_id": id, "user_id": user, "reward_id": "r", "merchant_id": merchant(number),
            "quantity": self.rng.u8(1..4),
        });
        let raw = Some(data.to_string());
        let result = redemption_result(&id);
        let name = if result["success"] == true { "redeemed" } else { "redemption-failed" };
        data["result"] = result;
        let call = format!("redeem_reward_with_points:{id}:{user}");
        let redeemed = Effect {
            order: Some(format!("redemptions of {user}")),
            content: Some(data),
            ..effect("reward", vec![call, format!("reward/{name}:{id}")])
        };
        let change = |copy| {
            let (before, after, effects) = (None, None, vec![redeemed.clone()]);
            let (id, raw) = (user.clone(), raw.clone());
            Change { table: REDEMPTIONS, id, before, after, effects, raw, copy }
        };
        let twice = self.rng.u8(..8) == 0;
        [false, true].into_iter().filter(|copy| !copy || twice).map(change).collect()
    }

    /// A record that nobody can read.
    pub(super) fn malformed(&mut self) -> VecDeque<Change> {
        let id = self.id();
        let key = json!({ "id": id }).to_string();
        let takers = CONSUMERS.iter().filter(|(_, topics)| topics.contains(&PURCHASES));
        let effects = takers.map(|(name, _)| effect(name, vec![letter(name, &key)])).collect();
        let raw = Some("these are not the changes you are looking for".to_owned());
        let (before, after) = (None, None);
        VecDeque::from([Change { table: PURCHASES, id, before, after, effects, raw, copy: false }])
    }

    /// A marketplace order; some of its states are reported twice.
    pub(super) fn order(&mut self) -> VecDeque<Change> {
        let (shop, order) = (self.rng.u32(1..40), self.rng.u64(..1 << 52));
        let mut changes = VecDeque::new();
        for status in ["UNPAID", "READY_TO_SHIP", "SHIPPED", "COMPLETED"] {
            let content = json!({
                "shop_id": shop.to_string(), "order_sn": order.to_string(),
                "order_status": status, "platform": "shopee",
            });
            let id = format!("marketplace/order-received:shopee:{shop}:{order}:{status}");
            let received = Effect {
                order: Some(order.to_string()),
                content: Some(content),
                ..effect("marketplace", vec![id])
            };
            let effects = if status == "UNPAID" { vec![] } else { vec![received] };
            let raw = json!({
                "shop_id": shop, "order_sn": order.to_string(), "order_status": status,
                "timestamp": 1_800_000_000,
            });
            for copy in [false, true] {
                if copy && self.rng.u8(..8) > 0 {
                    continue;
                }
                let (before, after, effects) = (None, None, effects.clone());
                let (id, raw) = (format!("shop-{shop}"), Some(raw.to_string()));
                changes.push_back(Change { table: ORDERS, id, before, after, effects, raw, copy });
            }
        }
        changes
    }
}
