//! The checker: pure functions over a run's history, which know the contract and not the daemon.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::explain::{Explainer, Why};
use super::history::{Arrival, Effect, Harm, History, Kind};

/// What the promises are held against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Resident memory of one member, in KiB.
    pub(crate) memory: u64,
    /// `INNGEST_CANCEL_SETTLE`.
    pub(crate) settle: Duration,
    /// After what silence a member's partitions move.
    pub(crate) session: Duration,
    /// `DRAIN_DEADLINE`.
    pub(crate) drain: Duration,
    /// How far an acceptance, its confirmation and its commit lie apart on a busy machine.
    pub(crate) near: Duration,
}

/// Clocks tell milliseconds, and not all the same.
const TICK: Duration = Duration::from_millis(20);

/// What was promised and not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// Something that a record calls for never came.
    NothingLost,
    /// Something came that no record calls for.
    NothingInvented,
    /// Changes of a key out of order.
    Order,
    /// The same id with other content.
    SameContent,
    /// A repeat that no disturbance explains.
    NothingTwice,
    /// An offset committed above an unfinished record.
    CommitBehindOutcome,
    /// A committed offset that went back.
    CommitGoesOn,
    /// A cancel before its award's run can have been created.
    Settle,
    /// Too much memory.
    Memory,
    /// Records not committed long after the last disturbance.
    CatchUp,
    /// Anything else.
    Conduct,
}

/// What the checker found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What was not kept, one line for each case.
    pub(crate) problems: BTreeMap<Promise, Vec<String>>,
    /// Events and calls that came again, by what explains it.
    pub(crate) repeats: BTreeMap<Why, Vec<String>>,
    /// Events in total.
    pub(crate) events: usize,
    /// Evaluations of members, and the changes that called for them.
    pub(crate) evaluations: (usize, usize),
    /// Commits that went back while a broker was away.
    pub(crate) overtaken: usize,
    /// Largest resident memory of any member, in KiB.
    pub(crate) memory: u64,
}

impl Verdict {
    /// How often a promise was not kept.
    pub(crate) fn broken(&self, promise: Promise) -> usize {
        self.problems.get(&promise).map_or(0, Vec::len)
    }

    fn add(&mut self, promise: Promise, problem: String) {
        self.problems.entry(promise).or_default().push(problem);
    }
}

/// Holds a history against the promises.
pub(crate) fn check(history: &History, bounds: &Bounds) -> Verdict {
    let mut verdict = Verdict::default();
    let arrivals = Arrivals::new(history);
    verdict.events = history.arrivals.iter().filter(|a| a.kind == Kind::Event).count();
    lost(history, &arrivals, &mut verdict);
    invented(history, &mut verdict);
    order(history, &arrivals, &mut verdict);
    content(history, &arrivals, &mut verdict);
    let explainer = Explainer::new(history, bounds);
    repeats(&arrivals, &explainer, &mut verdict);
    commits(history, &arrivals, &mut verdict);
    steps_back(history, bounds, &mut verdict);
    settled(&arrivals, &explainer, bounds, &mut verdict);
    for (member, kib) in &history.memory {
        verdict.memory = verdict.memory.max(*kib);
        if *kib > bounds.memory {
            verdict.add(Promise::Memory, format!("member {member} took {} MiB", kib >> 10));
        }
    }
    if history.caught_up.is_none() {
        verdict.add(Promise::CatchUp, "records remained uncommitted".to_owned());
    }
    for incident in &history.incidents {
        verdict.add(Promise::Conduct, incident.clone());
    }
    verdict
}

