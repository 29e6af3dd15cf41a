use std::sync::Mutex;

use bigdecimal::BigDecimal;
use serde_json::{Map, Value, json};

use super::work::{Debit, Refund, Source, Turn};
use super::*;
use crate::clients::redis::Cache;
use crate::consumers::testing::{ALL, Bench, Handle as _};
use crate::dedup::Moment;
use crate::fakes::Reply;

const SETTLE: Duration = Duration::from_secs(30);
const WHOLE: &str = "currency/reverse:purchase:p";

/// The consumer over ledgers that tests write. Each record is a change of its own.
struct Scene {
    bench: Bench,
    currency: Currency,
    ledger: Mutex<Vec<Map<String, Value>>>,
    wallet: Mutex<Vec<Map<String, Value>>>,
    next: AtomicI64,
}

impl Scene {
    async fn start() -> Self {
        let bench = Bench::start().await;
        let currency = Currency {
            rules: Settings { snapshot: ALL, taken_back: vec!["revoked".to_owned()] },
            settle: Duration::ZERO,
            original_patience: Duration::ZERO,
            refund_memory: Duration::from_secs(3_600),
            calls: bench.calls.clone(),
            sender: bench.sender.clone(),
            merchants: Merchants::new(bench.calls.clone(), Cache::none()),
            ledger: Ledger::new(bench.calls.clone()),
            noted: Noted::default(),
        };
        let scene = Self {
            bench,
            currency,
            ledger: Mutex::default(),
            wallet: Mutex::default(),
            next: AtomicI64::new(1),
        };
        scene.merchant(json!({}));
        scene.bench.fake.fill("wallet_ledger", Vec::new());
        scene.row("p", json!({}));
        scene
    }

    /// Sets the merchant's award settings.
    fn merchant(&self, settings: Value) {
        let mut row = json!({"id": "m", "currency_award_delay_days": null,
            "currency_award_delay_minutes": null, "currency_award_time": null,
            "currency_award_timezone": null});
        extend(&mut row, settings);
        self.bench.fake.fill("merchant_master", vec![object(row)]);
    }

    /// Writes a row of `purchase_ledger`: purchase `p` of 100, created an hour ago, unless the test
    /// says otherwise.
    fn row(&self, id: &str, changes: Value) {
        let mut row = json!({"id": id, "merchant_id": "m", "user_id": "u",
            "transaction_number": if id == "p" { "N" } else { id }, "external_ref": null,
            "status": "completed", "record_type": "credit", "earn_currency": true,
            "final_amount": "100.00", "created_at": ago(60), "updated_at": ago(60)});
        if id != "p" {
            extend(
                &mut row,
                json!({"record_type": "debit", "external_ref": "N",
                "created_at": ago(30), "updated_at": ago(30)}),
            );
        }
        extend(&mut row, changes);
        let mut ledger = self.ledger.lock().expect("not poisoned");
        ledger.retain(|row| row["id"] != id);
        ledger.push(object(row));
        self.bench.fake.fill("purchase_ledger", ledger.clone());
    }

    fn credited(&self, id: &str, component: &str) {
        let row = json!({"id": format!("w-{id}-{component}"), "source_type": "purchase",
            "source_id": id, "component": component});
        let mut wallet = self.wallet.lock().expect("not poisoned");
        wallet.push(object(row));
        self.bench.fake.fill("wallet_ledger", wallet.clone());
    }

    fn at(&self) -> Moment {
        let lsn = self.next.fetch_add(1, Ordering::Relaxed);
        Moment { commit_ms: Timestamp::now().as_millisecond() + lsn, lsn: u64::try_from(lsn).ok() }
    }

    async fn handle(&self, work: &Work) -> Result<Outcome, Failure> {
        let offset = match work {
            Work::Award { at, .. } | Work::Delete { at, .. } => at.lsn,
            Work::Refund(refund) => refund.at.lsn,
            Work::Debit(debit) => debit.at.lsn,
        };
        let offset = offset.and_then(|lsn| i64::try_from(lsn).ok()).expect("an offset");
        self.currency.handle(&self.bench.cx(offset), work).await
    }

