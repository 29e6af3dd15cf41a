//! librdkafka's mock cluster, in this process, for brokers that go and come back.

use std::sync::mpsc;
use std::thread;

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

type Task =
    Box<dyn FnOnce(&MockCluster<'static, rdkafka::producer::DefaultProducerContext>) + Send>;

/// A cluster of one broker, on a thread of its own, because it must stay on the thread that made
/// it. Ends when dropped. There a group's first join takes three seconds.
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

    /// Stops its broker: connections end, new ones are refused.
    pub fn down(&self) {
        self.run(|cluster| cluster.broker_down(1).expect("the broker goes"));
    }

    /// Starts its broker again with all its data.
    pub fn up(&self) {
        self.run(|cluster| cluster.broker_up(1).expect("the broker comes back"));
    }

    /// Takes a partition's leader away, or gives it back.
    pub fn lead(&self, topic: &str, partition: i32, led: bool) {
        let (topic, leader) = (topic.to_owned(), led.then_some(1));
        self.run(move |cluster| {
            cluster.partition_leader(&topic, partition, leader).expect("a leader, or none");
        });
    }

    /// Answers the next requests of one kind, whoever sends them, with this error.
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
