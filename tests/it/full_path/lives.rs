//! Lives of members at Noodles and Books: their SQL, what the rules demand, and final balances.

use jiff::{SignedDuration, Timestamp, Unit};
use serde_json::json;

use super::expected::Expected;
use super::sample::{
    BOOKS, BRONZE, NOODLES, SILVER, of_books, of_mission, of_purchase, of_referral,
};

/// What a change shows of the row before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// `REPLICA IDENTITY FULL`: all of it, as `config/` has it.
    Full,
    /// `REPLICA IDENTITY DEFAULT`: nothing, but a deleted row's key.
    Default,
}

/// All lives in two acts. The first act's effects are complete before the second begins.
#[derive(Default)]
pub(super) struct Lives {
    pub(super) first: Vec<String>,
    pub(super) second: Vec<String>,
    pub(super) expected: Expected,
    /// Member, currency, balance.
    pub(super) balances: Vec<(String, &'static str, u32)>,
    /// Members with a tier event, and their tier in the end.
    pub(super) tiers: Vec<(String, &'static str)>,
    /// The member whose upgrade to Gold is scheduled.
    pub(super) scheduled: String,
    /// Ids of rows that become dead letters.
    pub(super) set_aside: Vec<String>,
    /// Id of the code that is redeemed, which is not random, and the member who redeems it.
    pub(super) code: (u64, String),
}

pub(super) fn uuid() -> String {
    let (a, b) = (fastrand::u64(..), fastrand::u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        a & 0xffff,
        (a >> 16) & 0xfff,
        b & 0xfff,
        b >> 16
    )
}

/// A purchase as it is inserted.
struct Purchase<'a> {
    id: String,
    user: Option<String>,
    merchant: &'a str,
    amount: &'a str,
    status: &'a str,
    /// Id of the purchase that this debit takes back from.
    refunds: Option<&'a str>,
    earns: bool,
}

impl<'a> Purchase<'a> {
    fn new(status: &'a str, amount: &'a str) -> Self {
        Self {
            id: uuid(),
            user: Some(uuid()),
            merchant: NOODLES,
            amount,
            status,
            refunds: None,
            earns: true,
        }
    }

    /// A row that takes back a part of this one, or all.
    fn debit(&'a self, amount: &'a str) -> Self {
        Self {
            user: self.user.clone(),
            merchant: self.merchant,
            refunds: Some(&self.id),
            ..Self::new("completed", amount)
        }
    }

    fn user(&self) -> &str {
        self.user.as_deref().expect("a member")
    }

    /// Its transaction number is derived from its id.
    fn insert(&self) -> String {
        let Self { id, merchant, amount, status, earns, .. } = self;
        let user = self.user.as_ref().map_or("NULL".to_owned(), |user| format!("'{user}'"));
        let (kind, original) = match self.refunds {
            Some(original) => ("debit", format!("'T-{original}'")),
            None => ("credit", "NULL".to_owned()),
        };
        format!(
            "INSERT INTO purchase_ledger (id, merchant_id, user_id, transaction_number, transaction_date, \
             total_amount, final_amount, status, record_type, external_ref, earn_currency) \
             VALUES ('{id}', '{merchant}', {user}, 'T-{id}', now(), {amount}, {amount}, '{status}', '{kind}', \
             {original}, {earns})"
        )
    }

    fn turns(&self, status: &str) -> String {
        format!(
            "UPDATE purchase_ledger SET status = '{status}', updated_at = now() WHERE id = '{}'",
            self.id
        )
    }

    fn delete(&self) -> String {
        format!("DELETE FROM purchase_ledger WHERE id = '{}'", self.id)
    }
}

impl Lives {
    /// All lives there are, of new members.
    pub(super) fn all(identity: Identity, code: u64) -> Self {
        let mut lives = Self { code: (code, uuid()), ..Self::default() };
        lives.purchases(identity);
        lives.refunds();
        lives.delayed();
        lives.wallets();
        lives.referral();
        lives.claims(identity);
        // Without the row before, an old row may already have been handled.
        let at = match identity {
            Identity::Full => "2026-02-03T04:05:06.789Z".to_owned(),
            Identity::Default => {
                let now = Timestamp::now().round(Unit::Second).expect("a time");
                (now - SignedDuration::from_millis(3_211)).to_string()
            }
        };
        lives.form(&at);
        lives.code(&at);
        lives.tiers();
        lives
    }

