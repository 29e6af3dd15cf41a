//! Tests that need more than one part of the daemon, or a real service: one binary, so that they
//! share what is started.

mod double;
mod inngest;
mod services_smoke;
mod supabase;
mod support;
