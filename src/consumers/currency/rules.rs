//! Which changes award, cancel or take back currency (behaviour section 3). Pure.

use bigdecimal::Signed;
use jiff::Timestamp;

use super::work::{Debit, Refund, Source, Turn, Work};
use crate::cdc::{Change, DecodeError, Field, Op, Remark, Row};
use crate::config::Snapshot;
use crate::consumers::snapshot;
use crate::consumers::tenant::{tenant, was_anonymous};
use crate::consumers::words::{self, PURCHASE_STATUSES, is};
use crate::dedup::Moment;
use crate::engine::{Lane, Route, SNAPSHOT_SKIPPED};

/// Settings of the rules.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What happens to snapshot rows.
    pub snapshot: Snapshot,
    /// Statuses in which a referral or a claim is taken back (`CURRENCY_TAKEN_BACK_STATUSES`), in
    /// lower case.
    pub taken_back: Vec<String>,
}

/// Status words separated by commas, in lower case.
pub(super) fn statuses(text: &str) -> Result<Vec<String>, String> {
    let words: Vec<String> = text
        .split(',')
        .map(|word| word.trim().to_lowercase())
        .filter(|word| !word.is_empty())
        .collect();
    match words.iter().find(|word| matches!(&***word, "completed" | "approved" | "pending")) {
        Some(word) => Err(format!("takes back what is {word}, which is not taken back")),
        None if words.is_empty() => Err("names no status".to_owned()),
        None => Ok(words),
    }
}

/// The tables that award, and how their rows are read.
struct Table {
    name: &'static str,
    kind: &'static str,
    user: &'static str,
    /// The column that says whether a row counts.
    status: &'static str,
    /// The word in it that counts.
    counts: &'static str,
}

const PURCHASE: &str = "purchase";

const TABLES: [Table; 3] = [
    Table {
        name: "purchase_ledger",
        kind: PURCHASE,
        user: "user_id",
        status: "status",
        counts: "completed",
    },
    Table {
        name: "referral_ledger",
        kind: "referral",
        user: "invitee_user_id",
        status: "reward_status",
        counts: "completed",
    },
    Table {
        name: "mission_claims",
        kind: "mission",
        user: "user_id",
        status: "status",
        counts: "approved",
    },
];

/// What a row's state means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowState {
    /// It counts.
    Counts,
    /// It was refunded, cancelled or the like.
    TakenBack,
    /// A debit row that takes back.
    Debits,
    /// It has not counted yet: a pending row, and a debit row that does not count (yet).
    Open,
    /// It earns nothing, or belongs to nobody.
    EarnsNothing,
    /// None of these: it may have counted before.
    Other,
}

/// What to do about a change of one of the three tables.
///
/// # Errors
/// When a column that a rule needs cannot be decoded, or is not there.
pub fn route(
    change: &Change<'_>,
    settings: &Settings,
    now: Timestamp,
) -> Result<Route<Work>, DecodeError> {
    let Some(table) = TABLES.iter().find(|table| table.name == change.table) else {
        return Ok(Route::Skip("other_table"));
    };
    if change.op == Op::Delete {
        return deleted(table, settings, change);
    }
    let Some(row) = &change.after else { return Ok(Route::Skip("no_row")) };
    if !snapshot::admits(&settings.snapshot, change, now)? {
        return Ok(Route::Skip(SNAPSHOT_SKIPPED));
    }
    check(table, settings, change, row)?;
    let before = match &change.before {
        // An index as replica identity shows only the index's own columns.
        Some(before) if before.field(table.status).is_known() => {
            Some(state_before(table, settings, before)?)
        }
        _ => None,
    };
    let after = state_after(table, settings, row)?;
    let turn = match turned(change, row, before, after)? {
        Ok(turn) => turn,
        Err(reason) => return Ok(Route::Skip(reason)),
    };
    if after != RowState::Debits && has_negative_amount(table, row)? {
        return Ok(Route::Skip("negative_amount"));
    }
    let Some(id) = row.needed_filled("id")? else { return Ok(Route::Skip("no_id")) };
    let Some((user_id, merchant_id)) = tenant(row, table.user)? else {
        return Ok(Route::Skip("anonymous"));
    };
    let source = Source { kind: table.kind, id, user_id, merchant_id };
    let lane = Lane::in_partition((source.kind, &source.id));
    let at = moment(change);
    let work = match after {
        RowState::TakenBack => Work::Refund(Box::new(refund(row, source, at, turn)?)),
        RowState::Debits => {
            // Under REPLICA IDENTITY DEFAULT any update may be the turn from pending.
            let turns =
                before == Some(RowState::Open) || (before.is_none() && change.op == Op::Update);
            Work::Debit(Box::new(debit(row, source, at, turn, turns)?))
        }
        _ => Work::Award { source, at, turn },
    };
    Ok(Route::Process { work, lane })
}

