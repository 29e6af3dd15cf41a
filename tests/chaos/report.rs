//! The report of a run.

use std::fmt;

use crate::checker::{Promise, Verdict};
use crate::explain::Why;
use crate::history::{Harm, History, Met};

/// Lines shown of each broken promise.
const SHOWN: usize = 8;

/// Figures of a run, or of several.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures {
    pub(crate) records: usize,
    pub(crate) copies: usize,
    pub(crate) events: usize,
    pub(crate) disturbances: usize,
    pub(crate) met: Met,
    pub(crate) repeats: usize,
    /// Repeats by their explanation, in the order of [`REASONS`].
    pub(crate) reasons: [usize; REASONS.len()],
    pub(crate) overtaken: usize,
    pub(crate) unexplained: usize,
    pub(crate) lost: usize,
    pub(crate) reordered: usize,
    pub(crate) early: usize,
    pub(crate) memory: u64,
    pub(crate) slowest_stop: f64,
    pub(crate) caught_up: Option<f64>,
    pub(crate) other: usize,
}

/// Explanations of repeats, and their names in a table.
const REASONS: [(Why, &str); 8] = [
    (Why::Resent, "resent"),
    (Why::AnswerLost, "answer lost"),
    (Why::Refused, "refused"),
    (Why::Killed, "killed"),
    (Why::Stopped, "stopped"),
    (Why::Frozen, "frozen"),
    (Why::Moved, "moved"),
    (Why::Forgotten, "forgotten"),
];

/// The head of a table with one line for each run.
pub(crate) fn head() -> String {
    let reasons = REASONS.map(|(_, name)| name).join(" | ");
    let names = format!(
        "| seed | members | records | copies | events | disturbances | failed by Inngest | by Supabase \
         | partial 400s | repeats explained | {reasons} | unexplained | lost | out of order \
         | committed early | other | commits overtaken | most memory, MiB | slowest stop, s \
         | lag 0 after, s |"
    );
    let columns = names.matches('|').count() - 3;
    format!("{names}\n| ---: | :--- |{}", " ---: |".repeat(columns))
}

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
            met: history.met,
            repeats: verdict.repeats.values().map(Vec::len).sum(),
            reasons: REASONS.map(|(why, _)| verdict.repeats.get(&why).map_or(0, Vec::len)),
            overtaken: verdict.overtaken,
            unexplained,
            lost,
            reordered,
            early,
            memory: verdict.memory,
            slowest_stop: history.slowest_stop.as_secs_f64(),
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
        self.met.inngest += other.met.inngest;
        self.met.supabase += other.met.supabase;
        self.met.partial += other.met.partial;
        self.repeats += other.repeats;
        for (sum, reason) in self.reasons.iter_mut().zip(other.reasons) {
            *sum += reason;
        }
        self.overtaken += other.overtaken;
        self.unexplained += other.unexplained;
        self.lost += other.lost;
        self.reordered += other.reordered;
        self.early += other.early;
        self.memory = self.memory.max(other.memory);
        self.slowest_stop = self.slowest_stop.max(other.slowest_stop);
        self.caught_up = self.caught_up.zip(other.caught_up).map(|(one, two)| one.max(two));
        self.other += other.other;
    }

    /// A line of the table.
    pub(crate) fn line(&self, name: &str, members: &str) -> String {
        let caught_up = self.caught_up.map_or("never".to_owned(), |time| format!("{time:.1}"));
        let Self { records, copies, events, disturbances, repeats, unexplained, .. } = self;
        let Self { lost, reordered, early, other, overtaken, memory, slowest_stop, .. } = self;
        let Met { inngest, supabase, partial } = self.met;
        let reasons = self.reasons.map(|count| count.to_string()).join(" | ");
        let memory = memory >> 10;
        format!(
            "| {name} | {members} | {records} | {copies} | {events} | {disturbances} | {inngest} \
             | {supabase} | {partial} | {repeats} | {reasons} | {unexplained} | {lost} | {reordered} \
             | {early} | {other} | {overtaken} | {memory} | {slowest_stop:.1} | {caught_up} |"
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
        let Met { inngest, supabase, partial } = history.met;
        writeln!(
            f,
            "  {disturbances} disturbances; Inngest failed {inngest} requests and took {partial} in part, Supabase failed {supabase}"
        )?;
        writeln!(f, "  {repeats} repeats explained")?;
        for (why, name) in REASONS {
            let repeats = verdict.repeats.get(&why).map_or(&[][..], Vec::as_slice);
            let Some(example) = repeats.last() else { continue };
            writeln!(f, "    {} {name}, such as {example}", repeats.len())?;
        }
        let (evaluations, triggers) = verdict.evaluations;
        writeln!(f, "  {triggers} changes of members became {evaluations} evaluations")?;
        if verdict.overtaken > 0 {
            let overtaken = verdict.overtaken;
            writeln!(f, "  {overtaken} commits overtaken by an older one while a broker was away")?;
        }
        let caught_up = figures.caught_up.map_or("never".to_owned(), |time| format!("{time:.1} s"));
        let (memory, stop) = (figures.memory >> 10, figures.slowest_stop);
        writeln!(
            f,
            "  most memory {memory} MiB, slowest stop {stop:.1} s, lag 0 after {caught_up}"
        )?;
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