    async fn done(&self, work: &Work) -> Outcome {
        self.handle(work).await.expect("handled")
    }

    fn award(&self, turn: Turn) -> Work {
        Work::Award { source: source("p"), at: self.at(), turn }
    }

    /// The row turns refunded.
    fn refund(&self) -> Work {
        let (at, updated_at) = (self.at(), Some(Timestamp::now()));
        self.row("p", json!({"status": "refunded", "updated_at": ago(0)}));
        Work::Refund(Box::new(Refund {
            source: source("p"),
            at,
            check_wallet: false,
            number: Some("N".to_owned()),
            amount: Some(BigDecimal::from(100)),
            updated_at,
        }))
    }

    fn debit(&self, id: &str, amount: i64) -> Work {
        self.row(id, json!({"final_amount": format!("{amount}.00")}));
        Work::Debit(Box::new(Debit {
            source: source(id),
            at: self.at(),
            original: Some("N".to_owned()),
            amount: Some(BigDecimal::from(amount)),
            check_wallet: false,
            created_at: ago(30).parse().ok(),
            turned_at: None,
        }))
    }

    /// Ids of the awards and reverses that went out, with the share of each reverse.
    fn sent(&self) -> Vec<(String, Option<f64>)> {
        let events = self.bench.events();
        let sent = events.into_iter().filter(|(id, _)| !id.is_empty());
        sent.map(|(id, data)| (id, data["refund_percentage"].as_f64())).collect()
    }

    fn cancels(&self) -> usize {
        self.bench.events().iter().filter(|(id, _)| id.is_empty()).count()
    }

