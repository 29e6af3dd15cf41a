//! Members that break one promise each, through the library's public seams. The run shows that the
//! checker finds exactly these. A member that breaks none is the control.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use crm_event_processors::app::{App, RunError, Stores};
use crm_event_processors::cdc::{Change, DecodeError, Record};
use crm_event_processors::clients::SetupError;
use crm_event_processors::clients::inngest::{Events, Inngest, InngestConfig};
use crm_event_processors::config::{self, Settings};
use crm_event_processors::consumers::entry::{AnyConsumer, Dependencies};
use crm_event_processors::consumers::marketplace::{self, Marketplace, Work};
use crm_event_processors::consumers::registry::{self, CONSUMERS};
use crm_event_processors::dedup::{ClaimOp, ClaimReply, Op, Reply, Store, StoreUnavailable};
use crm_event_processors::engine::{
    Consumer, Context, Failure, Lane, Observed, Observer, Outcome, Route, Steps,
};
use crm_event_processors::fakes::Fault;
use crm_event_processors::outage::{Backoff, Breaker, Breakers};
use crm_event_processors::telemetry::logs;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::checker::{Promise, Verdict};
use crate::plan::{self, Act};

/// Which promise a member breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    /// Breaks none
    Nothing,
    /// Outcomes before the work is done: offsets are committed too early
    CommitsEarly,
    /// Claims in one phase: whatever was claimed counts as done
    OnePhaseClaims,
    /// A lane for each record: no order
    NoLanes,
    /// Claims that everybody gets, always
    NoClaims,
    /// As many records in hand as there are: a matter of settings
    NoBounds,
}

impl Sabotage {
    /// What the checker must find.
    fn breaks(self) -> &'static [Promise] {
        match self {
            Self::Nothing => &[],
            Self::CommitsEarly | Self::OnePhaseClaims => {
                &[Promise::NothingLost, Promise::CommitBehindOutcome]
            }
            Self::NoLanes => &[Promise::Order],
            Self::NoClaims => &[Promise::NothingTwice],
            Self::NoBounds => &[Promise::Stores],
        }
    }

    /// What may be broken besides.
    fn entails(self) -> &'static [Promise] {
        match self {
            Self::Nothing | Self::NoClaims | Self::NoBounds => &[],
            // A copy does not wait for its original, whose claim Redis may forget meanwhile.
            Self::NoLanes => &[Promise::NothingTwice],
            // It claims nothing, and does not wait before the next record of the lane.
            Self::CommitsEarly => &[Promise::NothingTwice, Promise::Order],
            // A refund waits until the claim of an award that never came runs out.
            Self::OnePhaseClaims => &[Promise::CatchUp, Promise::Conduct],
        }
    }

    /// Broken promises that the checker missed, and others that it reports.
    pub(crate) fn objections(self, verdict: &Verdict) -> Vec<String> {
        let unbroken = self.breaks().iter().filter(|promise| verdict.broken(**promise) == 0);
        let unbroken = unbroken.map(|promise| format!("NOT FOUND: {promise:?}"));
        let broken = verdict.problems.keys();
        let others = broken.filter(|promise| {
            !self.breaks().contains(promise) && !self.entails().contains(promise)
        });
        unbroken.chain(others.map(|promise| format!("NOT KEPT: {promise:?}"))).collect()
    }

    /// Its name on the command line.
    pub(crate) fn argument(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// A plan that exposes every sabotage but that an honest daemon gets through. Of two members one is
/// killed again and again. Inngest resets connections, at the kills and in between. Then Redis
/// forgets everything and a connector sends everything again: what was committed before must be
/// recognised by its place in the log.
pub(crate) fn plan(records: usize, rate: f64) -> plan::Plan {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
    let at = |seconds: f64| (seconds * rate) as usize;
    let kill = Act::Kill { down: Duration::from_millis(300) };
    let reset = |ms| Act::Inngest { fault: Fault::Reset, time: Duration::from_millis(ms) };
    let mut plan = plan::Plan {
        members: vec![Vec::new(), Vec::new()],
        // A static member works again right after a kill, so that it has something in flight at the
        // next one.
        static_members: true,
        redis: vec![(at(7.0), Act::EmptyRedis)],
        replays: vec![at(10.0)],
        ..plan::Plan::default()
    };
    for round in (1..).map(|round| 3.0 * f64::from(round)).take_while(|time| at(*time) < records) {
        plan.inngest.push((at(round - 1.5), reset(400)));
        plan.inngest.push((at(round - 0.5), reset(1_000)));
        plan.members[0].push((at(round), kill.clone()));
    }
    plan
}

/// What fills a member's hands: Inngest takes nothing while a backlog of large records grows.
pub(crate) fn backlog() -> plan::Plan {
    let outage = Act::Inngest { fault: Fault::status(503), time: Duration::from_secs(12) };
    plan::Plan { members: vec![Vec::new()], inngest: vec![(1, outage)], ..plan::Plan::default() }
}

/// Runs a member with this sabotage until it is asked to stop.
pub(crate) async fn member(sabotage: Sabotage) -> Result<(), RunError> {
    let loaded = registry::load(&config::process_environment(), Path::new(""));
    let settings: Settings = *loaded.settings.expect("sound settings");
    logs::init(&settings.log).expect("a log");
    let stores = |settings: &Settings, breakers: &Breakers| {
        let mut stores = Stores::redis(settings, breakers)?;
        if matches!(sabotage, Sabotage::OnePhaseClaims | Sabotage::NoClaims) {
            stores.claims = Box::new(Unsound { store: stores.claims, sabotage });
        }
        Ok(stores)
    };
    let mut registry = CONSUMERS;
    for entry in registry.iter_mut().filter(|entry| *entry.spec == marketplace::SPEC) {
        entry.build = match sabotage {
            Sabotage::CommitsEarly => early,
            Sabotage::NoLanes => no_lanes,
            _ => entry.build,
        };
    }
    let app = App::build(settings, &registry, stores, Arc::new(Nobody))?;
    let (stop, signals) = mpsc::channel(1);
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be handled");
    tokio::spawn(async move {
        while terminate.recv().await.is_some() && stop.send(()).await.is_ok() {}
    });
    app.run(signals).await
}

fn early(parts: &Dependencies<'_>) -> Result<Arc<dyn AnyConsumer>, SetupError> {
    let Settings { inngest, engine, .. } = parts.settings;
    let config = InngestConfig::new(inngest.base_url.clone(), inngest.event_key.clone());
    let backoff = Backoff { base: engine.backoff_base, max: engine.backoff_max };
    let breaker = Arc::new(Breaker::new("inngest", engine.breaker_threshold, backoff));
    let inngest = Inngest::start(&config, breaker).expect("a usable address");
    Ok(Arc::new(Twisted { honest: honest(parts), twist: Twist::Early(inngest) }))
}

fn no_lanes(parts: &Dependencies<'_>) -> Result<Arc<dyn AnyConsumer>, SetupError> {
    Ok(Arc::new(Twisted { honest: honest(parts), twist: Twist::NoLanes(AtomicU64::new(0)) }))
}

fn honest(parts: &Dependencies<'_>) -> Marketplace {
    Marketplace { sender: parts.sender.clone() }
}

struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _: &'static str, _: &Observed<'_>) {}
}

