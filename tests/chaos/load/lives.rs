//! The lives of rows, and what each change of them calls for.

use std::collections::VecDeque;

use crm_event_processors::fakes::currency_rows;
use fastrand::Rng;
use serde_json::{Value, json};

use super::effects::{cancelled, effect, evaluated, letter, merchant, missions, reversed};
use super::log_position::LogPosition;
use super::{CLAIMS, CODES, Change, FORMS, Load, PURCHASES, REFERRALS, Row, WALLETS};
use crate::history::Effect;

pub(super) struct Maker {
    pub(super) rng: Rng,
    pub(super) place: LogPosition,
    pub(super) load: Load,
    /// Minutes by which a merchant delays awards, by its number.
    pub(super) delays: Vec<i64>,
    /// Every purchase's note has fewer bytes than this.
    note: usize,
}

impl Maker {
    pub(super) fn new(seed: u64, note: usize) -> Self {
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
        Self {
            rng,
            place: LogPosition { last_commit: 1 << 24, transaction: 1_000 },
            load,
            delays,
            note,
        }
    }

    pub(super) fn id(&mut self) -> String {
        let (high, low) = (self.rng.u32(..), self.rng.u64(..) & 0xffff_ffff_ffff);
        format!("{high:08x}-0000-4000-8000-{low:012x}")
    }

    pub(super) fn user(&mut self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.rng.u32(..200))
    }

    pub(super) fn life(&mut self) -> VecDeque<Change> {
        match self.rng.u8(..100) {
            0..42 => self.purchase(),
            42..45 => self.refunds(),
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
        let refused = statuses == ["completed"] && !anonymous && self.rng.u8(..10) == 0;
        let row = self.purchase_row(&id, number, &user, anonymous);
        let mut changes = Changes::of(PURCHASES, &id, row);
        let mut counted = false;
        for status in statuses {
            let effects = match *status {
                // The row before shows that it never counted.
                "deleted" if !counted || anonymous => vec![],
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
            "external_ref": null, "note": "x".repeat(self.rng.usize(..self.note)), "created_at": CREATED,
            "updated_at": CREATED,
        }))
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
        changes.done.append(&mut debited(&row, &debit, 100).1);
        changes.done
    }

    /// A purchase that up to three debit rows take parts of, and that is refunded as a whole
    /// before, between or after them. The whole takes what they leave, 100 % together.
    fn refunds(&mut self) -> VecDeque<Change> {
        let (number, user, id) = (self.rng.usize(..self.delays.len()), self.user(), self.id());
        let mut row = self.purchase_row(&id, number, &user, false);
        row.insert("final_amount".to_owned(), "400.00".into());
        row.insert("status".to_owned(), "refunded".into());
        let plays: [&[u32]; 4] = [&[100], &[100, 300], &[40, 60, 100], &[200, 100, 100]];
        let parts = plays[self.rng.usize(..plays.len())];
        let left = 100 - parts.iter().sum::<u32>() / 4;
        let mut changes = Changes::of(PURCHASES, &id, row.clone());
        changes.push("status", "completed", self.counts(&id, number, &user));
        let taken_back = match left {
            0 => cancelled(&id),
            left => Effect {
                chain: reversed(&id),
                content: Some(json!({"source_id": id, "refund_percentage": left})),
                ..cancelled(&id)
            },
        };
        changes.push("status", "refunded", vec![taken_back, evaluated(&user, &merchant(number))]);
        let whole = changes.done.pop_back();
        let when = self.rng.usize(..=parts.len());
        let mut whole = whole.into_iter();
        for (at, part) in parts.iter().enumerate() {
            if at == when {
                changes.done.extend(whole.by_ref());
            }
            let (debit, mut done) = debited(&row, &self.id(), *part);
            self.load.originals.push(debit);
            changes.done.append(&mut done);
        }
        changes.done.extend(whole);
        self.load.originals.push(row);
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
}

/// Changes of one row, each with the row before it.
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

    /// The row after this column gets this value; `deleted` ends it.
    fn push(&mut self, column: &str, value: &str, effects: Vec<Effect>) {
        let before = (!self.done.is_empty()).then(|| self.row.clone());
        self.row.insert(column.to_owned(), value.into());
        let after = (value != "deleted").then(|| self.row.clone());
        let (table, id) = (self.table, self.id.clone());
        let change = Change { table, id, before, after, effects, raw: None, copy: false };
        self.done.push_back(change);
    }
}

/// A debit row that takes `amount` of a purchase of 400, and its one change.
fn debited(original: &Row, id: &str, amount: u32) -> (Row, VecDeque<Change>) {
    let mut row = original.clone();
    for (column, value) in [
        ("id", Value::from(id)),
        ("status", "completed".into()),
        ("final_amount", format!("-{amount}.00").into()),
        ("record_type", "debit".into()),
        ("external_ref", original["transaction_number"].clone()),
        ("transaction_number", format!("TX-{id}").into()),
    ] {
        row.insert(column.to_owned(), value);
    }
    let content = json!({
        "source_type": "purchase", "source_id": id, "user_id": original["user_id"],
        "merchant_id": original["merchant_id"], "original_source_id": original["id"],
        "refund_percentage": amount / 4,
    });
    let chain = vec![format!("currency/reverse:purchase:{id}")];
    let reverse = Effect { content: Some(content), ..effect("currency", chain) };
    let text = |column: &str| original[column].as_str().unwrap_or_default();
    let evaluated = evaluated(text("user_id"), text("merchant_id"));
    let mut changes = Changes::of(PURCHASES, id, row.clone());
    changes.push("status", "completed", vec![reverse, evaluated]);
    (row, changes.done)
}

const CREATED: &str = "2026-11-23T14:20:27.642990Z";

fn object(value: Value) -> Row {
    match value {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}
