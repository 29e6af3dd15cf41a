//! The commands, one file each.

pub mod check;
pub mod decisions;
pub mod demo;
pub mod explain;
pub mod run;
