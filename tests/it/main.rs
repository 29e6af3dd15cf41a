//! Tests that need several parts of the daemon, or a real service. They are one binary so that they
//! share what is started.

mod all_consumers;
mod batches;
mod cases;
mod claims;
mod consumers;
mod decimals;
mod decode_fixtures;
mod decode_mutations;
mod decode_recordings;
mod demo;
mod deploys;
mod explain;
mod explain_cases;
mod fakes;
mod full_path;
mod hanging;
mod inngest;
mod kessel;
mod kessel_actions;
mod kessel_real;
mod kessel_stores;
mod kessel_webhook;
mod life;
mod load;
mod new_consumer;
mod packaging;
mod promises;
mod replay;
mod security;
mod services_smoke;
mod supabase;
mod tier;
