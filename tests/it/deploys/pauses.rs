//! Prints the longest time that a partition stood still. Never asserts it, since it depends on the
//! machine and its other load.

use std::collections::BTreeMap;
use std::time::Duration;

use crm_event_processors::fakes::Log;

use super::fleet::Place;
use super::rolling::{Deploy, Step};
use super::traffic::{Spot, name_of, spot_of};

/// Longest pauses in steps of one kind.
#[derive(Default)]
struct Longest {
    stayed: Duration,
    moved: Duration,
    partitions_moved: usize,
}

/// Prints the longest pauses for each kind of step: of partitions that stayed, and of those that
/// moved.
pub(super) fn report(protocol: &str, shape: &str, deploy: &Deploy, log: &Log) {
    let mut accepted: BTreeMap<Spot, Vec<Duration>> = BTreeMap::new();
    for event in &log.events {
        accepted.entry(spot_of(&name_of(event))).or_default().push(event.at);
    }
    let mut longest: BTreeMap<&str, Longest> = BTreeMap::new();
    for step in &deploy.steps {
        let longest = longest.entry(step.what).or_default();
        for (spot, place) in deploy.spots() {
            let pause = longest_within(&accepted[&spot], step);
            if has_moved(step, &place) {
                longest.moved = longest.moved.max(pause);
                longest.partitions_moved += 1;
            } else {
                longest.stayed = longest.stayed.max(pause);
            }
        }
    }
    println!("{protocol:9} {shape:12} step   longest pause: stayed   moved (partitions)");
    for (what, Longest { stayed, moved, partitions_moved }) in longest {
        let (stayed, moved) = (stayed.as_secs_f64(), moved.as_secs_f64());
        println!(
            "{protocol:9} {shape:12} {what:6} {stayed:21.2} s {moved:6.2} s ({partitions_moved})"
        );
    }
}

fn has_moved(step: &Step, place: &Place) -> bool {
    step.before.get(place) != step.after.get(place)
}

/// The longest time between two events of one partition that ended in a step: each lasts until
/// every partition goes on.
fn longest_within(accepted: &[Duration], step: &Step) -> Duration {
    let pairs = accepted.windows(2).map(|pair| (pair[0], pair[1]));
    let ended = pairs.filter(|(_, to)| *to > step.from && *to <= step.to);
    ended.map(|(from, to)| to - from).max().unwrap_or_default()
}
