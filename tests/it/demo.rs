//! The demo: its embedded broker, its run with and without faults, and its judgement.

mod broker;
