//! Lanes: order per key, parallel across keys.
//!
//! Pure. A lane is the order domain of one key. It runs one job at a time; what waits behind it
//! stays in order. A lane that merely waits (settle time, retry pause, open breaker) is *parked*:
//! it holds no task and no permit. Lanes are named by a hash, and two keys that share one are
//! merely less parallel. Empty lanes are forgotten.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

/// Names a lane: a hash of its key and, where order is per partition, of the partition.
pub type LaneId = u64;

#[derive(Debug)]
enum State<J> {
    /// In the ready queue, with the job that comes next.
    Ready(J),
    /// Its job was handed out.
    Running,
    /// Waiting until the key of `parked`, with the job that comes next.
    Parked { job: J, key: (Instant, u64) },
}

#[derive(Debug)]
struct Lane<J> {
    state: State<J>,
    behind: VecDeque<J>,
}

/// All lanes of one consumer.
#[derive(Debug)]
pub struct Lanes<J> {
    lanes: HashMap<LaneId, Lane<J>, ahash::RandomState>,
    ready: VecDeque<LaneId>,
    parked: BTreeMap<(Instant, u64), LaneId>,
    sequence: u64,
    running: usize,
}

impl<J> Default for Lanes<J> {
    fn default() -> Self {
        Self {
            lanes: HashMap::default(),
            ready: VecDeque::new(),
            parked: BTreeMap::new(),
            sequence: 0,
            running: 0,
        }
    }
}

