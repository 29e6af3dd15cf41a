//! Tests against real services: one binary, so that they share what is started.

mod services_smoke;
mod support;
