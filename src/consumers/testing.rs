//! What the consumers' tests share: clients that talk to the fake, and records.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::call::Calls;
use super::sender::Sender;
use crate::cdc::{self, Change, Decoded, Record};
use crate::clients::inngest::{Inngest, InngestConfig};
use crate::clients::supabase::{Supabase, SupabaseConfig};
use crate::config::{Snapshot, SnapshotPolicy};
use crate::dedup::{Claims, MemoryStore, OnOutage};
use crate::engine::dispatch::permits::Limits;
use crate::engine::{Consumer, Context, Failure, Outcome};
use crate::fakes::{Fake, Options};
use crate::outage::{Backoff, Breakers};
use crate::recording;

pub(crate) const LIMITS: Limits = Limits { min: 2, max: 2 };
const WINDOW: Duration = Duration::from_secs(300);

/// The fake, and the clients that talk to it.
pub(crate) struct Bench {
    pub(crate) fake: Fake,
    pub(crate) calls: Calls,
    pub(crate) sender: Sender,
    claims: Claims,
    store: Arc<MemoryStore>,
}

/// What the keys of claims begin with.
const PREFIX: &str = "crm:test";

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The same, with the way to Inngest changed.
    pub(crate) async fn with(change: impl FnOnce(&mut InngestConfig)) -> Self {
        let options = Options { keep_data: true, ..Options::default() };
        let fake = Fake::start(options).await.expect("the fake starts");
        let backoff = Backoff { base: Duration::from_millis(1), max: Duration::from_millis(5) };
        let breakers = Arc::new(Breakers::new(1_000, backoff));
        let key = || "for-the-fake".to_owned().into();
        let supabase =
            Supabase::new(&SupabaseConfig::new(fake.url(), key()), Arc::clone(&breakers));
        let calls = Calls::new(supabase.expect("a usable address"), Arc::clone(&breakers));
        let mut config = InngestConfig { backoff, ..InngestConfig::new(fake.url(), key()) };
        change(&mut config);
        let breaker = breakers.get("inngest");
        let inngest = Inngest::start(&config, Arc::clone(&breaker)).expect("a usable address");
        let store = Arc::new(MemoryStore::new(WINDOW));
        let redis = breakers.get("redis");
        let claims = Claims::start(Arc::clone(&store), redis, OnOutage::Wait, WINDOW, WINDOW);
        Self { fake, calls, sender: Sender::new(inngest, breaker), claims, store }
    }

    /// The context of the record at `offset`.
    pub(crate) fn cx(&self, offset: i64) -> Context {
        Context::in_test(self.claims.clone(), LIMITS, offset)
    }

    /// Forgets a claim, as if its window had ended.
    pub(crate) fn forget(&self, name: &str) {
        self.store.forget(&format!("{PREFIX}{name}"));
    }

    /// Makes a claim say that its event was accepted at `at`, by another clock perhaps.
    pub(crate) async fn accepted(&self, name: &str, at: Timestamp) {
        let confirm = self.claims.confirm(format!("{PREFIX}{name}"), at.as_millisecond(), 0);
        confirm.await.expect("claims in memory are there");
    }

    /// How long a claim lives from now.
    pub(crate) fn lives(&self, name: &str) -> Duration {
        self.store.lives(&format!("{PREFIX}{name}"))
    }

    /// Makes claims say that they have been kept since `then`.
    pub(crate) fn kept_since(&self, then: Timestamp) {
        self.store.keep_text(&format!("{PREFIX}claims:since"), then.as_millisecond().to_string());
    }

    /// The requested time of each stored event with an id, if it has one.
    pub(crate) fn times(&self) -> Vec<Option<i64>> {
        self.fake.inspect(|log| {
            let timed = log.events.iter().filter(|event| event.id.is_some());
            timed.map(|event| event.ts).collect()
        })
    }

    /// Ids and data of the stored events, in order.
    pub(crate) fn events(&self) -> Vec<(String, serde_json::Value)> {
        self.fake.inspect(|log| {
            let events = log.events.iter().map(|event| {
                let data = event.data.as_deref().expect("data is kept");
                let id = event.id.as_deref().unwrap_or_default().to_owned();
                (id, serde_json::from_str(data).expect("json"))
            });
            events.collect()
        })
    }
}

/// Does work as the engine does, and allows only declared steps.
pub(crate) trait Handle: Consumer {
    async fn handle(&self, cx: &Context, work: &Self::Work) -> Result<Outcome, Failure> {
        #[cfg(debug_assertions)]
        cx.declare(self.steps(work));
        self.process(cx, work).await
    }
}

impl<C: Consumer> Handle for C {}

pub(crate) const ALL: Snapshot =
    Snapshot { policy: SnapshotPolicy::All, max_age: Duration::from_secs(72_000) };

/// Decodes a bare envelope of `table` and looks at the change.
pub(crate) fn with_change<T>(
    table: &str,
    envelope: &serde_json::Value,
    look: impl FnOnce(&Change<'_>) -> T,
) -> T {
    let (topic, value) = (format!("crm.public.{table}"), envelope.to_string());
    let record = record(&topic, value.as_bytes());
    match cdc::decode(&record, &cdc::Options::default()).expect("a change") {
        Decoded::Change(change) => look(&change),
        Decoded::Nothing(nothing) => panic!("{nothing:?}"),
    }
}

/// A record without key and headers.
pub(crate) fn record<'a>(topic: &'a str, value: &'a [u8]) -> Record<'a> {
    Record {
        topic,
        partition: 0,
        offset: 0,
        timestamp_ms: None,
        key: None,
        value: Some(value),
        headers: &[],
    }
}

/// Looks at every change of a recording except the halves of key changes.
pub(crate) fn each_change(name: &str, mut look: impl FnMut(&Change<'_>)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    for recorded in recording::read(File::open(path).expect("the fixture is there")) {
        recorded.expect("a record").lend(|record| {
            if let Ok(Decoded::Change(change)) = cdc::decode(record, &cdc::Options::default())
                && !change.key_change
            {
                look(&change);
            }
        });
    }
}

/// A time as Debezium writes it, some hours from `now`.
pub(crate) fn hours(now: Timestamp, hours: i64) -> String {
    (now + jiff::SignedDuration::from_hours(hours)).to_string()
}
