//! What a run tells.

use std::fmt;

use crate::checker::{Promise, Verdict};
use crate::explain::Why;
use crate::history::{Harm, History};

/// Lines shown of each broken promise.
const SHOWN: usize = 8;

/// Figures of a run, or of several.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures {
    pub(crate) records: usize,
    pub(crate) copies: usize,
    pub(crate) events: usize,
    pub(crate) disturbances: usize,
    pub(crate) repeats: usize,
    pub(crate) unexplained: usize,
    pub(crate) lost: usize,
    pub(crate) reordered: usize,
    pub(crate) early: usize,
    pub(crate) memory: u64,
    pub(crate) caught_up: Option<f64>,
    pub(crate) other: usize,
}

/// The head of a table with one line for each run.
pub(crate) const HEAD: &str = "\
| seed | members | records | copies | events | disturbances | repeats explained | unexplained | lost | out of order | committed early | other | most memory, MiB | lag 0 after, s |
| ---: | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

impl Figures {
    pub(crate) fn of(history: &History, verdict: &Verdict) -> Self {
        let disturbances = history.disturbances.iter().filter(|found| found.harm != Harm::Joined);
        let counted = [Promise::NothingTwice, Promise::NothingLost, Promise::Order];
        let [unexplained, lost, reordered] = counted.map(|promise| verdict.broken(promise));
        let early = verdict.broken(Promise::CommitBehindOutcome);
        let all: usize = verdict.problems.values().map(Vec::len).sum();
        Self {
            records: history.written.iter().filter(|record| !record.copy).count(),
            copies: history.written.iter().filter(|record| record.copy).count(),
            events: verdict.events,
            disturbances: disturbances.count(),
            repeats: verdict.repeats.values().map(Vec::len).sum(),
            unexplained,
            lost,
            reordered,
            early,
            memory: verdict.memory,
            caught_up: history.caught_up.map(|time| time.as_secs_f64()),
            other: all - unexplained - lost - reordered - early,
        }
    }

    /// Adds the figures of another run: sums, and the worst of memory and time.
    pub(crate) fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.copies += other.copies;
        self.events += other.events;
        self.disturbances += other.disturbances;
        self.repeats += other.repeats;
        self.unexplained += other.unexplained;
        self.lost += other.lost;
        self.reordered += other.reordered;
        self.early += other.early;
        self.memory = self.memory.max(other.memory);
        self.caught_up = self.caught_up.zip(other.caught_up).map(|(one, two)| one.max(two));
        self.other += other.other;
    }

    /// A line of the table.
    pub(crate) fn line(&self, name: &str, members: &str) -> String {
        let caught_up = self.caught_up.map_or("never".to_owned(), |time| format!("{time:.1}"));
        let Self { records, copies, events, disturbances, repeats, unexplained, .. } = self;
        let Self { lost, reordered, early, other, memory, .. } = self;
        let memory = memory >> 10;
        format!(
            "| {name} | {members} | {records} | {copies} | {events} | {disturbances} | {repeats} \
             | {unexplained} | {lost} | {reordered} | {early} | {other} | {memory} | {caught_up} |"
        )
    }
}

/// A run in a few lines.
pub(crate) struct Summary<'a>(pub(crate) &'a History, pub(crate) &'a Verdict);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(history, verdict) = self;
        let figures = Figures::of(history, verdict);
        let Figures { records, copies, events, disturbances, repeats, .. } = figures;
        writeln!(f, "  {records} records and {copies} copies became {events} events")?;
        writeln!(f, "  {disturbances} disturbances")?;
        let why = |why: &Why| match why {
            Why::Resent => "same request again",
            Why::AnswerLost => "answer lost",
            Why::Refused => "what follows refused",
            Why::Killed => "sender killed",
            Why::Stopped => "sender stopped",
            Why::Frozen => "sender frozen",
            Why::Moved => "partition moved",
            Why::Forgotten => "Redis forgot",
        };
        writeln!(f, "  {repeats} repeats explained")?;
        for (cause, repeats) in &verdict.repeats {
            let (count, example) = (repeats.len(), repeats.last().map_or("", |last| last));
            writeln!(f, "    {count} {}, such as {example}", why(cause))?;
        }
        let (evaluations, triggers) = verdict.evaluations;
        writeln!(f, "  {triggers} changes of members became {evaluations} evaluations")?;
        if verdict.overtaken > 0 {
            let overtaken = verdict.overtaken;
            writeln!(f, "  {overtaken} commits overtaken by an older one while a broker was away")?;
        }
        let caught_up = figures.caught_up.map_or("never".to_owned(), |time| format!("{time:.1} s"));
        writeln!(f, "  most memory {} MiB, lag 0 after {caught_up}", figures.memory >> 10)?;
        if verdict.problems.is_empty() {
            return writeln!(f, "  nothing lost, nothing out of order, no repeat unexplained");
        }
        for (promise, problems) in &verdict.problems {
            writeln!(f, "  BROKEN {promise:?}, {} times:", problems.len())?;
            for problem in problems.iter().take(SHOWN) {
                let short: String = problem.chars().take(600).collect();
                writeln!(f, "    {short}")?;
            }
        }
        writeln!(f, "  what happened:")?;
        history.disturbances.iter().try_for_each(|found| writeln!(f, "    {found}"))
    }
}
