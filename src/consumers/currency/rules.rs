//! Which changes award, cancel or take back currency (contract section 3). Pure.

use bigdecimal::BigDecimal;
use jiff::Timestamp;

use crate::cdc::{Change, DecodeError, Op, Row};
use crate::config::Snapshot;
use crate::consumers::owner::{owner, was_anonymous};
use crate::consumers::snapshot;
use crate::engine::{Lane, Route, SNAPSHOT_SKIPPED};

/// What currency is awarded for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `purchase`, `referral` or `mission`.
    pub kind: &'static str,
    /// Id of the row.
    pub id: String,
    /// Who gets it.
    pub user_id: String,
    /// Whose currency it is.
    pub merchant_id: String,
}

impl Source {
    /// The claim, and the event id, of doing `what` about this source.
    #[must_use]
    pub fn claim(&self, what: &str) -> String {
        claim(what, self.kind, &self.id)
    }
}

/// The name of a claim (contract section 8.2).
#[must_use]
pub fn claim(what: &str, kind: &str, id: &str) -> String {
    format!("{what}:{kind}:{id}")
}

/// What a change calls for.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// The source counts: award.
    Award {
        /// What for.
        source: Source,
        /// "Now" of the merchant's award settings, so that a repeat gives the same time.
        committed_at: Timestamp,
        /// The row is old and what it was before is not known: ask whether it was awarded already.
        ask_wallet: bool,
    },
    /// A purchase that counted, or may have, was refunded or cancelled.
    Refund {
        /// What for.
        source: Source,
        /// As for an award: ask whether it was taken back already.
        ask_wallet: bool,
    },
    /// A (partial) refund of another purchase.
    Debit {
        /// The debit row.
        source: Source,
        /// `transaction_number` of the original.
        original: Option<String>,
        /// The debit row's `final_amount`.
        amount: Option<BigDecimal>,
        /// As for an award.
        ask_wallet: bool,
    },
    /// The row was deleted.
    Delete {
        /// `purchase`, `referral` or `mission`.
        kind: &'static str,
        /// Id of the row.
        id: String,
        /// Who it belonged to, where that is real.
        user_id: Option<String>,
        /// Whose it was, where that is real.
        merchant_id: Option<String>,
    },
}

/// The tables that award, and how their rows are read.
struct Table {
    name: &'static str,
    kind: &'static str,
    user: &'static str,
    /// The column that tells whether a row counts.
    status: &'static str,
}

const TABLES: [Table; 3] = [
    Table { name: "purchase_ledger", kind: "purchase", user: "user_id", status: "status" },
    Table {
        name: "referral_ledger",
        kind: "referral",
        user: "invitee_user_id",
        status: "reward_status",
    },
    Table { name: "mission_claims", kind: "mission", user: "user_id", status: "status" },
];

/// What a row's state means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It counts.
    Counts,
    /// A purchase that was refunded or cancelled.
    Reversed,
    /// A debit row that takes back.
    Debits,
    /// None of these.
    Neither,
}