impl<J> Lanes<J> {
    /// Adds a job at the end of its lane. `merge` may take it into the job that waits last there
    /// (never into one that runs) and gives back what it does not take.
    pub fn push(&mut self, id: LaneId, job: J, merge: impl FnOnce(&mut J, J) -> Option<J>) {
        match self.lanes.entry(id) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Lane { state: State::Ready(job), behind: VecDeque::new() });
                self.ready.push_back(id);
            }
            std::collections::hash_map::Entry::Occupied(mut occupied) => {
                let lane = occupied.get_mut();
                let last = match (&mut lane.state, lane.behind.back_mut()) {
                    (_, Some(last)) => Some(last),
                    (State::Ready(job) | State::Parked { job, .. }, None) => Some(job),
                    (State::Running, None) => None,
                };
                let rest = match last {
                    Some(last) => merge(last, job),
                    None => Some(job),
                };
                lane.behind.extend(rest);
            }
        }
    }

    /// Hands out the job of the lane that has been ready longest.
    pub fn next_ready(&mut self) -> Option<(LaneId, J)> {
        while let Some(id) = self.ready.pop_front() {
            // A name can outlive its lane here, and meet a later lane of the same name.
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            match std::mem::replace(&mut lane.state, State::Running) {
                State::Ready(job) => {
                    self.running += 1;
                    return Some((id, job));
                }
                other => lane.state = other,
            }
        }
        None
    }

    /// The job that was handed out has its outcome: the lane goes on with the next.
    pub fn finish(&mut self, id: LaneId) {
        self.running = self.running.saturating_sub(1);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        match lane.behind.pop_front() {
            Some(job) => {
                lane.state = State::Ready(job);
                self.ready.push_back(id);
            }
            None => {
                self.lanes.remove(&id);
            }
        }
    }

    /// The job that was handed out must wait until `until`; its lane waits with it. `merge` may
    /// take in what came while it ran, as in [`Lanes::push`].
    pub fn park(
        &mut self,
        id: LaneId,
        mut job: J,
        until: Instant,
        mut merge: impl FnMut(&mut J, J) -> Option<J>,
    ) {
        self.running = self.running.saturating_sub(1);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        while let Some(next) = lane.behind.pop_front() {
            if let Some(rest) = merge(&mut job, next) {
                lane.behind.push_front(rest);
                break;
            }
        }
        self.sequence += 1;
        let key = (until, self.sequence);
        lane.state = State::Parked { job, key };
        self.parked.insert(key, id);
    }

    /// Makes ready what has waited long enough.
    pub fn wake(&mut self, now: Instant) {
        while let Some(entry) = self.parked.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let id = entry.remove();
            self.unpark(id);
        }
    }

    /// Makes ready every parked lane whose job fulfils `condition`.
    pub fn wake_where(&mut self, mut condition: impl FnMut(&J) -> bool) {
        let woken: Vec<((Instant, u64), LaneId)> = self
            .parked
            .iter()
            .filter(|(_, id)| match self.lanes.get(*id).map(|lane| &lane.state) {
                Some(State::Parked { job, .. }) => condition(job),
                _ => false,
            })
            .map(|(key, id)| (*key, *id))
            .collect();
        for (key, id) in woken {
            self.parked.remove(&key);
            self.unpark(id);
        }
    }

    fn unpark(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        match std::mem::replace(&mut lane.state, State::Running) {
            State::Parked { job, .. } => {
                lane.state = State::Ready(job);
                self.ready.push_back(id);
            }
            other => lane.state = other,
        }
    }

    /// Drops every job that is not running and not to be kept (its partition is given up). `keep`
    /// may shrink a job.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut J) -> bool) {
        let Self { lanes, ready, parked, .. } = self;
        lanes.retain(|id, lane| {
            lane.behind.retain_mut(&mut keep);
            let keep_head = match &mut lane.state {
                State::Running => return true,
                State::Ready(job) | State::Parked { job, .. } => keep(job),
            };
            if keep_head {
                return true;
            }
            if let State::Parked { key, .. } = &lane.state {
                parked.remove(key);
            }
            match lane.behind.pop_front() {
                Some(job) => {
                    if matches!(lane.state, State::Parked { .. }) {
                        ready.push_back(*id);
                    }
                    lane.state = State::Ready(job);
                    true
                }
                None => false,
            }
        });
    }

    /// When the next parked lane wants to go on.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        self.parked.first_key_value().map(|((until, _), _)| *until)
    }

    /// The jobs whose lanes are parked.
    pub fn parked(&self) -> impl Iterator<Item = &J> {
        self.parked.values().filter_map(|id| match &self.lanes.get(id)?.state {
            State::Parked { job, .. } => Some(job),
            _ => None,
        })
    }

    /// How many lanes are parked.
    #[must_use]
    pub fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// How many jobs are handed out.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Whether any lane is ready to hand out a job.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn separate<J>(_: &mut J, job: J) -> Option<J> {
        Some(job)
    }

    #[test]
    fn one_job_of_a_lane_runs_at_a_time_and_the_rest_stays_in_order() {
        let mut lanes = Lanes::default();
        for job in [(1, 'a'), (1, 'b'), (2, 'c')] {
            lanes.push(job.0, job.1, separate);
        }
        assert_eq!(lanes.next_ready(), Some((1, 'a')));
        assert_eq!(lanes.next_ready(), Some((2, 'c')));
        assert_eq!(lanes.next_ready(), None);
        lanes.finish(1);
        assert_eq!(lanes.next_ready(), Some((1, 'b')));
    }

    #[test]
    fn what_came_while_a_job_ran_is_merged_into_it_when_it_must_wait() {
        let mut lanes = Lanes::default();
        let now = Instant::now();
        lanes.push(1, vec!['a'], separate);
        let (id, job) = lanes.next_ready().expect("ready");
        for job in ['b', 'c', 'x', 'd'] {
            lanes.push(1, vec![job], separate);
        }
        lanes.park(id, job, now, |waiting, newer| {
            if newer == ['x'] {
                return Some(newer);
            }
            waiting.extend(newer);
            None
        });
        lanes.wake(now);
        assert_eq!(lanes.next_ready(), Some((1, vec!['a', 'b', 'c'])));
        for rest in ['x', 'd'] {
            lanes.finish(1);
            assert_eq!(lanes.next_ready(), Some((1, vec![rest])));
        }
    }

    #[test]
    fn a_parked_lane_waits_with_its_job_while_others_run() {
        let mut lanes = Lanes::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(30);
        lanes.push(1, 'a', separate);
        lanes.push(1, 'b', separate);
        let (id, job) = lanes.next_ready().expect("ready");
        lanes.park(id, job, later, separate);
        lanes.push(2, 'c', separate);
        assert_eq!(lanes.next_ready(), Some((2, 'c')));
        assert_eq!(lanes.next_ready(), None);
        assert_eq!(lanes.next_wake(), Some(later));
        lanes.wake(now);
        assert!(!lanes.has_ready());
        lanes.wake(later);
        assert_eq!(lanes.next_ready(), Some((1, 'a')));
    }

    #[test]
    fn waiting_jobs_merge_but_never_into_one_that_runs() {
        let merge = |last: &mut Vec<char>, mut job: Vec<char>| {
            last.append(&mut job);
            None
        };
        let mut lanes = Lanes::default();
        lanes.push(1, vec!['a'], merge);
        lanes.push(1, vec!['b'], merge);
        assert_eq!(lanes.next_ready(), Some((1, vec!['a', 'b'])));
        lanes.push(1, vec!['c'], merge);
        lanes.push(1, vec!['d'], merge);
        lanes.finish(1);
        assert_eq!(lanes.next_ready(), Some((1, vec!['c', 'd'])));
    }

    #[test]
    fn what_belongs_to_a_lost_partition_is_dropped_and_the_rest_goes_on() {
        let mut lanes = Lanes::default();
        for job in ['x', 'b', 'x', 'd'] {
            lanes.push(1, job, separate);
        }
        let (id, job) = lanes.next_ready().expect("ready");
        lanes.park(id, job, Instant::now() + Duration::from_secs(1), separate);
        lanes.retain(|job| *job != 'x');
        assert_eq!(lanes.parked_count(), 0);
        assert_eq!(lanes.next_ready(), Some((1, 'b')));
        lanes.finish(1);
        assert_eq!(lanes.next_ready(), Some((1, 'd')));
        lanes.finish(1);
        assert!(lanes.lanes.is_empty(), "empty lanes are forgotten");
    }

    proptest! {
        /// Whatever the schedule: jobs of a lane finish in order, none is lost, none runs beside
        /// another of its lane.
        #[test]
        fn order_holds_under_any_schedule(
            jobs in prop::collection::vec(0_u64..5, 1..60),
            choices in prop::collection::vec((0_u8..4, any::<prop::sample::Index>()), 0..400),
        ) {
            let mut lanes = Lanes::default();
            let start = Instant::now();
            let mut now = start;
            let mut waiting = jobs.iter().copied().enumerate();
            let mut running: Vec<(u64, usize)> = Vec::new();
            let mut finished: HashMap<u64, Vec<usize>> = HashMap::new();
            let mut finish = |lanes: &mut Lanes<usize>, id: u64, job: usize| {
                finished.entry(id).or_default().push(job);
                lanes.finish(id);
            };
            for (choice, pick) in choices {
                match choice {
                    0 => if let Some((number, lane)) = waiting.next() {
                        lanes.push(lane, number, separate);
                    },
                    1 => if let Some((id, job)) = lanes.next_ready() {
                        prop_assert!(running.iter().all(|(other, _)| *other != id));
                        running.push((id, job));
                    },
                    2 => if !running.is_empty() {
                        let (id, job) = running.swap_remove(pick.index(running.len()));
                        finish(&mut lanes, id, job);
                    },
                    _ => if !running.is_empty() {
                        let (id, job) = running.swap_remove(pick.index(running.len()));
                        lanes.park(id, job, now + Duration::from_millis(pick.index(50) as u64), separate);
                        now += Duration::from_millis(10);
                        lanes.wake(now);
                    },
                }
            }
            for (number, lane) in waiting {
                lanes.push(lane, number, separate);
            }
            lanes.wake(start + Duration::from_secs(60));
            for (id, job) in running {
                finish(&mut lanes, id, job);
            }
            while let Some((id, job)) = lanes.next_ready() {
                finish(&mut lanes, id, job);
            }
            prop_assert_eq!(finished.values().map(Vec::len).sum::<usize>(), jobs.len());
            for (id, order) in finished {
                prop_assert!(order.is_sorted());
                prop_assert!(order.iter().all(|job| jobs[*job] == id));
            }
        }
    }
}
