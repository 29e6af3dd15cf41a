//! What becomes of a record in hand: lanes, tasks, outcomes, retries, and the bounds on all of it.

pub mod backpressure;
pub(super) mod batch;
pub(super) mod flood;
pub(super) mod held_floods;
pub mod lanes;
pub(super) mod life;
pub(super) mod outcomes;
pub mod permits;
pub mod retry;
pub(super) mod task;
pub(super) mod work;
