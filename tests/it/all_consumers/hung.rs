//! One consumer's dependency hangs: the others keep going, and readiness says which one waits for
//! what (behaviour section 8.8).

use crm_event_processors::fakes::{Endpoint, Fault, Lasting};
use serde_json::Value;

use super::{Scene, TAKES, ids};
use crate::life::purchases;
use test_support::http::Health;
use test_support::until;

const RECORDS: &str = "crm_records_total";

/// Lets the function that `hung` calls hang, until all others have finished everything.
async fn hangs(hung: &str, function: &str, event: &str) {
    let scene = Scene::with("life/full.jsonl.gz").await;
    scene.fake.fill("purchase_ledger", purchases());
    scene.send_orders(500).await;
    scene.fake.fail_function(function, Fault::Hang, Lasting::UntilHealed);
    let health = Health::free();
    let daemon = scene
        .environment()
        .with("HTTP_LISTEN", health.listen())
        .with("CLIENT_REQUEST_TIMEOUT", "3s")
        .with("BREAKER_THRESHOLD", "1")
        .with("BACKOFF_MAX", "1s")
        .start();
    scene.caught_up(|consumer| consumer != hung).await;

    let dependency = format!("supabase/rpc/{function}");
    let waits = |line: &Value| {
        let waits = line["waits_for"].as_array().expect("a list");
        waits.iter().any(|what| what.as_str().is_some_and(|what| what.contains(&dependency)))
    };
    until("readiness to tell of it, and of nothing else", async || {
        let (status, consumers) = health.readiness().await?;
        assert_eq!(status, 200, "a restart would not help");
        assert_eq!(consumers.len(), TAKES.len());
        let as_it_is = consumers.iter().all(|(name, line)| match name == hung {
            true => line["state"] == "degraded" && waits(line),
            false => line["state"] == "ready" && line["records_in_flight"] == 0,
        });
        as_it_is.then_some(())
    })
    .await;
    let metrics = health.metrics().await;
    for (consumer, tables) in TAKES {
        for table in tables {
            let topic = scene.topic(table);
            let ended = metrics.sum(RECORDS, &[("consumer", consumer), ("topic", &topic)]);
            let fed = scene.fed(table).await as f64;
            if consumer != hung {
                assert_eq!(ended, fed, "{consumer} {topic}: every record has its outcome");
            } else if *table == "purchase_ledger" {
                assert!(ended < fed, "{consumer} {topic}: what hangs has none");
            }
        }
    }
    assert_eq!(metrics.sum("crm_dependency_away", &[("dependency", &dependency)]), 1.0);
    assert_eq!(metrics.sum("crm_dependency_away", &[]), 1.0, "and nothing else:\n{metrics}");
    scene.fake.inspect(|log| {
        assert!(log.events.iter().all(|stored| !stored.name.starts_with(event)));
        assert!(!ids(log, "mission/evaluate").is_empty());
        assert_eq!(ids(log, "marketplace/order-received").len(), 500);
        assert!(log.requests(Endpoint::Rpc).faults > 0, "it was called");
    });

    scene.fake.heal_function(function);
    scene.caught_up(|_| true).await;
    scene.fake.inspect(|log| {
        assert!(log.events.iter().any(|stored| stored.name.starts_with(event)));
    });
    assert!(daemon.stop().success(), "a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_awards_cannot_be_calculated_the_other_four_finish_everything() {
    hangs("currency", "calc_currency_for_source", "currency/award").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_tiers_cannot_be_evaluated_the_other_four_finish_everything() {
    hangs("tier", "evaluate_user_tier_status", "tier/").await;
}
