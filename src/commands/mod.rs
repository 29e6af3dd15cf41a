//! The commands, one file each.

pub mod check;
pub mod decisions;
#[cfg(feature = "demo")]
pub mod demo;
pub mod explain;
pub mod run;
