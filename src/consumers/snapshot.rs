//! Which rows of a snapshot are handled (behaviour section 2), and how old a row is.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::cdc::{Change, DecodeError, Op, Row};
use crate::config::{Snapshot, SnapshotPolicy};

/// Until this age a row without its state before is taken at its present state: claims and event
/// ids absorb repeats that long (behaviour section 2).
pub const RECENT: Duration = Duration::from_secs(20 * 60 * 60);

/// The columns that tell when a row was last touched.
const TOUCHED: [&str; 4] = ["updated_at", "created_at", "redeemed_at", "submitted_at"];

/// Whether the snapshot policy lets a change through. Changes that are known to come from the log
/// always pass.
///
/// # Errors
/// When one of the time columns cannot be decoded.
pub fn admits(
    snapshot: &Snapshot,
    change: &Change<'_>,
    now: Timestamp,
) -> Result<bool, DecodeError> {
    if change.op != Op::Read && !change.maybe_snapshot {
        return Ok(true);
    }
    match (snapshot.policy, &change.after) {
        (SnapshotPolicy::All, _) => Ok(true),
        (SnapshotPolicy::Skip, _) | (_, None) => Ok(false),
        (SnapshotPolicy::Recent, Some(row)) => {
            let mut newest: Option<Timestamp> = None;
            for column in TOUCHED {
                newest = newest.max(row.timestamp(column)?.value());
            }
            Ok(newest.is_some_and(|touched| younger(touched, now, snapshot.max_age)))
        }
    }
}

/// Whether the row was recent when its change was committed. If so and the state before is not
/// known, its present state says what happened.
///
/// # Errors
/// When `created_at` cannot be decoded.
pub fn was_young(row: &Row<'_>, committed: Timestamp) -> Result<bool, DecodeError> {
    was_recent(row, "created_at", committed)
}

/// Whether the time in `column` was so recent at the commit that claims and event ids absorb
/// repeats; false if there is no time.
///
/// # Errors
/// When the column cannot be decoded.
pub fn was_recent(row: &Row<'_>, column: &str, committed: Timestamp) -> Result<bool, DecodeError> {
    let time = row.timestamp(column)?.value();
    Ok(time.is_some_and(|time| younger(time, committed, RECENT)))
}

/// Whether a row whose state before is not known turned with this change: the change created it, or
/// `column` shows that it turned a short while ago. After a day Inngest would accept the same event
/// id again (behaviour section 2). With the policy for all snapshot rows, every one of them passes.
///
/// # Errors
/// When the column cannot be decoded.
pub fn tells_turn(
    snapshot: &Snapshot,
    change: &Change<'_>,
    row: &Row<'_>,
    column: &str,
) -> Result<bool, DecodeError> {
    let asked_for = change.op == Op::Read && snapshot.policy == SnapshotPolicy::All;
    Ok(change.op == Op::Create || asked_for || was_recent(row, column, change.commit_time)?)
}

/// Whether `then` lies less than `age` before `now`.
#[must_use]
pub fn younger(then: Timestamp, now: Timestamp, age: Duration) -> bool {
    SignedDuration::try_from(age).is_ok_and(|age| now.duration_since(then) < age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::{Decoded, Options, Record, decode};

    /// Whether each policy (skip, recent, all) lets the row through on 2026-11-29.
    fn admitted(value: &str) -> [bool; 3] {
        let record = Record {
            topic: "crm.public.purchase_ledger",
            partition: 0,
            offset: 0,
            timestamp_ms: Some(1),
            key: Some(br#"{"id":"a"}"#),
            value: Some(value.as_bytes()),
            headers: &[],
        };
        let Ok(Decoded::Change(change)) = decode(&record, &Options::default()) else {
            panic!("{value} is a change")
        };
        let now = "2026-11-29T00:00:00Z".parse().expect("a time");
        [SnapshotPolicy::Skip, SnapshotPolicy::Recent, SnapshotPolicy::All].map(|policy| {
            let snapshot = Snapshot { policy, max_age: RECENT };
            admits(&snapshot, &change, now).expect("its times can be read")
        })
    }

    #[test]
    fn the_policy_applies_to_rows_of_a_snapshot_and_to_those_that_may_be() {
        let recent = r#""id":"a","updated_at":"2026-11-28T10:00:00Z""#;
        let old = r#""id":"a","updated_at":"2026-11-27T10:00:00Z""#;
        for (members, row, admits) in [
            ("", recent, [false, true, true]),
            ("", old, [false, false, true]),
            (r#","__deleted":"false""#, old, [false, false, true]),
            (r#","__op":"r""#, recent, [false, true, true]),
            (r#","__op":"r""#, old, [false, false, true]),
            (r#","__op":"u""#, old, [true; 3]),
            (r#","__op":"c""#, old, [true; 3]),
            (r#","__source_snapshot":"false""#, old, [true; 3]),
        ] {
            let value = format!("{{{row}{members}}}");
            assert_eq!(admitted(&value), admits, "{value}");
        }
        // A row without any time counts as old. A delete always comes from the log.
        assert_eq!(admitted(r#"{"id":"a"}"#), [false, false, true]);
        assert_eq!(admitted("null"), [true; 3]);
    }
}
