//! Status and type words, compared without case and surrounding space (behaviour section 3).

use crate::cdc::{Change, DecodeError, Field, Remark, Row};

/// Whether a column holds one of these words, which are in lower case.
///
/// # Errors
/// When the column holds no text.
pub fn is(row: &Row<'_>, column: &str, words: &[&str]) -> Result<bool, DecodeError> {
    Ok(row.word(column)?.value().is_some_and(|word| words.contains(&&*word)))
}

/// Remarks on a word that no rule knows: the row then counts for nothing, and operators should know.
///
/// # Errors
/// As [`is`].
pub fn remark_unknown(
    change: &Change<'_>,
    row: &Row<'_>,
    column: &str,
    known: &[&str],
    remark: Remark,
) -> Result<(), DecodeError> {
    if let Field::Value(word) = row.word(column)?
        && !known.contains(&&*word)
    {
        change.remark(remark);
    }
    Ok(())
}

/// The statuses of a purchase.
pub const PURCHASE_STATUSES: &[&str] =
    &["pending", "processing", "completed", "partially_refunded", "refunded", "cancelled"];

/// Remarks on a purchase's row whose words no rule knows, or that has no `record_type`.
///
/// # Errors
/// As [`is`].
pub fn remark_purchase(change: &Change<'_>, row: &Row<'_>) -> Result<(), DecodeError> {
    remark_unknown(change, row, "status", PURCHASE_STATUSES, Remark::UnknownStatus)?;
    match row.word("record_type")? {
        Field::Missing => change.remark(Remark::NoRecordType),
        Field::Value(word) if !matches!(&*word, "credit" | "debit") => {
            change.remark(Remark::UnknownRecordType);
        }
        Field::Value(_) | Field::Null | Field::Unavailable => {}
    }
    Ok(())
}
