//! The consumers and what they share.

pub mod award_time;
pub mod broadcast;
pub mod call;
pub mod currency;
pub mod entry;
pub mod kessel;
mod lookup_cache;
pub mod marketplace;
pub mod merchants;
pub mod mission;
pub mod refund;
pub mod registry;
pub mod reward;
pub mod sender;
pub mod snapshot;
pub mod tenant;
#[cfg(test)]
mod testing;
pub mod tier;
pub mod words;
