//! The daemon as a process of its own, so that a test can kill it the way a machine would.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{PATIENCE, Signal, send_signal, until};

/// The real daemon. Cargo builds it for this package's tests, in the folder above them.
///
/// # Panics
/// When the caller is not such a test.
#[must_use]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a file");
    let built = test.ancestors().nth(2).expect("a test lies in target/<profile>/deps");
    let program = built.join("crm-event-processors");
    assert!(program.exists(), "{} is not there: run the tests with cargo test", program.display());
    program
}

/// A daemon's environment: only named variables, nothing of the test's own.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// What every daemon under test needs.
    pub fn new(kafka: &str, redis: &str, services: &str, prefix: &str) -> Self {
        Self::default()
            .with("KAFKA_BOOTSTRAP_SERVERS", kafka)
            .with("KAFKA_AUTO_OFFSET_RESET", "earliest")
            .with("REDIS_URL", redis)
            .with("SUPABASE_URL", services)
            .with("SUPABASE_SERVICE_ROLE_KEY", "for-the-fake")
            .with("INNGEST_EVENT_API_BASE_URL", services)
            .with("INNGEST_EVENT_KEY", "for-the-fake")
            .with("CDC_TOPIC_PREFIX", prefix)
            .with("CONSUMER_GROUP_ID", prefix)
            .with("CONSUMERS", "currency")
            .with("LOG_FORMAT", "human")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// Starts a daemon; its log goes where the test's goes.
    pub fn start(&self) -> Daemon {
        Daemon(self.command(program()).spawn().expect("the daemon starts"))
    }

    /// Starts a daemon whose log the test reads.
    pub fn start_logging(&self) -> (Daemon, Log) {
        self.start_reading(&[], |line| eprintln!("{line}"))
    }

    /// As [`Self::start_quietly`], with arguments.
    pub fn start_quietly_with(&self, arguments: &[&str]) -> (Daemon, Log) {
        self.start_reading(arguments, |_| {})
    }

    /// As [`Self::start_logging`], for a log that is too long to be shown.
    pub fn start_quietly(&self) -> (Daemon, Log) {
        self.start_quietly_with(&[])
    }

    /// Starts a daemon whose standard output the test reads; its log goes where the test's goes.
    pub fn start_reading_output(&self) -> (Daemon, Log) {
        let mut command = self.command(program());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the daemon starts");
        let written = child.stdout.take().expect("its output");
        let log = Log::of(written, |_| {});
        (Daemon(child), log)
    }

    fn start_reading(
        &self,
        arguments: &[&str],
        show: impl Fn(&str) + Send + 'static,
    ) -> (Daemon, Log) {
        let mut command = self.command(program());
        command.args(arguments).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the daemon starts");
        let written = child.stderr.take().expect("its log");
        let log = Log::of(written, show);
        (Daemon(child), log)
    }

    /// Lets a daemon run until it ends by itself.
    pub fn run(&self) -> Output {
        self.run_with(&[])
    }

    /// As [`Self::run`], with arguments.
    pub fn run_with(&self, arguments: &[&str]) -> Output {
        self.command(program()).args(arguments).output().expect("the daemon runs")
    }

    /// The command that starts `program`, the daemon or a similar one, in this environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(&self.0).stdin(Stdio::null());
        command
    }
}

/// What a daemon writes.
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    reader: thread::JoinHandle<()>,
}

impl Log {
    fn of(written: impl Read + Send + 'static, show: impl Fn(&str) + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(written).lines().map_while(Result::ok) {
                show(&line);
                into.lock().expect("not poisoned").push(line);
            }
        });
        Self { lines, reader }
    }

    /// Waits for a line that contains `text`.
    pub async fn until(&self, text: &str) {
        let found = || self.lines.lock().expect("not poisoned").iter().any(|l| l.contains(text));
        until(text, async || found().then_some(())).await;
    }

    /// What it has logged so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("not poisoned").clone()
    }

    /// The whole log of a daemon that has ended.
    pub fn whole(self) -> String {
        self.reader.join().expect("the log is read");
        self.lines.lock().expect("not poisoned").join("\n")
    }
}

/// A running daemon. Killed when dropped.
#[derive(Debug)]
pub struct Daemon(Child);

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) {
        self.end().expect("the daemon is killed");
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(self) -> ExitStatus {
        self.ask_to_stop();
        self.ended()
    }

    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        send_signal(self.pid(), Signal::TERM).expect("SIGTERM is sent");
    }

    /// Waits until it has ended, for at most [`PATIENCE`].
    ///
    /// # Panics
    /// At the deadline, and kills it.
    pub fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("the daemon is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon has not ended within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its largest resident memory so far, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the daemon is running");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(|_| ())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if the test has ended it already.
        self.end().ok();
    }
}
