//! What came again, and what came too soon.

use std::collections::HashMap;
use std::time::Duration;

use super::{Arrivals, Bounds, Promise, TICK, Verdict};
use crate::explain::{Explainer, Why};
use crate::history::{Arrival, History, Kind};

/// What one evaluation of a member leads to comes as often as the evaluation; asking for the rows of
/// an award awards nothing.
fn repeats_by_nature(name: &str) -> bool {
    ["tier/", "evaluate_user_tier_status:", "apply_tier_upgrade:", "calc_currency_for_source:"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// When all that follows from a call was accepted. The claim is not confirmed before that.
fn followed(arrivals: &Arrivals<'_>, explainer: &Explainer<'_>, earlier: &Arrival) -> Duration {
    let call = earlier.kind == Kind::Call;
    let last = explainer.last_of(&earlier.what).filter(|_| call);
    let mut all = last.map_or(&[][..], |last| arrivals.of(last)).iter();
    let next = all.find(|(_, arrival)| arrival.at >= earlier.at);
    next.map_or(earlier.at, |(_, arrival)| arrival.at)
}

pub(super) fn repeats(arrivals: &Arrivals<'_>, explainer: &Explainer<'_>, verdict: &mut Verdict) {
    for (name, all) in &arrivals.0 {
        if repeats_by_nature(name) {
            continue;
        }
        for (index, (_, again)) in all.iter().enumerate().skip(1) {
            let earlier = all[..index].iter().map(|(_, earlier)| *earlier);
            let why: Option<Vec<Why>> = earlier
                .map(|earlier| {
                    explainer.explain(earlier, followed(arrivals, explainer, earlier), again)
                })
                .collect();
            let repeat = format!("{name} {}", times(all));
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

fn times(all: &[(usize, &Arrival)]) -> String {
    let times = all.iter().map(|(_, arrival)| {
        let by = arrival.by.as_deref().unwrap_or("somebody");
        format!("at {:.3} s by {by}", arrival.at.as_secs_f64())
    });
    times.collect::<Vec<_>>().join(", ")
}

/// A member is evaluated at most once for each change that calls for it, and several waiting
/// changes share one evaluation. An evaluation beyond the number of changes so far is a repeat.
pub(super) fn evaluations(
    history: &History,
    arrivals: &Arrivals<'_>,
    explainer: &Explainer<'_>,
    verdict: &mut Verdict,
) {
    let mut changes: HashMap<&str, Vec<Duration>> = HashMap::new();
    for record in history.written.iter().filter(|record| !record.copy) {
        for effect in record.effects.iter().filter(|effect| effect.fresh) {
            changes.entry(&effect.chain[0]).or_default().push(record.at);
        }
    }
    for (name, written) in changes {
        let all = arrivals.of(name);
        verdict.evaluations.0 += all.len();
        verdict.evaluations.1 += written.len();
        // What a disturbance can have repeated counts as a repeat, and leaves a change over.
        let mut repeats = 0;
        for (index, (_, again)) in all.iter().enumerate() {
            let changes = written.iter().filter(|at| **at <= again.at).count();
            let surplus = index >= changes + repeats;
            let why = all[..index].iter().rev().find_map(|(_, earlier)| {
                explainer.explain(earlier, followed(arrivals, explainer, earlier), again)
            });
            repeats += usize::from(surplus || why.is_some());
            if !surplus {
                continue;
            }
            let repeat = format!("{name} {} for {changes} changes", times(&all[..=index]));
            match why {
                Some(why) => verdict.repeats.entry(why).or_default().push(repeat),
                None => {
                    let record = explainer.describe(name);
                    verdict.add(Promise::NothingTwice, format!("{repeat}; {record}"));
                }
            }
        }
    }
}

/// A cancel reaches only a run that exists.
pub(super) fn settled(
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
            // The same request sent again cancels nothing new: Inngest recognises it.
            let resent = |cancel: &Arrival| {
                let same = |(before, other): &&(usize, &Arrival)| {
                    before < number && other.internal == cancel.internal
                };
                cancels.iter().any(|other| same(&other))
            };
            let next = cancels.iter().find(|(later, a)| later > number && !resent(a));
            let evaluations = arrivals.of(&format!("evaluate_user_tier_status:{member}"));
            // When the work that led to this event began.
            let evaluated = |end: &Arrival| {
                let own = evaluations.iter().map(|(_, call)| *call);
                let own = own.filter(|call| call.by == end.by && call.at <= end.at);
                own.map(|call| call.at).max().unwrap_or(end.at)
            };
            if let Some((_, cancel)) = next
                && cancel.at + TICK < upgrade.at + bounds.settle
                && let (begun, other_begun) = (evaluated(cancel), evaluated(upgrade))
                && !explainer.unsettled(begun.min(other_begun), upgrade, cancel)
            {
                let after = cancel.at.saturating_sub(upgrade.at);
                let [at, begun, other_begun] =
                    [cancel.at, begun, other_begun].map(|at| at.as_secs_f64());
                let [by, other] = [cancel, upgrade].map(|a| a.by.as_deref().unwrap_or("somebody"));
                let problem = format!(
                    "{name} at {at:.3} s by {by}, evaluated at {begun:.3} s, came {after:?} after \
                     an upgrade by {other}, evaluated at {other_begun:.3} s"
                );
                verdict.add(Promise::Settle, problem);
            }
        }
    }
}
