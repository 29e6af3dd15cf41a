//! What the tests stand on: the door to real services, Kafka helpers, and waiting for a condition.

pub mod daemon;
pub mod feed;
pub mod http;
pub mod kafka;
pub mod mock;
pub mod recordings;
pub mod services;
pub mod tcp_proxy;

use std::io;
use std::time::{Duration, Instant};

use rustix::process::Pid;
pub use rustix::process::Signal;

/// The longest that a test waits for anything. Only a failure takes this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A name that no other test, process or run uses: for topics, groups and Redis keys.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:016x}", fastrand::u64(..))
}

/// Sends a signal to a process. Uses a system call, since not every machine has a program for it.
///
/// # Errors
/// When there is no such process, or it is not ours to signal.
pub fn send_signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no process id"))?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// Calls `probe` until it returns `Some`, for at most [`PATIENCE`].
///
/// # Panics
/// At the deadline, naming `what` was waited for.
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, probe).await
}

/// As [`until`], for what may take longer than [`PATIENCE`].
pub async fn until_within<T>(
    patience: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
