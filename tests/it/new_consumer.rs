//! A further consumer, added as `docs/contributing.md` says: everything of its own
//! stands in this file. It runs in the real daemon, on the embedded broker.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::app::{App, Stores};
use crm_event_processors::cdc::{Change, DecodeError};
use crm_event_processors::clients::inngest::Events;
use crm_event_processors::clients::redis::Cache;
use crm_event_processors::config::{self, Family, Service, Setting, Settings, Spec};
use crm_event_processors::consumers::entry::{Entry, NO_BRANCHES};
use crm_event_processors::consumers::registry::{CONSUMERS, declared};
use crm_event_processors::consumers::sender::Sender;
use crm_event_processors::dedup::MemoryStore;
use crm_event_processors::engine::{
    Consumer, Context, Failure, Lane, Observed, Observer, Once, Outcome, Route, Step, Steps,
};
use crm_event_processors::fakes::broker::Broker;
use crm_event_processors::fakes::{Fake, Options};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use test_support::PATIENCE;
use test_support::recordings::{fixture, recorded};

static SPEC: Spec = Spec {
    name: "forms",
    family: Family::Crm,
    by_default: false,
    tables: &["form_submissions"],
    changes: &[],
    commands: &[],
    concurrency: "1",
    needs: &[Service::Redis, Service::Inngest],
    settings: &[&GREETING],
};

/// A setting of its own.
static GREETING: Setting<String> = Setting {
    key: "greeting",
    variable: "FORMS_GREETING",
    default: "thank you",
    about: "a few words",
    parse: |text| Ok(text.to_owned()),
};

const ENTRY: Entry = Entry {
    spec: &SPEC,
    build: |parts| {
        let greeting = parts.settings.of(&SPEC, &GREETING);
        Ok(Arc::new(Forms { sender: parts.sender.clone(), greeting }))
    },
    branches: NO_BRANCHES,
};

const TOPICS: [&str; 4] = [
    "crm.public.form_submissions",
    "crm.public.purchase_ledger",
    "crm.public.referral_ledger",
    "crm.public.mission_claims",
];

/// Sends an event for every completed form.
struct Forms {
    sender: Sender,
    greeting: String,
}

/// A completed form.
struct Form {
    id: String,
    user_id: String,
}

impl Form {
    fn event_id(&self) -> String {
        format!("form/completed:{}", self.id)
    }
}

impl Consumer for Forms {
    type Work = Form;

    fn route(&self, change: &Change<'_>, _: Timestamp) -> Result<Route<Form>, DecodeError> {
        let Some(row) = &change.after else { return Ok(Route::Skip("deleted")) };
        if row.text("status")?.value().as_deref() != Some("completed") {
            return Ok(Route::Skip("does_not_count"));
        }
        let text = |column| Ok(row.text(column)?.value().unwrap_or_default().into_owned());
        let work = Form { id: text("id")?, user_id: text("user_id")? };
        if work.user_id.is_empty() {
            return Ok(Route::Skip("anonymous"));
        }
        let lane = Lane::in_partition(&work.id);
        Ok(Route::Process { work, lane })
    }

    fn steps(&self, work: &Form) -> Steps {
        let id = work.event_id();
        let steps = vec![Step::claim(&id), Step::event("form/completed", Some(id))];
        Steps { lane: work.id.clone(), steps }
    }

    async fn process(&self, cx: &Context, work: &Form) -> Result<Outcome, Failure> {
        let id = work.event_id();
        let data = json!({"form_id": work.id, "user_id": work.user_id, "greeting": self.greeting});
        let send = || async {
            let events = Events::one("form/completed", Some(&id), &data).map_err(|error| {
                Failure::Poison { kind: "invalid_event", message: error.to_string() }
            })?;
            self.sender.send(cx, events).await.map(Some)
        };
        Ok(match cx.once(&id, send).await? {
            Once::Ran(_) => Outcome::Sent,
            Once::Duplicate | Once::TakenBack(_) => Outcome::Duplicate,
        })
    }
}

/// Counts outcomes of the further consumer, and of another.
struct Counted(watch::Sender<(usize, usize)>);

impl Observer for Counted {
    fn observe(&self, consumer: &'static str, observed: &Observed<'_>) {
        if matches!(observed, Observed::Outcome { .. }) {
            self.0.send_modify(|(own, others)| match consumer {
                "forms" => *own += 1,
                _ => *others += 1,
            });
        }
    }
}

