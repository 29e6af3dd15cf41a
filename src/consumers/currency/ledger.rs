//! Ledger rows that refunds need: a debit's original, a purchase's debits, and the wallet's
//! entries.

use std::collections::BTreeSet;

use bigdecimal::BigDecimal;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::work::{Debit, Source};
use crate::cdc::word;
use crate::consumers::call::Calls;
use crate::engine::{Context, Failure};

pub(super) const PURCHASES: &str = "purchase_ledger";
pub(super) const WALLET: &str = "wallet_ledger";
const COLUMNS: &str =
    "id,user_id,status,record_type,earn_currency,final_amount,created_at,updated_at";

/// Ids per query: gateways refuse long addresses.
const IDS_AT_ONCE: usize = 100;

/// A row of `purchase_ledger`.
#[derive(Debug, Clone, Deserialize)]
pub struct Purchase {
    /// Its id.
    pub id: String,
    /// Who bought.
    pub user_id: Option<String>,
    status: Option<String>,
    record_type: Option<String>,
    earn_currency: Option<bool>,
    final_amount: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "time")]
    created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    updated_at: Option<Timestamp>,
}

impl Purchase {
    /// A slip of a refund may repeat the number of the receipt that it refunds.
    fn is_debit(&self) -> bool {
        self.record_type.as_ref().is_some_and(|kind| word(kind.into()) == "debit")
    }

    fn has_status(&self, words: &[&str]) -> bool {
        self.status.as_ref().is_some_and(|status| words.contains(&&*word(status.into())))
    }

    /// Whether it has not counted yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.has_status(&["pending"])
    }

    /// Whether it was refunded or cancelled as a whole.
    #[must_use]
    pub fn is_taken_back(&self) -> bool {
        self.has_status(&["refunded", "cancelled"])
    }

    /// Whether nothing was ever awarded for it.
    #[must_use]
    pub fn earns_nothing(&self) -> bool {
        self.earn_currency == Some(false) || self.user_id.as_ref().is_none_or(String::is_empty)
    }

    /// Whether it is a debit that takes back now.
    fn debits(&self) -> bool {
        let belongs = self.user_id.as_ref().is_some_and(|user| !user.is_empty());
        self.is_debit() && belongs && !self.has_status(&["pending", "cancelled"])
    }

    /// A JSON number or a string, exactly: never through a double.
    #[must_use]
    pub fn amount(&self) -> Option<BigDecimal> {
        self.final_amount.as_ref()?.get().trim_matches('"').parse().ok()
    }

    /// Its `updated_at`.
    #[must_use]
    pub fn updated_at(&self) -> Option<Timestamp> {
        self.updated_at
    }

    /// When it was last touched, as far as the row shows.
    #[must_use]
    pub fn touched_at(&self) -> Option<Timestamp> {
        self.created_at.max(self.updated_at)
    }

    /// Whether what happened at `then` came after this row was last touched.
    #[must_use]
    pub fn is_before(&self, then: Option<Timestamp>) -> bool {
        came_after(then, self.updated_at)
    }

    /// Whether this row was created after `updated`.
    #[must_use]
    pub fn came_after(&self, updated: Option<Timestamp>) -> bool {
        came_after(self.created_at, updated)
    }

    /// Debits of one purchase are counted in this order, so that everyone who decides computes the
    /// same shares.
    #[must_use]
    pub fn order(&self) -> (Option<Timestamp>, &str) {
        (self.created_at, &self.id)
    }
}

/// Whether `then` lies after `updated`; not where one of them is not known.
fn came_after(then: Option<Timestamp>, updated: Option<Timestamp>) -> bool {
    then.zip(updated).is_some_and(|(then, updated)| then > updated)
}

/// Which purchase a debit takes back.
#[derive(Debug)]
pub enum Original<'a> {
    /// This one.
    Is(&'a Purchase),
    /// None is there (yet).
    Missing,
    /// Several could be meant.
    Ambiguous,
}

