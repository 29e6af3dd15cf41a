//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod config;
pub mod outage;
