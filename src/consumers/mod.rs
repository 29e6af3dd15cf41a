//! The consumers and what they share.

pub mod award_time;
pub mod broadcast;
pub mod call;
pub mod currency;
pub mod marketplace;
pub mod merchants;
pub mod mission;
pub mod owner;
pub mod refund;
pub mod registry;
mod remembered;
pub mod reward;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod tier;
pub mod words;
