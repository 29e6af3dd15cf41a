//! Tests that need more than one part of the daemon.

mod inngest;
mod supabase;
