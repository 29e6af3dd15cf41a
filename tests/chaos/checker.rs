//! The checker: pure functions over a run's history. They know behaviour.md, not the daemon.

mod effects;
mod offsets;
mod repeats;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use self::effects::{content, invented, lost, order};
use self::offsets::{commits, steps_back};
use self::repeats::{evaluations, repeats, settled};
use crate::explain::{Explainer, Why};
use crate::history::{Arrival, Effect, History, Kind};

/// The bounds that the promises are checked against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Resident memory of one member, in KiB.
    pub(crate) memory: u64,
    /// `INNGEST_CANCEL_SETTLE`.
    pub(crate) settle: Duration,
    /// After how long a silence a member's partitions move.
    pub(crate) session: Duration,
    /// `DRAIN_DEADLINE`.
    pub(crate) drain: Duration,
    /// How often a worker renews its member's claim, a third of its lease. If Redis forgets the
    /// claim, the worker may go on without it for this long.
    pub(crate) renewal: Duration,
    /// `CLIENT_REQUEST_TIMEOUT`.
    pub(crate) request: Duration,
    /// How far an acceptance, its confirmation and its commit lie apart on a busy machine.
    pub(crate) near: Duration,
}

/// Clocks tell milliseconds, and differ a little.
const TICK: Duration = Duration::from_millis(20);

/// A promise that a run may break.
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
    Stores,
    /// Records not committed long after the last disturbance.
    CatchUp,
    /// Anything else.
    Conduct,
}

/// What the checker found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Broken promises, one line for each case.
    pub(crate) problems: BTreeMap<Promise, Vec<String>>,
    /// Events and calls that came again, by the explanation.
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
    evaluations(history, &arrivals, &explainer, &mut verdict);
    commits(history, &arrivals, &mut verdict);
    steps_back(history, bounds, &mut verdict);
    settled(&arrivals, &explainer, bounds, &mut verdict);
    for (member, kib) in &history.memory {
        verdict.memory = verdict.memory.max(*kib);
        if *kib > bounds.memory {
            verdict.add(Promise::Stores, format!("member {member} took {} MiB", kib >> 10));
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

    /// When all that `effect` calls for had arrived, for a record written at `written`.
    fn done(&self, effect: &Effect, written: Duration) -> Option<Duration> {
        let start = if effect.fresh { written } else { Duration::ZERO };
        effect.chain.iter().try_fold(start, |so_far, name| {
            let from = if effect.fresh { so_far } else { Duration::ZERO };
            let (_, first) = self.of(name).iter().find(|(_, arrival)| arrival.at >= from)?;
            Some(so_far.max(first.at))
        })
    }
}