    /// A purchase at Noodles counts: it awards, and advances a mission.
    fn counts(&mut self, purchase: &Purchase<'_>, points: u32, tickets: u32) {
        let (id, user) = (&purchase.id, purchase.user());
        let rows = of_purchase(points, tickets);
        self.expected.award("purchase", id, user, NOODLES, &rows);
        self.mission(purchase);
    }

    fn mission(&mut self, purchase: &Purchase<'_>) {
        let amount: f64 = purchase.amount.parse().expect("a number");
        let row = json!({"id": purchase.id, "status": "completed", "record_type": "credit",
            "final_amount": amount, "user_id": purchase.user()});
        self.expected.mission("purchase", &purchase.id, purchase.user(), row);
    }

    fn taken_back(&mut self, purchase: &Purchase<'_>) {
        let owner = (purchase.user(), purchase.merchant);
        self.expected.cancelled("purchase", &purchase.id, Some(owner));
        self.expected.reverse(&purchase.id, owner.0, owner.1, None);
    }

    fn points(&mut self, user: &str, balance: u32) {
        self.balances.push((user.to_owned(), "points", balance));
    }

    fn purchases(&mut self, identity: Identity) {
        // Pending, completed, then edited: awarded once.
        let it = Purchase::new("pending", "250.00");
        self.first.extend([it.insert(), it.turns("completed")]);
        self.second.push(format!("UPDATE purchase_ledger SET note = 'x' WHERE id = '{}'", it.id));
        self.counts(&it, 10, 0);
        self.points(it.user(), 10);

        // Cancelled before it counted. Without the row before, nobody can know that.
        let it = Purchase::new("pending", "1000.00");
        self.first.push(it.insert());
        self.second.push(it.turns("cancelled"));
        if identity == Identity::Default {
            self.taken_back(&it);
        }
        self.points(it.user(), 0);

        // Deleted: credited points stay, a sleeping award is cancelled.
        let it = Purchase::new("completed", "750.00");
        self.first.push(it.insert());
        self.second.push(it.delete());
        self.counts(&it, 30, 0);
        let owner = (identity == Identity::Full).then_some((it.user(), NOODLES));
        self.expected.cancelled("purchase", &it.id, owner);
        self.points(it.user(), 30);

        // An anonymous sale.
        self.first.push(Purchase { user: None, ..Purchase::new("completed", "90.00") }.insert());

        // A purchase that earns nothing still counts for missions.
        let it = Purchase { earns: false, ..Purchase::new("completed", "500.00") };
        self.first.push(it.insert());
        self.mission(&it);
        self.points(it.user(), 0);
    }

