//! The Inngest client over real HTTP, against the fake.

mod batching;
mod faults;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::clients::inngest::{Events, Inngest, InngestConfig, SendError};
use crm_event_processors::fakes::{Fake, Options};
use crm_event_processors::outage::{Backoff, Breaker};
use secrecy::SecretString;
use serde_json::json;

const KEY: &str = "k/e y?#%-of-this-test";

/// Fails a test that hangs. It measures nothing.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it must come to an end")
}

/// A fake, a client of it and the client's breaker.
struct Scene {
    fake: Fake,
    inngest: Inngest,
    breaker: Arc<Breaker>,
}

async fn scene() -> Scene {
    scene_with(|_| {}).await
}

async fn scene_with(change: impl FnOnce(&mut InngestConfig)) -> Scene {
    let key = KEY.replace(' ', "");
    let options = Options { event_key: Some(key.clone()), ..Options::default() };
    let fake = Fake::start(options).await.expect("a fake");
    let mut config = InngestConfig::new(fake.url(), SecretString::from(key));
    let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(10) };
    config.backoff = backoff;
    config.settle = Duration::from_millis(10);
    change(&mut config);
    let breaker = Arc::new(Breaker::new("inngest", 3, backoff));
    let inngest = Inngest::start(&config, Arc::clone(&breaker)).expect("a client");
    Scene { fake, inngest, breaker }
}

fn events<T: AsRef<str>>(ids: impl IntoIterator<Item = T>) -> Events {
    let mut events = Events::default();
    for id in ids {
        let id = id.as_ref();
        events.push("test/event", Some(id), &json!({ "id": id })).expect("a valid event");
    }
    events
}

impl Scene {
    async fn send(&self, ids: &[&str]) -> Result<(), SendError> {
        within(self.inngest.send(events(ids))).await.map(|_| ())
    }

    /// Sends each of these at the same time, each by a caller of its own.
    async fn send_each(&self, ids: &[&str]) -> Vec<Result<(), SendError>> {
        let sends = ids.iter().map(|id| self.send(std::slice::from_ref(id)));
        futures::future::join_all(sends).await
    }

    /// How many copies of each event were stored.
    fn copies(&self) -> HashMap<String, usize> {
        self.fake.inspect(|log| {
            let mut copies = HashMap::new();
            for id in log.ids() {
                *copies.entry(id.to_owned()).or_default() += 1;
            }
            copies
        })
    }

    /// How many different events of one sender's id Inngest would see.
    fn internal_ids(&self, id: &str) -> usize {
        self.fake.inspect(|log| {
            let of_id = log.events.iter().filter(|event| event.id.as_deref() == Some(id));
            of_id.map(|event| event.internal_id).collect::<HashSet<_>>().len()
        })
    }
}
