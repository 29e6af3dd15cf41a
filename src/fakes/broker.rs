//! An embedded Kafka: librdkafka's mock cluster with what the demo and the tests need around it.
//!
//! It speaks the real protocol on a loopback port, so that the daemon's real clients talk to it. It
//! keeps only [`PARTITION_BYTES`] of a partition and silently drops older records, so feed it as it
//! drains. It knows no ACLs, no static membership and no admin requests: make every topic, the dead
//! letter topic too, with [`Broker::create_topic`].

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, Message, OwnedHeaders, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DeliveryFuture, FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::recording::Recorded;

/// What the broker keeps of a partition; older records are dropped.
pub const PARTITION_BYTES: usize = 5 << 20;

/// How long the broker may take for anything.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The cluster's only broker.
const BROKER: i32 = 1;

/// Why the embedded broker failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A client of the broker, or the broker itself, reported an error.
    #[error("the embedded broker failed")]
    Kafka(#[from] KafkaError),
    /// Its thread cannot be started or has ended.
    #[error("the embedded broker's thread is gone")]
    Gone,
}

/// A running broker; it ends when dropped.
pub struct Broker {
    bootstrap: String,
    producer: FutureProducer,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    CreateTopic { name: String, partitions: i32, done: mpsc::Sender<KafkaResult<()>> },
    Down(mpsc::Sender<KafkaResult<()>>),
    Up(mpsc::Sender<KafkaResult<()>>),
}

impl Broker {
    /// Starts a broker without topics on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the mock cluster or a producer for it cannot be made.
    pub fn start() -> Result<Self, BrokerError> {
        let (commands, orders) = mpsc::channel();
        let (up, started) = mpsc::channel();
        // The cluster's handle must not leave the thread that made it.
        let thread = std::thread::Builder::new()
            .name("mock-broker".to_owned())
            .spawn(move || serve(&orders, &up))
            .map_err(|_| BrokerError::Gone)?;
        let bootstrap = started.recv().map_err(|_| BrokerError::Gone)??;
        let producer = client(&bootstrap)
            .set("enable.idempotence", "true") // or a retry could change the order
            .set("linger.ms", "0")
            .create()?;
        Ok(Self { bootstrap, producer, commands: Some(commands), thread: Some(thread) })
    }