/// Whether a row counts, debits or is taken back since this change; or why it calls for nothing.
fn turned(
    change: &Change<'_>,
    row: &Row<'_>,
    before: Option<RowState>,
    after: RowState,
) -> Result<Result<Turn, &'static str>, DecodeError> {
    use RowState::{Counts, Debits, EarnsNothing, Open, TakenBack};
    Ok(match (after, before) {
        (Counts | Debits | TakenBack, Some(before)) if before == after => Err("counted_before"),
        (TakenBack, Some(Open | EarnsNothing | Debits)) => Err("never_counted"),
        (TakenBack, None) if change.op == Op::Create => Err("never_counted"),
        (Counts, Some(TakenBack)) => Ok(Turn::Again),
        (Counts | Debits | TakenBack, Some(before)) if before != RowState::Other => Ok(Turn::Here),
        (Debits | TakenBack, Some(_)) => Ok(Turn::Here),
        // A purchase that was reopened may have been awarded before it was.
        (Counts, Some(_)) | (Counts | Debits | TakenBack, None) => {
            if change.op == Op::Create {
                Ok(Turn::Here)
            } else if snapshot::was_young(row, change.commit_time)? {
                Ok(Turn::Recent)
            } else {
                Ok(Turn::Unsure)
            }
        }
        (Open | EarnsNothing | RowState::Other, _) => Err("does_not_count"),
    })
}

/// Requires the columns that every rule needs, and remarks on the others for operators.
fn check(
    table: &Table,
    settings: &Settings,
    change: &Change<'_>,
    row: &Row<'_>,
) -> Result<(), DecodeError> {
    if let Field::Value(word) = row.needed(table.status).map(|_| row.word(table.status))?? {
        let known = match table.kind {
            PURCHASE => PURCHASE_STATUSES.contains(&&*word),
            _ => {
                OPEN.contains(&&*word)
                    || *word == *table.counts
                    || settings.taken_back.iter().any(|status| **status == *word)
            }
        };
        if !known {
            change.remark(Remark::UnknownStatus);
        }
    }
    if table.kind == PURCHASE {
        words::remark_purchase(change, row)?;
        if row.raw("earn_currency").is_none() {
            change.remark(Remark::NoEarnCurrency);
        }
    }
    Ok(())
}

/// Statuses of a row that has not counted yet.
const OPEN: [&str; 3] = ["pending", "processing", "claimed"];

fn refund(row: &Row<'_>, source: Source, at: Moment, turn: Turn) -> Result<Refund, DecodeError> {
    let purchase = source.kind == PURCHASE;
    let (mut number, mut amount, mut updated_at) = (None, None, None);
    if purchase {
        number = row.filled("transaction_number")?;
        // If it is not a number, no debit has a share of it, and the whole takes back everything.
        amount = row.decimal("final_amount").ok().and_then(Field::value);
        updated_at = row.timestamp("updated_at")?.value();
    }
    let check_wallet = turn == Turn::Unsure;
    Ok(Refund { source, at, check_wallet, number, amount, updated_at })
}