    fn refunds(&mut self) {
        // Taken back as a whole.
        let it = Purchase::new("completed", "500.00");
        self.first.push(it.insert());
        self.second.push(it.turns("refunded"));
        self.counts(&it, 20, 0);
        self.taken_back(&it);
        self.points(it.user(), 0);

        // A quarter is taken back, and later another one.
        let it = Purchase::new("completed", "800.00");
        let (one, two) = (it.debit("-200.00"), it.debit("200.00"));
        self.first.push(it.insert());
        self.second.extend([one.insert(), two.insert()]);
        self.counts(&it, 32, 0);
        for debit in [&one, &two] {
            self.expected.reverse(&debit.id, it.user(), NOODLES, Some((&it.id, 25)));
        }
        self.points(it.user(), 16);

        // All of it by a debit row.
        let it = Purchase::new("completed", "1000.00");
        let debit = it.debit("-1000.00");
        self.first.push(it.insert());
        self.second.push(debit.insert());
        self.counts(&it, 40, 1);
        self.expected.cancelled("purchase", &it.id, Some((it.user(), NOODLES)));
        self.expected.reverse(&debit.id, it.user(), NOODLES, Some((&it.id, 100)));
        self.points(it.user(), 0);
        self.balances.push((it.user().to_owned(), "ticket", 0));

        // Both take all of it, in one transaction: only the debit counts, whichever comes first.
        let it = Purchase::new("completed", "400.00");
        self.first.push(it.insert());
        let debit = it.debit("-400.00");
        self.second.push(format!("BEGIN; {}; {}; COMMIT", it.turns("refunded"), debit.insert()));
        self.counts(&it, 16, 0);
        self.expected.cancelled("purchase", &it.id, Some((it.user(), NOODLES)));
        self.expected.reverse(&debit.id, it.user(), NOODLES, Some((&it.id, 100)));
        self.points(it.user(), 0);

        // A debit of a purchase that does not exist.
        let nowhere = uuid();
        let it = Purchase { refunds: Some(&nowhere), ..Purchase::new("completed", "-5.00") };
        self.first.push(it.insert());
        self.set_aside.push(it.id);
    }

    /// Refunded while the award sleeps: nothing is ever credited.
    fn delayed(&mut self) {
        let it = Purchase { merchant: BOOKS, ..Purchase::new("completed", "400.00") };
        self.first.push(it.insert());
        self.second.push(it.turns("refunded"));
        self.expected.award("purchase", &it.id, it.user(), BOOKS, &of_books(8));
        self.taken_back(&it);
        self.points(it.user(), 0);
    }

    /// Wallet rows of other writers. Every row of earned points demands an event.
    fn wallets(&mut self) {
        let user = uuid();
        self.first.push(wallet(&user, "points", "earn", "base", 120));
        self.first.push(wallet(&user, "ticket", "earn", "base", 2));
        self.second.push(wallet(&user, "points", "burn", "base", -20));
        self.second.push(wallet(&user, "points", "earn", "reversal", -30));
        self.points(&user, 70);
        self.balances.push((user, "ticket", 2));
    }

    fn referral(&mut self) {
        let (id, inviter, invitee) = (uuid(), uuid(), uuid());
        self.first.push(format!(
            "INSERT INTO referral_ledger (id, merchant_id, inviter_user_id, invitee_user_id, signed_up_at) \
             VALUES ('{id}', '{NOODLES}', '{inviter}', '{invitee}', now())"
        ));
        let set = |what| format!("UPDATE referral_ledger SET {what} WHERE id = '{id}'");
        self.first.push(set("first_purchase_at = now()"));
        self.second.push(set("reward_status = 'completed'"));
        let row = json!({"id": id, "inviter_user_id": inviter, "invitee_user_id": invitee,
            "reward_status": "pending"});
        for event_type in ["referral_signup", "referral_purchase"] {
            self.expected.mission(event_type, &id, &inviter, row.clone());
        }
        self.expected.award("referral", &id, &invitee, NOODLES, &of_referral());
        self.points(&invitee, 100);
        self.points(&inviter, 0);
    }

    fn claims(&mut self, identity: Identity) {
        let mut claim = |ends: &str| {
            let (id, user) = (uuid(), uuid());
            self.first.push(format!(
                "INSERT INTO mission_claims (id, merchant_id, user_id, mission_id, claimed_at) \
                 VALUES ('{id}', '{NOODLES}', '{user}', gen_random_uuid(), now())"
            ));
            self.first
                .push(format!("UPDATE mission_claims SET status = '{ends}' WHERE id = '{id}'"));
            (id, user)
        };
        let (approved, rejected, deleted) =
            (claim("approved"), claim("rejected"), claim("approved"));
        let (id, _) = &deleted;
        self.second.push(format!("DELETE FROM mission_claims WHERE id = '{id}'"));
        for (id, user) in [&approved, &deleted] {
            self.expected.award("mission", id, user, NOODLES, &of_mission());
            self.points(user, 50);
        }
        let (id, user) = &deleted;
        let owner = (identity == Identity::Full).then_some((user.as_str(), NOODLES));
        self.expected.cancelled("mission", id, owner);
        // Without the row before nobody can know that it never counted.
        let (id, user) = &rejected;
        if identity == Identity::Default {
            self.expected.cancelled("mission", id, Some((user, NOODLES)));
            let data = json!({"source_type": "mission", "source_id": id, "user_id": user,
                "merchant_id": NOODLES});
            self.expected.event(&format!("currency/reverse:mission:{id}"), data);
        }
        self.points(user, 0);
    }

