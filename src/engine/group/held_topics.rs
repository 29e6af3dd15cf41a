//! Holds topics that have not begun, until somebody says where they do, and reads them then.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::engine::Consumer;
use crate::engine::group::beginnings::{Beginner, Why};
use crate::engine::group::committed::Name;
use crate::engine::group::start::{Planned, Start, plan};
use crate::engine::group::unbegun::{First, Look, Unbegun, unbegun_list};
use crate::engine::session::Session;

/// How often to look whether a topic that waits for a person has begun, and one that waits for the
/// group.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_SOON: Duration = Duration::from_secs(1);
/// How often it is said which topics wait for a person.
const TELL: Duration = Duration::from_secs(60);

impl<C: Consumer> Session<'_, C> {
    pub(in crate::engine) fn beginner(&self) -> Beginner {
        Beginner::new(
            self.engine,
            &self.client,
            self.membership.known.topics(),
            &self.membership.sights,
        )
    }

    /// Takes assigned partitions of topics that have not begun, and reads nothing of them.
    pub(in crate::engine) fn hold_unbegun(&mut self, unbegun: Vec<(Name, Why)>, nothing: bool) {
        self.membership.unbegun.nothing = nothing;
        if unbegun.is_empty() {
            return;
        }
        let paused = self.client.pause(&unbegun_list(unbegun.iter().map(|(name, _)| name)));
        // What comes even so is not taken: no partition that is read has this name.
        self.warn_on_error("pause", paused);
        for (name, why) in unbegun {
            let id = self.partitions.new_id();
            self.membership.unbegun.partitions.insert(name, (id, why));
        }
        self.membership.unbegun.next = None;
    }

    /// Forgets those of `names`, which are not assigned any more.
    pub(in crate::engine) fn forget_unbegun(&mut self, names: &[Name]) {
        let held = self.membership.unbegun.of(names);
        if held.is_empty() {
            return;
        }
        // librdkafka keeps a pause beyond the assignment.
        let resumed = self.client.resume(&unbegun_list(held.iter()));
        self.warn_on_error("resume", resumed);
        for name in held {
            self.membership.unbegun.partitions.remove(&name);
        }
        self.membership.unbegun.nothing &= !self.membership.unbegun.partitions.is_empty();
    }

    /// Looks now and then whether topics have begun, which another member may have seen to, reads
    /// those that have, and says which wait for a person.
    pub(in crate::engine) fn look_at_unbegun(&mut self, now: Instant) {
        self.look_first();
        self.finish_look();
        if self.membership.unbegun.partitions.is_empty() {
            return;
        }
        self.tell_undecided(now);
        let due = self.membership.unbegun.next.is_none_or(|next| next <= now);
        if self.membership.unbegun.look.is_some()
            || !due
            || !self.membership.assignment.is_settled()
        {
            return;
        }
        let soon =
            self.membership.unbegun.partitions.values().any(|(_, why)| *why != Why::Undecided);
        self.membership.unbegun.next = Some(now + if soon { LOOK_SOON } else { LOOK });
        let of: HashMap<Name, u32> = self
            .membership
            .unbegun
            .partitions
            .iter()
            .map(|(name, (id, _))| (name.clone(), *id))
            .collect();
        let names: Vec<Name> = of.keys().cloned().collect();
        let beginner = self.beginner();
        let plan = tokio::task::spawn_blocking(move || {
            let own: HashSet<Name> = names.iter().cloned().collect();
            plan(&beginner, &names, &own)
        });
        self.membership.unbegun.look = Some(Look { plan, of });
    }

    /// Looks at topics before any of their partitions is assigned: a missing topic never has one.
    fn look_first(&mut self) {
        match &mut self.membership.unbegun.first {
            First::Done => {}
            First::Due => {
                let beginner = self.beginner();
                let look = tokio::task::spawn_blocking(move || beginner.look());
                self.membership.unbegun.first = First::UnderWay(look);
            }
            First::UnderWay(look) => {
                let Some(all) = look.now_or_never() else { return };
                let done = matches!(all, Ok(true));
                self.membership.unbegun.first = if done { First::Done } else { First::Due };
            }
        }
    }

    fn finish_look(&mut self) {
        let Some(look) = &mut self.membership.unbegun.look else { return };
        let Some(planned) = (&mut look.plan).now_or_never() else { return };
        let Some(Look { of, .. }) = self.membership.unbegun.look.take() else { return };
        // Where the group waits for another answer, or has none, it is looked again.
        let (Ok(Ok(planned)), true) = (planned, self.membership.assignment.is_settled()) else {
            return;
        };
        let Planned { starts, unbegun, nothing } = planned;
        let still = |held: &Unbegun, name: &Name| {
            held.partitions.get(name).is_some_and(|(id, _)| of.get(name) == Some(id))
        };
        for (name, why) in unbegun {
            if still(&self.membership.unbegun, &name)
                && let Some((_, known)) = self.membership.unbegun.partitions.get_mut(&name)
            {
                *known = why;
            }
        }
        self.membership.unbegun.nothing = nothing;
        for start in starts {
            let name = (start.topic.clone(), start.partition);
            if still(&self.membership.unbegun, &name) {
                self.read_unbegun(&name, start);
            }
        }
    }

    /// Reads a partition whose topic has begun.
    fn read_unbegun(&mut self, name: &Name, start: Start) {
        let again = || -> KafkaResult<()> {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&name.0, name.1, Offset::Offset(start.offset))?;
            self.client.incremental_unassign(&list)?;
            self.client.resume(&list)?;
            self.client.incremental_assign(&list)
        };
        if let Err(error) = again() {
            return self.distrust_client("give up and take again", error);
        }
        self.membership.unbegun.partitions.remove(name);
        if let Some(loss) = start.lost {
            self.report_loss(&start.topic, start.partition, loss);
        }
        self.add(start);
    }

    fn tell_undecided(&mut self, now: Instant) {
        let undecided = self
            .membership
            .unbegun
            .partitions
            .iter()
            .filter(|(_, (_, why))| *why == Why::Undecided);
        let topics: BTreeSet<&str> = undecided.map(|((topic, _), _)| &**topic).collect();
        if topics.is_empty() || self.membership.unbegun.told.is_some_and(|told| now < told + TELL) {
            return;
        }
        let choices: Vec<String> =
            topics.iter().map(|topic| format!("{topic}=earliest|latest|<time>")).collect();
        tracing::error!(messaging.consumer.group.name = %self.engine.settings.group, ?topics,
            "topics are held, the group has committed nothing of them and they hold records: set \
             KAFKA_START_AT to {} (earliest handles all that they hold, latest what comes from now \
             on, a time such as 2026-11-29T00:00:00Z the records from then on)",
            choices.join(","));
        self.membership.unbegun.told = Some(now);
    }
}
