//! Tests that need more than one part of the daemon, or a real service: one binary, so that they
//! share what is started.

mod all_five;
mod cases;
mod claims;
mod consumers;
mod decimals;
mod decode_fixtures;
mod decode_mutations;
mod decode_recordings;
mod demo;
mod deploys;
mod double;
mod explain;
mod explain_cases;
mod full_path;
mod hanging;
mod inngest;
mod life;
mod load;
mod packaging;
mod promises;
mod replay;
mod security;
mod services_smoke;
mod sixth;
mod supabase;
mod support;
mod tier;
