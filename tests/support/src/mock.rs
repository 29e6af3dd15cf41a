//! librdkafka's mock cluster, in this process, for brokers that go and come back.

use std::sync::mpsc;
use std::thread;

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

type Task =
    Box<dyn FnOnce(&MockCluster<'static, rdkafka::producer::DefaultProducerContext>) + Send>;

/// A cluster of one broker, on a thread of its own: it must not leave the one that made it.
/// Ends when dropped. A group's first join takes three seconds there.
pub struct Mock {
    tasks: mpsc::Sender<Task>,
    bootstrap: String,
}

impl Mock {
    pub fn start() -> Self {
        let (tasks, received) = mpsc::channel::<Task>();
        let (started, bootstrap) = mpsc::channel();
        thread::spawn(move || {
            let cluster = MockCluster::new(1).expect("a mock cluster");
            started.send(cluster.bootstrap_servers()).expect("somebody waits for it");
            received.iter().for_each(|task| task(&cluster));
        });
        Self { tasks, bootstrap: bootstrap.recv().expect("the mock cluster starts") }
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub fn create_topic(&self, name: &str, partitions: i32) {
        let name = name.to_owned();
        self.run(move |cluster| cluster.create_topic(&name, partitions, 1).expect("a topic"));
    }

    /// Its broker goes: connections end, new ones are refused.
    pub fn down(&self) {
        self.run(|cluster| cluster.broker_down(1).expect("the broker goes"));
    }

    /// Its broker comes back with all that it had.
    pub fn up(&self) {
        self.run(|cluster| cluster.broker_up(1).expect("the broker comes back"));
    }

    /// A partition has no leader, or its broker is one again.
    pub fn lead(&self, topic: &str, partition: i32, led: bool) {
        let (topic, leader) = (topic.to_owned(), led.then_some(1));
        self.run(move |cluster| {
            cluster.partition_leader(&topic, partition, leader).expect("a leader, or none");
        });
    }

    /// The next requests of one kind, whoever sends them, are answered with this error.
    pub fn refuse(&self, api: RDKafkaApiKey, error: RDKafkaRespErr, times: usize) {
        self.run(move |cluster| cluster.request_errors(api, &vec![error; times]));
    }

    fn run(
        &self,
        task: impl FnOnce(&MockCluster<'static, rdkafka::producer::DefaultProducerContext>)
        + Send
        + 'static,
    ) {
        let (done, finished) = mpsc::channel();
        let task: Task = Box::new(move |cluster| {
            task(cluster);
            done.send(()).expect("somebody waits for it");
        });
        self.tasks.send(task).expect("the mock cluster is there");
        finished.recv().expect("the mock cluster did it");
    }
}
