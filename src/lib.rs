//! Turns Debezium changes of a loyalty CRM into Inngest events: nothing lost, nothing twice.
//!
//! What it does and promises stands in `docs/behaviour.md`. The rooms, the words and the reasons stand
//! in `docs/architecture.md`. How to add a consumer, an action or a command stands in
//! `docs/contributing.md`.

pub mod app;
pub mod cdc;
pub mod clients;
pub mod commands;
pub mod config;
pub mod consumers;
pub mod dedup;
#[cfg(feature = "demo")]
pub mod demo;
pub mod engine;
#[cfg(any(test, feature = "demo"))]
pub mod fakes;
pub mod kafka;
pub mod metric_names;
pub mod outage;
pub mod recording;
pub mod room;
pub mod telemetry;

/// Every record costs a few dozen short-lived allocations, made on one thread and freed on another,
/// which the system's allocator is slow at.
#[cfg(not(test))] // unit tests have the library twice: what tests stand on depends on it
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