    fn form(&mut self, at: &str) {
        let (id, user) = (uuid(), uuid());
        self.first.push(format!(
            "INSERT INTO form_submissions (id, merchant_id, user_id, form_id, answers) \
             VALUES ('{id}', '{NOODLES}', '{user}', gen_random_uuid(), '{{\"stars\": 5}}')"
        ));
        self.second.push(format!(
            "UPDATE form_submissions SET status = 'completed', \
             submitted_at = '{at}'::timestamptz AT TIME ZONE 'UTC' WHERE id = '{id}'"
        ));
        let row = json!({"id": id, "status": "completed", "answers": "{\"stars\": 5}",
            "submitted_at": at});
        self.expected.mission("form_submission", &id, &user, row);
    }

    fn code(&mut self, at: &str) {
        let (id, user) = &self.code;
        let set = |what: &str| format!("UPDATE codes SET {what} WHERE id = {id}");
        self.first.push(format!(
            "INSERT INTO codes (id, merchant_id, code) VALUES ({id}, '{NOODLES}', 'BOWL-{id}')"
        ));
        self.first.push(set(&format!("status = 'assigned', assigned_to = '{user}'")));
        self.second.push(set(&format!("status = 'redeemed', redeemed_at = '{at}'")));
        self.second.push(set("expires_on = current_date"));
        let data = json!({"code_id": id, "merchant_id": NOODLES, "user_id": user,
            "code": format!("BOWL-{id}"), "redeemed_at": at});
        self.expected.event(&format!("reward/code-redeemed:{id}"), data);
    }

    fn tiers(&mut self) {
        // 500 points make Silver at once.
        let it = Purchase::new("completed", "12500.00");
        self.first.extend([has_tier(it.user(), BRONZE), it.insert()]);
        self.counts(&it, 500, 12);
        self.points(it.user(), 500);
        self.balances.push((it.user().to_owned(), "ticket", 12));
        self.tiers.push((it.user().to_owned(), SILVER));

        // 4 points are too few for Silver, so batch jobs elsewhere take it away.
        let it = Purchase::new("completed", "100.00");
        self.first.extend([has_tier(it.user(), SILVER), it.insert()]);
        self.counts(&it, 4, 0);
        self.points(it.user(), 4);
        self.tiers.push((it.user().to_owned(), SILVER));

        // 2,000 points make Gold, a day later.
        let user = uuid();
        self.first.extend([has_tier(&user, SILVER), wallet(&user, "points", "earn", "base", 2000)]);
        self.points(&user, 2000);
        self.tiers.push((user.clone(), SILVER));
        self.scheduled = user;
    }
}

/// A row of the wallet at Noodles.
pub(super) fn wallet(user: &str, currency: &str, kind: &str, component: &str, by: i32) -> String {
    format!(
        "INSERT INTO wallet_ledger (merchant_id, user_id, currency, transaction_type, component, amount, \
         signed_amount, balance_before, balance_after, source_type) \
         VALUES ('{NOODLES}', '{user}', '{currency}', '{kind}', '{component}', {}, {by}, 0, 0, 'manual')",
        by.abs()
    )
}

fn has_tier(user: &str, tier: &str) -> String {
    format!(
        "INSERT INTO member_tiers (user_id, merchant_id, tier_id) VALUES ('{user}', '{NOODLES}', '{tier}')"
    )
}

/// A completed purchase of a new member.
pub(super) fn completed(amount: &str) -> String {
    Purchase::new("completed", amount).insert()
}