/// A marketplace consumer that departs from the honest one at one point.
struct Twisted {
    honest: Marketplace,
    twist: Twist,
}

enum Twist {
    /// Reports a record as done, and only then does it.
    Early(Inngest),
    /// Gives every record a lane of its own; counts them.
    NoLanes(AtomicU64),
}

impl Consumer for Twisted {
    type Work = Work;

    fn route(&self, change: &Change<'_>, now: Timestamp) -> Result<Route<Work>, DecodeError> {
        self.honest.route(change, now)
    }

    fn route_command(&self, record: &Record<'_>) -> Result<Route<Work>, DecodeError> {
        let route = self.honest.route_command(record)?;
        Ok(match (route, &self.twist) {
            (Route::Process { work, .. }, Twist::NoLanes(records)) => {
                let lane = Lane::in_partition(records.fetch_add(1, Ordering::Relaxed));
                Route::Process { work, lane }
            }
            (route, _) => route,
        })
    }

    fn steps(&self, work: &Work) -> Steps {
        self.honest.steps(work)
    }

    async fn process(&self, cx: &Context, work: &Work) -> Result<Outcome, Failure> {
        let Twist::Early(inngest) = &self.twist else {
            return self.honest.process(cx, work).await;
        };
        let id = work.id().to_owned();
        let parts: Vec<&str> = id.split(':').collect();
        let [name, platform, shop, order, status] = parts[..] else {
            unreachable!("an id of five parts")
        };
        let data = json!({
            "shop_id": shop, "order_sn": order, "order_status": status, "platform": platform,
        });
        let events = Events::one(name, Some(&id), &data).expect("an event");
        let inngest = inngest.clone();
        tokio::spawn(async move { inngest.send(events).await });
        Ok(Outcome::Sent)
    }
}

/// Unsound claims. One kind is a plain `SET NX` before the work: whatever anybody has claimed
/// counts as done. The other grants every claim.
struct Unsound {
    store: Box<dyn Store>,
    sabotage: Sabotage,
}

impl Store for Unsound {
    fn execute<'a>(&'a self, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Reply>, StoreUnavailable>> {
        Box::pin(async move {
            let mut replies = Vec::with_capacity(ops.len());
            for op in ops {
                if let Op::Claim(ClaimOp::Take { key, .. }) = op {
                    if self.sabotage == Sabotage::NoClaims {
                        replies.push(Reply::Claim(ClaimReply::Granted));
                        continue;
                    }
                    let read = [Op::Claim(ClaimOp::Look { key: key.clone(), asker: None })];
                    if self.store.execute(&read).await? != [Reply::Claim(ClaimReply::Free)] {
                        let done = ClaimReply::Done { accepted_ms: 0, due_ms: 0 };
                        replies.push(Reply::Claim(done));
                        continue;
                    }
                }
                replies.append(&mut self.store.execute(std::slice::from_ref(op)).await?);
            }
            Ok(replies)
        })
    }
}
