//! Kessel: relationships of a SpiceDB, from the tables of its PostgreSQL store (behaviour section 9).

pub mod log;
pub mod relationships;
pub mod row;
