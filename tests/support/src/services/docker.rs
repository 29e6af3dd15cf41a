//! Services in containers, by testcontainers, if a Docker engine of this machine answers.
//!
//! The images are those of `docker-compose.yml`. Containers share a network, so that Kafka Connect finds the others by
//! name, and are reached from here at 127.0.0.1.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::process::{self, Child, Command, Stdio};
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use testcontainers::GenericImage;
use testcontainers::core::client::docker_client_instance;
use testcontainers::core::{ContainerPort, ContainerRequest, ImageExt as _};
use testcontainers::runners::AsyncRunner as _;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::Connect;
use crate::kafka::client;
use crate::{unique, until};

const KAFKA: (&str, &str) = ("apache/kafka", "4.3.1");
const REDIS: (&str, &str) = ("redis", "7.4.11-alpine");
const POSTGRES: (&str, &str) = ("postgres", "15.19-bookworm");
const CONNECT: (&str, &str) = ("quay.io/debezium/connect", "3.6.3.Final");

/// The label that marks our containers, with [`RUN`] as its value: an empty one would be left out.
const LABEL: &str = "crm-event-processors.tests";

/// The name of this process's network, and the prefix of its containers' names.
static RUN: LazyLock<String> = LazyLock::new(|| unique("crm-event-processors-tests"));

/// Lives as long as the client of testcontainers, which exists once in a process.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

/// The port on which Kafka Connect's container reaches the broker.
const INSIDE_PORT: u16 = 9094;

/// Whether an engine answers: the command may exist without one.
pub(super) fn engine_answers() -> bool {
    static ANSWERS: OnceLock<bool> = OnceLock::new();
    *ANSWERS.get_or_init(|| {
        block_on(async || {
            let Ok(engine) = docker_client_instance().await else { return false };
            timeout(Duration::from_secs(5), engine.ping()).await.is_ok_and(|pong| pong.is_ok())
        })
    })
}

