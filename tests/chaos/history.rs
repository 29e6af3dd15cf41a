//! What happened in a run, for the checker: what was written, arrived, was committed and was
//! disturbed. All times count from the run's start.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// A consumer of the daemon, by name.
pub(crate) type Consumer = &'static str;

/// Something that a record calls for. Its names are those of what arrives at the fake or in the
/// dead letter topic: an event's id, or a made-up name if it has none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Effect {
    /// Whose work it is.
    pub(crate) consumer: Consumer,
    /// What must arrive, in this order.
    pub(crate) chain: Vec<String>,
    /// Whether the chain must begin after the record was written (an evaluation of the present
    /// state), or may have happened before (a copy of something already done).
    pub(crate) fresh: bool,
    /// Names the key whose effects must arrive in the order of its records.
    pub(crate) order: Option<String>,
    /// What the last of the chain must hold, by field.
    pub(crate) content: Option<Value>,
}

/// A record in a topic.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// Topic.
    pub(crate) topic: String,
    /// Partition.
    pub(crate) partition: i32,
    /// Offset.
    pub(crate) offset: i64,
    /// When it was handed to the producer.
    pub(crate) at: Duration,
    /// Whether the same record was written before.
    pub(crate) copy: bool,
    /// Whether it has a place in a database's log, which identifies copies of it.
    pub(crate) positioned: bool,
    /// What it calls for.
    pub(crate) effects: Vec<Effect>,
    /// Its key.
    pub(crate) key: String,
    /// Its value.
    pub(crate) value: String,
}

impl Written {
    /// Where it lies, in words.
    pub(crate) fn location(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// Where something arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An event at Inngest.
    Event,
    /// A function at Supabase, carried out.
    Call,
    /// A record in the dead letter topic.
    Letter,
}

/// Something that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Where.
    pub(crate) kind: Kind,
    /// Its name, as in [`Effect::chain`].
    pub(crate) what: String,
    /// When.
    pub(crate) at: Duration,
    /// When the request that brought it was first sent. One of unknown outcome is sent again as it
    /// was, with all of its events.
    pub(crate) begun: Duration,
    /// Who sent it, if known: a member's incarnation.
    pub(crate) by: Option<String>,
    /// What it held.
    pub(crate) content: Option<String>,
    /// Inngest's own id: the same when the same request came again, which starts no second run.
    pub(crate) internal: Option<u128>,
}

/// An event's name: its id, or a made-up one if it has none. An id used with another event's name
/// matches nothing that a record calls for.
pub(crate) fn called(name: &str, id: Option<&str>, data: &str) -> String {
    if let Some(id) = id {
        let own = id.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        return if own { id.to_owned() } else { format!("{name} with the id {id}") };
    }
    let data: Value = serde_json::from_str(data).expect("json");
    let text = |field: &str| data[field].as_str().unwrap_or_default();
    let [one, other] = if data.get("source_id").is_some() {
        ["source_type", "source_id"]
    } else {
        ["user_id", "merchant_id"]
    };
    format!("{name}:{}:{}", text(one), text(other))
}

/// What a group had committed.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Whose group.
    pub(crate) consumer: Consumer,
    /// When the question was sent.
    pub(crate) asked: Duration,
    /// When the answer came.
    pub(crate) answered: Duration,
    /// Next offset by topic and partition.
    pub(crate) offsets: BTreeMap<(String, i32), i64>,
}

/// What a disturbance can explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Harm {
    /// A member is killed.
    Killed,
    /// A member is asked to stop.
    Stopped,
    /// A member stands still for a while.
    Frozen,
    /// A member joins.
    Joined,
    /// A broker is away.
    Broker,
    /// Redis forgets everything.
    Forgets,
    /// Redis cannot be reached.
    RedisAway,
    /// Requests are handled, and their answers get lost.
    AnswerLost,
    /// Requests fail and are not handled.
    Refused,
    /// A connector sends again what it sent before.
    Replay,
}

/// Something that went wrong on purpose.
#[derive(Debug, Clone)]
pub(crate) struct Disturbance {
    /// What it can explain.
    pub(crate) harm: Harm,
    /// Whom it hit: a member's incarnation.
    pub(crate) who: Option<String>,
    /// Whose requests it hit, if anybody's: Inngest's or Supabase's.
    pub(crate) hits: Option<Kind>,
    /// Since when.
    pub(crate) from: Duration,
    /// Until when.
    pub(crate) to: Duration,
    /// In words.
    pub(crate) text: String,
}

impl Disturbance {
    /// Whether it touches a span, give or take `near`.
    pub(crate) fn overlaps(&self, from: Duration, to: Duration, near: Duration) -> bool {
        self.from <= to + near && from <= self.to + near
    }

    /// Whether it hit the sender of this. Dead letters do not name their sender.
    pub(crate) fn may_have_hit(&self, arrival: &Arrival) -> bool {
        arrival.by.is_none() || self.who == arrival.by
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.as_secs_f64(), self.to.as_secs_f64());
        write!(f, "{from:8.3} s to {to:8.3} s  {}", self.text)
    }
}

/// Requests that were failed on purpose: a disturbance that meets none shows nothing.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Met {
    /// Requests to Inngest.
    pub(crate) inngest: u64,
    /// Requests to Supabase.
    pub(crate) supabase: u64,
    /// Of which Inngest took some events and refused the next.
    pub(crate) partial: u64,
}

/// Everything about a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct History {
    /// Every record, in the order of writing.
    pub(crate) written: Vec<Written>,
    /// Everything that arrived; events in the order in which Inngest took them.
    pub(crate) arrivals: Vec<Arrival>,
    /// What groups had committed, in order.
    pub(crate) samples: Vec<Sample>,
    /// What went wrong.
    pub(crate) disturbances: Vec<Disturbance>,
    /// Requests that were failed on purpose.
    pub(crate) met: Met,
    /// The slowest stop of a member that was asked to.
    pub(crate) slowest_stop: Duration,
    /// The largest resident memory of each member's incarnation, in KiB.
    pub(crate) memory: BTreeMap<String, u64>,
    /// How long after the last disturbance every record was committed; `None` if it never was.
    pub(crate) caught_up: Option<Duration>,
    /// What is wrong already: a member that ended by itself, a stop that was not clean, a topic
    /// that holds something else than was written.
    pub(crate) incidents: Vec<String>,
}
