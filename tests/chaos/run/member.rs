//! What happens to members: each has a hand of its own.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::sleep;

use super::{GRACE, World};
use crate::history::{Disturbance, Harm};
use crate::members::Process;
use crate::plan::{Act, Steps};

/// How much longer than its grace a member may take to stop, on a busy machine.
const SLACK: Duration = Duration::from_secs(5);
/// The signal that asks a process to stop.
const SIGTERM: i32 = 15;
/// The one that ends it at once.
const SIGKILL: i32 = 9;

impl World {
    /// Does what the plan says to one member, and returns the process that runs at the end.
    pub(super) async fn member(
        self: Arc<Self>,
        number: usize,
        steps: Steps,
    ) -> (usize, u32, Process) {
        let (mut incarnation, mut process) = (0, None);
        if !matches!(steps.first(), Some((_, Act::Join))) {
            process = Some(self.start(number, &mut incarnation));
        }
        for (at, act) in steps {
            self.guard(number, &mut incarnation, &mut process, at).await;
            if self.over() && act != Act::Join {
                break;
            }
            process = Some(match process.take() {
                Some(running) => self.inject(number, &mut incarnation, running, act).await,
                None => self.start(number, &mut incarnation),
            });
        }
        self.guard(number, &mut incarnation, &mut process, self.records).await;
        let running = process.unwrap_or_else(|| self.start(number, &mut incarnation));
        (number, incarnation, running)
    }

    pub(super) fn start(&self, number: usize, incarnation: &mut u32) -> Process {
        *incarnation += 1;
        let name = format!("{number}.{incarnation}");
        let process = self.recipe.start(&name, self.static_members.then_some(number));
        self.note(Harm::Joined, Some(&name), self.clock.now(), format!("member {name} starts"));
        process
    }

    /// Waits until the load has come this far. The member must not end by itself meanwhile.
    async fn guard(
        &self,
        number: usize,
        incarnation: &mut u32,
        process: &mut Option<Process>,
        until: usize,
    ) {
        let mut progress = self.progress.subscribe();
        while *progress.borrow_and_update() < until {
            if let Some(running) = process {
                self.measure(running);
                if self.ended_by_itself(running) {
                    *process = Some(self.start(number, incarnation));
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) fn measure(&self, process: &Process) {
        if let Some(peak) = process.peak_memory() {
            self.notes().memory.insert(process.name.clone(), peak);
        }
    }

    pub(super) fn ended_by_itself(&self, process: &mut Process) -> bool {
        let Some(status) = process.ended() else { return false };
        self.note_end(process, status);
        true
    }

    fn note_end(&self, process: &Process, status: ExitStatus) {
        if !self.fenced(process, status) {
            let (at, name) = (self.clock.now().as_secs_f64(), &process.name);
            let incident = format!("member {name} ended by itself at {at:.3} s: {status}");
            self.notes().incidents.push(incident);
        }
    }

    /// A static member that stood still for longer than a session is fenced: the brokers take it
    /// for another with its name. It then ends, as behaviour.md says, and is started again.
    fn fenced(&self, process: &Process, status: ExitStatus) -> bool {
        let stood_still = |found: &Disturbance| {
            found.harm == Harm::Frozen && found.who.as_deref() == Some(&process.name)
        };
        self.static_members
            && status.code() == Some(70)
            && self.notes().disturbances.iter().any(stood_still)
    }

    async fn inject(
        &self,
        number: usize,
        incarnation: &mut u32,
        mut running: Process,
        act: Act,
    ) -> Process {
        self.measure(&running);
        if self.ended_by_itself(&mut running) {
            return self.start(number, incarnation);
        }
        let (from, name) = (self.clock.now(), running.name.clone());
        let text = format!("member {name} {act}");
        match act {
            Act::Kill { down } => {
                let status = running.kill();
                if status.signal() != Some(SIGKILL) {
                    self.note_end(&running, status);
                }
                self.note(Harm::Killed, Some(&name), from, text);
                sleep(down).await;
                self.start(number, incarnation)
            }
            Act::Stop { down } => {
                self.stop_one(&mut running).await;
                self.note(Harm::Stopped, Some(&name), from, text);
                sleep(down).await;
                self.start(number, incarnation)
            }
            Act::Freeze { time } => {
                running.freeze(time).await;
                self.note(Harm::Frozen, Some(&name), from, text);
                running
            }
            _ => running,
        }
    }

    async fn stop_one(&self, process: &mut Process) {
        let begun = process.has_begun();
        let asked = Instant::now();
        let status = process.stop().await;
        let took = asked.elapsed();
        let mut notes = self.notes();
        notes.slowest_stop = notes.slowest_stop.max(took);
        if took > GRACE + SLACK {
            notes.incidents.push(format!("member {} took {took:?} to stop", process.name));
        }
        drop(notes);
        if !begun && status.is_some_and(|status| status.signal() == Some(SIGTERM)) {
            return;
        }
        if !status.is_some_and(|status| status.success() || self.fenced(process, status)) {
            let (name, at) = (&process.name, self.clock.now().as_secs_f64());
            let ended = status.map_or("not at all".to_owned(), |status| status.to_string());
            self.notes().incidents.push(format!("member {name} stopped, at {at:.3} s: {ended}"));
        }
    }

    pub(super) async fn stop(&self, processes: Vec<(usize, u32, Process)>) {
        join_all(processes.into_iter().map(async |(_, _, mut process)| {
            self.measure(&process);
            self.stop_one(&mut process).await;
        }))
        .await;
    }
}
