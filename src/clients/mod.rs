//! Clients.
pub mod redis;
