//! Which changes award, cancel or take back currency (contract section 3). Pure.

use bigdecimal::BigDecimal;
use jiff::Timestamp;

use crate::cdc::{Change, DecodeError, Op, Row};
use crate::config::Snapshot;
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
}

const TABLES: [Table; 3] = [
    Table { name: "purchase_ledger", kind: "purchase", user: "user_id" },
    Table { name: "referral_ledger", kind: "referral", user: "invitee_user_id" },
    Table { name: "mission_claims", kind: "mission", user: "user_id" },
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
    let after = standing(table, row)?;
    if after == Standing::Neither {
        return Ok(Route::Skip("does_not_count"));
    }
    let before = match &change.before {
        // An index as replica identity brings only its own columns.
        Some(before) if before.raw("status").or(before.raw("reward_status")).is_some() => {
            Some(standing(table, before)?)
        }
        _ => None,
    };
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
    let text = |column| -> Result<Option<String>, DecodeError> {
        Ok(row.text(column)?.value().filter(|text| !text.is_empty()).map(Into::into))
    };
    let Some(id) = text("id")? else { return Ok(Route::Skip("no_id")) };
    let (Some(user_id), Some(merchant_id)) = (text(table.user)?, text("merchant_id")?) else {
        return Ok(Route::Skip("anonymous"));
    };
    let source = Source { kind: table.kind, id, user_id, merchant_id };
    let lane = Lane::in_partition((source.kind, &source.id));
    let work = match after {
        Standing::Reversed => Work::Refund { source, ask_wallet },
        Standing::Debits => Work::Debit {
            source,
            original: text("external_ref")?,
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
    let text = |row: Option<&Row<'_>>, column| -> Result<Option<String>, DecodeError> {
        let Some(row) = row else { return Ok(None) };
        Ok(row.text(column)?.value().filter(|text| !text.is_empty()).map(Into::into))
    };
    let id = match text(Some(&change.key), "id")? {
        Some(id) => Some(id),
        None => text(change.before.as_ref(), "id")?,
    };
    let Some(id) = id else { return Ok(Route::Skip("no_id")) };
    let lane = Lane::in_partition((table.kind, &id));
    let work = Work::Delete {
        kind: table.kind,
        id,
        user_id: text(before, table.user)?,
        merchant_id: text(before, "merchant_id")?,
    };
    Ok(Route::Process { work, lane })
}

fn standing(table: &Table, row: &Row<'_>) -> Result<Standing, DecodeError> {
    let counts = |counts| if counts { Standing::Counts } else { Standing::Neither };
    match table.kind {
        "purchase" => purchase(row),
        "referral" => Ok(counts(is(row, "reward_status", &["completed"])?)),
        _ => Ok(counts(is(row, "status", &["approved"])?)),
    }
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
