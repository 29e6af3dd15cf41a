//! Turns Debezium changes of a loyalty CRM into Inngest events: nothing lost, nothing twice.
//!
//! # One record's way
//!
//! ```text
//! librdkafka -> Record -> decode -> route -> lane -> claim -> process -> confirm -> outcome -> watermark -> commit
//!               kafka     cdc      consumers engine  dedup   consumers   dedup     engine     engine       kafka
//! ```
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`cdc`] | bytes to a change: every form that Debezium and Connect write. Pure |
//! | [`consumers`] | the rules and requests of each consumer, and the registry. One file or folder each |
//! | [`engine`] | the loop that every consumer lives in, and its pure parts. Knows no consumer |
//! | [`dedup`] | claims: two phases, in Redis or in memory |
//! | [`clients`] | Inngest (micro-batches), Supabase (classification), Redis connections |
//! | [`kafka`] | client configuration, rebalance events, where a partition starts, dead letters |
//! | [`outage`] | one breaker per dependency, and backoff |
//! | [`supervisor`] | builds all of it, watches over it, stops it |
//! | [`config`], [`telemetry`], [`metric_names`], [`cli`] | settings, logs and health endpoints, names of metrics, commands |
//! | [`recording`] | records in files, for `explain`, the demo and tests |
//! | [`fakes`] | fakes of Inngest, Supabase and Kafka, which behave as the real ones were seen to |
//! | [`demo`] | the same daemon against recorded changes and these fakes |
//!
//! Imports run one way: `supervisor` and `cli` know all, `consumers` know `clients`, the engine
//! knows neither. What decides is pure and takes time and randomness as arguments; what does I/O is
//! thin.
//!
//! # Words
//!
//! | word | means |
//! | --- | --- |
//! | change | one decoded Debezium event |
//! | event | what is sent to Inngest |
//! | lane | the order domain of one key: its records are worked on one after another |
//! | claim | a change taken by one record, not yet done |
//! | watermark | the lowest offset of a partition without an outcome; all that is ever committed |
//! | replay | a change that this group finished before and is sent again |
//! | dead letter | a record set aside for good reason |
//! | outcome | how a record ended; every outcome completes its offset, a retry completes nothing |
//!
//! # Why it is built so
//!
//! - **Only the watermark is committed**, with the completed offsets above it and the replay
//!   frontier in the commit's metadata. A crash repeats what was in flight and nothing else.
//! - **What waits holds nothing.** A settle time, a retry pause, an open breaker parks the lane: no
//!   task, no permit. So a thousand refunds that wait 30 s slow nobody, and a stop gives them up at once.
//! - **A claim has two phases** and carries its record's name, so a record redelivered after a crash
//!   knows its own claim, and one that is in flight elsewhere is not taken for done.
//! - **Replays are known by log position and commit time**, paired, not by claims: those expire
//!   within minutes, and connectors replay days.
//! - **Every hop is batched**: fetches by librdkafka, claims in pipelines, events in micro-batches.
//!
//! # A further consumer
//!
//! The engine runs anything that implements [`engine::Consumer`]. Such a type says which topics it
//! takes, what a change calls for (`route`, pure), what is done about it (`process`, under
//! [`engine::Context::once`] with a claim named after what is about to happen), and what `explain` prints
//! (`plan`). Everything else is there: order, claims, replays, retries, dead letters, commits,
//! metrics, readiness.
//!
//! To try one, hand it to [`supervisor::Daemon::with`]; `tests/it/sixth.rs` does, in one file, on the
//! embedded broker. To add it for good:
//!
//! 1. `src/consumers/<name>.rs`: the type, its `NAME` and tests of `route`; `pub mod <name>;` in
//!    `src/consumers/mod.rs`. `marketplace` is the shortest to start from.
//! 2. [`config::ConsumerName`]: a variant, in `ALL`, with its name in `as_str` and its tables in
//!    `tables`. The compiler then names every place that must know it:
//! 3. a line in [`consumers::registry::build`], which hands it its topics, bound and clients, and
//! 4. a field of [`config::Settings`] with its line in `Settings::consumer` and `config/build.rs`.
//! 5. Its settings: `<name>.concurrency` and `<name>.kafka_properties` in `config/variables.rs` and,
//!    with defaults and a comment, as section `[<name>]` of `config/default.toml`. Its name in
//!    `consumers` there if it is to run unasked. The tests of `config` name what is missing.

pub mod cdc;
pub mod cli;
pub mod clients;
pub mod config;
pub mod consumers;
pub mod dedup;
pub mod demo;
pub mod engine;
pub mod fakes;
pub mod kafka;
pub mod metric_names;
pub mod outage;
pub mod recording;
pub mod room;
pub mod supervisor;
pub mod telemetry;

/// Every record costs a few dozen short-lived allocations, made on one thread and freed on another,
/// which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