    /// Per cent that all reverses together take.
    fn taken(&self) -> f64 {
        let sent = self.sent();
        let reverses = sent.iter().filter(|(id, _)| id.starts_with("currency/reverse"));
        reverses.map(|(_, share)| share.unwrap_or(100.0)).sum()
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn extend(row: &mut Value, changes: Value) {
    row.as_object_mut().expect("an object").extend(object(changes));
}

fn ago(minutes: i64) -> String {
    (Timestamp::now() - jiff::SignedDuration::from_mins(minutes)).to_string()
}

fn source(id: &str) -> Source {
    let (id, user_id, merchant_id) = (id.to_owned(), "u".to_owned(), "m".to_owned());
    Source { kind: "purchase", id, user_id, merchant_id }
}

fn kind(failed: Result<Outcome, Failure>) -> &'static str {
    match failed {
        Err(Failure::NotYet { kind, .. } | Failure::Poison { kind, .. }) => kind,
        Err(Failure::Outage { kind, .. }) => kind,
        Err(Failure::Wait { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_original_of_a_debit_is_never_another_debit_of_the_same_number() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    for (id, amount) in [("d1", -50), ("d2", -50)] {
        let debit = scene.debit(id, amount);
        scene.row(id, json!({"transaction_number": "N", "final_amount": "-50.00"}));
        assert_eq!(scene.done(&debit).await, Outcome::Sent);
    }
    let reverses = |id: &str| {
        json!({"source_type": "purchase", "source_id": id, "user_id": "u", "merchant_id": "m",
            "original_source_id": "p", "refund_percentage": 50})
    };
    let events = scene.bench.events();
    assert_eq!(events[1], ("currency/reverse:purchase:d1".to_owned(), reverses("d1")));
    assert_eq!(events[2], ("currency/reverse:purchase:d2".to_owned(), reverses("d2")));
}

#[tokio::test]
async fn debits_and_the_whole_take_back_all_of_it_in_every_order() {
    for debits in [&[][..], &[-25], &[-100], &[-25, -75], &[-25, -25, -25], &[-60, -60, -60]] {
        for whole in 0..=debits.len() {
            for seen in [false, true] {
                let scene = Scene::start().await;
                scene.done(&scene.award(Turn::Here)).await;
                let ids = ["d1", "d2", "d3"];
                let works: Vec<Work> =
                    debits.iter().zip(ids).map(|(amount, id)| scene.debit(id, *amount)).collect();
                if !seen {
                    // A debit that the whole does not see yet comes after it.
                    for (id, amount) in ids.iter().zip(debits).skip(whole) {
                        let amount = format!("{amount}.00");
                        scene.row(id, json!({"status": "pending", "final_amount": amount}));
                    }
                }
                for (at, work) in works.iter().enumerate() {
                    if at == whole {
                        scene.done(&scene.refund()).await;
                    }
                    scene.done(work).await;
                }
                if whole == debits.len() {
                    scene.done(&scene.refund()).await;
                }
                assert_eq!(scene.taken(), 100.0, "{debits:?} {whole} {seen} {:?}", scene.sent());
            }
        }
    }
}

#[tokio::test]
async fn a_redelivery_sends_what_was_decided() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    let debit = scene.debit("d1", -25);
    scene.done(&debit).await;
    let refund = scene.refund();
    scene.done(&refund).await;
    // The claims of what was sent are gone, the decisions are not.
    for claim in ["reverse:purchase:d1", "reverse:purchase:p", "cancel:purchase:p"] {
        scene.bench.forget(claim);
    }
    scene.row("d2", json!({"final_amount": "-50.00"}));
    assert_eq!(scene.done(&refund).await, Outcome::Sent);
    assert_eq!(scene.done(&debit).await, Outcome::Sent);
    let sent = scene.sent();
    assert_eq!(sent[1], ("currency/reverse:purchase:d1".to_owned(), Some(25.0)));
    assert_eq!(sent[2], (WHOLE.to_owned(), Some(75.0)));
    assert_eq!((&sent[3], &sent[4]), (&sent[2], &sent[1]));
    // Another change of the same rows sends nothing.
    assert_eq!(scene.done(&scene.refund()).await, Outcome::Duplicate);
}

#[tokio::test]
async fn without_memory_the_times_of_the_rows_decide() {
    // The debit was taken back before, and then everything was forgotten.
    for (created, credited) in [(30, false), (30, true), (-5, true)] {
        let scene = Scene::start().await;
        let whole = scene.refund();
        scene.row("d1", json!({"final_amount": "-25.00", "created_at": ago(created)}));
        if credited {
            scene.credited("d1", "reversal");
        }
        scene.done(&whole).await;
        assert_eq!(scene.sent(), [(WHOLE.to_owned(), Some(75.0))], "{created} {credited}");
    }
    // The whole does not count a debit that came after it, and that debit takes nothing itself.
    let scene = Scene::start().await;
    let whole = scene.refund();
    scene.row("d1", json!({"final_amount": "-25.00", "created_at": ago(-5)}));
    scene.done(&whole).await;
    assert_eq!(scene.sent(), [(WHOLE.to_owned(), None)]);
    let scene = Scene::start().await;
    scene.refund();
    let Work::Debit(mut debit) = scene.debit("d1", -25) else { unreachable!() };
    debit.created_at = ago(-5).parse().ok();
    let nothing = Outcome::Skipped("original_reversed");
    assert_eq!(scene.done(&Work::Debit(debit)).await, nothing);
    assert_eq!(scene.sent(), []);
}

#[tokio::test]
async fn without_memory_debits_leave_room_for_those_before_them_and_those_in_the_wallet() {
    // The second was created after the first, or before it and turned after it.
    for created in [20, 40] {
        let scene = Scene::start().await;
        scene.done(&scene.award(Turn::Here)).await;
        scene.done(&scene.debit("d1", -60)).await;
        scene.bench.forget("refunds:purchase:p");
        let Work::Debit(mut second) = scene.debit("d2", -60) else { unreachable!() };
        second.created_at = ago(created).parse().ok();
        if created == 40 {
            scene.credited("d1", "reversal");
        }
        scene.done(&Work::Debit(second)).await;
        let shares: Vec<_> = scene.sent().into_iter().filter_map(|(_, share)| share).collect();
        assert_eq!(shares, [60.0, 40.0], "{created}");
    }
}

#[tokio::test]
async fn without_memory_a_second_refund_takes_other_ids_than_the_first() {
    let scene = Scene::start().await;
    for (component, times) in [("base", 2), ("reversal", 1)] {
        for time in 0..times {
            scene.credited("p", component);
            scene.wallet.lock().expect("not poisoned").last_mut().expect("a row")["id"] =
                format!("{component}-{time}").into();
        }
    }
    scene.credited("other", "base");
    let refund = scene.refund();
    let Work::Refund(work) = &refund else { unreachable!() };
    let end = work.at.lsn.expect("known");
    scene.done(&refund).await;
    assert_eq!(scene.sent(), [(format!("{WHOLE}:again:{end}"), None)]);
}

#[tokio::test]
async fn a_debit_whose_share_cannot_be_told_adds_nothing() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    let Work::Debit(mut debit) = scene.debit("d1", -25) else { unreachable!() };
    debit.amount = None;
    scene.row("d1", json!({"final_amount": "NaN"}));
    assert_eq!(kind(scene.handle(&Work::Debit(debit)).await), "no_percentage");
    scene.done(&scene.refund()).await;
    assert_eq!(scene.sent()[1..], [(WHOLE.to_owned(), None)]);
}

#[tokio::test]
async fn an_original_that_is_pending_missing_or_one_of_two_is_not_guessed() {
    let scene = Scene::start().await;
    let debit = scene.debit("d1", -25);
    scene.row("p", json!({"status": "Pending"}));
    assert_eq!(kind(scene.handle(&debit).await), "original_open");
    scene.row("p", json!({"transaction_number": "other"}));
    assert_eq!(kind(scene.handle(&debit).await), "original_not_found");
    scene.row("p", json!({"created_at": "2026-01-01T00:00:00Z"}));
    scene.row(
        "q",
        json!({"record_type": "credit", "transaction_number": "N",
        "created_at": "2026-01-01T00:00:00Z"}),
    );
    assert_eq!(kind(scene.handle(&debit).await), "original_ambiguous");
    assert_eq!(scene.sent(), []);
}

#[tokio::test]
async fn a_debit_while_the_award_sleeps_runs_after_it() {
    let mut scene = Scene::start().await;
    scene.currency.settle = SETTLE;
    scene.merchant(json!({"currency_award_delay_minutes": 60}));
    let award = scene.award(Turn::Here);
    let Work::Award { at, .. } = &award else { unreachable!() };
    scene.done(&award).await;
    scene.done(&scene.debit("d1", -25)).await;
    let due = at.commit_ms + 60 * 60_000 + 30_000;
    assert_eq!(scene.bench.times(), [None, Some(due)]);
    // An edit or a snapshot row does not award again while the first award sleeps.
    assert_eq!(scene.done(&scene.award(Turn::Here)).await, Outcome::Duplicate);
    assert_eq!(scene.done(&scene.award(Turn::Unsure)).await, Outcome::Duplicate);
    assert!(scene.bench.lives("award:purchase:p") > Duration::from_secs(24 * 3_600 + 59 * 60));
}

#[tokio::test]
async fn a_clock_that_is_ahead_elsewhere_delays_a_refund_by_the_settle_time_at_most() {
    let mut scene = Scene::start().await;
    scene.currency.settle = SETTLE;
    let ahead = Timestamp::now() + jiff::SignedDuration::from_hours(5);
    scene.bench.accepted("award:purchase:p", ahead).await;
    let refund = scene.refund();
    let Err(Failure::Wait { until, reason: "cancel_settle" }) = scene.handle(&refund).await else {
        panic!("its cancel waits");
    };
    assert!(until <= std::time::Instant::now() + SETTLE);
    scene.done(&scene.debit("d1", -25)).await;
    let latest = (Timestamp::now() + jiff::SignedDuration::from_secs(30)).as_millisecond();
    assert!(scene.bench.times().iter().all(|ts| ts.is_some_and(|ts| ts <= latest)));
}

#[tokio::test]
async fn an_award_that_may_sleep_unknown_to_claims_is_not_guessed() {
    let scene = Scene::start().await;
    scene.merchant(json!({"currency_award_delay_days": 3}));
    let unsure = scene.award(Turn::Unsure);
    assert_eq!(kind(scene.handle(&scene.debit("d1", -25)).await), "award_state_unknown");
    assert_eq!(kind(scene.handle(&unsure).await), "award_state_unknown");
    // Claims kept for longer than the award can sleep would know it.
    scene.bench.kept_since(Timestamp::now() - jiff::SignedDuration::from_hours(24 * 30));
    assert_eq!(scene.done(&unsure).await, Outcome::Sent);
    // The wallet knows what was credited, and a row that turned here was not awarded before.
    let scene = Scene::start().await;
    scene.merchant(json!({"currency_award_delay_days": 3}));
    assert_eq!(scene.done(&scene.award(Turn::Here)).await, Outcome::Sent);
    let scene = Scene::start().await;
    scene.credited("p", "base");
    let before = Outcome::Skipped("awarded_before");
    assert_eq!(scene.done(&scene.award(Turn::Unsure)).await, before);
}

#[tokio::test]
async fn a_debit_waits_for_an_award_that_is_still_to_come_and_not_for_one_of_nothing() {
    let mut scene = Scene::start().await;
    scene.currency.original_patience = Duration::from_secs(600);
    let debit = scene.debit("d1", -25);
    assert_eq!(kind(scene.handle(&debit).await), "award_to_come");
    scene.done(&scene.award(Turn::Here)).await;
    assert_eq!(scene.done(&debit).await, Outcome::Sent);
    assert_eq!(scene.sent().len(), 2);

    let scene = Scene::start().await;
    scene.bench.fake.define(CALCULATE, |_| Reply::json(&json!([])));
    assert_eq!(scene.done(&scene.debit("d1", -25)).await, Outcome::Sent);
}

#[tokio::test]
async fn a_purchase_that_counts_again_after_a_refund_is_awarded_again_and_taken_back_again() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    scene.done(&scene.debit("d1", -25)).await;
    scene.done(&scene.refund()).await;
    let late = scene.award(Turn::Here);
    for turn in [Turn::Again, Turn::Here] {
        scene.row("p", json!({}));
        let again = scene.award(turn);
        let Work::Award { at, .. } = &again else { unreachable!() };
        let end = at.lsn.expect("known");
        assert_eq!(scene.done(&again).await, Outcome::Sent, "{turn:?}");
        assert_eq!(scene.done(&again).await, Outcome::Duplicate, "its redelivery");
        assert_eq!(scene.done(&scene.award(Turn::Here)).await, Outcome::Duplicate, "its edit");
        let refund = scene.refund();
        assert_eq!(scene.done(&refund).await, Outcome::Sent);
        let sent = scene.sent();
        let [.., award, reverse] = &*sent else { panic!("{sent:?}") };
        assert_eq!(award.0, format!("currency/award:purchase:p:again:{end}"));
        assert_eq!(*reverse, (format!("{WHOLE}:again:{end}"), None), "debits before do not count");
    }
    assert_eq!(scene.cancels(), 3);
    assert_eq!(scene.done(&late).await, Outcome::Duplicate, "it lies before what took it back");
}

#[tokio::test]
async fn a_debit_of_a_purchase_that_counts_again_waits_for_the_award_that_it_takes_back() {
    let mut scene = Scene::start().await;
    scene.currency.original_patience = Duration::from_secs(600);
    scene.done(&scene.award(Turn::Here)).await;
    let mut refund = scene.refund();
    if let Work::Refund(refund) = &mut refund {
        refund.at.commit_ms -= 20 * 60_000;
    }
    scene.done(&refund).await;
    // The ledger shows the purchase counting again and then a debit. The debit's lane runs ahead.
    scene.row("p", json!({"updated_at": ago(10)}));
    let Work::Debit(mut debit) = scene.debit("d1", -30) else { unreachable!() };
    debit.created_at = ago(5).parse().ok();
    let debit = Work::Debit(debit);
    assert_eq!(kind(scene.handle(&debit).await), "award_to_come");
    scene.done(&scene.award(Turn::Again)).await;
    assert_eq!(scene.done(&debit).await, Outcome::Sent);
    let sent = scene.sent();
    assert_eq!(sent.last(), Some(&("currency/reverse:purchase:d1".to_owned(), Some(30.0))));
}

#[tokio::test]
async fn a_young_row_whose_claims_were_emptied_goes_by_the_wallet() {
    // Never awarded; awarded; awarded and taken back.
    for (entries, expected) in [
        (&[][..], Ok("currency/award:purchase:p")),
        (&["base"], Err(Outcome::Skipped("awarded_before"))),
        (&["base", "reversal"], Ok("currency/award:purchase:p:again:1")),
    ] {
        let scene = Scene::start().await;
        for component in entries {
            scene.credited("p", component);
        }
        let outcome = scene.done(&scene.award(Turn::Recent)).await;
        match expected {
            Ok(id) => assert_eq!(scene.sent(), [(id.to_owned(), None)]),
            Err(skipped) => assert_eq!(outcome, skipped),
        }
    }
}

#[tokio::test]
async fn a_refund_or_delete_that_comes_again_does_not_take_back_the_award_after_it() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    let refund = scene.refund();
    let (id, at) = ("p".to_owned(), scene.at());
    let delete = Work::Delete { kind: "purchase", id, user_id: None, merchant_id: None, at };
    scene.done(&refund).await;
    scene.row("p", json!({}));
    let again = scene.award(Turn::Again);
    scene.done(&again).await;
    let sent = scene.bench.events().len();
    for claim in ["cancel:purchase:p", "reverse:purchase:p"] {
        scene.bench.forget(claim);
    }
    assert_eq!(scene.done(&refund).await, Outcome::Duplicate);
    assert_eq!(scene.done(&delete).await, Outcome::Duplicate);
    assert_eq!(scene.done(&again).await, Outcome::Duplicate);
    assert_eq!(scene.bench.events().len(), sent);
}

