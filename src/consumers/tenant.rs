//! Whose a row is. A row without user or merchant is an anonymous sale (behaviour sections 3 to 5).

use crate::cdc::{DecodeError, Field, Row};

const MERCHANT: &str = "merchant_id";

/// User and merchant of a row; the column `user` names the user. `None` for an anonymous sale. A
/// missing column is not NULL: it was filtered out or renamed, and every row of the table would
/// pass for anonymous.
///
/// # Errors
/// When one of them cannot be decoded, or the row does not have its column.
pub fn tenant(row: &Row<'_>, user: &str) -> Result<Option<(String, String)>, DecodeError> {
    Ok(row.needed_filled(user)?.zip(row.needed_filled(MERCHANT)?))
}

/// Whether a row is known to have belonged to nobody, so that it called for nothing in any state.
///
/// # Errors
/// As [`tenant`].
pub fn was_anonymous(before: &Row<'_>, user: &str) -> Result<bool, DecodeError> {
    for column in [user, MERCHANT] {
        match before.text(column)? {
            Field::Null => return Ok(true),
            Field::Value(text) if text.is_empty() => return Ok(true),
            Field::Value(_) | Field::Missing | Field::Unavailable => {}
        }
    }
    Ok(false)
}
