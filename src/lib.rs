//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod cdc;
pub mod cli;
pub mod outage;
