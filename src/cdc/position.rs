//! Where a change lies in the database's log (behaviour section 2, "Log position").

/// Log position of a change. A replay repeats all four exactly.
///
/// Transactions arrive in the order of their commits: `first` orders them, `lsn` orders the changes
/// within one. There is no `Ord` here because neither order is total: equal positions occur (COPY,
/// key changes), and `lsn` alone goes down between interleaved transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Position {
    /// LSN of the last commit before this transaction; unknown until the connector has one stored.
    pub first: Option<u64>,
    /// LSN of this change.
    pub lsn: u64,
    /// Transaction id.
    pub tx_id: Option<u64>,
    /// Commit time in microseconds since 1970, the same for a whole transaction.
    pub commit_us: i64,
}

/// Reads `source.sequence`: a string with a JSON array of two LSNs. The first may be null. `None`
/// for anything else.
pub(super) fn sequence(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let [first, lsn]: [Option<&str>; 2] = serde_json::from_str(text).ok()?;
    let number =
        |lsn: Option<&str>| lsn.map(|lsn| lsn.parse().ok()).map_or(Some(None), |n| n.map(Some));
    Some((number(first)?, number(lsn)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lsn_may_be_unknown() {
        assert_eq!(sequence(r#"[null,"137378784"]"#), Some((None, Some(137_378_784))));
        assert_eq!(
            sequence(r#"["137401856","137403024"]"#),
            Some((Some(137_401_856), Some(137_403_024)))
        );
    }

    #[test]
    fn lsns_use_all_64_bits() {
        assert_eq!(
            sequence(r#"["18446744073709551615","9007199254740993"]"#),
            Some((Some(u64::MAX), Some(9_007_199_254_740_993)))
        );
    }

    #[test]
    fn anything_else_is_unknown() {
        for text in [
            "",
            "null",
            "[]",
            r#"["1"]"#,
            r#"["1","2","3"]"#,
            r#"["-1","2"]"#,
            r#"[1,2]"#,
            r#"{"first":"1"}"#,
            r#"["1","x"]"#,
            r#"["1","2"] "3""#,
            "0/16B3748",
        ] {
            assert_eq!(sequence(text), None, "{text}");
        }
    }
}
