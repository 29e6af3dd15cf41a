//! Clients of the two services that this daemon talks to over HTTP: Inngest and Supabase.
//!
//! Both classify what goes wrong as contract section 8.4 asks: an outage is retried for as long as
//! it takes, a refusal that is about the record is not. Neither ever prints a key or a payload.

mod http;
pub mod inngest;
pub mod supabase;

pub use http::{HttpConfig, SetupError};
