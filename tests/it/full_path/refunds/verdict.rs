//! The plays' results: balances in the wallet, shares in the events, and dead letters, play by
//! play.

use std::collections::{BTreeMap, BTreeSet};

use crm_event_processors::fakes::Log;
use serde_json::Value;

use super::play::{Cents, Op, Play};
use super::stage::Stage;

/// The rounding error of four percentages of six places.
const ROUNDED: f64 = 0.000_004;

/// One event id with its data; copies were compared.
struct Event {
    id: String,
    data: Value,
}

/// What was sent about one source.
#[derive(Default)]
struct Sent {
    awards: Vec<Event>,
    /// Of it, or of parts of it.
    reverses: Vec<Event>,
    cancels: usize,
}

/// Plays of one act, and whether Redis was emptied between their steps.
pub(super) struct Act {
    pub(super) name: String,
    pub(super) plays: Vec<Play>,
    pub(super) emptied: bool,
}

/// Compares all plays with their results.
///
/// # Panics
/// If anything is wrong, with all of it.
pub(super) async fn judge(stage: &Stage, acts: &[Act]) {
    let forgotten = acts.iter().filter(|act| act.emptied).flat_map(|act| &act.plays);
    let forgotten: BTreeSet<&str> = forgotten.map(|play| &*play.id).collect();
    let (sent, mut wrong) = stage.fake.inspect(|log| collect(log, &forgotten));
    let left = balances(stage).await;
    let letters = stage.letters().await;
    let mut expected = 0;
    for act in acts {
        for play in &act.plays {
            let none = Sent::default();
            let sent = sent.get(&play.id).unwrap_or(&none);
            let mut case = Case { play, act, sent, letters: Vec::new(), wrong: Vec::new() };
            expected += case.letters(&letters);
            case.left(left.get(&play.user).copied().unwrap_or_default());
            case.shares();
            case.awards();
            let about = |what: String| {
                let reverses: Vec<_> =
                    sent.reverses.iter().map(|e| (&e.id, &e.data["refund_percentage"])).collect();
                format!(
                    "{}: {}: {what}\n    {:?} of {:?}, {} awards, {} cancels, {reverses:?}",
                    act.name,
                    play.name,
                    play.ops,
                    play.debits.iter().map(|debit| debit.amount).collect::<Vec<_>>(),
                    sent.awards.len(),
                    sent.cancels
                )
            };
            wrong.extend(case.wrong.into_iter().map(about));
        }
    }
    if letters.len() != expected {
        wrong.push(format!("{} dead letters, not {expected}", letters.len()));
    }
    let plays: usize = acts.iter().map(|act| act.plays.len()).sum();
    println!("{plays} plays, {} dead letters, {} wrong", letters.len(), wrong.len());
    assert!(wrong.is_empty(), "{} of {plays} plays:\n{}", wrong.len(), wrong.join("\n"));
}

/// Events by the source that they are about, and what is wrong with their copies.
///
/// Without claims and the row before, an edit of a young row gives its award again under the same
/// id, due by its own commit: Inngest knows the id for a day and drops it.
fn collect(log: &Log, forgotten: &BTreeSet<&str>) -> (BTreeMap<String, Sent>, Vec<String>) {
    let (mut sent, mut wrong) = (BTreeMap::<String, Sent>::new(), Vec::new());
    let mut seen = BTreeMap::<String, Value>::new();
    for event in &log.events {
        let data: Value =
            serde_json::from_str(event.data.as_deref().expect("data is kept")).expect("json");
        let text = |field: &str| data[field].as_str().map(str::to_owned);
        let source = text("source_id").expect("a source");
        let of = sent.entry(text("original_source_id").unwrap_or(source)).or_default();
        let Some(id) = event.id.as_deref() else {
            assert_eq!(&*event.name, "currency/cancelled", "it alone has no id");
            of.cancels += 1;
            continue;
        };
        if let Some(first) = seen.get(id) {
            if *first != data {
                let differs = |field: &&String| first[field.as_str()] != data[field.as_str()];
                let fields = data.as_object().into_iter().flat_map(|data| data.keys());
                let fields: Vec<_> = fields.filter(differs).collect();
                let of = data["source_id"].as_str().unwrap_or_default();
                if fields == ["award_datetime"] && forgotten.contains(of) {
                    continue;
                }
                wrong.push(format!("copies of {id} differ in {fields:?}"));
            }
            continue;
        }
        seen.insert(id.to_owned(), data.clone());
        let event_of = Event { id: id.to_owned(), data };
        match &*event.name {
            "currency/award" => of.awards.push(event_of),
            "currency/reverse" => of.reverses.push(event_of),
            other => wrong.push(format!("an event {other}")),
        }
    }
    (sent, wrong)
}

