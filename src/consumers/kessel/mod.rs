//! Kessel: what happens to the relationships of a SpiceDB (behaviour section 9).

pub mod acting;
pub mod actions;
pub mod relationships;
pub mod row;
pub mod schema;
