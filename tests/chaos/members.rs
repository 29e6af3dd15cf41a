//! Daemons as processes: started, killed, stopped and frozen as the plan says.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use test_support::daemon::Environment;
use test_support::{Signal, send_signal};

/// How long a stop may take before it counts as failed. The daemons' own grace is shorter.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Prefix of an incarnation's name in its key for Supabase.
pub(crate) const SENDER: &str = "member-";

/// How members are started.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Environment,
    /// Where their logs go.
    pub(crate) logs: PathBuf,
}

/// One running process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    /// Member and incarnation, as in `2.1`.
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
}

impl Recipe {
    /// Starts the incarnation `name`. Inngest and Supabase know it by its keys. With `place` it is
    /// a static member of its groups.
    pub(crate) fn start(&self, name: &str, place: Option<usize>) -> Process {
        let log = self.logs.join(format!("member-{name}.log"));
        let into = File::create(&log).expect("a log file");
        let mut environment = self.environment.clone();
        environment = environment.with("INNGEST_EVENT_KEY", name);
        environment = environment.with("SUPABASE_SERVICE_ROLE_KEY", &format!("{SENDER}{name}"));
        if let Some(place) = place {
            environment = environment.with("KAFKA_INSTANCE_ID", &format!("place-{place}"));
        }
        let mut command = environment.command(&self.program);
        command.args(&self.arguments).stdout(Stdio::null()).stderr(into);
        let child = command.spawn().expect("a member starts");
        Process { name: name.to_owned(), child, log }
    }
}

impl Process {
    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the member can be asked")
    }

    /// Kills it, and returns how it ended: perhaps it had ended by itself.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().expect("the member is killed");
        self.child.wait().expect("the member ends")
    }

    /// Asks it to stop, and returns how it ended; `None` if it did not within [`STOP_PATIENCE`].
    pub(crate) async fn stop(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// Whether it has begun to consume. Before that a stop may end it at once.
    pub(crate) fn has_begun(&self) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|log| log.contains("consumer started"))
    }

    /// Lets it stand still for a while.
    pub(crate) async fn freeze(&mut self, time: Duration) {
        self.signal(Signal::STOP);
        sleep(time).await;
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself, which is found out elsewhere.
        send_signal(self.child.id(), signal).ok();
    }

    /// Its largest resident memory so far, in KiB; `None` once it has ended.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if the member has ended as it should.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
