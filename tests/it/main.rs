//! All integration tests in one binary.

mod decode_fixtures;
mod decode_mutations;
mod decode_recordings;
mod explain;
mod support;
