//! The engine's promises (behaviour section 8), one module each, against real brokers.
//!
//! Most run a [`stage::Scripted`] consumer in a real engine; the test scripts its work. Those that
//! need a change's whole way run the daemon as a process that can be killed.

mod beginnings;
mod bounded_memory;
mod broker_away;
mod duplicates;
mod nothing_lost;
mod order;
mod outage_or_poison;
mod replays;
mod restart;
mod stage;
mod stall;
mod starts;
mod stop;
mod world;
