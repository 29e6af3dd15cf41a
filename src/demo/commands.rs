//! Commands that the demo makes itself, since none were recorded: redemptions of rewards and orders
//! of a marketplace, with what the rules expect of them (behaviour sections 6 and 7).

use serde_json::{Value, json};

use super::expectation::Expectation;
use super::{ORDERS, REDEMPTIONS};
use crate::fakes::redemption_result;
use crate::recording::Recorded;

/// Partitions that the commands are spread over by key, as on a topic.
const PARTITIONS: u32 = 6;
/// Redemptions of a round, without repeats.
const REDEEMED: u32 = 32;
/// Orders of a round.
const ORDERED: u32 = 12;
/// What an order goes through.
const STATUSES: [&str; 4] = ["UNPAID", "READY_TO_SHIP", "SHIPPED", "COMPLETED"];
/// The time of all commands, in seconds since 1970 as marketplaces write it.
const ASKED_AT: u64 = 1_795_405_012;

/// The commands of round `round`, from 0, in their order.
pub(super) fn redemptions(round: u32, expectation: &mut Expectation) -> Vec<Recorded> {
    let command = |number: u32| {
        let id =
            |kind: u32, number: u32| format!("{round:08x}-0000-4000-8000-{kind:04x}{number:08x}");
        let user = number % 7;
        let command = json!({
            "event_id": id(1, number),
            "user_id": id(2, user),
            "reward_id": id(3, number % 3),
            "merchant_id": id(4, number % 2),
            "timestamp": ASKED_AT + u64::from(number),
        });
        (user, command)
    };
    let mut records = Vec::new();
    let repeats = (0..REDEEMED).step_by(4);
    for number in (0..REDEEMED).chain(repeats) {
        let (user, mut command) = command(number);
        let mut data = command.clone();
        // Every third names a quantity. The others mean one.
        let quantity = number % 3 + 1;
        data["quantity"] = quantity.into();
        if quantity > 1 {
            command["quantity"] = quantity.into();
        }
        let event_id = text(&command["event_id"]);
        data["result"] = redemption_result(&event_id);
        expectation.redemptions.insert(event_id, data);
        records.push(record(REDEMPTIONS, user, text(&command["user_id"]), &command));
    }
    records
}

/// The orders of round `round`, from 0, in their order.
pub(super) fn orders(round: u32, expectation: &mut Expectation) -> Vec<Recorded> {
    let mut records = Vec::new();
    let mut histories = vec![Vec::new(); ORDERED as usize];
    for (at, status) in STATUSES.iter().enumerate() {
        for number in 0..ORDERED {
            let (shop, order_sn) = (number % 3, format!("{round:06x}{number:04}"));
            let shop_id = 880_000_000 + u64::from(round) * 3 + u64::from(shop);
            let mut order = json!({
                "shop_id": shop_id,
                "order_sn": order_sn,
                "order_status": status,
                "timestamp": ASKED_AT + at as u64,
            });
            let mut platform = "shopee";
            match shop {
                0 => {}
                1 => order["shop_id"] = shop_id.to_string().into(),
                _ => {
                    platform = "lazada";
                    order["platform"] = platform.into();
                }
            }
            let key = format!("shop-{shop_id}");
            let record = record(ORDERS, shop, key, &order);
            // Every second status comes twice, since marketplaces repeat themselves.
            if (at as u32 + number).is_multiple_of(2) {
                records.push(record.clone());
            }
            records.push(record);
            if *status == "UNPAID" {
                continue;
            }
            let id = format!("marketplace/order-received:{platform}:{shop_id}:{order_sn}:{status}");
            histories[number as usize].push(id.clone());
            let data = json!({
                "shop_id": shop_id.to_string(),
                "order_sn": order_sn,
                "order_status": status,
                "platform": platform,
            });
            expectation.orders.insert(id, data);
        }
    }
    expectation.order_histories.extend(histories);
    records
}

/// One malformed command of each kind.
pub(super) fn malformed() -> [Recorded; 2] {
    let redemption = json!({"event_id": "malformed", "user_id": "u", "reward_id": "r",
        "merchant_id": "m", "quantity": 0});
    let order = json!({"shop_id": 1, "order_status": "SHIPPED"});
    [
        record(REDEMPTIONS, 0, "malformed-redemption".to_owned(), &redemption),
        record(ORDERS, 0, "malformed-order".to_owned(), &order),
    ]
}

fn record(topic: &str, hash: u32, key: String, value: &Value) -> Recorded {
    Recorded {
        topic: topic.to_owned(),
        partition: (hash % PARTITIONS).cast_signed(),
        offset: 0,
        timestamp_ms: None,
        key: Some(key.into_bytes()),
        value: Some(value.to_string().into_bytes()),
        headers: Vec::new(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn redemptions_succeed_and_fail_and_some_are_repeated() {
        let mut expectation = Expectation::default();
        let records = redemptions(0, &mut expectation);
        let answers: BTreeSet<String> = expectation
            .redemptions
            .values()
            .map(|data| data["result"]["success"].to_string())
            .collect();
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert_eq!(expectation.redemptions.len(), REDEEMED as usize);
        assert!(records.len() > expectation.redemptions.len());
    }

    #[test]
    fn orders_are_repeated_and_unpaid_ones_demand_nothing() {
        let mut expectation = Expectation::default();
        let records = orders(0, &mut expectation);
        assert_eq!(expectation.orders.len(), (ORDERED * 3) as usize);
        assert!(expectation.orders.keys().all(|id| !id.contains("UNPAID")));
        let distinct: BTreeSet<_> = records.iter().map(|record| &record.value).collect();
        assert_eq!(distinct.len(), (ORDERED * 4) as usize);
        assert!(records.len() > distinct.len());
    }

    #[test]
    fn rounds_share_neither_redemptions_nor_orders() {
        let (mut one, mut other) = (Expectation::default(), Expectation::default());
        for (round, expectation) in [(0, &mut one), (1, &mut other)] {
            redemptions(round, expectation);
            orders(round, expectation);
        }
        assert!(one.redemptions.keys().all(|id| !other.redemptions.contains_key(id)));
        assert!(one.orders.keys().all(|id| !other.orders.contains_key(id)));
    }
}
