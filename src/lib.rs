//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod cdc;
pub mod clients;
pub mod dedup;
pub mod engine;
pub mod outage;
