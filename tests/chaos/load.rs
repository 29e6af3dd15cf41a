//! The load: lives of rows as a connector writes them, and what each change calls for.
//!
//! What must come of a record follows from how it was made and from the contract, never from the
//! daemon's code. Rows are unique, log positions ascend, and a seed always gives the same load.

use std::collections::VecDeque;

use crm_event_processors::demo::double::{
    active_missions, currency_rows, redemption_result, tier_status,
};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::history::{Consumer, Effect};

/// The topics, by what they are called behind the prefix, and their partitions.
pub(crate) const TOPICS: [(&str, i32); 8] = [
    (PURCHASES, 6),
    (WALLETS, 3),
    (REFERRALS, 3),
    (CLAIMS, 3),
    (FORMS, 3),
    (CODES, 3),
    (ORDERS, 4),
    (REDEMPTIONS, 3),
];
/// Which consumer takes what.
pub(crate) const CONSUMERS: [(Consumer, &[&str]); 5] = [
    ("currency", &[PURCHASES, REFERRALS, CLAIMS]),
    ("tier", &[PURCHASES, WALLETS]),
    ("mission", &[PURCHASES, FORMS, WALLETS, REFERRALS]),
    ("reward", &[REDEMPTIONS, CODES]),
    ("marketplace", &[ORDERS]),
];

/// A topic's name in full: the one of redemptions is fixed.
pub(crate) fn full_name(prefix: &str, topic: &str) -> String {
    if topic == REDEMPTIONS { topic.to_owned() } else { format!("{prefix}.{topic}") }
}

const PURCHASES: &str = "purchase_ledger";
const WALLETS: &str = "wallet_ledger";
const REFERRALS: &str = "referral_ledger";
const CLAIMS: &str = "mission_claims";
const FORMS: &str = "form_submissions";
const CODES: &str = "codes";
const ORDERS: &str = "marketplace.orders";
const REDEMPTIONS: &str = "reward_redemptions";

/// Lives that go on at a time.
const OPEN: usize = 40;
/// Commit times begin this long before the run: a burst must not run ahead of the clock.
const BEHIND: SignedDuration = SignedDuration::from_mins(30);

type Row = Map<String, Value>;

/// A record to be written.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Which topic, behind the prefix.
    pub(crate) topic: &'static str,
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effects: Vec<Effect>,
    /// Whether the same record was written before.
    pub(crate) copy: bool,
    /// Whether a connector wrote it and may write it again.
    pub(crate) replayable: bool,
}

/// A whole load.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) items: Vec<Item>,
    /// Ids of events that Inngest refuses.
    pub(crate) refused: Vec<String>,
    /// Purchases that partial refunds look up.
    pub(crate) originals: Vec<Row>,
    /// Merchants with their award settings.
    pub(crate) merchants: Vec<Row>,
}

/// One change of a row, without its place in the log.
struct Change {
    table: &'static str,
    id: String,
    before: Option<Row>,
    after: Option<Row>,
    effects: Vec<Effect>,
    /// Written as it stands instead of as a change.
    raw: Option<String>,
    copy: bool,
}

impl Load {
    /// At least so many records, at `rate` a second from `start` on.
    pub(crate) fn new(seed: u64, records: usize, rate: f64, start: Timestamp) -> Self {
        let mut maker = Maker::new(seed);
        let mut open: Vec<VecDeque<Change>> = Vec::new();
        let mut items = Vec::with_capacity(records);
        while items.len() < records || !open.is_empty() {
            if items.len() < records {
                while open.len() < OPEN {
                    open.push(maker.life());
                }
            }
            let at = maker.rng.usize(..open.len());
            // Now and then several changes of a row right after each other.
            for _ in 0..if maker.rng.u8(..5) == 0 { 3 } else { 1 } {
                let Some(change) = open[at].pop_front() else { break };
                let age = SignedDuration::from_secs_f64(items.len() as f64 / rate);
                let item = maker.place.write(change, start - BEHIND + age);
                items.push(item);
            }
            if open[at].is_empty() {
                drop(open.swap_remove(at));
            }
        }
        Self { items, ..maker.load }
    }
}

/// The place in the database's log.
struct Place {
    last_commit: u64,
    transaction: u64,
}