/// Picks a debit's original among the rows with its number: the newest that was created before it.
#[must_use]
pub fn original<'a>(
    id: &str,
    created_at: Option<Timestamp>,
    found: &'a [Purchase],
) -> Original<'a> {
    let rows: Vec<&Purchase> = found.iter().filter(|row| row.id != id && !row.is_debit()).collect();
    match *rows {
        [] => return Original::Missing,
        [only] => return Original::Is(only),
        _ => {}
    }
    let Some(created_at) = created_at else { return Original::Ambiguous };
    if rows.iter().any(|row| row.created_at.is_none()) {
        return Original::Ambiguous;
    }
    let before = rows.into_iter().filter(|row| row.created_at <= Some(created_at));
    let mut newest: Vec<&Purchase> = Vec::new();
    for row in before {
        match newest.first().map(|best| row.created_at.cmp(&best.created_at)) {
            Some(std::cmp::Ordering::Less) => {}
            Some(std::cmp::Ordering::Equal) => newest.push(row),
            Some(std::cmp::Ordering::Greater) | None => newest = vec![row],
        }
    }
    match *newest {
        [] => Original::Missing,
        [only] => Original::Is(only),
        _ => Original::Ambiguous,
    }
}

/// Entries of the wallet for one source. A reversal of the whole has as many as its award.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wallet {
    awards: usize,
    reversals: usize,
}

impl Wallet {
    /// Something was credited, and is not taken back.
    #[must_use]
    pub fn holds_award(self) -> bool {
        self.awards > self.reversals
    }

    /// Something was credited, and the whole of it was taken back.
    #[must_use]
    pub fn is_reversed(self) -> bool {
        self.reversals > 0 && !self.holds_award()
    }

    /// Something was credited after a whole was taken back.
    #[must_use]
    pub fn holds_award_after_reversal(self) -> bool {
        self.reversals > 0 && self.holds_award()
    }
}

/// The ledgers, as refunds ask them.
#[derive(Debug, Clone)]
pub struct Ledger {
    calls: Calls,
}

impl Ledger {
    /// Asks through `calls`.
    #[must_use]
    pub fn new(calls: Calls) -> Self {
        Self { calls }
    }

    /// The purchases of a merchant with a `transaction_number`, debits among them.
    ///
    /// # Errors
    /// When Supabase cannot be asked.
    pub async fn numbered(
        &self,
        cx: &Context,
        merchant: &str,
        number: &str,
    ) -> Result<Vec<Purchase>, Failure> {
        self.purchases(cx, merchant, ("transaction_number", number)).await
    }

    /// The debits that take back this purchase now, the oldest first: the `early` ones, and others
    /// whose reversal the wallet holds. `decided` ones are left out.
    ///
    /// # Errors
    /// When Supabase cannot be asked.
    pub async fn debits_of(
        &self,
        cx: &Context,
        purchase: &Source,
        number: &str,
        decided: impl Fn(&str) -> bool + Send,
        early: impl Fn(&Purchase) -> bool + Send,
    ) -> Result<Vec<Purchase>, Failure> {
        let merchant = &purchase.merchant_id;
        let mut debits = self.purchases(cx, merchant, ("external_ref", number)).await?;
        debits.retain(|row| row.debits() && !decided(&row.id));
        if debits.is_empty() {
            return Ok(debits);
        }
        let mut numbered = self.numbered(cx, merchant, number).await?;
        numbered.retain(|row| !row.is_debit());
        debits.retain(|row| match original(&row.id, row.created_at, &numbered) {
            Original::Is(original) => original.id == purchase.id,
            Original::Missing | Original::Ambiguous => false,
        });
        if !debits.iter().all(&early) {
            let reversed = self.reversed(cx, &debits).await?;
            debits.retain(|row| early(row) || reversed.contains(&row.id));
        }
        debits.sort_by(|one, other| one.order().cmp(&other.order()));
        Ok(debits)
    }

    /// What the wallet holds of this source.
    ///
    /// # Errors
    /// When Supabase cannot be asked.
    pub async fn wallet(&self, cx: &Context, source: &Source) -> Result<Wallet, Failure> {
        #[derive(Deserialize)]
        struct Entry {
            component: Option<String>,
        }
        let (kind, id) = (format!("eq.{}", source.kind), format!("eq.{}", source.id));
        let query = [("source_type", &*kind), ("source_id", &*id), ("select", "id,component")];
        let entries: Vec<Entry> = self.calls.select_all(cx, WALLET, &query, "id").await?;
        let is_reversal = |entry: &&Entry| entry.component.as_deref() == Some("reversal");
        let reversals = entries.iter().filter(is_reversal).count();
        Ok(Wallet { awards: entries.len() - reversals, reversals })
    }

