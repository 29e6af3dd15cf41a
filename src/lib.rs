//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod cdc;
pub mod cli;
pub mod clients;
pub mod config;
pub mod consumers;
pub mod dedup;
pub mod demo;
pub mod engine;
pub mod kafka;
pub mod measures;
pub mod outage;
pub mod supervisor;
pub mod telemetry;