impl Place {
    fn write(&mut self, change: Change, committed: Timestamp) -> Item {
        let Change { table, id, before, after, mut effects, raw, copy } = change;
        let partitions = TOPICS.iter().find(|(topic, _)| *topic == table).map_or(1, |(_, n)| *n);
        let command = table == ORDERS || table == REDEMPTIONS;
        let key = if command { id } else { json!({ "id": id }).to_string() };
        let committed = Timestamp::from_millisecond(committed.as_millisecond()).expect("a time");
        for effect in &mut effects {
            // The time of an award follows from the commit's, which is known only now.
            if let Some(Value::Number(minutes)) = effect
                .content
                .as_mut()
                .and_then(|content| content.get_mut("award_datetime"))
                .cloned()
            {
                let minutes = minutes.as_i64().unwrap_or_default();
                let due = committed + SignedDuration::from_mins(minutes);
                let content = effect.content.as_mut().expect("it was just seen");
                content["award_datetime"] = due.to_string().into();
            }
        }
        let replayable = raw.is_none();
        let value = raw.unwrap_or_else(|| self.envelope(table, before, after, committed));
        let hash = crc32fast::hash(key.as_bytes());
        let partition = i32::try_from(hash % partitions.unsigned_abs()).expect("few partitions");
        Item { topic: table, partition, key, value, effects, copy, replayable }
    }

    /// A transaction of one change, as Debezium 3 writes it.
    fn envelope(
        &mut self,
        table: &str,
        before: Option<Row>,
        after: Option<Row>,
        committed: Timestamp,
    ) -> String {
        let lsn = self.last_commit + 152;
        let op = match (&before, &after) {
            (None, _) => "c",
            (_, Some(_)) => "u",
            (_, None) => "d",
        };
        let ms = committed.as_millisecond();
        self.transaction += 1;
        let value = json!({
            "before": before,
            "after": after,
            "source": {
                "version": "3.6.3.Final", "connector": "postgresql", "name": "chaos",
                "ts_ms": ms, "ts_us": ms * 1_000, "snapshot": "false", "db": "crm",
                "sequence": json!([self.last_commit.to_string(), lsn.to_string()]).to_string(),
                "schema": "public", "table": table, "txId": self.transaction, "lsn": lsn,
            },
            "transaction": null,
            "op": op,
            "ts_ms": ms + 40,
        });
        self.last_commit = lsn + 48;
        value.to_string()
    }
}

struct Maker {
    rng: Rng,
    place: Place,
    load: Load,
    /// Minutes by which a merchant delays awards, by its number.
    delays: Vec<i64>,
}

fn effect(consumer: Consumer, chain: Vec<String>) -> Effect {
    Effect { consumer, chain, fresh: false, order: None, content: None }
}