    /// Whether the wallet already holds an entry for this source.
    ///
    /// # Errors
    /// When Supabase cannot be asked.
    pub async fn wallet_has(&self, cx: &Context, kind: &str, id: &str) -> Result<bool, Failure> {
        let (kind, id) = (format!("eq.{kind}"), format!("eq.{id}"));
        let query =
            [("source_type", &*kind), ("source_id", &*id), ("select", "id"), ("limit", "1")];
        let rows: Vec<Box<RawValue>> = self.calls.select(cx, WALLET, &query).await?;
        Ok(!rows.is_empty())
    }

    /// Those of these debits whose reversal the wallet holds.
    async fn reversed(
        &self,
        cx: &Context,
        debits: &[Purchase],
    ) -> Result<BTreeSet<String>, Failure> {
        #[derive(Deserialize)]
        struct Entry {
            source_id: String,
        }
        let mut reversed = BTreeSet::new();
        for some in debits.chunks(IDS_AT_ONCE) {
            let ids: Vec<&str> = some.iter().map(|row| &*row.id).collect();
            let ids = format!("in.({})", ids.join(","));
            let query =
                [("source_type", "eq.purchase"), ("source_id", &*ids), ("select", "id,source_id")];
            let entries: Vec<Entry> = self.calls.select_all(cx, WALLET, &query, "id").await?;
            reversed.extend(entries.into_iter().map(|entry| entry.source_id));
        }
        Ok(reversed)
    }

    async fn purchases(
        &self,
        cx: &Context,
        merchant: &str,
        (column, value): (&str, &str),
    ) -> Result<Vec<Purchase>, Failure> {
        let (merchant, value) = (format!("eq.{merchant}"), format!("eq.{value}"));
        let query = [("merchant_id", &*merchant), (column, &*value), ("select", COLUMNS)];
        self.calls.select_all(cx, PURCHASES, &query, "id").await
    }
}

/// When a debit came: the later of its row's creation and its turn from pending.
#[must_use]
pub fn came_at(debit: &Debit) -> Option<Timestamp> {
    debit.created_at.max(debit.turned_at)
}

/// A time as PostgREST writes it. Without a zone it is UTC; if it cannot be read, it is not known.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| {
        let zoned = text.parse().ok();
        zoned.or_else(|| TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok())
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(id: &str, kind: &str, created_at: Option<&str>) -> Purchase {
        let row = json!({"id": id, "user_id": "u", "status": "completed", "record_type": kind,
            "final_amount": 1, "created_at": created_at});
        serde_json::from_value(row).expect("a row")
    }

    fn picked(created_at: Option<&str>, found: &[Purchase]) -> String {
        let created_at = created_at.map(|at| at.parse().expect("a time"));
        match original("d", created_at, found) {
            Original::Is(row) => row.id.clone(),
            Original::Missing => "missing".to_owned(),
            Original::Ambiguous => "ambiguous".to_owned(),
        }
    }

    #[test]
    fn the_original_is_the_newest_purchase_created_before_the_debit() {
        let debit = Some("2026-11-03T00:00:00Z");
        let [first, second, third] =
            ["2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00", "2026-11-04T00:00:00+00:00"]
                .map(Some);
        let all = [
            row("a", "credit", first),
            row("b", "credit", second),
            row("c", "credit", third),
            row("d2", " DEBIT ", debit),
        ];
        assert_eq!(picked(debit, &all), "b");
        assert_eq!(picked(first, &all), "a", "at the same moment counts");
        assert_eq!(picked(debit, &all[2..]), "c", "the only one is taken whenever it was created");
        assert_eq!(picked(debit, &all[3..]), "missing");
        assert_eq!(picked(Some("2026-10-01T00:00:00Z"), &all), "missing");
    }

    #[test]
    fn an_original_that_could_be_one_of_several_is_not_guessed() {
        let at = Some("2026-11-01T00:00:00Z");
        let twins = [row("a", "credit", at), row("b", "credit", at)];
        assert_eq!(picked(Some("2026-11-03T00:00:00Z"), &twins), "ambiguous");
        assert_eq!(picked(None, &twins), "ambiguous");
        let older = row("o", "credit", Some("2026-10-01T00:00:00Z"));
        let [one, other] = twins;
        assert_eq!(picked(Some("2026-10-02T00:00:00Z"), &[one, other, older]), "o");
        let unknown = [row("a", "credit", None), row("b", "credit", at)];
        assert_eq!(picked(Some("2026-11-03T00:00:00Z"), &unknown), "ambiguous");
    }
}
