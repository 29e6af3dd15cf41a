//! Schemas of a SpiceDB: what they are, how they differ, and what depends on what (behaviour section
//! 9, "Schemas"). Pure.
//!
//! - `proto`: the messages that SpiceDB stores;
//! - `model`: a decoded schema, and `expression`: what its permissions are computed from;
//! - `diff`: the differences between two schemas, in SpiceDB's own words;
//! - `reach`: which types depend on a relation;
//! - `rows`: what a change of one of the four tables says about a row;
//! - `state`: the schema that the rows build up.
//!
//! # When to look
//!
//! A write of the schema changes many rows, which arrive one by one from several partitions, and the
//! stream does not say how many there are. So a reader takes the rows as they come and looks at
//! [`SchemaState::current`] only when nothing has changed for [`SETTLED_AFTER`] and the partitions
//! are read to their ends. [`SchemaState::is_whole`] tells more, where the rows themselves show that
//! something is missing. Who has waited [`PATIENCE`] looks anyway: what comes later is a further
//! difference, and the end is right.

use std::time::Duration;

pub mod diff;
pub mod expression;
pub mod model;
mod proto;
pub mod reach;
pub mod rows;
pub mod state;
#[cfg(test)]
mod testing;

pub use diff::{Difference, diff};
pub use model::Schema;
pub use reach::Reach;
pub use rows::{SchemaRow, TABLES, read};
pub use state::SchemaState;

/// How long no row may have changed before the schema counts as settled. The rows of one transaction
/// leave the connector together, so only the polls of its worker and of the partitions lie between.
pub const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How long a reader waits, from the first row that changed, for rows that keep changing or that are
/// not whole.
pub const PATIENCE: Duration = Duration::from_secs(30);
