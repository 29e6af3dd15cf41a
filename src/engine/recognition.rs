//! How one record takes part in replay recognition. Pure.
//!
//! A dead letter that was produced to its topic again (`dlq.*` headers) carries a position that was
//! finished when it was set aside. For the consumer that set it aside this is no replay: the point is
//! to handle it now. For the others it stays one. For nobody does it say how far the log was read.

use super::frontier::Stamp;
use crate::cdc::Header;

/// The header that names the consumer which set a record aside.
const CONSUMER: &str = "dlq.consumer";

/// The stamps of one record, for the two things that stamps are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recognition {
    /// Compared with what is finished: one that lies before it is a replay.
    pub compared: Option<Stamp>,
    /// Counted as finished when the record has its outcome.
    pub counted: Option<Stamp>,
}

impl Recognition {
    /// Of a record with this stamp and these headers, for the consumer `name`.
    #[must_use]
    pub fn new(stamp: Option<Stamp>, headers: &[Header<'_>], name: &str) -> Self {
        match set_aside_by(headers) {
            None => Self { compared: stamp, counted: stamp },
            Some(by) if by == name.as_bytes() => Self::default(),
            Some(_) => Self { compared: stamp, counted: None },
        }
    }
}

/// The consumer that set this record aside, if it is a dead letter that was produced again. One that
/// was set aside again names the earlier one, too: the last counts.
pub(super) fn set_aside_by<'a>(headers: &[Header<'a>]) -> Option<&'a [u8]> {
    headers.iter().rev().find(|header| header.name == CONSUMER).and_then(|header| header.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::Position;

    const STAMP: Stamp = Stamp {
        source: 1,
        position: Position { first: Some(1), lsn: 2, tx_id: Some(3), commit_us: 4 },
        tie: 5,
    };

    fn of(headers: &[(&str, &str)]) -> Recognition {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| Header { name, value: Some(value.as_bytes()) })
            .collect();
        Recognition::new(Some(STAMP), &headers, "currency")
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