#[tokio::test]
async fn a_debit_of_all_of_an_award_that_is_over_does_not_cancel_the_next() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    let debit = scene.debit("d1", -100);
    scene.done(&scene.refund()).await;
    scene.row("p", json!({}));
    scene.done(&scene.award(Turn::Again)).await;
    let cancels = scene.cancels();
    assert_eq!(scene.done(&debit).await, Outcome::Sent);
    assert_eq!(scene.cancels(), cancels, "its own award was cancelled with the whole");
}

#[tokio::test]
async fn a_whole_after_a_debit_of_all_of_it_lets_the_purchase_be_awarded_again() {
    let scene = Scene::start().await;
    scene.merchant(json!({"currency_award_delay_minutes": 60}));
    scene.done(&scene.award(Turn::Here)).await;
    scene.done(&scene.debit("d1", -100)).await;
    scene.done(&scene.refund()).await;
    scene.row("p", json!({}));
    assert_eq!(scene.done(&scene.award(Turn::Again)).await, Outcome::Sent);
}

#[tokio::test]
async fn a_row_that_was_taken_back_deleted_and_inserted_again_is_awarded() {
    let scene = Scene::start().await;
    scene.done(&scene.award(Turn::Here)).await;
    scene.done(&scene.refund()).await;
    for component in ["base", "reversal"] {
        scene.credited("p", component);
    }
    let (id, at) = ("p".to_owned(), scene.at());
    let delete = Work::Delete { kind: "purchase", id, user_id: None, merchant_id: None, at };
    scene.done(&delete).await;
    assert_eq!(scene.done(&scene.award(Turn::Here)).await, Outcome::Sent);
}

