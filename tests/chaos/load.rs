//! The load: lives of rows as a connector writes them, and what each change calls for.
//!
//! What must come of a record follows from how it was made and from behaviour.md, never from the
//! daemon's code. Rows are unique, log positions ascend, and a seed always gives the same load.

mod commands;
mod effects;
mod lives;
mod log_position;

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

pub(crate) use self::effects::letter;
use self::lives::Maker;
use crate::history::{Consumer, Effect};

/// The topics by their names after the prefix, and their partitions.
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
/// Which topics each consumer takes.
pub(crate) const CONSUMERS: [(Consumer, &[&str]); 5] = [
    ("currency", &[PURCHASES, REFERRALS, CLAIMS]),
    ("tier", &[PURCHASES, WALLETS]),
    ("mission", &[PURCHASES, FORMS, WALLETS, REFERRALS]),
    ("reward", &[REDEMPTIONS, CODES]),
    ("marketplace", &[ORDERS]),
];

/// A topic's full name: that of redemptions is fixed.
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
    /// The topic's name after the prefix.
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
    /// A value to write as it is, in place of a change.
    raw: Option<String>,
    copy: bool,
}

impl Load {
    /// At least `records` records, at `rate` a second from `start` on; purchases carry notes of
    /// less than `note` bytes.
    pub(crate) fn new(seed: u64, records: usize, rate: f64, start: Timestamp, note: usize) -> Self {
        let mut maker = Maker::new(seed, note);
        let mut open: Vec<VecDeque<Change>> = Vec::new();
        let mut items = Vec::with_capacity(records);
        while items.len() < records || !open.is_empty() {
            if items.len() < records {
                while open.len() < OPEN {
                    open.push(maker.life());
                }
            }
            let at = maker.rng.usize(..open.len());
            // Now and then a row changes several times in a row.
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
