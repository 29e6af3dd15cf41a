//! What commands read of a cluster, without a trace: they join no group and commit nothing.

pub mod records;
