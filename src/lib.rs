//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod cli;
pub mod config;
pub mod consumers;
pub mod outage;
pub mod telemetry;
