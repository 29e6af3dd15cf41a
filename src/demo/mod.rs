//! The `demo` command's inside: the real daemon with everything around it in this process.
//!
//! ```text
//! recordings -> broker -> daemon -> double
//!      |                    |         |
//!    demand               watch      seen  -> demand::judge
//! ```

mod commands;
pub mod demand;
pub mod faults;
mod incarnation;
mod members;
pub mod recordings;
mod run;
mod settings;
mod stage;
mod told;
pub mod watch;

pub use self::run::{Report, run};
pub use self::settings::log_settings;
pub use self::told::{DemoError, Feed, Options, Told};

/// The topic of redemptions.
const REDEMPTIONS: &str = "reward_redemptions";
/// The topic of orders.
const ORDERS: &str = "marketplace.orders";
