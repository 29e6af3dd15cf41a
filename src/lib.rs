//! Turns Debezium changes of a loyalty CRM into Inngest events.

pub mod cdc;
pub mod outage;
