//! Which rows of a snapshot are handled (contract section 2), and how old a row is.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::cdc::{Change, DecodeError, Op, Row};
use crate::config::{Snapshot, SnapshotPolicy};

/// Until this age a row without its state before is taken at its present state: claims and event
/// ids absorb repeats that long (contract section 2).
pub const YOUNG: Duration = Duration::from_secs(20 * 60 * 60);

/// The columns that tell when a row was last touched.
const TOUCHED: [&str; 4] = ["updated_at", "created_at", "redeemed_at", "submitted_at"];

/// Whether the snapshot policy lets a change through. Changes that are known to come from the log always
/// pass.
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

/// Whether the row was young when its change was committed: without the state before, its present
/// state then tells what happened.
///
/// # Errors
/// When `created_at` cannot be decoded.
pub fn was_young(row: &Row<'_>, committed: Timestamp) -> Result<bool, DecodeError> {
    was_recent(row, "created_at", committed)
}

/// Whether the time in `column` lies so little before the commit that claims and event ids absorb
/// repeats; not where there is none.
///
/// # Errors
/// When the column cannot be decoded.
pub fn was_recent(row: &Row<'_>, column: &str, committed: Timestamp) -> Result<bool, DecodeError> {
    let time = row.timestamp(column)?.value();
    Ok(time.is_some_and(|time| younger(time, committed, YOUNG)))
}

/// Whether the present state of a row whose state before is not known tells that it turned with this
/// change: the row was created by it, or `column` says that it turned a short while ago. After a day
/// Inngest would take the same event id for new (contract section 2). Whoever asks for all rows of a
/// snapshot gets them.
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