#[tokio::test]
async fn a_commit_at_the_beginning_of_time_ends_nothing() {
    for turn in [Turn::Here, Turn::Recent, Turn::Again, Turn::Unsure] {
        let scene = Scene::start().await;
        let at = Moment { commit_ms: Timestamp::MIN.as_millisecond(), lsn: Some(1) };
        let award = Work::Award { source: source("p"), at, turn };
        assert_eq!(scene.done(&award).await, Outcome::Sent, "{turn:?}");
    }
}

#[tokio::test]
async fn a_young_row_that_is_handled_a_day_late_goes_by_the_wallet() {
    let scene = Scene::start().await;
    scene.bench.kept_since(Timestamp::now() - jiff::SignedDuration::from_hours(24 * 30));
    scene.credited("p", "base");
    let late = Timestamp::now() - jiff::SignedDuration::from_hours(6);
    let at = Moment { commit_ms: late.as_millisecond(), lsn: Some(1) };
    let award = Work::Award { source: source("p"), at, turn: Turn::Recent };
    assert_eq!(scene.done(&award).await, Outcome::Skipped("awarded_before"));
}

#[tokio::test]
async fn a_purchase_that_was_cancelled_before_it_counted_is_awarded_as_any_other() {
    let scene = Scene::start().await;
    scene.bench.kept_since(Timestamp::now() - jiff::SignedDuration::from_hours(48));
    assert_eq!(scene.done(&scene.award(Turn::Again)).await, Outcome::Sent);
    assert_eq!(scene.sent(), [("currency/award:purchase:p".to_owned(), None)]);
}

