//! The demo: its embedded broker, its run with and without faults, and its verdict.

mod broker;
mod runs;
mod verdict;
