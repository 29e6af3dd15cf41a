//! Where real services come from: an address from the environment, else a container where a Docker
//! engine answers, else started natively by `tests/services/up`.
//!
//! What is started here is shared by all tests of the process and ends with it, however it ends. A
//! test that needs a service and gets none fails and says what to do; it never passes silently. A
//! test that stops or kills a service takes one of its own, always a native one.

mod docker;
pub mod native;
mod source;

use std::{env, sync::OnceLock};

pub use self::native::{Cluster, Redis, up};

use self::source::{ServiceSource, connect_source, service_source};

type Shared<T> = OnceLock<Result<T, String>>;

/// Bootstrap servers of the shared Kafka: `TEST_KAFKA`, else one broker of our own. Blocks while it
/// starts.
pub fn kafka() -> &'static str {
    static KAFKA: Shared<String> = Shared::new();
    shared::<String>(&KAFKA, "kafka", "TEST_KAFKA", || match kafka_door() {
        ServiceSource::Given(address) => Ok(address),
        ServiceSource::Docker => Ok(docker::kafka()),
        ServiceSource::Native => native::shared("kafka", "TEST_KAFKA"),
    })
}

/// URL of the shared Redis: `TEST_REDIS`, else one of our own. Blocks while it starts.
///
/// Tests use keys of their own ([`super::unique`]); one that flushes or stops it takes
/// [`Redis::own`].
pub fn redis() -> &'static str {
    static REDIS: Shared<String> = Shared::new();
    shared::<String>(&REDIS, "redis", "TEST_REDIS", || match door_of("TEST_REDIS") {
        ServiceSource::Given(address) => Ok(address),
        ServiceSource::Docker => Ok(docker::redis()),
        ServiceSource::Native => native::shared("redis", "TEST_REDIS"),
    })
}

/// URL of the shared PostgreSQL, as its superuser: `TEST_POSTGRES`, else one of our own. Blocks
/// while it starts.
///
/// Tests make databases of their own. Roles and replication slots belong to the server and exist
/// once: a given server must not have those of `config/` yet.
pub fn postgres() -> &'static str {
    static POSTGRES: Shared<String> = Shared::new();
    shared::<String>(&POSTGRES, "postgres", "TEST_POSTGRES", || match postgres_door() {
        ServiceSource::Given(address) => Ok(address),
        ServiceSource::Docker => Ok(docker::postgres()),
        ServiceSource::Native => native::shared("postgres", "TEST_POSTGRES"),
    })
}

/// Address of the shared OpenSearch: `TEST_OPENSEARCH`, else one of our own. Blocks while it starts.
///
/// Tests use indexes of their own.
pub fn opensearch() -> &'static str {
    static OPENSEARCH: Shared<String> = Shared::new();
    shared::<String>(&OPENSEARCH, "opensearch", "TEST_OPENSEARCH", || {
        match set("TEST_OPENSEARCH") {
            Some(address) => Ok(address),
            None => native::shared("opensearch", "TEST_OPENSEARCH"),
        }
    })
}

/// A SpiceDB, the store behind Kessel, with a PostgreSQL as its own.
pub struct Spicedb {
    /// Base URL of its HTTP interface.
    pub url: String,
    /// What its callers show as a bearer token.
    pub key: String,
    /// URL of its database, as the superuser.
    pub database: String,
}

/// The shared SpiceDB: `TEST_SPICEDB` with `TEST_SPICEDB_KEY` and `TEST_SPICEDB_DATABASE`, else one
/// of our own on the shared PostgreSQL. Blocks while it starts, for minutes where it must be built.
///
/// `None` where Go is missing, which builds it: then standard error says so, and the test looks at
/// nothing. Tests use object types of their own: there is one schema, and writing it replaces all.
pub fn spicedb() -> Option<&'static Spicedb> {
    static SPICEDB: Shared<Option<Spicedb>> = Shared::new();
    let found = shared(&SPICEDB, "spicedb", "TEST_SPICEDB", || match set("TEST_SPICEDB") {
        Some(url) => {
            let needed = |name| set(name).ok_or_else(|| format!("{name} is not set"));
            let (key, database) = (needed("TEST_SPICEDB_KEY")?, needed("TEST_SPICEDB_DATABASE")?);
            Ok(Some(Spicedb { url, key, database }))
        }
        None => native::spicedb(),
    });
    found.as_ref()
}

/// The shared Kafka Connect with Debezium, on the shared Kafka.
pub struct Connect {
    /// Base URL of its REST interface.
    pub url: String,
    /// Host and port at which it finds the shared PostgreSQL.
    pub database: (String, u16),
}

/// The shared Kafka Connect: `TEST_CONNECT`, else one of our own. Blocks while it starts, and Kafka
/// and PostgreSQL.
pub fn connect() -> &'static Connect {
    static CONNECT: Shared<Connect> = Shared::new();
    let start = || {
        let seen_here = || native::host_and_port(postgres());
        let url = match connect_source(door_of("TEST_CONNECT"), &kafka_door(), &postgres_door()) {
            ServiceSource::Given(address) => address,
            ServiceSource::Docker => {
                kafka();
                postgres();
                return Ok(docker::connect());
            }
            ServiceSource::Native => native::connect(kafka())?,
        };
        Ok(Connect { url, database: seen_here() })
    };
    shared(&CONNECT, "connect", "TEST_CONNECT", start)
}

fn kafka_door() -> ServiceSource {
    door_of("TEST_KAFKA")
}

fn postgres_door() -> ServiceSource {
    door_of("TEST_POSTGRES")
}

fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

fn door_of(variable: &str) -> ServiceSource {
    service_source(set(variable), set("TEST_SERVICES").is_some(), docker::engine_answers)
}

fn shared<T>(
    cell: &'static Shared<T>,
    service: &str,
    variable: &str,
    start: impl FnOnce() -> Result<T, String>,
) -> &'static T {
    match cell.get_or_init(start) {
        Ok(found) => found,
        Err(reason) => panic!(
            "this test needs {service}: set {variable}, or make `tests/services/up {service}` work, which said: {reason}"
        ),
    }
}