#[tokio::test]
async fn a_row_that_is_inserted_again_after_its_delete_is_awarded_unless_it_was_credited() {
    for credited in [false, true] {
        let scene = Scene::start().await;
        scene.done(&scene.award(Turn::Here)).await;
        let (id, at) = ("p".to_owned(), scene.at());
        let delete = Work::Delete { kind: "purchase", id, user_id: None, merchant_id: None, at };
        assert_eq!(scene.done(&delete).await, Outcome::Sent);
        if credited {
            scene.credited("p", "base");
        }
        let again = scene.done(&scene.award(Turn::Here)).await;
        let expected = if credited { Outcome::Skipped("awarded_before") } else { Outcome::Sent };
        assert_eq!(again, expected);
    }
}

#[tokio::test]
async fn settings_of_a_merchant_that_cannot_be_read_are_an_outage_that_names_it() {
    let scene = Scene::start().await;
    scene.merchant(json!({"currency_award_time": "noon"}));
    let waits = scene.handle(&scene.award(Turn::Here)).await.expect_err("unreadable");
    let Failure::Outage { message, attempted, .. } = waits else { panic!("{waits:?}") };
    assert!(message.contains("merchant m") && message.contains("HH:MM"), "{message}");
    assert!(!attempted, "it never speaks against the record");
    let away = scene.bench.calls.breaker("merchant_settings").away().expect("readiness says so");
    assert_eq!(away.error, message);
}

#[tokio::test]
async fn an_award_is_delayed_by_its_commit_time_and_not_by_a_clock() {
    let scene = Scene::start().await;
    scene.merchant(json!({"currency_award_delay_minutes": 60}));
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(5);
    let at = Moment { commit_ms: long_ago.as_millisecond(), lsn: Some(1) };
    scene.done(&Work::Award { source: source("p"), at, turn: Turn::Here }).await;
    assert_eq!(scene.bench.events()[0].1["is_delayed"], true);
}