fn debit(
    row: &Row<'_>,
    source: Source,
    at: Moment,
    turn: Turn,
    turns: bool,
) -> Result<Debit, DecodeError> {
    row.needed("final_amount")?;
    let original = row.needed_filled("external_ref")?;
    Ok(Debit {
        source,
        at,
        original,
        amount: row.decimal("final_amount")?.value(),
        check_wallet: turn == Turn::Unsure,
        created_at: row.timestamp("created_at")?.value(),
        turned_at: if turns { row.timestamp("updated_at")?.value() } else { None },
    })
}

/// Only the key of a delete can be relied on. The decoder has checked the rest of `before`.
fn deleted(
    table: &Table,
    settings: &Settings,
    change: &Change<'_>,
) -> Result<Route<Work>, DecodeError> {
    let before = change.before.as_ref().filter(|_| !change.before_invented);
    if let Some(before) = before
        && before.field(table.status).is_known()
        && matches!(
            state_before(table, settings, before)?,
            RowState::Open | RowState::EarnsNothing | RowState::Debits
        )
    {
        return Ok(Route::Skip("never_counted"));
    }
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
        at: moment(change),
    };
    Ok(Route::Process { work, lane })
}

/// A row's state before a change. A row that belonged to nobody or earned nothing got nothing.
fn state_before(
    table: &Table,
    settings: &Settings,
    before: &Row<'_>,
) -> Result<RowState, DecodeError> {
    if was_anonymous(before, table.user)? {
        return Ok(RowState::EarnsNothing);
    }
    let state = state_after(table, settings, before)?;
    let debit = matches!(state, RowState::Debits | RowState::Open);
    if table.kind == PURCHASE && !debit && earns_nothing(before)? {
        return Ok(RowState::EarnsNothing);
    }
    Ok(state)
}

/// A row's state after a change. A taken-back row stays that even if it now earns nothing.
fn state_after(table: &Table, settings: &Settings, row: &Row<'_>) -> Result<RowState, DecodeError> {
    if table.kind == PURCHASE {
        return purchase(row);
    }
    Ok(match row.word(table.status)?.value() {
        Some(status) if *status == *table.counts => RowState::Counts,
        Some(status) if settings.taken_back.iter().any(|word| **word == *status) => {
            RowState::TakenBack
        }
        _ => RowState::Open,
    })
}

fn purchase(row: &Row<'_>) -> Result<RowState, DecodeError> {
    let status = row.word("status")?.value();
    if is(row, "record_type", &["debit"])? {
        let open = matches!(status.as_deref(), Some("pending" | "cancelled"));
        return Ok(if open { RowState::Open } else { RowState::Debits });
    }
    Ok(match status.as_deref() {
        Some("refunded" | "cancelled") => RowState::TakenBack,
        Some("pending") => RowState::Open,
        _ if earns_nothing(row)? => RowState::EarnsNothing,
        Some("completed") => RowState::Counts,
        _ => RowState::Other,
    })
}

fn earns_nothing(row: &Row<'_>) -> Result<bool, DecodeError> {
    Ok(row.bool("earn_currency")?.value() == Some(false))
}

/// A negative purchase is no purchase. An amount that is not a number is ignored here: no rule
/// about the whole needs it.
fn has_negative_amount(table: &Table, row: &Row<'_>) -> Result<bool, DecodeError> {
    if table.kind != PURCHASE {
        return Ok(false);
    }
    let amount = row.decimal("final_amount").ok().and_then(Field::value);
    Ok(amount.is_some_and(|amount| amount.is_negative()))
}

fn moment(change: &Change<'_>) -> Moment {
    Moment {
        commit_ms: change.commit_time.as_millisecond(),
        lsn: change.position.map(|position| position.lsn),
    }
}

#[cfg(test)]
mod tests;