    /// Its address, `host:port`.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// When the broker refuses it, as it does when the topic exists.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        self.order(|done| Command::CreateTopic { name: name.to_owned(), partitions, done })
    }

    /// Takes the broker away: connections break and new ones are refused.
    ///
    /// # Errors
    /// When its thread is gone.
    pub fn down(&self) -> Result<(), BrokerError> {
        self.order(Command::Down)
    }

    /// Brings it back, with everything that it held.
    ///
    /// # Errors
    /// When its thread is gone.
    pub fn up(&self) -> Result<(), BrokerError> {
        self.order(Command::Up)
    }

    /// Hands a recorded record to the producer: key, value, headers and timestamp as they were, in
    /// the partition that it came from. Records of one partition keep the order of these calls. The
    /// future resolves to where it was stored.
    ///
    /// # Errors
    /// When the producer's queue is full or the topic lacks the partition.
    pub fn produce(&self, record: &Recorded) -> Result<DeliveryFuture, BrokerError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        let mut out = FutureRecord::<[u8], [u8]>::to(&record.topic)
            .partition(record.partition)
            .headers(headers);
        out.key = record.key.as_deref();
        out.payload = record.value.as_deref();
        out.timestamp = record.timestamp_ms;
        self.producer.send_result(out).map_err(|(error, _)| error.into())
    }

    /// Everything that a topic holds now, by partition and offset. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn read(&self, topic: &str) -> Result<Vec<OwnedMessage>, BrokerError> {
        let consumer: BaseConsumer = client(&self.bootstrap)
            .set("group.id", "reader") // librdkafka wants one to assign; it is never joined
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()?;
        let mut open = partitions(&consumer, topic)?;
        let mut list = TopicPartitionList::new();
        for partition in &open {
            list.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let (mut records, deadline) = (Vec::new(), Instant::now() + TIMEOUT);
        while !open.is_empty() {
            if Instant::now() > deadline {
                return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))?;
            }
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => records.push(record.detach()),
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|p| *p != partition),
                Some(Err(error)) => return Err(error.into()),
                None => {}
            }
        }
        records.sort_by_key(|record| (record.partition(), record.offset()));
        Ok(records)
    }

    /// How far each partition of `topic` reaches beyond the committed offset of `group`: 0 if all
    /// is committed. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn uncommitted(&self, group: &str, topic: &str) -> Result<BTreeMap<i32, i64>, BrokerError> {
        let consumer: BaseConsumer = client(&self.bootstrap).set("group.id", group).create()?;
        let mut list = TopicPartitionList::new();
        for partition in partitions(&consumer, topic)? {
            list.add_partition(topic, partition);
        }
        let mut open = BTreeMap::new();
        for element in consumer.committed_offsets(list, TIMEOUT)?.elements() {
            let (low, high) = consumer.fetch_watermarks(topic, element.partition(), TIMEOUT)?;
            let committed = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => low,
            };
            open.insert(element.partition(), high - committed);
        }
        Ok(open)
    }

    fn order(
        &self,
        command: impl FnOnce(mpsc::Sender<KafkaResult<()>>) -> Command,
    ) -> Result<(), BrokerError> {
        let (done, answer) = mpsc::channel();
        let commands = self.commands.as_ref().ok_or(BrokerError::Gone)?;
        commands.send(command(done)).map_err(|_| BrokerError::Gone)?;
        Ok(answer.recv().map_err(|_| BrokerError::Gone)??)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.commands = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the embedded broker's thread panicked");
        }
    }
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let topics = metadata.topics().iter().filter(|found| found.name() == topic);
    Ok(topics.flat_map(|found| found.partitions()).map(|partition| partition.id()).collect())
}

/// Owns the cluster until nobody can give commands any more.
fn serve(orders: &mpsc::Receiver<Command>, up: &mpsc::Sender<KafkaResult<String>>) {
    // The receiver of any of these answers may have gone.
    let owner = match owner() {
        Ok(owner) => owner,
        Err(error) => return drop(up.send(Err(error))),
    };
    let Some(cluster) = cluster(&owner) else {
        return drop(up.send(Err(KafkaError::MockCluster(RDKafkaErrorCode::Fail))));
    };
    drop(up.send(Ok(cluster.bootstrap_servers())));
    while let Ok(command) = orders.recv() {
        let (done, result) = match command {
            Command::CreateTopic { name, partitions, done } => {
                (done, cluster.create_topic(&name, partitions, 1))
            }
            Command::Down(done) => (done, cluster.broker_down(BROKER)),
            Command::Up(done) => (done, cluster.broker_up(BROKER)),
        };
        drop(done.send(result));
    }
}

/// The client that the cluster lives in.
fn owner() -> KafkaResult<BaseProducer> {
    ClientConfig::new().set("test.mock.num.brokers", "1").create()
}

#[expect(unsafe_code, reason = "the mock cluster's start delay has no safe wrapper")]
fn cluster(owner: &BaseProducer) -> Option<MockCluster<'_, impl rdkafka::ClientContext>> {
    let cluster = owner.client().mock_cluster()?;
    // SAFETY: the client is alive, and has a mock cluster, or there would be none above; both
    // functions only take that handle and copy an integer into it under the cluster's own lock.
    unsafe {
        let handle = rdkafka_sys::rd_kafka_handle_mock_cluster(owner.client().native_ptr());
        // A group's first member would otherwise wait 3 s for others.
        rdkafka_sys::rd_kafka_mock_group_initial_rebalance_delay_ms(handle, 0);
    }
    Some(cluster)
}
