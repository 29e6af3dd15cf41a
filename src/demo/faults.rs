//! What goes wrong in a demo on purpose, and what the promises say about it (behaviour section 8).

use std::collections::BTreeSet;
use std::time::Duration;

use super::commands::malformed;
use super::expectation::{Allowed, Expectation};
use crate::fakes::{Endpoint, Fake, Fault as Failing, Lasting, Poison};
use crate::recording::Recorded;

/// How long a service is away.
pub const OUTAGE: Duration = Duration::from_secs(3);
/// How many awards Inngest refuses in [`Fault::InngestPartial`].
const REFUSED: usize = 3;
/// Inngest's error for an event that it never takes. A text that does not name the event would only
/// make it suspect, and the demo is too short to settle that.
const REFUSAL: &str = "event name is reserved for internal use: inngest/demo";

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Inngest answers 429 for a while
    #[value(name = "inngest-429")]
    Inngest429,
    /// Inngest takes part of a request and refuses one event of it
    InngestPartial,
    /// Inngest resets every connection for a while
    InngestDown,
    /// Supabase answers 500 for a while
    #[value(name = "supabase-500")]
    Supabase500,
    /// The claims are lost in the middle of the work
    RedisEmpty,
    /// Records that nobody can read
    Poison,
    /// The daemon is torn down without a goodbye and started again
    Kill,
}

impl Fault {
    /// What is about to go wrong, and what is promised nevertheless.
    #[must_use]
    pub fn promise(self) -> &'static str {
        match self {
            Self::Inngest429 => {
                "Inngest refuses every request with 429 for 3 s: nothing is lost, nothing becomes a \
                 dead letter, the same batches go out again when it asks for them."
            }
            Self::InngestPartial => {
                "Inngest takes the events before one that it refuses, and not those behind it: the \
                 first are done, the refused one is tried alone and set aside, the rest goes on."
            }
            Self::InngestDown => {
                "Inngest resets every connection for 3 s: nothing is lost, nothing becomes a dead \
                 letter, and consuming goes on by itself when it is back."
            }
            Self::Supabase500 => {
                "Supabase answers every request with 500 for 3 s: an outage, not the records' \
                 fault; nothing is lost, nothing becomes a dead letter."
            }
            Self::RedisEmpty => {
                "The claims are emptied right before the connector repeats old changes: they are \
                 recognised as replays by their place in the log, and event ids absorb the rest."
            }
            Self::Poison => {
                "Records that nobody can read are put among the others: each ends in the dead \
                 letter topic with its reason, and holds nothing up."
            }
            Self::Kill => {
                "The daemon is torn down at a random moment, with work in flight and without a clean stop, and \
                 started again: nothing is lost, and only what was in flight may be sent again, with \
                 the same id and content. The group gives its partitions to the next after a session \
                 time-out of 3 s (30 s in production, at once with KAFKA_INSTANCE_ID)."
            }
        }
    }

    /// Settings without which the fault could not be seen.
    pub(super) fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // A refusal is partial only if the request holds other events.
            Self::InngestPartial => &[("INNGEST_BATCH_WAIT", "200ms")],
            _ => &[],
        }
    }

    /// When it strikes: before the record of this number, out of `all`, is fed.
    pub(super) fn moment(self, all: usize, random: f64) -> usize {
        match self {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            #[expect(clippy::cast_precision_loss, reason = "any record will do")]
            Self::Kill => (all as f64 * (0.2 + 0.5 * random)) as usize,
            // The first third holds the originals of what the restarted connector repeats.
            _ => all / 3,
        }
    }

    /// What the judgement must allow or call for.
    pub(super) fn allowed(
        self,
        expectation: &Expectation,
        unreadable: BTreeSet<(&'static str, String)>,
    ) -> Allowed {
        let mut allowed = Allowed {
            repeats: matches!(self, Self::Kill | Self::RedisEmpty),
            unreadable,
            ..Allowed::default()
        };
        if self == Self::InngestPartial {
            let awards: Vec<&String> = expectation.awards_with_rows().collect();
            let every = (awards.len() / REFUSED).max(1);
            let some = awards.into_iter().step_by(every).take(REFUSED).cloned();
            allowed.refused = some.collect::<BTreeSet<_>>();
        }
        allowed
    }

    /// Records that nobody can read: some made from a sound one, and malformed commands.
    pub(super) fn unreadable(self, sound: &Recorded) -> Vec<Recorded> {
        if self != Self::Poison {
            return Vec::new();
        }
        let value = sound.value.as_deref().unwrap_or_default();
        let avro =
            [&[0, 0, 0, 0, 7, 2, 0x48][..], b"f4b9b8a1-0000-4000-8000-000000000000"].concat();
        let broken: [(&str, Vec<u8>); 3] = [
            ("unreadable-text", b"these are not the changes you are looking for".to_vec()),
            ("unreadable-half", value[..value.len() / 2].to_vec()),
            ("unreadable-avro", avro),
        ];
        let record = |(id, value): (&str, Vec<u8>)| Recorded {
            key: Some(format!(r#"{{"id":"{id}"}}"#).into_bytes()),
            value: Some(value),
            ..sound.clone()
        };
        broken.into_iter().map(record).chain(malformed()).collect()
    }

    /// What the fake must know before anything is fed.
    pub(super) fn prepare(self, fake: &Fake, allowed: &Allowed) {
        for id in &allowed.refused {
            fake.poison(id, Some(Poison::Refused(REFUSAL.to_owned())));
        }
    }

    /// The service that goes away when it strikes, and how.
    pub(super) fn outage(self) -> Option<(&'static [Endpoint], Failing)> {
        match self {
            Self::Inngest429 => Some((&[Endpoint::Post], Failing::too_many(1))),
            Self::InngestDown => Some((&[Endpoint::Post], Failing::Reset)),
            Self::Supabase500 => Some((&[Endpoint::Rpc, Endpoint::Rest], Failing::status(500))),
            Self::InngestPartial | Self::RedisEmpty | Self::Poison | Self::Kill => None,
        }
    }

    /// Takes the service away.
    pub(super) fn begin(endpoints: &[Endpoint], how: &Failing, fake: &Fake) {
        for endpoint in endpoints {
            fake.fail(*endpoint, how.clone(), Lasting::UntilHealed);
        }
    }
}
