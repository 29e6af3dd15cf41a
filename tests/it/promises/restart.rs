//! Behaviour section 8.1 with 8.2: what was completed above the committable offset is not worked on
//! again after a restart, as far as the commit's metadata can hold it.

use std::time::Instant;

use crm_event_processors::engine::partition::metadata::{self, MAX_BYTES};
use crm_event_processors::engine::{Failure, Outcome};

use super::stage::{NEVER, Stage};

#[tokio::test]
async fn what_lies_above_the_committable_offset_is_not_repeated_and_its_metadata_stays_within_bounds()
 {
    const RECORDS: i64 = 30_000;
    let mut stage = Stage::new(1).await;
    stage.settings.bounds.records = 40_000;
    stage.settings.bounds.span = 40_000;
    stage.settings.bounds.bytes = 64 << 20;
    let keys: Vec<String> = (0..RECORDS).map(|key| key.to_string()).collect();
    let records: Vec<(i32, &str, &str)> = keys.iter().map(|key| (0, &**key, "work")).collect();
    stage.send(&records).await;

    // Every other record waits: the worst case for a map of completed offsets.
    let member = stage.start(async |call| match call.offset % 2 {
        0 => Err(Failure::Wait { until: Instant::now() + NEVER, reason: "told_to" }),
        _ => Ok(Outcome::Sent),
    });
    member.until("half of them", |seen| seen.outcomes.len() as i64 == RECORDS / 2).await;
    member.stop().await;
    let (offset, text) = stage.committed().await.remove(&0).expect("a commit");
    assert_eq!(offset, 0, "the first record waits");
    assert!(text.len() <= MAX_BYTES, "{} bytes", text.len());
    let completed = metadata::decode(0, &text).expect("own metadata").completed;
    let known = completed.runs().len() as i64;
    assert!(known > 10_000, "{known} completed offsets are known");

    let member = stage.start(async |_| Ok(Outcome::Sent));
    stage.until_committed(0, RECORDS).await;
    let seen = member.stop().await;
    assert_eq!(seen.outcomes.len() as i64, RECORDS - known);
    assert!(seen.outcomes.iter().all(|seen| !completed.contains(seen.2)));
}
