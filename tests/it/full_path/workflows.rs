//! What Inngest's workflows do about currency: credit the wallet, and take back.
//!
//! Like the real ones, in small. An award that is due is credited; a delayed one sleeps until its
//! time or its cancel. An event id runs once; an event with a time runs at that time. A reverse
//! takes back its share of what was credited for the source. The test wakes what sleeps longer than
//! it lasts, in the order of the due times.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crm_event_processors::fakes::{Fake, Stored};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// How long the credit of a due award takes. A reverse that comes earlier finds nothing.
const CREDIT_TAKES: SignedDuration = SignedDuration::from_millis(250);
/// A cancel that comes sooner after its award than this finds no run yet, and is ignored for good.
const RUN_CREATED_AFTER: SignedDuration = SignedDuration::from_millis(500);
/// What is due within this time is waited for; the rest sleeps on.
const NEAR: SignedDuration = SignedDuration::from_secs(5);

/// The workflows' progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Events of the fake's log that they have handled.
    pub(super) handled: usize,
    /// Rows that they have written to the wallet.
    pub(super) written: u64,
    /// Awards that are asleep.
    pub(super) asleep: usize,
    /// Runs that are due soon.
    near: usize,
}

/// The running workflows. They end when dropped.
pub(super) struct Workflows {
    progress: watch::Receiver<Progress>,
    alarm: mpsc::UnboundedSender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Workflows {
    /// Runs them on whatever the fake accepts, in its order.
    pub(super) fn start(fake: Arc<Fake>, crm: Client) -> Self {
        let (tell, progress) = watch::channel(Progress::default());
        let (alarm, mut rings) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let started =
            Timestamp::now() - SignedDuration::try_from(fake.started().elapsed()).expect("short");
        let task = tokio::spawn(async move {
            let mut server =
                Server { crm, started, ran: BTreeSet::new(), runs: BTreeMap::new(), written: 0 };
            let mut handled = 0;
            loop {
                let ring = tokio::select! {
                    () = fake.until(|log| log.events.len() > handled) => None,
                    () = tokio::time::sleep(Duration::from_millis(50)) => None, // a run may be due
                    ring = rings.recv() => ring,
                };
                let came: Vec<_> = fake.inspect(|log| log.events[handled..].to_vec());
                handled += came.len();
                for event in came {
                    server.take(event).await;
                }
                server
                    .run_until(if ring.is_some() { Timestamp::MAX } else { Timestamp::now() })
                    .await;
                tell.send_replace(server.progress(handled));
                if let Some(woken) = ring {
                    woken.send(()).expect("somebody waits for it");
                }
            }
        });
        Self { progress, alarm, task }
    }

    /// Waits until they have handled this many events, and nothing is due soon.
    pub(super) async fn handled(&self, events: usize) -> Progress {
        let mut progress = self.progress.clone();
        let done = |progress: &Progress| progress.handled >= events && progress.near == 0;
        *progress.wait_for(done).await.expect("the workflows run")
    }

    /// Lets the time pass until every sleeper has woken, and waits until nothing sleeps any more.
    pub(super) async fn wake(&self) {
        let (woken, wait) = oneshot::channel();
        self.alarm.send(woken).expect("the workflows run");
        wait.await.expect("the workflows run");
    }
}

impl Drop for Workflows {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One run that waits for its time.
struct Run {
    event: Stored,
    data: Value,
    delayed: bool,
}

struct Server {
    crm: Client,
    /// When the fake started: its log counts from then.
    started: Timestamp,
    /// Ids that ran: a repeat starts no second run.
    ran: BTreeSet<Box<str>>,
    /// Ordered by due time, then by arrival.
    runs: BTreeMap<(Timestamp, usize), Run>,
    written: u64,
}

impl Server {
    fn progress(&self, handled: usize) -> Progress {
        let soon = Timestamp::now() + NEAR;
        Progress {
            handled,
            written: self.written,
            asleep: self.runs.values().filter(|run| run.delayed).count(),
            near: self.runs.range(..(soon, 0)).count(),
        }
    }

