//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod clients;
pub mod demo;
pub mod outage;
