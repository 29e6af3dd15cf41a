//! One play: what happens to a purchase and its debits, in SQL, and what must be left of its award.

use std::collections::BTreeSet;

use crate::full_path::lives::uuid;

/// Hundredths: of an amount, or of a point.
pub(super) type Cents = i64;

/// When a play's merchant awards. One point for each 1.00.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merchant {
    Now,
    /// An hour later, so after the test.
    Hour,
    /// On another day at nine.
    Day,
    /// A minute later, so during the test.
    Minute,
}

impl Merchant {
    pub(super) const ALL: [Self; 4] = [Self::Now, Self::Hour, Self::Day, Self::Minute];

    pub(super) fn id(self) -> String {
        format!("10000000-0000-4000-8000-0000000000{:02}", 11 + self as u8)
    }

    pub(super) fn sleeps(self) -> bool {
        self != Self::Now
    }

    /// The merchant's rows: itself, and what its purchases earn.
    pub(super) fn insert(self) -> String {
        let id = self.id();
        let settings = match self {
            Self::Now => "NULL, NULL, NULL, NULL",
            Self::Hour => "NULL, 60, NULL, NULL",
            Self::Day => "3, NULL, '09:00', 'Asia/Bangkok'",
            Self::Minute => "NULL, 1, NULL, NULL",
        };
        let factor = |kind: &str, amount: u32, each: &str| {
            format!(
                "INSERT INTO earn_factors (id, merchant_id, source_type, currency, component, amount, per_amount) \
                 VALUES (gen_random_uuid(), '{id}', '{kind}', 'points', 'base', {amount}, {each});"
            )
        };
        format!(
            "INSERT INTO merchant_master VALUES ('{id}', '{self:?}', {settings}); {} {} {}",
            factor("purchase", 1, "1"),
            factor("referral", 100, "NULL"),
            factor("mission", 100, "NULL")
        )
    }
}

/// How a play's statements are put into transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// All of it, the purchase too, in one.
    Whole,
    /// The purchase first, the rest in one.
    OneTransaction,
    /// One each, one after the other.
    OneSession,
    /// Each in a session of its own, at once.
    Sessions,
    /// Each in a session of its own, begun in the play's order and committed in reverse.
    Overlapping,
}