pub(super) fn kafka() -> String {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let advertised = format!("PLAINTEXT://{address},INSIDE://{}:{INSIDE_PORT}", name("kafka"));
    let environment = [
        ("KAFKA_NODE_ID", "1"),
        ("KAFKA_PROCESS_ROLES", "broker,controller"),
        ("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9093"),
        ("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER"),
        ("KAFKA_LISTENERS", "PLAINTEXT://:9092,INSIDE://:9094,CONTROLLER://:9093"),
        ("KAFKA_ADVERTISED_LISTENERS", &advertised),
        ("KAFKA_INTER_BROKER_LISTENER_NAME", "INSIDE"),
        (
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
            "PLAINTEXT:PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        ),
        // As `tests/services/up` has it.
        ("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
        ("KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR", "1"),
        ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
        ("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1"),
        ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR", "1"),
        ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR", "1"),
        ("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0"),
        ("KAFKA_GROUP_CONSUMER_MIN_SESSION_TIMEOUT_MS", "6000"),
        ("KAFKA_GROUP_CONSUMER_SESSION_TIMEOUT_MS", "6000"),
        ("KAFKA_GROUP_CONSUMER_MIN_HEARTBEAT_INTERVAL_MS", "1000"),
        ("KAFKA_GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS", "1000"),
        ("KAFKA_HEAP_OPTS", "-Xmx512m"),
    ];
    let ask = address.clone();
    start("kafka", KAFKA, (port, 9092), &environment, &[], async || {
        let consumer: BaseConsumer = client(&ask).create().ok()?;
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(1)).ok()?;
        (!metadata.brokers().is_empty()).then_some(())
    });
    address
}

pub(super) fn redis() -> String {
    let port = free_port();
    let url = format!("redis://127.0.0.1:{port}/");
    let ask = url.clone();
    start("redis", REDIS, (port, 6379), &[], &[], async || {
        let client = redis::Client::open(&*ask).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("PING").exec_async(&mut connection).await.ok()
    });
    url
}

pub(super) fn postgres() -> String {
    let port = free_port();
    let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
    let ask = url.clone();
    let environment = [("POSTGRES_HOST_AUTH_METHOD", "trust")];
    let command = ["postgres", "-c", "wal_level=logical", "-c", "fsync=off"];
    start("postgres", POSTGRES, (port, 5432), &environment, &command, async || {
        tokio_postgres::connect(&ask, tokio_postgres::NoTls).await.ok().map(drop)
    });
    url
}

/// Kafka and PostgreSQL run in containers of their own beside it.
pub(super) fn connect() -> Connect {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let brokers = format!("{}:{INSIDE_PORT}", name("kafka"));
    let environment = [
        ("BOOTSTRAP_SERVERS", brokers.as_str()),
        ("GROUP_ID", "connect"),
        ("CONFIG_STORAGE_TOPIC", "connect-configs"),
        ("OFFSET_STORAGE_TOPIC", "connect-offsets"),
        ("STATUS_STORAGE_TOPIC", "connect-status"),
        ("CONNECT_CONFIG_STORAGE_REPLICATION_FACTOR", "1"),
        ("CONNECT_OFFSET_STORAGE_REPLICATION_FACTOR", "1"),
        ("CONNECT_STATUS_STORAGE_REPLICATION_FACTOR", "1"),
        ("HEAP_OPTS", "-Xmx512m"),
    ];
    let ask = format!("{url}/connectors");
    start("connect", CONNECT, (port, 8083), &environment, &[], async || {
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build().ok()?;
        client.get(&ask).send().await.ok()?.error_for_status().ok().map(drop)
    });
    Connect { url, database: (name("postgres"), 5432) }
}

fn name(service: &str) -> String {
    format!("{}-{service}", *RUN)
}

/// Starts a container with one port and waits until `answers`.
fn start(
    service: &str,
    (image, tag): (&str, &str),
    (outside, inside): (u16, u16),
    environment: &[(&str, &str)],
    command: &[&str],
    answers: impl AsyncFnMut() -> Option<()> + Send,
) {
    static REMOVER: OnceLock<Child> = OnceLock::new();
    REMOVER.get_or_init(remove_at_the_end);
    let request: ContainerRequest<GenericImage> = GenericImage::new(image, tag)
        .with_container_name(name(service))
        .with_network(&*RUN)
        .with_label(LABEL, &*RUN)
        .with_mapped_port(outside, ContainerPort::Tcp(inside));
    let request = environment.iter().fold(request, |request, &(k, v)| request.with_env_var(k, v));
    let request =
        if command.is_empty() { request } else { request.with_cmd(command.iter().copied()) };
    block_on(async move || {
        let container = request.start().await.unwrap_or_else(|error| {
            panic!("the engine answers, but {service} does not start in a container: {error}")
        });
        // Dropping it would remove the container.
        std::mem::forget(container);
        until(&format!("{service} in its container"), answers).await;
    });
}

/// Removes the containers when this process is gone, however it ended: a process of its own waits for that.
fn remove_at_the_end() -> Child {
    const SCRIPT: &str = r#"while kill -0 "$1" 2>/dev/null; do sleep 1; done
        docker ps --all --quiet --filter "label=$2=$3" | xargs docker rm --force --volumes
        docker network rm "$3""#;
    let started = Command::new("sh")
        .args(["-c", SCRIPT, "remove", &process::id().to_string(), LABEL, &RUN])
        .process_group(0) // an interrupt at the terminal is not for it
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started.expect("a shell that waits for our end")
}

/// A port that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Runs a task to its end, also inside a runtime.
fn block_on<T: Send>(task: impl AsyncFnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(|| RUNTIME.block_on(task())).join())
        .unwrap_or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_have_the_images_that_docker_compose_has() {
        let compose = include_str!("../../../../docker-compose.yml");
        for (image, tag) in [KAFKA, REDIS, POSTGRES, CONNECT] {
            assert!(compose.contains(&format!("image: {image}:{tag}\n")), "{image}:{tag}");
        }
    }
}