    async fn take(&mut self, event: Stored) {
        let came = self.came(&event);
        // Runs that were due before it came are finished by then.
        self.run_until(came).await;
        let data: Value =
            serde_json::from_str(event.data.as_deref().expect("data is kept")).expect("json");
        let delayed = data["is_delayed"] == true;
        let due = match &*event.name {
            "currency/award" if delayed => time(&data["award_datetime"]),
            "currency/award" => came + CREDIT_TAKES,
            "currency/reverse" => {
                let ts = event.ts.map(|ts| Timestamp::from_millisecond(ts).expect("a time"));
                ts.map_or(came, |ts| ts.max(came))
            }
            "currency/cancelled" => {
                let started = self.started;
                self.runs.retain(|_, run| {
                    let ran = came.duration_since(started + as_signed(run.event.at));
                    let of_source = run.data["source_type"] == data["source_type"]
                        && run.data["source_id"] == data["source_id"];
                    !(&*run.event.name == "currency/award" && of_source && ran >= RUN_CREATED_AFTER)
                });
                return;
            }
            _ => return,
        };
        if event.id.as_ref().is_none_or(|id| self.ran.insert(id.clone())) {
            let order = self.ran.len();
            self.runs.insert((due, order), Run { event, data, delayed });
        }
    }

    fn came(&self, event: &Stored) -> Timestamp {
        self.started + as_signed(event.at)
    }

    async fn run_until(&mut self, now: Timestamp) {
        while let Some(first) = self.runs.first_entry() {
            if first.key().0 > now {
                return;
            }
            let Run { event, mut data, .. } = first.remove();
            data["event_id"] = json!(event.id);
            let sql = if &*event.name == "currency/award" { CREDIT } else { TAKE_BACK };
            let written = self.crm.execute(sql, &[&data.to_string()]).await;
            self.written += written.expect("the wallet takes it");
        }
    }
}

fn as_signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).expect("a short time")
}

fn time(value: &Value) -> Timestamp {
    value.as_str().expect("a time").parse().expect("RFC 3339")
}

const CREDIT: &str = "
    INSERT INTO wallet_ledger (merchant_id, user_id, currency, component, target_entity_id, source_type, source_id,
                               transaction_type, amount, signed_amount, balance_before, balance_after, metadata)
    SELECT a.merchant_id, a.user_id, r.currency_type, r.component, r.target_entity_id, a.source_type, a.source_id,
           'earn', r.amount, r.amount, b.balance, b.balance + r.amount, jsonb_build_object('award', a.event_id)
    FROM json_to_record($1::text::json)
           AS a (merchant_id uuid, user_id uuid, source_type text, source_id uuid, currency_rows json, event_id text),
         json_to_recordset(a.currency_rows)
           AS r (currency_type wallet_currency, component wallet_component, amount numeric, target_entity_id uuid),
         LATERAL (SELECT coalesce(sum(w.signed_amount), 0) AS balance FROM wallet_ledger w
                  WHERE w.user_id = a.user_id AND w.merchant_id = a.merchant_id AND w.currency = r.currency_type) b";

/// Takes back from the source's latest award. Shares are added up before rounding, or three thirds
/// would leave a rest. They end at the whole award.
const TAKE_BACK: &str = "
    WITH e AS (
      SELECT source_type, source_id, coalesce(original_source_id, source_id) AS original,
             coalesce(refund_percentage, 100) AS percent, event_id
      FROM json_to_record($1::text::json)
             AS e (source_type text, source_id uuid, original_source_id uuid, refund_percentage numeric, event_id text)
    ), credited AS (
      SELECT w.*, rank() OVER (ORDER BY w.created_at DESC) AS age FROM wallet_ledger w, e
      WHERE w.source_type = e.source_type AND w.source_id = e.original AND w.component <> 'reversal'
    )
    INSERT INTO wallet_ledger (merchant_id, user_id, currency, component, target_entity_id, source_type, source_id,
                               transaction_type, amount, signed_amount, balance_before, balance_after, metadata)
    SELECT w.merchant_id, w.user_id, w.currency, 'reversal', w.target_entity_id, e.source_type, e.source_id,
           'earn', s.share, -s.share, b.balance, b.balance - s.share,
           jsonb_build_object('of', w.id, 'percent', e.percent, 'reverse', e.event_id)
    FROM e, credited w,
         LATERAL (SELECT coalesce(sum((r.metadata ->> 'percent')::numeric), 0) AS percent,
                         coalesce(sum(r.amount), 0) AS amount
                  FROM wallet_ledger r WHERE r.metadata ->> 'of' = w.id::text) taken,
         LATERAL (SELECT round(w.amount * least(taken.percent + e.percent, 100) / 100, 2) - taken.amount AS share) s,
         LATERAL (SELECT sum(o.signed_amount) AS balance FROM wallet_ledger o
                  WHERE o.user_id = w.user_id AND o.merchant_id = w.merchant_id AND o.currency = w.currency) b
    WHERE w.age = 1 AND s.share > 0";