/// Everything that arrived, by name, in order.
struct Arrivals<'a>(HashMap<&'a str, Vec<(usize, &'a Arrival)>>);

impl<'a> Arrivals<'a> {
    fn new(history: &'a History) -> Self {
        let mut by_name: HashMap<&str, Vec<_>> = HashMap::new();
        for (number, arrival) in history.arrivals.iter().enumerate() {
            by_name.entry(&*arrival.what).or_default().push((number, arrival));
        }
        Self(by_name)
    }

    fn of(&self, name: &str) -> &[(usize, &'a Arrival)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// When all that `effect` of a record written at `written` calls for had arrived.
    fn done(&self, effect: &Effect, written: Duration) -> Option<Duration> {
        let start = if effect.fresh { written } else { Duration::ZERO };
        effect.chain.iter().try_fold(start, |so_far, name| {
            let from = if effect.fresh { so_far } else { Duration::ZERO };
            let (_, first) = self.of(name).iter().find(|(_, arrival)| arrival.at >= from)?;
            Some(so_far.max(first.at))
        })
    }
}

fn lost(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    for record in history.written.iter().filter(|record| !record.copy) {
        for effect in &record.effects {
            if effect.fresh {
                verdict.evaluations.1 += 1;
            }
            if arrivals.done(effect, record.at).is_none() {
                let (place, at) = (record.place(), record.at.as_secs_f64());
                let problem =
                    format!("{} of {place}, written at {at:.3} s", effect.chain.join(", "));
                verdict.add(Promise::NothingLost, problem);
            }
        }
    }
}

fn invented(history: &History, verdict: &mut Verdict) {
    let called_for: HashSet<&str> = history
        .written
        .iter()
        .flat_map(|record| &record.effects)
        .flat_map(|effect| &effect.chain)
        .map(String::as_str)
        .collect();
    for arrival in &history.arrivals {
        // Functions are called on the way to events.
        if arrival.kind != Kind::Call && !called_for.contains(&*arrival.what) {
            let (what, at) = (&arrival.what, arrival.at.as_secs_f64());
            let content = arrival.content.as_deref().unwrap_or_default();
            verdict.add(Promise::NothingInvented, format!("{what} at {at:.3} s: {content}"));
        }
    }
}

/// The effects of a key must arrive in the order of its records. A repeat of an earlier one may
/// come later: only what comes for the first time counts.
fn order(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    let mut last: HashMap<(&str, &str), (usize, &str)> = HashMap::new();
    for record in history.written.iter().filter(|record| !record.copy) {
        for effect in &record.effects {
            let Some(key) = &effect.order else { continue };
            for name in &effect.chain {
                let first = arrivals.of(name).first();
                let Some((number, first)) = first.filter(|(_, a)| a.kind == Kind::Event) else {
                    continue;
                };
                let key = (effect.consumer, key.as_str());
                if let Some((before, earlier)) = last.get(&key)
                    && before > number
                {
                    let at = first.at.as_secs_f64();
                    verdict.add(Promise::Order, format!("{name} at {at:.3} s before {earlier}"));
                }
                last.insert(key, (*number, name));
            }
        }
    }
}

fn content(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    for effect in history.written.iter().flat_map(|record| &record.effects) {
        let (Some(expected), Some(name)) = (&effect.content, effect.chain.last()) else { continue };
        for (_, arrival) in arrivals.of(name) {
            let text = arrival.content.as_deref().unwrap_or("null");
            let found: Value = serde_json::from_str(text).unwrap_or_default();
            let differs = expected.as_object().and_then(|expected| {
                expected.iter().find(|(field, value)| !same(&found[field.as_str()], value))
            });
            if let Some((field, value)) = differs {
                let problem = format!("{name}: {field} is {}, not {value}", found[field.as_str()]);
                verdict.add(Promise::SameContent, problem);
            }
        }
    }
    for (name, all) in &arrivals.0 {
        let mut contents =
            all.iter().filter(|(_, a)| a.kind == Kind::Event).map(|(_, a)| &a.content);
        if let Some(first) = contents.next()
            && contents.any(|other| other != first)
        {
            verdict.add(Promise::SameContent, format!("{name}: copies differ"));
        }
    }
}

/// Times are the same whatever their notation.
fn same(found: &Value, expected: &Value) -> bool {
    let time = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
    found == expected || time(found).is_some_and(|found| Some(found) == time(expected))
}

/// Evaluations of a member repeat by nature, and what they lead to; asking for the rows of an award
/// awards nothing.
fn repeats_by_nature(name: &str) -> bool {
    ["tier/", "evaluate_user_tier_status:", "apply_tier_upgrade:", "calc_currency_for_source:"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn repeats(arrivals: &Arrivals<'_>, explainer: &Explainer<'_>, verdict: &mut Verdict) {
    for (name, all) in &arrivals.0 {
        if name.starts_with("evaluate_user_tier_status:") {
            verdict.evaluations.0 += all.len();
        }
        if repeats_by_nature(name) {
            continue;
        }
        for (index, (_, again)) in all.iter().enumerate().skip(1) {
            let earlier = all[..index].iter().map(|(_, earlier)| *earlier);
            // A call's claim is confirmed when the event that follows from it was accepted.
            let call = again.kind == Kind::Call;
            let event = explainer.last_of(name).filter(|_| call);
            let followed = |earlier: &Arrival| {
                let mut events = event.map_or(&[][..], |event| arrivals.of(event)).iter();
                let next = events.find(|(_, event)| event.at >= earlier.at);
                next.map_or(earlier.at, |(_, event)| event.at)
            };
            let why: Option<Vec<Why>> = earlier
                .map(|earlier| explainer.explain(earlier, followed(earlier), again))
                .collect();
            let times = all.iter().map(|(_, arrival)| {
                let by = arrival.by.as_deref().unwrap_or("somebody");
                format!("at {:.3} s by {by}", arrival.at.as_secs_f64())
            });
            let times: Vec<String> = times.collect();
            let repeat = format!("{name} {}", times.join(", "));
            match why.and_then(|why| why.last().copied()) {
                Some(why) => verdict.repeats.entry(why).or_default().push(repeat),
                None => {
                    let record = explainer.describe(name);
                    verdict.add(Promise::NothingTwice, format!("{repeat}; {record}"));
                }
            }
        }
    }
}

/// No partition's committed offset may go back: what lies between is handled again. Only while a
/// broker is away, or when a member goes on that stood still meanwhile, an older commit, of unknown
/// outcome, may be sent again after a newer one.
fn steps_back(history: &History, bounds: &Bounds, verdict: &mut Verdict) {
    let of = |harm| history.disturbances.iter().filter(move |found| found.harm == harm);
    let away = |at: Duration| {
        of(Harm::Broker).any(|found| found.from <= at && at <= found.to + bounds.near)
    };
    let thawed = |at: Duration| {
        of(Harm::Frozen).any(|frozen| {
            frozen.to <= at
                && at <= frozen.to + bounds.near
                && of(Harm::Broker)
                    .any(|away| away.overlaps(frozen.from, frozen.to, Duration::ZERO))
        })
    };
    let mut last: HashMap<(&str, &str, i32), (i64, Duration)> = HashMap::new();
    for sample in &history.samples {
        for ((topic, partition), next) in &sample.offsets {
            let place = (sample.consumer, topic.as_str(), *partition);
            let before = last.insert(place, (*next, sample.answered));
            if let Some((before, at)) = before.filter(|(before, _)| before > next) {
                if away(sample.answered) || thawed(sample.answered) {
                    verdict.overtaken += 1;
                    continue;
                }
                let (at, now) = (at.as_secs_f64(), sample.answered.as_secs_f64());
                let consumer = sample.consumer;
                let problem = format!(
                    "{consumer} had committed {before} in {topic}/{partition} at {at:.3} s, and {next} at {now:.3} s"
                );
                verdict.add(Promise::CommitGoesOn, problem);
            }
        }
    }
}

/// For each offset of a partition, when it and all below it were finished, and which was the last.
type Finished = BTreeMap<i64, (Duration, String)>;

/// No offset may have been committed, by the time of an answer, above a record of which not
/// everything had arrived.
fn commits(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    let consumers: HashSet<&str> = history.samples.iter().map(|sample| sample.consumer).collect();
    for consumer in consumers {
        let mut finished: BTreeMap<(&str, i32), Finished> = BTreeMap::new();
        for record in &history.written {
            let own = record.effects.iter().filter(|effect| effect.consumer == consumer);
            // What a copy calls for was done for the original, if not for itself.
            let own = own.filter(|effect| !(record.copy && effect.fresh));
            let done = own.map(|effect| arrivals.done(effect, record.at).unwrap_or(Duration::MAX));
            let done = done.max().unwrap_or_default();
            let partition = finished.entry((&record.topic, record.partition)).or_default();
            partition.insert(record.offset, (done, record.place()));
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

/// A cancel reaches only a run that has been created.
fn settled(
    arrivals: &Arrivals<'_>,
    explainer: &Explainer<'_>,
    bounds: &Bounds,
    verdict: &mut Verdict,
) {
    for (name, cancels) in &arrivals.0 {
        if let Some(source) = name.strip_prefix("currency/cancelled:")
            && let Some((_, award)) = arrivals.of(&format!("currency/award:{source}")).first()
            && let Some((_, cancel)) = cancels.first()
            && cancel.at + TICK < award.at + bounds.settle
        {
            let after = cancel.at.saturating_sub(award.at);
            verdict.add(Promise::Settle, format!("{name} came {after:?} after its award"));
        }
        let Some(member) = name.strip_prefix("tier/upgrade-cancelled:") else { continue };
        for (number, upgrade) in arrivals.of(&format!("tier/upgrade:{member}")) {
            // The same request once more cancels nothing else: Inngest knows it.
            let resent = |cancel: &Arrival| {
                let same = |(before, other): &&(usize, &Arrival)| {
                    before < number && other.internal == cancel.internal
                };
                cancels.iter().any(|other| same(&other))
            };
            let next = cancels.iter().find(|(later, a)| later > number && !resent(a));
            if let Some((_, cancel)) = next
                && cancel.at + TICK < upgrade.at + bounds.settle
                && explainer.explain(upgrade, upgrade.at, cancel).is_none()
                && !explainer.was_frozen(cancel)
            {
                let after = cancel.at.saturating_sub(upgrade.at);
                let at = cancel.at.as_secs_f64();
                let problem = format!("{name} at {at:.3} s came {after:?} after an upgrade");
                verdict.add(Promise::Settle, problem);
            }
        }
    }
}
