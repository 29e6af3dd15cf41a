//! What a change of a ledger calls for, as the rules say it and the steps carry it out.

use bigdecimal::BigDecimal;
use jiff::Timestamp;

use crate::dedup::Moment;

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
    /// The claim of doing `what` about this source.
    #[must_use]
    pub fn claim(&self, what: &str) -> String {
        claim(what, self.kind, &self.id)
    }

    /// The lock for decisions about its refunds and about awards after them.
    #[must_use]
    pub fn lock(&self) -> String {
        self.claim("refund")
    }
}

/// The name of a claim (behaviour section 8.2).
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
        /// When the change was committed: "now" of the merchant's award settings, so that a repeat
        /// gives the same time.
        at: Moment,
        /// How sure it is that the source counts since this change.
        turn: Turn,
    },
    /// A source that counted, or may have, counts no more.
    Refund(Box<Refund>),
    /// A (partial) refund of another purchase.
    Debit(Box<Debit>),
    /// The row was deleted.
    Delete {
        /// `purchase`, `referral` or `mission`.
        kind: &'static str,
        /// Id of the row.
        id: String,
        /// Whose it was, if the delete shows the real value.
        user_id: Option<String>,
        /// The merchant, if the delete shows the real value.
        merchant_id: Option<String>,
        /// When the change was committed.
        at: Moment,
    },
}

/// Whether a source counts since a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Its state before says so, or the row is new.
    Here,
    /// Its state before is not known, but the row is recent: claims and event ids absorb repeats.
    Recent,
    /// It was refunded or cancelled before: it counts once more.
    Again,
    /// The change cannot tell: it may have been awarded before.
    Unsure,
}

/// A source that is taken back as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Refund {
    /// What for.
    pub source: Source,
    /// When the change was committed.
    pub at: Moment,
    /// The row is old and what it was before is not known: ask whether it was taken back already.
    pub check_wallet: bool,
    /// `transaction_number`, by which debit rows name it.
    pub number: Option<String>,
    /// The row's `final_amount`; none where that is no number.
    pub amount: Option<BigDecimal>,
    /// The row's `updated_at`.
    pub updated_at: Option<Timestamp>,
}

/// A (partial) refund of another purchase.
#[derive(Debug, Clone, PartialEq)]
pub struct Debit {
    /// The debit row.
    pub source: Source,
    /// When the change was committed.
    pub at: Moment,
    /// `transaction_number` of the original.
    pub original: Option<String>,
    /// The debit row's `final_amount`.
    pub amount: Option<BigDecimal>,
    /// The row is old and what it was before is not known: ask whether it was handled already.
    pub check_wallet: bool,
    /// The row's `created_at`.
    pub created_at: Option<Timestamp>,
    /// Since when it counts, where it may have been pending before and the row shows it.
    pub turned_at: Option<Timestamp>,
}
