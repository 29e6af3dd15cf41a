//! What the `demo` command needs and the tests use: the services that the daemon talks to, in
//! process.

pub mod broker;
pub mod double;