impl Maker {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let delays: Vec<i64> = (0..12)
            .map(|number| if number % 4 == 3 { 24 * 60 + rng.i64(0..600) } else { 0 })
            .collect();
        let merchants = delays.iter().enumerate().map(|(number, delay)| {
            let row = json!({
                "id": merchant(number), "currency_award_delay_days": null,
                "currency_award_delay_minutes": (*delay > 0).then_some(*delay),
                "currency_award_time": null, "currency_award_timezone": null,
            });
            object(row)
        });
        let load = Load { merchants: merchants.collect(), ..Load::default() };
        Self { rng, place: Place { last_commit: 1 << 24, transaction: 1_000 }, load, delays }
    }

    fn id(&mut self) -> String {
        let (high, low) = (self.rng.u32(..), self.rng.u64(..) & 0xffff_ffff_ffff);
        format!("{high:08x}-0000-4000-8000-{low:012x}")
    }

    fn user(&mut self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.rng.u32(..200))
    }

    fn life(&mut self) -> VecDeque<Change> {
        match self.rng.u8(..100) {
            0..45 => self.purchase(),
            45..49 => self.partial_refund(),
            49..57 => self.referral(),
            57..65 => self.claim(),
            65..76 => self.wallet(),
            76..82 => self.form(),
            82..83 => self.malformed(),
            83..93 => self.order(),
            93..97 => self.redemption(),
            _ => self.code(),
        }
    }

    fn purchase(&mut self) -> VecDeque<Change> {
        let statuses: &[&str] = match self.rng.u8(..20) {
            0..5 => &["completed"],
            5..9 => &["pending", "completed"],
            9..11 => &["completed", "completed"],
            11..14 => &["completed", "refunded"],
            14..16 => &["pending", "completed", "cancelled"],
            16 => &["pending", "cancelled"],
            17..19 => &["pending", "completed", "deleted"],
            _ => &["pending", "deleted"],
        };
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let anonymous = self.rng.u8(..20) == 0;
        let refused = statuses == ["completed"] && !anonymous && self.rng.u8(..40) == 0;
        let row = self.purchase_row(&id, number, &user, anonymous);
        let mut changes = Changes::of(PURCHASES, &id, row);
        let mut counted = false;
        for status in statuses {
            let effects = match *status {
                "deleted" => vec![cancelled(&id)],
                _ if anonymous => vec![],
                "completed" if refused => {
                    let award = format!("currency/award:purchase:{id}");
                    if currency_rows(&id).is_empty() {
                        self.counts(&id, number, &user)
                    } else {
                        self.load.refused.push(award);
                        let letter = letter("currency", &json!({ "id": id }).to_string());
                        let mut effects = self.counts(&id, number, &user);
                        effects[0] = effect("currency", vec![letter]);
                        effects
                    }
                }
                "completed" if !counted => self.counts(&id, number, &user),
                "refunded" | "cancelled" if counted => vec![
                    Effect { chain: reversed(&id), ..cancelled(&id) },
                    evaluated(&user, &merchant(number)),
                ],
                "completed" => vec![evaluated(&user, &merchant(number))],
                _ => vec![],
            };
            counted |= *status == "completed";
            changes.push("status", status, effects);
        }
        changes.done
    }

    fn purchase_row(&mut self, id: &str, merchant_: usize, user: &str, anonymous: bool) -> Row {
        let amount = format!("{}.{:02}", self.rng.u32(10..5_000), self.rng.u8(..100));
        object(json!({
            "id": id, "merchant_id": merchant(merchant_),
            "user_id": (!anonymous).then_some(user), "transaction_number": format!("TX-{id}"),
            "final_amount": amount, "record_type": "credit", "earn_currency": true,
            "external_ref": null, "note": "x".repeat(self.rng.usize(..200)), "created_at": CREATED,
        }))
    }

    /// What a purchase calls for once it counts; the award first.
    fn counts(&self, id: &str, number: usize, user: &str) -> Vec<Effect> {
        let merchant = merchant(number);
        let mut effects = vec![self.award("purchase", id, number, user)];
        effects.extend(missions("purchase", id, &merchant, user));
        effects.push(evaluated(user, &merchant));
        effects
    }

    fn award(&self, kind: &str, id: &str, number: usize, user: &str) -> Effect {
        let rows = currency_rows(id);
        if rows.is_empty() {
            return effect("currency", vec![format!("calc_currency_for_source:{kind}:{id}")]);
        }
        let content = json!({
            "source_type": kind, "source_id": id, "user_id": user,
            "merchant_id": merchant(number), "currency_rows": rows,
            "award_datetime": self.delays[number], "is_delayed": self.delays[number] > 0,
        });
        Effect {
            order: Some(format!("{kind}:{id}")),
            content: Some(content),
            ..effect("currency", vec![format!("currency/award:{kind}:{id}")])
        }
    }

    /// A debit row of a quarter of a purchase that stays as it is.
    fn partial_refund(&mut self) -> VecDeque<Change> {
        let (number, user) = (self.rng.usize(..self.delays.len()), self.user());
        let (original, debit) = (self.id(), self.id());
        let mut row = self.purchase_row(&original, number, &user, false);
        row.insert("final_amount".to_owned(), "400.00".into());
        row.insert("status".to_owned(), "completed".into());
        self.load.originals.push(row.clone());
        let mut changes = Changes::of(PURCHASES, &original, row.clone());
        changes.push("status", "completed", self.counts(&original, number, &user));
        let of = row["transaction_number"].clone();
        for (column, value) in [
            ("id", Value::from(debit.as_str())),
            ("final_amount", "-100.00".into()),
            ("record_type", "debit".into()),
            ("external_ref", of),
            ("transaction_number", format!("TX-{debit}").into()),
        ] {
            row.insert(column.to_owned(), value);
        }
        let content = json!({
            "source_type": "purchase", "source_id": debit, "user_id": user,
            "merchant_id": merchant(number), "original_source_id": original,
            "refund_percentage": 25,
        });
        let reverse = Effect {
            content: Some(content),
            ..effect("currency", vec![format!("currency/reverse:purchase:{debit}")])
        };
        let mut debits = Changes::of(PURCHASES, &debit, row);
        debits.push("status", "completed", vec![reverse, evaluated(&user, &merchant(number))]);
        changes.done.append(&mut debits.done);
        changes.done
    }

    fn referral(&mut self) -> VecDeque<Change> {
        let (number, invitee, inviter) =
            (self.rng.usize(..self.delays.len()), self.user(), self.user());
        let id = self.id();
        let row = object(json!({
            "id": id, "merchant_id": merchant(number), "invitee_user_id": invitee,
            "inviter_user_id": inviter, "reward_status": "pending", "signed_up_at": null,
            "first_purchase_at": null, "created_at": CREATED,
        }));
        let mut changes = Changes::of(REFERRALS, &id, row);
        let merchant = merchant(number);
        changes.push("reward_status", "pending", vec![]);
        let signed_up = missions("referral_signup", &id, &merchant, &inviter);
        changes.push("signed_up_at", CREATED, signed_up);
        let bought = missions("referral_purchase", &id, &merchant, &inviter);
        changes.push("first_purchase_at", CREATED, bought);
        let award = self.award("referral", &id, number, &invitee);
        changes.push("reward_status", "completed", vec![award]);
        changes.done
    }

    fn claim(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let row = object(json!({
            "id": id, "merchant_id": merchant(number), "user_id": user, "created_at": CREATED,
        }));
        let mut changes = Changes::of(CLAIMS, &id, row);
        changes.push("status", "pending", vec![]);
        changes.push("status", "approved", vec![self.award("mission", &id, number, &user)]);
        changes.done
    }

    fn wallet(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let (earns, ticket) = (self.rng.u8(..4) > 0, self.rng.bool());
        let row = object(json!({
            "id": id, "merchant_id": merchant(number), "user_id": user, "component": "base",
            "currency": if ticket { "ticket" } else { "points" }, "amount": "12.00",
            "created_at": CREATED,
        }));
        let kind = if ticket { "tickets_earned" } else { "points_earned" };
        let mut effects = Vec::new();
        if earns {
            effects = missions(kind, &id, &merchant(number), &user);
            effects.push(evaluated(&user, &merchant(number)));
        }
        let mut changes = Changes::of(WALLETS, &id, row);
        changes.push("transaction_type", if earns { "earn" } else { "burn" }, effects);
        changes.done
    }

    fn form(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let row = object(json!({
            "id": id, "merchant_id": merchant(number), "user_id": user, "form_id": "f",
            "created_at": CREATED,
        }));
        let mut changes = Changes::of(FORMS, &id, row);
        changes.push("status", "draft", vec![]);
        let effects = missions("form_submission", &id, &merchant(number), &user);
        changes.push("status", "completed", effects);
        changes.done
    }

    fn code(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let row = object(json!({
            "id": id, "merchant_id": merchant(number), "assigned_to": user, "user_id": null,
            "code": format!("CODE-{id}"), "created_at": CREATED,
        }));
        let mut changes = Changes::of(CODES, &id, row);
        changes.push("status", "assigned", vec![]);
        let content = json!({
            "code_id": id, "merchant_id": merchant(number), "user_id": user,
            "code": format!("CODE-{id}"),
        });
        let redeemed = Effect {
            content: Some(content),
            ..effect("reward", vec![format!("reward/code-redeemed:{id}")])
        };
        changes.push("status", "redeemed", vec![redeemed]);
        changes.done
    }

    /// Points are asked to be turned into a reward, by some apps twice.
    fn redemption(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let mut data = json!({
            "event_id": id, "user_id": user, "reward_id": "r", "merchant_id": merchant(number),
            "quantity": self.rng.u8(1..4),
        });
        let raw = Some(data.to_string());
        let result = redemption_result(&id);
        let name = if result["success"] == true { "redeemed" } else { "redemption-failed" };
        data["result"] = result;
        let call = format!("redeem_reward_with_points:{id}:{user}");
        let redeemed = Effect {
            order: Some(format!("redemptions of {user}")),
            content: Some(data),
            ..effect("reward", vec![call, format!("reward/{name}:{id}")])
        };
        let change = |copy| {
            let (before, after, effects) = (None, None, vec![redeemed.clone()]);
            let (id, raw) = (user.clone(), raw.clone());
            Change { table: REDEMPTIONS, id, before, after, effects, raw, copy }
        };
        let twice = self.rng.u8(..8) == 0;
        [false, true].into_iter().filter(|copy| !copy || twice).map(change).collect()
    }

    /// A record that nobody can read.
    fn malformed(&mut self) -> VecDeque<Change> {
        let id = self.id();
        let key = json!({ "id": id }).to_string();
        let takers = CONSUMERS.iter().filter(|(_, topics)| topics.contains(&PURCHASES));
        let effects = takers.map(|(name, _)| effect(name, vec![letter(name, &key)])).collect();
        let raw = Some("these are not the changes you are looking for".to_owned());
        let (before, after) = (None, None);
        VecDeque::from([Change { table: PURCHASES, id, before, after, effects, raw, copy: false }])
    }

    /// A marketplace order, some states of it reported twice.
    fn order(&mut self) -> VecDeque<Change> {
        let (shop, order) = (self.rng.u32(1..40), self.rng.u64(..1 << 52));
        let mut changes = VecDeque::new();
        for status in ["UNPAID", "READY_TO_SHIP", "SHIPPED", "COMPLETED"] {
            let content = json!({
                "shop_id": shop.to_string(), "order_sn": order.to_string(),
                "order_status": status, "platform": "shopee",
            });
            let id = format!("marketplace/order-received:shopee:{shop}:{order}:{status}");
            let received = Effect {
                order: Some(order.to_string()),
                content: Some(content),
                ..effect("marketplace", vec![id])
            };
            let effects = if status == "UNPAID" { vec![] } else { vec![received] };
            let raw = json!({
                "shop_id": shop, "order_sn": order.to_string(), "order_status": status,
                "timestamp": 1_800_000_000,
            });
            for copy in [false, true] {
                if copy && self.rng.u8(..8) > 0 {
                    continue;
                }
                let (before, after, effects) = (None, None, effects.clone());
                let (id, raw) = (format!("shop-{shop}"), Some(raw.to_string()));
                changes.push_back(Change { table: ORDERS, id, before, after, effects, raw, copy });
            }
        }
        changes
    }
}

