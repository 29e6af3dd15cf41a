//! Services that `tests/services/up` starts as processes of this machine.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use tokio_postgres::config::Host;

use super::Spicedb;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../services");

/// Starts a service, and returns what `up` exports as `variable`.
pub(super) fn shared(service: &str, variable: &str) -> Result<String, String> {
    exported(up(&[service])?, variable)
}

/// Starts Kafka Connect on a running Kafka.
pub(super) fn connect(kafka: &str) -> Result<String, String> {
    exported(script("up", &until_we_exit(&["connect"]), &[("TEST_KAFKA", kafka)])?, "TEST_CONNECT")
}

/// Starts a SpiceDB on the shared PostgreSQL; `None` where there can be none, and says so.
pub(super) fn spicedb() -> Result<Option<Spicedb>, String> {
    let postgres = [("TEST_POSTGRES", super::postgres())];
    let mut exports = script("up", &until_we_exit(&["spicedb"]), &postgres)?;
    if let Some(reason) = exports.remove("TEST_SPICEDB_LEFT_OUT") {
        // Past the test's captured output, which nobody sees of a test that passes.
        writeln!(io::stderr(), "tests on a real SpiceDB look at nothing: {reason}").ok();
        return Ok(None);
    }
    let mut take = |name| exports.remove(name).ok_or_else(|| format!("no {name} in its output"));
    Ok(Some(Spicedb {
        url: take("TEST_SPICEDB")?,
        key: take("TEST_SPICEDB_KEY")?,
        database: take("TEST_SPICEDB_DATABASE")?,
    }))
}

/// Where a PostgreSQL URL leads to.
pub(super) fn host_and_port(url: &str) -> (String, u16) {
    let config: tokio_postgres::Config = url.parse().expect("a PostgreSQL URL");
    let Some(Host::Tcp(host)) = config.get_hosts().first() else { panic!("no host in {url}") };
    (host.clone(), config.get_ports().first().copied().unwrap_or(5432))
}

fn exported(mut exports: BTreeMap<String, String>, variable: &str) -> Result<String, String> {
    exports.remove(variable).ok_or_else(|| format!("no {variable} in its output"))
}

/// Runs `up` for a run that ends with this process; answers its exports by name, or what it said on standard error.
pub fn up(arguments: &[&str]) -> Result<BTreeMap<String, String>, String> {
    script("up", &until_we_exit(arguments), &[])
}

fn until_we_exit(arguments: &[&str]) -> Vec<String> {
    let own_process = process::id().to_string();
    let arguments = arguments.iter().map(|&argument| argument.to_owned());
    ["--until-parent-exits".to_owned(), own_process].into_iter().chain(arguments).collect()
}

/// Runs `up` or `down` with these arguments; returns the same as [`up`].
pub fn script(
    name: &str,
    arguments: &[impl AsRef<std::ffi::OsStr>],
    environment: &[(&str, &str)],
) -> Result<BTreeMap<String, String>, String> {
    let output = Command::new(Path::new(SCRIPTS).join(name))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{SCRIPTS}/{name} cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace('\\', ""))) // the quoting of a directory's odd characters
        .collect())
}

/// A run of services for one test that stops them. Ends when dropped.
///
/// Its methods block until the service is gone or answers.
#[derive(Debug)]
struct Run(String);

impl Run {
    /// Starts services. Returns the run, and the address that is exported as `variable`.
    fn start(arguments: &[&str], variable: &str) -> (Self, String) {
        let mut exports = up(arguments).expect("`tests/services/up` starts services of our own");
        let mut take = |name| exports.remove(name).expect("`up` exports what it started");
        (Self(take("TEST_SERVICES")), take(variable))
    }

    fn down(&self, arguments: &[&str]) {
        script("down", &[arguments, &["--run", &self.0]].concat(), &[])
            .expect("`tests/services/down` stops our service");
    }

    fn up(&self, service: &str) {
        script("up", &["--run", &self.0, service], &[])
            .expect("`tests/services/up` starts our service again");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(reason) = script("down", &["--run", &self.0], &[]) {
            eprintln!("a test's services could not be stopped: {reason}");
        }
    }
}

/// A Redis for one test that stops, flushes or kills it. Ends when dropped.
///
/// Its methods block for some tens of milliseconds.
#[derive(Debug)]
pub struct Redis {
    run: Run,
    url: String,
}

impl Redis {
    /// Starts one on a port of its own, empty, without persistence.
    pub fn own() -> Self {
        let (run, url) = Run::start(&["redis"], "TEST_REDIS");
        Self { run, url }
    }

    /// Stays the same through stops and starts.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills it: connections break, new ones are refused, all data is gone.
    pub fn stop(&self) {
        self.run.down(&["--kill", "redis"]);
    }

    /// Starts it again after [`Self::stop`], empty, on the same port; does nothing when it runs.
    pub fn start(&self) {
        self.run.up("redis");
    }

    /// What a free plan's restart does: everything is forgotten, connections break, the address stays.
    pub fn restart_empty(&self) {
        self.stop();
        self.start();
    }
}

/// A Kafka cluster for one test that stops and kills its brokers. With three brokers, topics have
/// three copies, and two must be in sync. Ends when dropped.
///
/// Its methods block for seconds.
#[derive(Debug)]
pub struct Cluster {
    run: Run,
    bootstrap: String,
}

impl Cluster {
    /// Starts this many brokers, numbered from 1, empty and on ports of their own.
    pub fn own(brokers: u8) -> Self {
        let (run, bootstrap) =
            Run::start(&["--brokers", &brokers.to_string(), "kafka"], "TEST_KAFKA");
        Self { run, bootstrap }
    }

    /// Addresses of all brokers; they stay the same through stops and starts.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Where a broker keeps its logs.
    pub fn data(&self, broker: u8) -> PathBuf {
        Path::new(&self.run.0).join(format!("kafka-{broker}/data"))
    }

    /// Kills a broker.
    pub fn kill(&self, broker: u8) {
        self.run.down(&["--kill", &format!("kafka-{broker}")]);
    }

    /// Stops a broker, which hands its partitions over first.
    pub fn stop(&self, broker: u8) {
        self.run.down(&[&format!("kafka-{broker}")]);
    }

    /// Starts a broker again with its data. Does nothing if it runs.
    pub fn start(&self, broker: u8) {
        self.run.up(&format!("kafka-{broker}"));
    }
}
