//! What a consumer does under a claim, alone under a lock, and keeps beyond the window.

pub(super) mod exclusive;
pub(super) mod once;
pub(super) mod remember;
