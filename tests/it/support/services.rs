//! The door to real services: an address from the environment, else started natively by `tests/services/up`.
//!
//! What is started here is shared by all tests of the process and ends with it, however it ends. A test that needs a
//! service and gets none fails and says what to do; it never passes silently.

use std::{
    collections::BTreeMap,
    env,
    path::Path,
    process::{self, Command, Stdio},
    sync::OnceLock,
};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services");

type Shared = OnceLock<Result<String, String>>;

/// Bootstrap servers of the shared Kafka: `TEST_KAFKA`, else one broker of our own. Blocks while it starts.
pub(crate) fn kafka() -> &'static str {
    static KAFKA: Shared = Shared::new();
    shared(&KAFKA, "kafka", "TEST_KAFKA")
}

/// URL of the shared Redis: `TEST_REDIS`, else one of our own. Blocks while it starts.
///
/// Tests use keys of their own ([`super::unique`]); one that flushes or stops it takes [`Redis::own`].
pub(crate) fn redis() -> &'static str {
    static REDIS: Shared = Shared::new();
    shared(&REDIS, "redis", "TEST_REDIS")
}

fn shared(cell: &'static Shared, service: &str, variable: &str) -> &'static str {
    let found = cell.get_or_init(|| match env::var(variable) {
        Ok(address) if !address.is_empty() => Ok(address),
        _ => up(&[service]).and_then(|exports| {
            exports.get(variable).cloned().ok_or_else(|| format!("no {variable} in its output"))
        }),
    });
    match found {
        Ok(address) => address,
        Err(reason) => panic!(
            "this test needs {service}: set {variable}, or make `tests/services/up {service}` work, which said: {reason}"
        ),
    }
}

/// Runs `up` for a run that ends with this process; answers its exports by name, or what it said on standard error.
pub(crate) fn up(arguments: &[&str]) -> Result<BTreeMap<String, String>, String> {
    let own_process = process::id().to_string();
    script("up", &[&["--until-parent-exits", &own_process], arguments].concat())
}

/// Runs `up` or `down` with these arguments, as [`up`].
pub(crate) fn script(name: &str, arguments: &[&str]) -> Result<BTreeMap<String, String>, String> {
    let output = Command::new(Path::new(SCRIPTS).join(name))
        .args(arguments)
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

/// A Redis for one test that stops, flushes or kills it. Ends when dropped.
///
/// Its methods block for some tens of milliseconds.
#[derive(Debug)]
pub(crate) struct Redis {
    run: String,
    url: String,
}

impl Redis {
    /// Starts one on a port of its own, empty, without persistence.
    pub(crate) fn own() -> Self {
        let mut exports = up(&["redis"]).expect("`tests/services/up redis` starts a Redis");
        let mut take = |name| exports.remove(name).expect("`up` exports what it started");
        Self { run: take("TEST_SERVICES"), url: take("TEST_REDIS") }
    }

    /// Stays the same through stops and starts.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Kills it: connections break, new ones are refused, all data is gone.
    pub(crate) fn stop(&self) {
        script("down", &["--kill", "--run", &self.run, "redis"])
            .expect("`tests/services/down` stops our Redis");
    }

    /// Starts it again after [`Self::stop`], empty, on the same port; does nothing when it runs.
    pub(crate) fn start(&self) {
        script("up", &["--run", &self.run, "redis"])
            .expect("`tests/services/up` starts our Redis again");
    }

    /// What a free plan's restart does: everything is forgotten, connections break, the address stays.
    pub(crate) fn restart_empty(&self) {
        self.stop();
        self.start();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Err(reason) = script("down", &["--run", &self.run]) {
            eprintln!("a test's Redis could not be stopped: {reason}");
        }
    }
}