/// Changes of one row, with what it was before each.
struct Changes {
    table: &'static str,
    id: String,
    row: Row,
    done: VecDeque<Change>,
}

impl Changes {
    fn of(table: &'static str, id: &str, row: Row) -> Self {
        Self { table, id: id.to_owned(), row, done: VecDeque::new() }
    }

    /// The row as it stands with this value in this column; `deleted` ends it.
    fn push(&mut self, column: &str, value: &str, effects: Vec<Effect>) {
        let before = (!self.done.is_empty()).then(|| self.row.clone());
        self.row.insert(column.to_owned(), value.into());
        let after = (value != "deleted").then(|| self.row.clone());
        let (table, id) = (self.table, self.id.clone());
        let change = Change { table, id, before, after, effects, raw: None, copy: false };
        self.done.push_back(change);
    }
}

const CREATED: &str = "2026-11-23T14:20:27.642990Z";

fn merchant(number: usize) -> String {
    format!("00000000-0000-4000-9000-{number:012x}")
}

fn object(value: Value) -> Row {
    match value {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}

/// The name of a dead letter: whose, and the record's key.
pub(crate) fn letter(consumer: &str, key: &str) -> String {
    format!("letter:{consumer}:{key}")
}

fn cancelled(id: &str) -> Effect {
    Effect {
        order: Some(format!("purchase:{id}")),
        ..effect("currency", vec![format!("currency/cancelled:purchase:{id}")])
    }
}

fn reversed(id: &str) -> Vec<String> {
    ["currency/cancelled", "currency/reverse"].map(|name| format!("{name}:purchase:{id}")).into()
}

fn missions(event_type: &str, id: &str, merchant: &str, user: &str) -> Vec<Effect> {
    let one = |mission: String| {
        let content = json!({
            "user_id": user, "merchant_id": merchant, "mission_id": mission,
            "event_type": event_type, "trigger_id": id,
        });
        Effect {
            // Those of one change have no order, those of two changes of a row have.
            order: Some(id.to_owned()),
            content: Some(content),
            ..effect("mission", vec![format!("mission/evaluate:{mission}:{event_type}:{id}")])
        }
    };
    active_missions(merchant, event_type).into_iter().map(one).collect()
}

/// What an evaluation of the member after this change leads to.
fn evaluated(user: &str, merchant: &str) -> Effect {
    let status = tier_status(user, merchant);
    let then: &[&str] = match status["recommended_action"].as_str() {
        Some("upgrade") if status["upgrade_timing"].is_null() => {
            &["tier/upgrade-cancelled", "apply_tier_upgrade"]
        }
        Some("upgrade") => &["tier/upgrade-cancelled", "tier/upgrade"],
        Some("maintain" | "downgrade") => &["tier/upgrade-cancelled"],
        _ => &[],
    };
    let chain = ["evaluate_user_tier_status"].iter().chain(then);
    let chain = chain.map(|what| format!("{what}:{user}:{merchant}")).collect();
    Effect { fresh: true, ..effect("tier", chain) }
}