/// Points by member.
async fn balances(stage: &Stage) -> BTreeMap<String, Cents> {
    const SUMS: &str =
        "SELECT user_id::text, (100 * sum(signed_amount))::bigint FROM wallet_ledger GROUP BY 1";
    let rows = stage.crm.query(SUMS, &[]).await.expect("balances");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

struct Case<'a> {
    play: &'a Play,
    act: &'a Act,
    sent: &'a Sent,
    /// Rows that are set aside: 0 for the purchase, debits counted from 1.
    letters: Vec<usize>,
    wrong: Vec<String>,
}

impl Case<'_> {
    /// Notes the dead letters of this play's rows, and returns how many it may have.
    fn letters(&mut self, letters: &[(String, String)]) -> usize {
        let mut found = 0;
        for row in 0..=self.play.debits.len() {
            let id = format!("\"id\":\"{}\"", self.play.row(row));
            let of_row: Vec<_> = letters.iter().filter(|(_, value)| value.contains(&id)).collect();
            found += of_row.len();
            let expected =
                self.play.letters.iter().find(|(of, _)| *of == row).map(|(_, kind)| *kind);
            let unknown = self.act.emptied && self.play.merchant.sleeps();
            for (kind, _) in &of_row {
                self.letters.push(row);
                let right =
                    expected.is_some_and(|expected| expected.is_empty() || expected == kind);
                let nobody_knows = unknown && kind == "award_state_unknown";
                if !right && !nobody_knows {
                    self.wrong.push(format!("row {row} is set aside: {kind}"));
                }
            }
            if expected.is_some() && of_row.is_empty() {
                self.wrong.push(format!("row {row} is not set aside: {expected:?}"));
            }
        }
        found
    }

    fn left(&mut self, found: Cents) {
        let set_aside: BTreeSet<_> =
            self.letters.iter().filter_map(|row| row.checked_sub(1)).collect();
        let outcome = self.play.outcome(&set_aside);
        // A purchase that no longer counts when its award is calculated earns nothing.
        let never = !outcome.counts && self.sent.awards.is_empty();
        let left = if never {
            0
        } else if outcome.awards != 1 || outcome.whole || set_aside.is_empty() || !self.act.emptied
        {
            outcome.left
        } else {
            // A debit that is a dead letter takes nothing yet, and others leave room for it.
            #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
            let taken = (self.play.amount as f64 * self.percent() / 100.0).round() as Cents;
            self.play.amount - taken
        };
        if found != left {
            self.wrong.push(format!("{found} left, not {left}"));
        }
    }

    /// What the events take together.
    fn percent(&self) -> f64 {
        let percent = |event: &Event| match &event.data["refund_percentage"] {
            Value::Null => 100.0,
            share => share.as_f64().unwrap_or(f64::NAN),
        };
        self.sent.reverses.iter().map(percent).sum::<f64>() + 0.0
    }

    /// Checks the events' shares, whatever a wallet would make of them.
    fn shares(&mut self) {
        let sum = self.percent();
        let outcome = self.play.outcome(&BTreeSet::new());
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let taken = 100.0 * outcome.taken as f64 / self.play.amount as f64;
        let parts = if outcome.whole { 0.0 } else { taken };
        let most = (f64::from(outcome.wholes) * 100.0 + parts).max(100.0);
        if sum.is_nan() || sum > most + ROUNDED {
            self.wrong.push(format!("{sum} per cent are taken, more than {most}"));
        }
        let once = outcome.awards == 1 && self.sent.awards.len() == 1 && self.letters.is_empty();
        let due = if outcome.whole { 100.0 } else { parts };
        if once && (sum - due).abs() > ROUNDED {
            self.wrong.push(format!("{sum} per cent are taken, not {due}"));
        }
    }

    fn awards(&mut self) {
        let outcome = self.play.outcome(&BTreeSet::new());
        let most = if self.is_purchase() { outcome.awards as usize } else { 1 };
        if self.sent.awards.len() > most {
            self.wrong.push(format!("{} awards, not {most}", self.sent.awards.len()));
        }
        let none_lost = self.letters.is_empty() && outcome.counts;
        if none_lost && self.sent.awards.is_empty() && outcome.awards > 0 {
            self.wrong.push("no award".to_owned());
        }
        let kind = self.sent.awards.first().and_then(|award| award.data["source_type"].as_str());
        let first = format!("currency/award:{}:{}", kind.unwrap_or_default(), self.play.id);
        for award in &self.sent.awards {
            let again = award.id.strip_prefix(&first);
            if again.is_none_or(|again| !again.is_empty() && !again.starts_with(":again:")) {
                self.wrong.push(format!("an award with id {}", award.id));
            }
        }
    }

    fn is_purchase(&self) -> bool {
        matches!(self.play.ops[0], Op::Buy(_))
    }
}
