//! How one record takes part in replay recognition. Pure.
//!
//! A dead letter that was produced to its topic again (`dlq.*` headers) carries a position that was
//! finished when it was set aside. For the consumer that set it aside this is no replay: the point
//! is to handle it now. For the others it stays one. For nobody does it say how far the log was
//! read.

use crate::cdc::Header;
use crate::config::ReplayRecognition;
use crate::engine::partition::replay_index::LoggedChange;

/// The header that names the consumer which set a record aside.
const CONSUMER: &str = "dlq.consumer";

/// One record's logged change, for the two things that it is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recognition {
    /// Compared with what is finished: one that lies before it is a replay.
    pub compared: Option<LoggedChange>,
    /// Counted as finished when the record has its outcome.
    pub counted: Option<LoggedChange>,
}

impl Recognition {
    /// Of a record with this logged change and these headers, for the consumer `name`, where
    /// changes are held against what is finished as `of` says.
    #[must_use]
    pub fn new(
        logged: Option<LoggedChange>,
        headers: &[Header<'_>],
        name: &str,
        of: ReplayRecognition,
    ) -> Self {
        let compared = logged.filter(|logged| of.compares(logged.position.commit_us));
        match set_aside_by(headers) {
            None => Self { compared, counted: logged },
            Some(by) if by == name.as_bytes() => Self::default(),
            Some(_) => Self { compared, counted: None },
        }
    }
}

/// The consumer that set this record aside, if it is a dead letter that was produced again. One
/// that was set aside again names the earlier one, too: the last counts.
pub(in crate::engine) fn set_aside_by<'a>(headers: &[Header<'a>]) -> Option<&'a [u8]> {
    headers.iter().rev().find(|header| header.name == CONSUMER).and_then(|header| header.value)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::cdc::Position;

    const STAMP: LoggedChange = LoggedChange {
        source: 1,
        position: Position { first: Some(1), lsn: 2, tx_id: Some(3), commit_us: 4 },
        tie: 5,
    };

    fn of(headers: &[(&str, &str)]) -> Recognition {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| Header { name, value: Some(value.as_bytes()) })
            .collect();
        Recognition::new(Some(STAMP), &headers, "currency", ReplayRecognition::On)
    }

    #[test]
    fn a_change_that_is_left_out_of_the_comparison_counts_all_the_same() {
        let time = |us| Timestamp::from_microsecond(us).expect("a time");
        let span = |from, until| ReplayRecognition::Except { from: time(from), until: time(until) };
        let compared = |of| {
            let told = Recognition::new(Some(STAMP), &[], "currency", of);
            assert_eq!(told.counted, Some(STAMP));
            told.compared
        };
        assert_eq!(compared(ReplayRecognition::Off), None);
        assert_eq!(compared(span(4, 5)), None);
        assert_eq!([compared(span(3, 4)), compared(span(5, 6))], [Some(STAMP); 2]);
    }

    #[test]
    fn a_record_of_the_connector_is_compared_and_counted() {
        let both = Recognition { compared: Some(STAMP), counted: Some(STAMP) };
        assert_eq!(of(&[]), both);
        assert_eq!(of(&[("__debezium.newkey", "{}")]), both);
    }

    #[test]
    fn a_dead_letter_is_no_replay_for_the_consumer_that_set_it_aside_and_counts_for_nobody() {
        let neither = Recognition::default();
        assert_eq!(of(&[("dlq.topic", "t"), ("dlq.consumer", "currency")]), neither);
        let replay = Recognition { compared: Some(STAMP), counted: None };
        assert_eq!(of(&[("dlq.consumer", "tier")]), replay);
        assert_eq!(of(&[("dlq.consumer", "currency-eu")]), replay, "another group's");
    }

    #[test]
    fn of_a_record_that_was_set_aside_twice_the_last_time_counts() {
        let twice = [("dlq.consumer", "currency"), ("x", "y"), ("dlq.consumer", "tier")];
        assert_eq!(of(&twice).compared, Some(STAMP));
    }
}
