//! What records call for arrives: all of it, nothing else, in order, with the right content.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value;

use super::{Arrivals, Promise, Verdict};
use crate::history::{History, Kind};

pub(super) fn lost(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    for record in history.written.iter().filter(|record| !record.copy) {
        for effect in &record.effects {
            if arrivals.done(effect, record.at).is_none() {
                let (place, at) = (record.location(), record.at.as_secs_f64());
                let problem =
                    format!("{} of {place}, written at {at:.3} s", effect.chain.join(", "));
                verdict.add(Promise::NothingLost, problem);
            }
        }
    }
}

pub(super) fn invented(history: &History, verdict: &mut Verdict) {
    let called_for: HashSet<&str> = history
        .written
        .iter()
        .flat_map(|record| &record.effects)
        .flat_map(|effect| &effect.chain)
        .map(String::as_str)
        .collect();
    for arrival in &history.arrivals {
        // Every award asks this first.
        let asked = arrival.what.starts_with("calc_currency_for_source:");
        if !asked && !called_for.contains(&*arrival.what) {
            let (what, at) = (&arrival.what, arrival.at.as_secs_f64());
            let content = arrival.content.as_deref().unwrap_or_default();
            verdict.add(Promise::NothingInvented, format!("{what} at {at:.3} s: {content}"));
        }
    }
}

/// The effects of a key must arrive in the order of its records, and those of one effect in their
/// own. A repeat of an earlier one may come later: only what comes for the first time counts.
pub(super) fn order(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
    let mut last: HashMap<(&str, &str), (usize, &str)> = HashMap::new();
    for record in history.written.iter().filter(|record| !record.copy) {
        let mut own: HashMap<(&str, &str), (usize, &str)> = HashMap::new();
        for effect in &record.effects {
            let Some(key) = &effect.order else { continue };
            let key = (effect.consumer, key.as_str());
            let mut earlier = last.get(&key).copied();
            for name in &effect.chain {
                let first = arrivals.of(name).first();
                let Some((number, first)) = first.filter(|(_, a)| a.kind == Kind::Event) else {
                    continue;
                };
                if let Some((_, earlier)) = earlier.filter(|(before, _)| before > number) {
                    let at = first.at.as_secs_f64();
                    verdict.add(Promise::Order, format!("{name} at {at:.3} s before {earlier}"));
                }
                earlier = Some((*number, name));
                let latest = own.entry(key).or_default();
                *latest = (*latest).max((*number, name));
            }
        }
        last.extend(own);
    }
}

pub(super) fn content(history: &History, arrivals: &Arrivals<'_>, verdict: &mut Verdict) {
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

/// Times are equal whatever their notation.
fn same(found: &Value, expected: &Value) -> bool {
    let time = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
    found == expected || time(found).is_some_and(|found| Some(found) == time(expected))
}
