//! How much of a purchase a partial refund takes back (behaviour section 3, "Refunds").

use std::cmp::Ordering;

use bigdecimal::{BigDecimal, RoundingMode, Signed, Zero};

/// Digits after the point of a percentage.
const PLACES: i64 = 6;

/// Why a percentage cannot be computed. It is the record's fault: a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPercentage {
    /// The debit row carries no amount.
    #[error("the debit row has no final_amount, so its share of the original cannot be computed")]
    DebitMissing,
    /// The original carries no amount.
    #[error(
        "the original purchase has no final_amount, so the debit's share of it cannot be computed"
    )]
    OriginalMissing,
    /// Nothing can be taken back of an original of nothing or less.
    #[error(
        "the original purchase's final_amount is not above zero, so the debit has no share of it"
    )]
    OriginalNotPositive,
}

/// 100 x |debit| / original as the text of a JSON number: six places, rounded half up, without
/// trailing zeros, at most `100`.
///
/// # Errors
/// When one of the amounts is missing or the original's is not above zero.
pub fn refund_percentage(
    debit: Option<&BigDecimal>,
    original: Option<&BigDecimal>,
) -> Result<String, NoPercentage> {
    let debit = debit.ok_or(NoPercentage::DebitMissing)?.abs();
    let original = original.ok_or(NoPercentage::OriginalMissing)?;
    if !original.is_positive() {
        return Err(NoPercentage::OriginalNotPositive);
    }
    if debit.is_zero() {
        return Ok("0".to_owned());
    }
    if debit.cmp(original) != Ordering::Less {
        return Ok("100".to_owned());
    }
    let percentage = (debit * BigDecimal::from(100) / original)
        .with_scale_round(PLACES, RoundingMode::HalfUp)
        .normalized();
    Ok(percentage.to_plain_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> BigDecimal {
        text.parse().expect("a decimal")
    }

    fn percentage(debit: &str, original: &str) -> String {
        refund_percentage(Some(&amount(debit)), Some(&amount(original))).expect("a share")
    }

    #[test]
    fn a_share_has_six_places_rounded_half_up() {
        // Amounts and percentages of recorded debit rows.
        for (debit, original, share) in [
            ("-267.77", "803.31", "33.333333"),
            ("-854.19", "3416.75", "25.000073"),
            ("-327.16", "3271.63", "9.999908"),
            ("-535.73", "1785.76", "30.000112"),
            ("-885.38", "2656.15", "33.333208"),
            ("-226.98", "907.93", "24.999725"),
            ("11.48", "114.78", "10.001742"),
            ("-276.59", "1106.36", "25"),
            ("1924.19", "3848.38", "50"),
        ] {
            assert_eq!(percentage(debit, original), share, "{debit} of {original}");
        }
        assert_eq!(percentage("0.0000005", "100"), "0.000001", "a half goes up");
        assert_eq!(percentage("0.00000049", "100"), "0");
        assert_eq!(percentage("2", "3"), "66.666667");
    }

    #[test]
    fn a_share_never_exceeds_the_whole() {
        for debit in ["100.00", "-100", "100.01", "1e30"] {
            assert_eq!(percentage(debit, "100.0"), "100", "{debit}");
        }
        assert_eq!(percentage("99.9999999", "100"), "100", "rounded up to the whole");
        assert_eq!(percentage("0.00", "100"), "0");
        assert_eq!(percentage("10", "1e2"), "10");
    }

    #[test]
    fn without_amounts_there_is_no_share() {
        let one = amount("1");
        assert_eq!(refund_percentage(None, Some(&one)), Err(NoPercentage::DebitMissing));
        assert_eq!(refund_percentage(Some(&one), None), Err(NoPercentage::OriginalMissing));
        for original in ["0", "0.00", "-5"] {
            let share = refund_percentage(Some(&one), Some(&amount(original)));
            assert_eq!(share, Err(NoPercentage::OriginalNotPositive), "{original}");
        }
    }
}
