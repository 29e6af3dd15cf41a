//! Clients of the services that this daemon talks to: Inngest and Supabase over HTTP, and Redis.
//!
//! Failures are classified as behaviour section 8.4 asks: an outage is retried for as long as it
//! takes, a refusal of the record is not. No client ever prints a key or a payload.

mod http;
pub mod inngest;
mod key_redaction;
pub mod postgres;
pub mod redis;
pub mod search;
pub mod supabase;
pub mod webhook;

pub use http::{HttpConfig, SetupError};
