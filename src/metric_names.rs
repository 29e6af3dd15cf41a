//! The names of all metrics, in one place, and what clients measure of themselves.
//!
//! Base units; labels have a bounded set of values.

use std::time::Duration;

use metrics::histogram;

/// Records by consumer, topic and outcome (`sent`, `skipped`, `duplicate`, `replayed`,
/// `dead_lettered`).
pub const RECORDS: &str = "crm_records_total";
/// Skipped records by consumer and reason.
pub const SKIPPED: &str = "crm_records_skipped_total";
/// Changes that are unusual and handled all the same, by consumer, topic and remark.
pub const REMARKS: &str = "crm_remarks_total";
/// Dead letters by consumer, topic and kind of error.
pub const DEAD_LETTERS: &str = "crm_dead_letters_total";
/// Records that are held since they are part of a flood of dead letters, by consumer.
pub const HELD: &str = "crm_dead_letters_held";
/// Topics that are not read because nobody has said where they begin, by consumer.
pub const HELD_TOPICS: &str = "crm_topics_held";
/// Pauses before another attempt, and mere waits, by consumer and reason.
pub const RETRIES: &str = "crm_retries_total";
/// Records that were gone before they were read, by consumer and topic.
pub const LOST: &str = "crm_records_lost_total";
/// Broadcasts to the app's screens that were not delivered. They are never repeated.
pub const BROADCASTS_LOST: &str = "crm_broadcasts_lost_total";
/// Rebalances by consumer and direction (`assigned`, `revoked`).
pub const REBALANCES: &str = "crm_rebalances_total";
/// Seconds from a change's commit to the acceptance of what it called for, by consumer.
pub const LATENCY: &str = "crm_commit_to_acceptance_seconds";
/// Records without an outcome, by consumer.
pub const OPEN: &str = "crm_records_in_flight";
/// Records in the brokers that were not taken yet, by consumer, topic and partition.
pub const LAG: &str = "crm_lag_records";
/// Seconds since the oldest record without an outcome was taken, by consumer, topic, partition.
pub const COMMITTABLE_AGE: &str = "crm_committable_offset_age_seconds";
/// Whether a dependency is away (1) or not (0).
pub const BREAKER: &str = "crm_dependency_away";
/// Seconds of requests by dependency and result (`ok`, `failed`).
pub const REQUESTS: &str = "crm_request_duration_seconds";
/// Events a request to Inngest.
pub const BATCH: &str = "crm_inngest_batch_events";
/// Operations a pipeline to the claims' Redis.
pub const PIPELINE: &str = "crm_claims_pipeline_operations";

/// Awards whose merchant has set a time zone that is not known, so that UTC was taken.
pub const UNKNOWN_ZONES: &str = "crm_unknown_time_zones_total";

/// Changes of relationships and schemas that were acted on, by action, operation and type: the first
/// hundred types, and `other`.
pub const KESSEL_EVENTS: &str = "kessel_events_processed_total";

/// Every metric with its description, in the order of the documentation.
pub const ALL: [(&str, &str); 20] = [
    (RECORDS, "Records by consumer, topic and outcome."),
    (SKIPPED, "Skipped records by consumer and reason."),
    (REMARKS, "Unusual changes, handled all the same, by consumer, topic and remark."),
    (DEAD_LETTERS, "Records set aside, by consumer, topic and kind of error."),
    (HELD, "Records held because they are part of a flood of dead letters, by consumer."),
    (
        HELD_TOPICS,
        "Topics that are not read because nobody has said where they begin, by consumer.",
    ),
    (RETRIES, "Pauses before another attempt and mere waits, by consumer and reason."),
    (LOST, "Records that were gone before they were read."),
    (BROADCASTS_LOST, "Broadcasts to the app's screens that were not delivered."),
    (REBALANCES, "Partitions gained and given up: rebalances by consumer and direction."),
    (LATENCY, "Seconds from a change's commit to the acceptance of what it called for."),
    (OPEN, "Records in hand without an outcome, by consumer."),
    (LAG, "Records in the brokers that were not taken yet, by partition."),
    (COMMITTABLE_AGE, "Seconds for which the oldest record without an outcome has been in hand."),
    (BREAKER, "Whether a dependency is away (1) or not (0)."),
    (REQUESTS, "Seconds of requests by dependency and result."),
    (BATCH, "Events a request to Inngest."),
    (UNKNOWN_ZONES, "Awards whose merchant's time zone is not known."),
    (PIPELINE, "Operations a pipeline to the claims' Redis."),
    (
        KESSEL_EVENTS,
        "Changes of relationships and schemas that were acted on, by action, operation and type.",
    ),
];

/// Notes one request to a dependency.
pub fn request(dependency: &str, took: Duration, ok: bool) {
    let result = if ok { "ok" } else { "failed" };
    histogram!(REQUESTS, "dependency" => dependency.to_owned(), "result" => result)
        .record(took.as_secs_f64());
}
