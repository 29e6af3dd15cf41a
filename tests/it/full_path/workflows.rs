//! What Inngest's workflows do about currency: credit the wallet, and take back.
//!
//! As the real ones do it, in small: an award that is due is credited, one that is delayed sleeps until its cancel; an
//! event id runs once; a reverse takes back the share of what was credited for its source.

use std::collections::BTreeSet;
use std::sync::Arc;

use crm_event_processors::double::Double;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// How far the workflows are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Events of the double's log that they have handled.
    pub(super) handled: usize,
    /// Rows that they have written to the wallet.
    pub(super) written: u64,
    /// Awards that sleep.
    pub(super) asleep: usize,
}

/// The running workflows. They end when dropped.
pub(super) struct Workflows {
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

impl Workflows {
    /// Runs them on whatever the double accepts, in its order.
    pub(super) fn start(double: Arc<Double>, crm: Client) -> Self {
        let (tell, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(async move {
            let (mut ran, mut asleep) = (BTreeSet::new(), BTreeSet::new());
            let mut now = Progress::default();
            loop {
                double.until(|log| log.events.len() > now.handled).await;
                let (name, id, data) = double.inspect(|log| {
                    let event = &log.events[now.handled];
                    let data = event.data.as_deref().expect("data is kept");
                    let data: Value = serde_json::from_str(data).expect("json");
                    (event.name.clone(), event.id.clone(), data)
                });
                let source = || (data["source_type"].to_string(), data["source_id"].to_string());
                let first = id.is_none_or(|id| ran.insert(id));
                match &*name {
                    "currency/award" if first && data["is_delayed"] == true => {
                        asleep.insert(source());
                    }
                    "currency/award" if first => now.written += credit(&crm, &data).await,
                    "currency/cancelled" => {
                        asleep.remove(&source());
                    }
                    "currency/reverse" if first => now.written += take_back(&crm, &data).await,
                    _ => {}
                }
                now.handled += 1;
                now.asleep = asleep.len();
                tell.send_replace(now);
            }
        });
        Self { progress, task }
    }

    /// Waits until they have handled so many events.
    pub(super) async fn handled(&self, events: usize) -> Progress {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| progress.handled >= events).await;
        *reached.expect("the workflows run")
    }
}

impl Drop for Workflows {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const CREDIT: &str = "
    INSERT INTO wallet_ledger (merchant_id, user_id, currency, component, target_entity_id, source_type, source_id,
                               transaction_type, amount, signed_amount, balance_before, balance_after)
    SELECT a.merchant_id, a.user_id, r.currency_type, r.component, r.target_entity_id, a.source_type, a.source_id,
           'earn', r.amount, r.amount, b.balance, b.balance + r.amount
    FROM json_to_record($1::text::json)
           AS a (merchant_id uuid, user_id uuid, source_type text, source_id uuid, currency_rows json),
         json_to_recordset(a.currency_rows)
           AS r (currency_type wallet_currency, component wallet_component, amount numeric, target_entity_id uuid),
         LATERAL (SELECT coalesce(sum(w.signed_amount), 0) AS balance FROM wallet_ledger w
                  WHERE w.user_id = a.user_id AND w.merchant_id = a.merchant_id AND w.currency = r.currency_type) b";

const TAKE_BACK: &str = "
    INSERT INTO wallet_ledger (merchant_id, user_id, currency, component, target_entity_id, source_type, source_id,
                               transaction_type, amount, signed_amount, balance_before, balance_after)
    SELECT w.merchant_id, w.user_id, w.currency, 'reversal', w.target_entity_id, e.source_type, e.source_id,
           'earn', s.share, -s.share, b.balance, b.balance - s.share
    FROM json_to_record($1::text::json)
           AS e (source_type text, source_id uuid, original_source_id uuid, refund_percentage numeric),
         wallet_ledger w,
         LATERAL (SELECT round(w.amount * coalesce(e.refund_percentage, 100) / 100, 2) AS share) s,
         LATERAL (SELECT sum(o.signed_amount) AS balance FROM wallet_ledger o
                  WHERE o.user_id = w.user_id AND o.merchant_id = w.merchant_id AND o.currency = w.currency) b
    WHERE w.source_type = e.source_type AND w.source_id = coalesce(e.original_source_id, e.source_id)
      AND w.component <> 'reversal'";

async fn credit(crm: &Client, award: &Value) -> u64 {
    crm.execute(CREDIT, &[&award.to_string()]).await.expect("the wallet takes an award")
}

async fn take_back(crm: &Client, reverse: &Value) -> u64 {
    crm.execute(TAKE_BACK, &[&reverse.to_string()]).await.expect("the wallet takes a reversal")
}
