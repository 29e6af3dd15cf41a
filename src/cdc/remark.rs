//! Unusual things about a change that is handled all the same.

use std::cell::Cell;

/// Something that operators should know about a source table. Counted each time, and warned of once
/// a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Remark {
    /// A half of a changed primary key.
    KeyChange,
    /// `sequence`, `lsn`, `txId` or the commit time is in an unknown form, so the change has no log
    /// position.
    UnknownPosition,
    /// A flattened row names neither its operation nor whether a snapshot read it.
    UnknownOperation,
    /// A status that no rule knows.
    UnknownStatus,
    /// A record type that is neither credit nor debit.
    UnknownRecordType,
    /// The row has no column `record_type`.
    NoRecordType,
    /// The row has no column `earn_currency`.
    NoEarnCurrency,
    /// A wallet row without the columns that tell what was earned.
    NoTransactionType,
}

impl Remark {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::KeyChange,
        Self::UnknownPosition,
        Self::UnknownOperation,
        Self::UnknownStatus,
        Self::UnknownRecordType,
        Self::NoRecordType,
        Self::NoEarnCurrency,
        Self::NoTransactionType,
    ];

    /// Stable label for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyChange => "key_change",
            Self::UnknownPosition => "unknown_position",
            Self::UnknownOperation => "unknown_operation",
            Self::UnknownStatus => "unknown_status",
            Self::UnknownRecordType => "unknown_record_type",
            Self::NoRecordType => "no_record_type",
            Self::NoEarnCurrency => "no_earn_currency",
            Self::NoTransactionType => "no_transaction_type",
        }
    }

    /// What it means and what to do, for the warning.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::KeyChange => "a primary key was changed: nothing is awarded or cancelled for it",
            Self::UnknownPosition => {
                "a change tells its log position in a form that is not known: it is handled, but a \
                 replay of it is recognised only by claims and event ids; check the connector's version"
            }
            Self::UnknownOperation => {
                "a flattened row does not tell its operation, so SNAPSHOT_POLICY applies to it: set \
                 transforms.unwrap.add.fields=op,table,source.sequence,source.ts_us,source.txId"
            }
            Self::UnknownStatus => {
                "a row has a status that no rule knows, so it counts for nothing: explain the record \
                 to see it"
            }
            Self::UnknownRecordType => {
                "a row has a record_type that is neither credit nor debit, and is taken for a purchase: \
                 explain the record to see it"
            }
            Self::NoRecordType => {
                "rows have no column record_type, so all of them are taken for purchases and none for \
                 refunds: check the connector's column filters"
            }
            Self::NoEarnCurrency => {
                "rows have no column earn_currency, so all of them are taken to earn: check the \
                 connector's column filters"
            }
            Self::NoTransactionType => {
                "wallet rows have no column transaction_type or currency, so none of them counts: check \
                 the connector's column filters"
            }
        }
    }
}

/// The remarks about one change. Rules that only read a change may add to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remarks(Cell<u8>);

impl Remarks {
    /// Adds one.
    pub fn add(&self, remark: Remark) {
        self.0.set(self.0.get() | 1 << remark as u8);
    }

    /// Whether there is none, as nearly always.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.get() == 0
    }

    /// The remarks that were added.
    pub fn iter(&self) -> impl Iterator<Item = Remark> {
        let made = self.0.get();
        Remark::ALL.into_iter().filter(move |remark| made & (1 << *remark as u8) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_remark_is_kept_by_itself() {
        for remark in Remark::ALL {
            let remarks = Remarks::default();
            assert!(remarks.is_empty());
            remarks.add(remark);
            remarks.add(remark);
            assert_eq!(remarks.iter().collect::<Vec<_>>(), [remark]);
        }
        let all = Remarks::default();
        Remark::ALL.into_iter().for_each(|remark| all.add(remark));
        assert_eq!(all.iter().count(), Remark::ALL.len());
    }
}
