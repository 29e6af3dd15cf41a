//! Three brokers and a Redis of our own, to be stopped, killed and frozen one by one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::plan::BROKERS;
use test_support::services::native::{script, up};
use test_support::{Signal, send_signal};

pub(crate) const REDIS: &str = "redis";

/// The name of a broker, numbered from 1.
pub(crate) fn broker(number: u8) -> String {
    format!("kafka-{number}")
}

/// The services of this process. They end when this is dropped.
///
/// The methods block, some for seconds.
#[derive(Debug)]
pub(crate) struct Services {
    exports: BTreeMap<String, String>,
}

impl Services {
    pub(crate) fn own() -> Self {
        let exports = up(&["--brokers", &BROKERS.to_string(), "kafka", REDIS]);
        Self { exports: exports.expect("`tests/services/up` starts brokers and a Redis") }
    }

    fn export(&self, name: &str) -> &str {
        self.exports.get(name).expect("`up` exports what it started")
    }

    fn run(&self) -> &str {
        self.export("TEST_SERVICES")
    }

    /// Addresses of all brokers. They never change, nor does that of Redis.
    pub(crate) fn kafka(&self) -> &str {
        self.export("TEST_KAFKA")
    }

    pub(crate) fn redis(&self) -> &str {
        self.export("TEST_REDIS")
    }

    /// Kills a service: connections break, new ones are refused. A Redis has lost all data.
    pub(crate) fn kill(&self, service: &str) {
        let killed = script("down", &["--kill", "--run", self.run(), service], &[]);
        killed.expect("`tests/services/down` kills a service");
    }

    /// Stops a service. A broker hands its partitions over first.
    pub(crate) fn stop(&self, service: &str) {
        let stopped = script("down", &["--run", self.run(), service], &[]);
        stopped.expect("`tests/services/down` stops a service");
    }

    /// Starts a service again, with what it had.
    pub(crate) fn start(&self, service: &str) {
        let started = script("up", &["--run", self.run(), service], &[]);
        started.expect("`tests/services/up` starts a service again");
    }

    /// Freezes a service: connections stay, nothing is answered, nothing is forgotten.
    pub(crate) fn freeze(&self, service: &str) {
        self.signal(service, Signal::STOP);
    }

    /// Lets it go on after [`Self::freeze`].
    pub(crate) fn thaw(&self, service: &str) {
        self.signal(service, Signal::CONT);
    }

    fn signal(&self, service: &str, signal: Signal) {
        let pid = fs::read_to_string(Path::new(self.run()).join(service).join("pid"));
        let pid = pid.expect("the service runs");
        // The process's start time follows the id.
        let pid = pid.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let sent = send_signal(pid.expect("a process id"), signal);
        sent.unwrap_or_else(|error| panic!("{signal:?} is not sent to {service}: {error}"));
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Err(reason) = script("down", &["--run", self.run()], &[]) {
            eprintln!("brokers and Redis could not be stopped: {reason}");
        }
    }
}
