//! The consumers and the rules that they share.

pub mod award_time;
pub mod refund;
