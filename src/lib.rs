//! Turns Debezium changes of a loyalty CRM into Inngest events.

/// temp
pub mod cdc {
    /// temp
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[allow(missing_docs)]
    pub struct Position {
        pub first: Option<u64>,
        pub lsn: u64,
        pub tx_id: Option<u64>,
        pub commit_us: i64,
    }
}
pub mod engine;
pub mod outage;
pub mod clients;
pub mod dedup;
