//! The `demo` command's inside: the real daemon with everything around it in this process.
//!
//! ```text
//! recordings -> broker -> daemon -> fake
//!      |                    |         |
//!  expectation            watch    received  -> expectation::check
//! ```

mod commands;
mod daemon_run;
pub mod expectation;
pub mod faults;
mod members;
mod progress;
pub mod recordings;
mod run;
mod settings;
mod stage;
pub mod watch;

pub use self::progress::{DemoError, Feed, Options, Progress};
pub use self::run::{Report, run};
pub use self::settings::log_settings;

/// The topic of redemptions.
const REDEMPTIONS: &str = "reward_redemptions";
/// The topic of orders.
const ORDERS: &str = "marketplace.orders";
