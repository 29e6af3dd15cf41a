use serde_json::{Value, json};

use super::*;
use crate::consumers::testing::{Bench, Handle as _, record};
use crate::fakes::{Endpoint, Fault, Lasting};

const TOPIC: &str = "marketplace.orders";

fn routed(value: &str) -> Result<(Work, Lane), String> {
    match route(&record(TOPIC, value.as_bytes())) {
        Ok(Route::Process { work, lane }) => Ok((work, lane)),
        Ok(Route::Skip(reason)) => Err(reason.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn order(shop_id: Value, status: &str) -> String {
    json!({"platform": "lazada", "shop_id": shop_id, "order_sn": "A:1", "order_status": status,
        "timestamp": 1_795_405_012})
    .to_string()
}

fn marketplace(bench: &Bench) -> Marketplace {
    Marketplace { sender: bench.sender.clone() }
}

#[test]
fn a_shop_is_a_string_whether_it_comes_as_one_or_as_a_number() {
    for shop in [json!("4711"), json!(4711)] {
        let (work, _) = routed(&order(shop, "PAID")).expect("an order");
        assert_eq!(work.id(), "marketplace/order-received:lazada:4711:A:1:PAID");
        let data = serde_json::to_value(work.received()).expect("json");
        assert_eq!(
            data,
            json!({"shop_id": "4711", "order_sn": "A:1", "order_status": "PAID", "platform": "lazada"})
        );
    }
    let (work, _) =
        routed(&order(json!(18_446_744_073_709_551_615_u64), "PAID")).expect("an order");
    assert_eq!(work.received().shop_id, "18446744073709551615", "exact beyond 2^53");
}

#[test]
fn the_platform_is_shopee_where_none_is_named() {
    for platform in ["", r#""platform":null,"#, r#""platform":"","#, r#""platform":"shopee","#] {
        let value = format!(r#"{{{platform}"shop_id":"1","order_sn":"x","order_status":"PAID"}}"#);
        let (work, _) = routed(&value).expect("an order");
        assert_eq!(work.id(), "marketplace/order-received:shopee:1:x:PAID");
    }
}

#[test]
fn unpaid_orders_are_skipped_and_malformed_ones_told() {
    assert_eq!(routed(&order(json!(1), "UNPAID")).expect_err("skipped"), "unpaid");
    for (value, problem) in [
        (r#"{"shop_id":"1","order_sn":"x"}"#, "missing field `order_status`"),
        (r#"{"order_sn":"x","order_status":"PAID"}"#, "missing field `shop_id`"),
        (r#"{"shop_id":"","order_sn":"x","order_status":"PAID"}"#, "shop_id is empty"),
        (r#"{"shop_id":1.5,"order_sn":"x","order_status":"PAID"}"#, "wrong type"),
        (r#"{"shop_id":{},"order_sn":"x","order_status":"PAID"}"#, "wrong type"),
        ("{", "value is not valid JSON"),
    ] {
        let error = routed(value).expect_err(value);
        assert!(error.contains(problem), "{value}: {error}");
    }
    let tombstone = Record { value: None, ..record(TOPIC, b"") };
    assert!(matches!(route(&tombstone), Ok(Route::Skip("tombstone"))));
}

#[test]
fn the_lane_is_one_order_and_not_its_shop() {
    let lane = |value: &str| routed(value).expect("an order").1;
    let other = order(json!(1), "PAID").replace("A:1", "A:2");
    assert_eq!(lane(&order(json!(1), "PAID")), lane(&order(json!("1"), "SHIPPED")));
    assert_ne!(lane(&order(json!(1), "PAID")), lane(&other));
}

#[test]
fn escapes_are_read_and_written_again() {
    let value = r#"{"shop_id":"1","order_sn":"a\"\u00fc","order_status":"PAID"}"#;
    let (work, _) = routed(value).expect("an order");
    assert_eq!(work.received().order_sn, "a\"ü");
}

#[tokio::test]
async fn a_status_of_an_order_is_sent_once_and_the_next_status_again() {
    let bench = Bench::start().await;
    let marketplace = marketplace(&bench);
    let mut outcomes = Vec::new();
    for (offset, status) in [(1, "PAID"), (2, "PAID"), (3, "SHIPPED"), (1, "PAID")] {
        let (work, _) = routed(&order(json!(4711), status)).expect("an order");
        outcomes.push(marketplace.handle(&bench.cx(offset), &work).await.expect("done"));
    }
    use Outcome::{Duplicate, Sent};
    assert_eq!(outcomes, [Sent, Duplicate, Sent, Duplicate]);
    let data = |status| {
        json!({"shop_id": "4711", "order_sn": "A:1", "order_status": status,
        "platform": "lazada"})
    };
    assert_eq!(
        bench.events(),
        ["PAID", "SHIPPED"].map(|status| {
            (format!("marketplace/order-received:lazada:4711:A:1:{status}"), data(status))
        })
    );
    bench.fake.inspect(|log| assert!(log.calls.is_empty(), "Supabase is not needed"));
}

#[tokio::test]
async fn an_outage_of_inngest_delays_an_order_and_does_not_lose_or_double_it() {
    let bench = Bench::start().await;
    let marketplace = marketplace(&bench);
    bench.fake.fail(Endpoint::Post, Fault::status(503), Lasting::Next(2));
    bench.fake.fail(Endpoint::Post, Fault::Reset, Lasting::Next(1));
    let (work, _) = routed(&order(json!(1), "PAID")).expect("an order");
    let done = marketplace.handle(&bench.cx(1), &work).await.expect("sent");
    assert_eq!((done, bench.events().len()), (Outcome::Sent, 1));
}

#[tokio::test]
async fn explain_names_lane_claim_and_event() {
    let bench = Bench::start().await;
    let (work, _) = routed(&order(json!(1), "PAID")).expect("an order");
    let steps = marketplace(&bench).steps(&work);
    assert_eq!(steps.lane, "lazada:1:A:1");
    assert_eq!(steps.claims(), "marketplace/order-received:lazada:1:A:1:PAID");
    assert_eq!(
        steps.requests().collect::<Vec<_>>(),
        ["event marketplace/order-received marketplace/order-received:lazada:1:A:1:PAID"]
    );
}
