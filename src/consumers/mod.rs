//! The consumers and what they share.

pub mod award_time;
pub mod call;
pub mod currency;
pub mod merchants;
pub mod refund;
pub mod registry;
pub mod snapshot;
pub mod tier;