impl Style {
    pub(super) const ALL: [Self; 5] =
        [Self::Whole, Self::OneTransaction, Self::OneSession, Self::Sessions, Self::Overlapping];
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// The purchase is made, with this status.
    Buy(&'static str),
    Turn(&'static str),
    /// A change of the purchase without meaning.
    Edit,
    /// A debit row is made, with this status.
    Debit(usize, &'static str),
    TurnDebit(usize, &'static str),
    /// SQL with the play's names in braces.
    Other(&'static str),
}

/// A row that takes back a part.
#[derive(Debug, Clone)]
pub(super) struct Debit {
    pub(super) id: String,
    /// Of either sign.
    pub(super) amount: Cents,
}

/// What must be left.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outcome {
    pub(super) left: Cents,
    /// What the debits of the latest award take.
    pub(super) taken: Cents,
    /// How often all of it was taken back.
    pub(super) wholes: u32,
    pub(super) whole: bool,
    /// How often it came to count.
    pub(super) awards: u32,
    /// It counts at the end, so its award cannot have been calculated too late.
    pub(super) counts: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Play {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) user: String,
    pub(super) merchant: Merchant,
    pub(super) amount: Cents,
    pub(super) debits: Vec<Debit>,
    pub(super) style: Style,
    /// Whether the application keeps `updated_at`.
    pub(super) logged_changes: bool,
    /// Those up to `born` come before the rest, whatever the style.
    pub(super) ops: Vec<Op>,
    pub(super) born: usize,
    /// This many at the end come after the rest.
    pub(super) tail: usize,
    /// What is left, if the ops do not say so by themselves.
    pub(super) left: Option<Cents>,
    /// Rows that become dead letters (0: the purchase, else a debit counted from 1), and why;
    /// empty: for any reason.
    pub(super) letters: Vec<(usize, &'static str)>,
}

/// A step's effects are complete before the next step may run.
pub(super) enum Step {
    One(String),
    /// Sessions at once.
    Sessions(Vec<String>),
    /// Sessions that commit in the opposite order.
    Overlapping(Vec<String>),
}

impl Play {
    /// Whether the purchase counts once more after it was taken back.
    pub(super) fn counts_again(&self) -> bool {
        let taken_back = |op: &Op| matches!(op, Op::Turn("refunded" | "cancelled"));
        let after = self.ops.iter().skip_while(|op| !taken_back(op));
        after.into_iter().any(|op| matches!(op, Op::Turn("completed")))
    }

    pub(super) fn new(name: String, amount: Cents, debits: &[Cents], ops: Vec<Op>) -> Self {
        let debits = debits.iter().map(|&amount| Debit { id: uuid(), amount }).collect();
        Self {
            name,
            id: uuid(),
            user: uuid(),
            merchant: Merchant::Now,
            amount,
            debits,
            style: Style::OneSession,
            logged_changes: true,
            ops,
            born: 1,
            tail: 0,
            left: None,
            letters: Vec::new(),
        }
    }

    /// The id of row 0, the purchase, or of a debit, counted from 1.
    pub(super) fn row(&self, row: usize) -> &str {
        row.checked_sub(1).map_or(&self.id, |debit| &self.debits[debit].id)
    }

    /// The ops' outcome if these debits (counted from 0) become dead letters.
    pub(super) fn outcome(&self, set_aside: &BTreeSet<usize>) -> Outcome {
        let (mut status, mut found) = ("", Outcome::default());
        let mut counted = set_aside.clone();
        for op in &self.ops {
            match *op {
                Op::Buy(to) | Op::Turn(to) => {
                    let earned = !matches!(status, "" | "pending");
                    match to {
                        "completed" if found.awards == 0 || found.whole => {
                            (found.awards, found.whole, found.taken) = (found.awards + 1, false, 0);
                        }
                        "refunded" | "cancelled" if earned && !found.whole => {
                            (found.wholes, found.whole) = (found.wholes + 1, true);
                        }
                        _ => {}
                    }
                    status = to;
                }
                Op::Debit(debit, "completed") | Op::TurnDebit(debit, "completed") => {
                    if counted.insert(debit) && !found.whole {
                        let left = self.amount - found.taken;
                        found.taken += self.debits[debit].amount.abs().min(left);
                    }
                }
                Op::Edit | Op::Debit(..) | Op::TurnDebit(..) | Op::Other(_) => {}
            }
        }
        found.counts = status == "completed";
        let left = if found.whole || found.awards == 0 { 0 } else { self.amount - found.taken };
        found.left = self.left.unwrap_or(left);
        found
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let all: Vec<String> = self.ops.iter().map(|op| self.sql(op)).collect();
        let (born, rest) = all.split_at(self.born);
        let together = |all: &[String]| Step::One(format!("BEGIN; {}; COMMIT", all.join("; ")));
        let alone = |all: &[String]| all.iter().cloned().map(Step::One).collect::<Vec<_>>();
        let (at_once, later) = rest.split_at(rest.len() - self.tail);
        let mut steps = alone(born);
        match self.style {
            Style::Whole => return vec![together(&all)],
            Style::OneTransaction if rest.is_empty() => {}
            Style::OneTransaction => steps.push(together(rest)),
            Style::OneSession => steps.extend(alone(rest)),
            Style::Sessions => steps.push(Step::Sessions(at_once.to_vec())),
            Style::Overlapping => steps.push(Step::Overlapping(at_once.to_vec())),
        }
        if matches!(self.style, Style::Sessions | Style::Overlapping) {
            steps.extend(alone(later));
        }
        steps
    }

    fn sql(&self, op: &Op) -> String {
        let logged = if self.logged_changes { ", updated_at = now()" } else { "" };
        let set = |id: &str, what: &str| {
            format!("UPDATE purchase_ledger SET {what}{logged} WHERE id = '{id}'")
        };
        match op {
            Op::Buy(status) => self.insert(&self.id, self.amount, status, "credit"),
            Op::Turn(status) => set(&self.id, &format!("status = '{status}'")),
            Op::Edit => set(&self.id, "note = 'edited'"),
            Op::Debit(debit, status) => {
                let Debit { id, amount } = &self.debits[*debit];
                self.insert(id, *amount, status, "debit")
            }
            Op::TurnDebit(debit, status) => {
                set(&self.debits[*debit].id, &format!("status = '{status}'"))
            }
            Op::Other(sql) => {
                let debit = |at: usize| self.debits.get(at).map_or("", |debit| &debit.id);
                sql.replace("{id}", &self.id)
                    .replace("{user}", &self.user)
                    .replace("{merchant}", &self.merchant.id())
                    .replace("{debit}", debit(0))
            }
        }
    }

    /// Its transaction number is derived from its id.
    fn insert(&self, id: &str, amount: Cents, status: &str, kind: &str) -> String {
        let original = if kind == "debit" { format!("'T-{}'", self.id) } else { "NULL".to_owned() };
        let (merchant, user) = (self.merchant.id(), &self.user);
        let amount = decimal(amount);
        format!(
            "INSERT INTO purchase_ledger (id, merchant_id, user_id, transaction_number, transaction_date, \
             total_amount, final_amount, status, record_type, external_ref) \
             VALUES ('{id}', '{merchant}', '{user}', 'T-{id}', now(), {amount}, {amount}, '{status}', '{kind}', \
             {original})"
        )
    }
}

/// Hundredths as SQL writes them.
pub(super) fn decimal(cents: Cents) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}
