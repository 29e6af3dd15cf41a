//! What came again, and what came too soon.

use super::{Arrivals, Bounds, Promise, TICK, Verdict};
use crate::explain::{Explainer, Why};
use crate::history::{Arrival, Kind};

/// Evaluations of a member repeat by nature, and what they lead to; asking for the rows of an award
/// awards nothing.
fn repeats_by_nature(name: &str) -> bool {
    ["tier/", "evaluate_user_tier_status:", "apply_tier_upgrade:", "calc_currency_for_source:"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

pub(super) fn repeats(arrivals: &Arrivals<'_>, explainer: &Explainer<'_>, verdict: &mut Verdict) {
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

/// A cancel reaches only a run that has been created.
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
