use serde_json::{Map, Value};

use super::*;
use crate::clients::redis::Cache;
use crate::consumers::testing::{ALL, Bench, LIMITS};

fn currency(bench: &Bench) -> Currency {
    Currency {
        topics: Vec::new(),
        limits: LIMITS,
        snapshot: ALL,
        settle: Duration::ZERO,
        original_patience: Duration::ZERO,
        calls: bench.calls.clone(),
        sender: bench.sender.clone(),
        merchants: Merchants::new(bench.calls.clone(), Cache::none()),
    }
}

fn purchase(id: &str, kind: &str, amount: &str) -> Map<String, Value> {
    let row = json!({"id": id, "merchant_id": "m", "transaction_number": "T-1",
        "status": "completed", "record_type": kind, "final_amount": amount});
    row.as_object().expect("an object").clone()
}

#[tokio::test]
async fn the_original_of_a_debit_is_never_another_debit_of_the_same_number() {
    let bench = Bench::start().await;
    let rows = [("d1", "debit", "-50.00"), ("d2", "debit", "-50.00"), ("p", "credit", "100.00")];
    bench
        .double
        .fill("purchase_ledger", rows.map(|(id, kind, amount)| purchase(id, kind, amount)).into());
    let (id, user_id, merchant_id) = ("d2".to_owned(), "u".to_owned(), "m".to_owned());
    let debit = Work::Debit {
        source: Source { kind: "purchase", id, user_id, merchant_id },
        original: Some("T-1".to_owned()),
        amount: Some(BigDecimal::from(-50)),
        ask_wallet: false,
    };
    let sent = currency(&bench).process(&bench.cx(1), &debit).await;
    assert_eq!(sent.expect("sent"), Outcome::Sent);
    let expected = json!({"source_type": "purchase", "source_id": "d2", "user_id": "u",
        "merchant_id": "m", "original_source_id": "p", "refund_percentage": 50});
    assert_eq!(bench.events(), [("currency/reverse:purchase:d2".to_owned(), expected)]);
}