/// What to do about a change of one of the three tables.
///
/// # Errors
/// When a column that a rule needs cannot be decoded.
pub fn route(
    change: &Change<'_>,
    policy: &Snapshot,
    now: Timestamp,
) -> Result<Route<Work>, DecodeError> {
    let Some(table) = TABLES.iter().find(|table| table.name == change.table) else {
        return Ok(Route::Skip("other_table"));
    };
    if change.op == Op::Delete {
        return deleted(table, change);
    }
    let Some(row) = &change.after else { return Ok(Route::Skip("no_row")) };
    if !snapshot::admits(policy, change, now)? {
        return Ok(Route::Skip(SNAPSHOT_SKIPPED));
    }
    let before = match &change.before {
        // An index as replica identity brings only its own columns.
        Some(before) if before.field(table.status).is_known() => {
            // What belonged to nobody got nothing.
            let anonymous = was_anonymous(before, table.user)?;
            Some(if anonymous { Standing::Neither } else { standing(table, before)? })
        }
        _ => None,
    };
    let after = match standing(table, row)? {
        // What counted is taken back, even if the same change says that it earns nothing.
        Standing::Neither if before == Some(Standing::Counts) && is_reversed(table, row)? => {
            Standing::Reversed
        }
        after => after,
    };
    if after == Standing::Neither {
        return Ok(Route::Skip("does_not_count"));
    }
    let ask_wallet = match (change.op, before, after) {
        (Op::Create, _, Standing::Reversed) => return Ok(Route::Skip("never_counted")),
        (Op::Create, ..) => false,
        (_, Some(before), after) if before == after => return Ok(Route::Skip("counted_before")),
        (_, Some(before), Standing::Reversed) if before != Standing::Counts => {
            return Ok(Route::Skip("never_counted"));
        }
        (_, Some(_), _) => false,
        (_, None, _) => !snapshot::was_young(row, change.commit_time)?,
    };
    let Some(id) = row.filled("id")? else { return Ok(Route::Skip("no_id")) };
    let Some((user_id, merchant_id)) = owner(row, table.user)? else {
        return Ok(Route::Skip("anonymous"));
    };
    let source = Source { kind: table.kind, id, user_id, merchant_id };
    let lane = Lane::in_partition((source.kind, &source.id));
    let work = match after {
        Standing::Reversed => Work::Refund { source, ask_wallet },
        Standing::Debits => Work::Debit {
            source,
            original: row.filled("external_ref")?,
            amount: row.decimal("final_amount")?.value(),
            ask_wallet,
        },
        Standing::Counts | Standing::Neither => {
            Work::Award { source, committed_at: change.commit_time, ask_wallet }
        }
    };
    Ok(Route::Process { work, lane })
}

/// A delete is true in its key alone; what else `before` holds was checked by the decoder.
fn deleted(table: &Table, change: &Change<'_>) -> Result<Route<Work>, DecodeError> {
    let before = change.before.as_ref().filter(|_| !change.before_invented);
    let of_before = |column| before.map_or(Ok(None), |before| before.filled(column));
    let id = match (change.key.filled("id")?, &change.before) {
        (None, Some(before)) => before.filled("id")?,
        (id, _) => id,
    };
    let Some(id) = id else { return Ok(Route::Skip("no_id")) };
    let lane = Lane::in_partition((table.kind, &id));
    let work = Work::Delete {
        kind: table.kind,
        id,
        user_id: of_before(table.user)?,
        merchant_id: of_before("merchant_id")?,
    };
    Ok(Route::Process { work, lane })
}

fn standing(table: &Table, row: &Row<'_>) -> Result<Standing, DecodeError> {
    let counts = |counts| if counts { Standing::Counts } else { Standing::Neither };
    match table.kind {
        "purchase" => purchase(row),
        "referral" => Ok(counts(is(row, table.status, &["completed"])?)),
        _ => Ok(counts(is(row, table.status, &["approved"])?)),
    }
}

/// Whether a row is a purchase that was refunded or cancelled, whatever it earns.
fn is_reversed(table: &Table, row: &Row<'_>) -> Result<bool, DecodeError> {
    Ok(table.kind == "purchase"
        && !is(row, "record_type", &["debit"])?
        && is(row, "status", &["refunded", "cancelled"])?)
}

fn purchase(row: &Row<'_>) -> Result<Standing, DecodeError> {
    if is(row, "record_type", &["debit"])? {
        let open = is(row, "status", &["pending", "cancelled"])?;
        return Ok(if open { Standing::Neither } else { Standing::Debits });
    }
    if row.bool("earn_currency")?.value() == Some(false) {
        return Ok(Standing::Neither);
    }
    Ok(if is(row, "status", &["completed"])? {
        Standing::Counts
    } else if is(row, "status", &["refunded", "cancelled"])? {
        Standing::Reversed
    } else {
        Standing::Neither
    })
}

fn is(row: &Row<'_>, column: &str, values: &[&str]) -> Result<bool, DecodeError> {
    Ok(row.text(column)?.value().is_some_and(|text| values.contains(&&*text)))
}

#[cfg(test)]
mod tests;