fn settings(broker: &Broker, fake: &Fake, registry: &[Entry]) -> Settings {
    let environment = [
        ("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap()),
        ("KAFKA_AUTO_OFFSET_RESET", "earliest"),
        ("REDIS_URL", "redis://in-memory.invalid"), // never connected to: claims are in memory
        ("SUPABASE_URL", fake.url()),
        ("SUPABASE_SERVICE_ROLE_KEY", "for-the-fake"),
        ("INNGEST_EVENT_API_BASE_URL", fake.url()),
        ("INNGEST_EVENT_KEY", "for-the-fake"),
        ("INNGEST_CANCEL_SETTLE", "0s"),
        ("CURRENCY_ORIGINAL_PATIENCE", "1s"),
        ("CONSUMERS", "currency,forms"),
        ("FORMS_GREETING", "well done"),
    ];
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let loaded = config::load(&environment.collect(), Path::new(""), &declared(registry));
    *loaded.settings.expect("sound settings")
}

/// Completed forms of the recording.
fn expected() -> BTreeSet<String> {
    let text = std::fs::read_to_string(fixture("life/expected.json")).expect("the expectations");
    let expected: Value = serde_json::from_str(&text).expect("json");
    let pairs = expected["mission"].as_array().expect("pairs");
    let forms = pairs.iter().filter(|pair| pair[0] == "form_submission");
    forms.map(|pair| format!("form/completed:{}", pair[1].as_str().expect("an id"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_consumer_is_a_type_and_a_line_and_lives_beside_the_others() {
    let broker = Broker::start().expect("a broker");
    for topic in TOPICS {
        broker.create_topic(topic, 6).expect("a topic");
    }
    broker.create_topic("crm-event-processors.dlq", 1).expect("a topic");
    let fake =
        Fake::start(Options { keep_data: true, ..Options::default() }).await.expect("a fake");
    let (mut own, mut others) = (0, 0);
    for record in recorded("life/full.jsonl.gz") {
        let counter = match &*record.topic {
            topic if topic == TOPICS[0] => &mut own,
            topic if TOPICS.contains(&topic) => &mut others,
            _ => continue,
        };
        let stored = broker.produce(&record).expect("room in the queue");
        stored.await.expect("the producer lives").expect("the broker acknowledges");
        *counter += 1;
    }

    // The one line that adds it.
    let registry = [CONSUMERS.as_slice(), &[ENTRY]].concat();
    let settings = settings(&broker, &fake, &registry);
    let counted = watch::Sender::default();
    let mut outcomes = counted.subscribe();
    let claims = Box::new(Arc::new(MemoryStore::new(Duration::from_secs(300))));
    let stores = |_: &_, _: &_| Ok(Stores { claims, cache: Cache::none() });
    let daemon =
        App::build(settings, &registry, stores, Arc::new(Counted(counted))).expect("an app");
    let names: Vec<&str> = daemon.pulses().iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["currency", "forms"]);
    let (stop, signals) = mpsc::channel(1);
    let running = tokio::spawn(daemon.run(signals));
    let all = outcomes.wait_for(|outcomes| *outcomes == (own, others));
    let all = tokio::time::timeout(PATIENCE, all).await.expect("every record has its outcome");
    drop(all.expect("the observer is there"));
    stop.send(()).await.expect("the daemon runs");
    running.await.expect("no panic").expect("a clean stop");

    let told: Vec<String> = fake.inspect(|log| {
        let told = log.events.iter().filter(|event| &*event.name == "form/completed");
        told.filter_map(|event| event.id.as_deref()).map(str::to_owned).collect()
    });
    fake.inspect(|log| {
        let mut own = log.events.iter().filter(|event| &*event.name == "form/completed");
        assert!(own.all(|event| event.data.as_deref().is_some_and(|it| it.contains("well done"))));
    });
    let distinct: BTreeSet<String> = told.iter().cloned().collect();
    assert_eq!(distinct.len(), told.len(), "each once");
    assert_eq!(distinct, expected());
    fake.inspect(|log| assert!(log.events.iter().any(|event| &*event.name == "currency/award")));
    let uncommitted = broker.uncommitted("crm-event-processors-forms", TOPICS[0]);
    assert_eq!(uncommitted.expect("offsets").values().sum::<i64>(), 0);
}
