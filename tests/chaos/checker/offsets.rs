//! Committed offsets: never above an unfinished record, and never back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::{Arrivals, Bounds, Promise, TICK, Verdict};
use crate::history::{Harm, History};

/// Consumer, topic and number.
type Partition<'a> = (&'a str, &'a str, i32);

/// No committed offset may go back: the records between are handled again. One exception: while a
/// broker is away, or when a member that stood still goes on, an older commit of unknown outcome
/// may be repeated after a newer one. It may be no older than what was on its way then.
pub(super) fn steps_back(history: &History, bounds: &Bounds, verdict: &mut Verdict) {
    let near = bounds.near;
    let of = |harm| history.disturbances.iter().filter(move |found| found.harm == harm);
    // From when commits that arrive at `at` may have been on their way.
    let away = |at: Duration| {
        let found = of(Harm::Broker).filter(move |found| found.from <= at && at <= found.to + near);
        found.map(|found| found.from)
    };
    let thawed = |at: Duration| {
        let found = of(Harm::Frozen).filter(move |found| found.to <= at && at <= found.to + near);
        let met = found.filter(|frozen| {
            of(Harm::Broker).any(|away| away.overlaps(frozen.from, frozen.to, Duration::ZERO))
        });
        met.map(|found| found.from)
    };
    let mut seen: HashMap<Partition<'_>, Vec<(Duration, i64)>> = HashMap::new();
    for sample in &history.samples {
        for ((topic, partition), next) in &sample.offsets {
            let steps = seen.entry((sample.consumer, topic.as_str(), *partition)).or_default();
            let since = |since: Duration| {
                let by = steps.iter().take_while(|(at, _)| *at + near <= since);
                by.last().map_or(0, |(_, next)| *next)
            };
            let now = sample.answered;
            if let Some((at, before)) = steps.last().filter(|(_, before)| before > next) {
                if away(now).chain(thawed(now)).any(|from| *next >= since(from)) {
                    verdict.overtaken += 1;
                } else {
                    let (at, now) = (at.as_secs_f64(), now.as_secs_f64());
                    let consumer = sample.consumer;
                    let problem = format!(
                        "{consumer} had committed {before} in {topic}/{partition} at {at:.3} s, and {next} at {now:.3} s"
                    );
                    verdict.add(Promise::CommitGoesOn, problem);
                }
            }
            steps.push((now, *next));
        }
    }
}

/// For each offset of a partition, when it and all below it were finished, and which was the last.
type Finished = BTreeMap<i64, (Duration, String)>;

/// By the time of an answer, nothing may be committed above a record whose effects had not all
/// arrived.
pub(super) fn commits(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    let consumers: HashSet<&str> = history.samples.iter().map(|sample| sample.consumer).collect();
    for consumer in consumers {
        let mut finished: BTreeMap<(&str, i32), Finished> = BTreeMap::new();
        for record in &history.written {
            let own = record.effects.iter().filter(|effect| effect.consumer == consumer);
            // A copy's effects may have been done for the original.
            let own = own.filter(|effect| !(record.copy && effect.fresh));
            let done = own.map(|effect| arrivals.done(effect, record.at).unwrap_or(Duration::MAX));
            let done = done.max().unwrap_or_default();
            let partition = finished.entry((&record.topic, record.partition)).or_default();
            partition.insert(record.offset, (done, record.location()));
        }
        for partition in finished.values_mut() {
            let mut so_far = (Duration::ZERO, String::new());
            for entry in partition.values_mut() {
                if entry.0 > so_far.0 {
                    so_far = entry.clone();
                }
                *entry = so_far.clone();
            }
        }
        let mut told = HashSet::new();
        for sample in history.samples.iter().filter(|sample| sample.consumer == consumer) {
            for ((topic, partition), next) in &sample.offsets {
                let below = finished.get(&(topic.as_str(), *partition));
                let below = below.and_then(|all| all.range(..next).next_back());
                if let Some((_, (done, place))) = below
                    && *done > sample.answered + TICK
                    && told.insert(place.clone())
                {
                    let seen = sample.answered.as_secs_f64();
                    let done = match *done {
                        Duration::MAX => "never".to_owned(),
                        done => format!("at {:.3} s", done.as_secs_f64()),
                    };
                    let problem = format!(
                        "{consumer} had committed {next} at {seen:.3} s, and {place} was done {done}"
                    );
                    verdict.add(Promise::CommitBehindOutcome, problem);
                }
            }
        }
    }
}
