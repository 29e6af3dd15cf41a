//! Tests that need more than one part of the daemon.

mod double;
mod inngest;
mod supabase;
