//! What was decided about the refunds of one source, so that whole and parts never take more than
//! 100 % of an award (behaviour section 3, "Refunds"). Pure.

use std::collections::BTreeMap;

use bigdecimal::{BigDecimal, Signed, Zero};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ledger::Purchase;
use crate::consumers::refund::{NoPercentage, refund_percentage};
use crate::dedup::Moment;

/// Everything that was decided about one source. Kept under its lock, before anything is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// The suffix that distinguishes the ids and claims of the present award from the first one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again: Option<String>,
    /// The change that called for the present award, where that is not the first. A change that
    /// took back an earlier award does not concern this one when it comes again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Moment>,
    /// The original's `final_amount` when the first debit of this award was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<String>,
    /// The debits of the present award, by their ids.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    debits: BTreeMap<String, Share>,
    /// What the whole takes of the present award.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole: Option<Share>,
    /// The present award slept when it was taken back: nothing of it is ever credited.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub asleep: bool,
    /// The debits of awards before the present one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    earlier: BTreeMap<String, Share>,
    /// When the last reverse runs or was decided, in milliseconds since 1970.
    pub reversed_ms: i64,
}

/// How much a debit or the whole takes back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// Per cent of the award, as the text of a JSON number; `0` sends nothing.
    pub percent: String,
    /// The part of the original's `final_amount`.
    #[serde(skip_serializing_if = "String::is_empty")]
    amount: String,
    /// The change that it was decided for; none while only the whole has counted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Moment>,
    /// It is of an award before the present one. Not kept.
    #[serde(skip)]
    pub earlier: bool,
    /// When its reverse is to run, in milliseconds since 1970, if later than at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ts: Option<i64>,
}

impl Share {
    /// A share of nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { percent: "0".to_owned(), ..Self::default() }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.percent == "0"
    }

    /// Whether it takes all of the award.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.percent == "100"
    }
}

impl Decision {
    /// Reads what [`Decision::written`] wrote.
    ///
    /// # Errors
    /// When the text is something else.
    pub fn read(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The text to keep.
    #[must_use]
    pub fn written(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What was decided about a debit, of this award or an earlier one.
    #[must_use]
    pub fn debit(&self, id: &str) -> Option<&Share> {
        self.debits.get(id).or_else(|| self.earlier.get(id))
    }

    /// Whether a change lies before the one that called for the present award.
    #[must_use]
    pub fn is_over(&self, at: Moment) -> bool {
        self.since.is_some_and(|since| at < since)
    }

    /// Whether a debit is of an award before the present one.
    #[must_use]
    pub fn is_earlier(&self, id: &str) -> bool {
        self.earlier.contains_key(id)
    }

    /// Whether a debit is decided, for this award or an earlier one.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        self.debits.contains_key(id) || self.earlier.contains_key(id)
    }

    /// Notes the decision about a debit.
    pub fn set_debit(&mut self, id: &str, share: Share) {
        let awards =
            if self.earlier.contains_key(id) { &mut self.earlier } else { &mut self.debits };
        awards.insert(id.to_owned(), share);
    }

    /// Notes when the reverse of a share runs.
    pub fn decided(&mut self, share: &Share) {
        if !share.is_nothing() {
            let now = Timestamp::now().as_millisecond();
            self.reversed_ms = self.reversed_ms.max(share.ts.unwrap_or(now));
        }
    }

    /// The share of a debit of `amount` in a purchase of `original`: at most what is left.
    ///
    /// # Errors
    /// When one of the amounts is missing or the original's is not above zero.
    pub fn share(
        &mut self,
        amount: Option<&BigDecimal>,
        original: Option<&BigDecimal>,
    ) -> Result<Share, NoPercentage> {
        let first = self.amount.as_deref().and_then(number);
        let original = first.as_ref().or(original);
        refund_percentage(amount, original)?;
        let (Some(amount), Some(original)) = (amount, original) else {
            return Ok(Share::nothing());
        };
        self.amount.get_or_insert_with(|| original.to_plain_string());
        let part = amount.abs().min(self.amount_left(original));
        let percent = refund_percentage(Some(&part), Some(original))?;
        let left = self.percent_left();
        let fits = percent.parse().is_ok_and(|percent: BigDecimal| percent <= left);
        let percent = if fits { percent } else { written(&left) };
        Ok(Share { percent, amount: part.to_plain_string(), ..Share::default() })
    }

    /// Decides the debits of a purchase of `original` in their order. A debit whose share cannot be
    /// computed becomes a dead letter, and counts for nothing here.
    pub fn count(&mut self, debits: &[Purchase], original: Option<&BigDecimal>) {
        for row in debits {
            if let Ok(share) = self.share(row.amount().as_ref(), original) {
                self.set_debit(&row.id, share);
            }
        }
    }

    /// What the whole takes: what is left.
    #[must_use]
    pub fn rest(&self) -> Share {
        let amount = self.amount.as_deref().and_then(number);
        let used_up = amount.is_some_and(|amount| self.amount_left(&amount).is_zero());
        let left = if used_up { BigDecimal::zero() } else { self.percent_left() };
        Share { percent: written(&left), ..Share::default() }
    }

    /// The source counts once more: the decisions so far belong to the award before. If that one
    /// was never credited, a debit not handled yet must not take from the next award.
    pub fn begin(&mut self, at: Moment) {
        let mut earlier = std::mem::take(&mut self.earlier);
        for share in self.debits.values_mut().filter(|share| self.asleep && share.by.is_none()) {
            *share = Share::nothing();
        }
        earlier.append(&mut self.debits);
        *self = Self {
            again: Some(again(at)),
            since: Some(at),
            earlier,
            reversed_ms: self.reversed_ms,
            ..Self::default()
        };
    }

    fn amount_left(&self, original: &BigDecimal) -> BigDecimal {
        let taken: BigDecimal =
            self.debits.values().filter_map(|share| number(&share.amount)).sum();
        let left = original - taken;
        if left.is_negative() { BigDecimal::zero() } else { left }
    }

    fn percent_left(&self) -> BigDecimal {
        let taken: BigDecimal =
            self.debits.values().filter_map(|share| number(&share.percent)).sum();
        let left = BigDecimal::from(100) - taken;
        if left.is_negative() { BigDecimal::zero() } else { left }
    }
}

fn number(text: &str) -> Option<BigDecimal> {
    text.parse().ok()
}

fn written(percent: &BigDecimal) -> String {
    if percent.is_zero() { "0".to_owned() } else { percent.normalized().to_plain_string() }
}

/// The suffix for ids and claims of an award that a change calls for after an earlier one.
#[must_use]
pub fn again(at: Moment) -> String {
    at.lsn.map_or_else(|| at.commit_ms.to_string(), |lsn| lsn.to_string())
}

/// The name of a claim or the id of an event of one award.
#[must_use]
pub fn named(what: &str, kind: &str, id: &str, again: Option<&str>) -> String {
    let mut name = super::work::claim(what, kind, id);
    if let Some(again) = again {
        name.push_str(":again:");
        name.push_str(again);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> BigDecimal {
        text.parse().expect("a decimal")
    }

    /// Decides on debits of a purchase in their order, then on the whole.
    fn play(original: &str, debits: &[&str]) -> (Decision, Vec<String>) {
        let mut decision = Decision::default();
        let mut percents = Vec::new();
        for (at, debit) in debits.iter().enumerate() {
            let share = decision.share(Some(&amount(debit)), Some(&amount(original)));
            let share = share.expect("a share");
            percents.push(share.percent.clone());
            decision.set_debit(&at.to_string(), share);
        }
        percents.push(decision.rest().percent);
        (decision, percents)
    }

    #[test]
    fn the_whole_takes_what_the_debits_have_left() {
        assert_eq!(play("100", &[]).1, ["100"]);
        assert_eq!(play("100", &["-25"]).1, ["25", "75"]);
        assert_eq!(play("100", &["-25", "-75"]).1, ["25", "75", "0"]);
        assert_eq!(play("100", &["-100"]).1, ["100", "0"]);
        assert_eq!(play("100", &["-60", "-60", "-60"]).1, ["60", "40", "0", "0"]);
        assert_eq!(play("803.31", &["-267.77"]).1, ["33.333333", "66.666667"]);
    }

    #[test]
    fn rounding_never_takes_more_than_the_whole() {
        let (_, percents) = play("6", &["-1", "-1", "-1"]);
        assert_eq!(percents, ["16.666667", "16.666667", "16.666667", "49.999999"]);
        let (_, percents) = play("3", &["-1", "-1", "-1"]);
        assert_eq!(percents, ["33.333333", "33.333333", "33.333333", "0"], "nothing is left");
        let (_, percents) = play("6", &["-1", "-1", "-1", "-1", "-1", "-1"]);
        assert_eq!(percents[5], "16.666665", "at most what is left");
    }

    #[test]
    fn a_share_that_cannot_be_told_adds_nothing() {
        let mut decision = Decision::default();
        let debit = amount("-5");
        assert!(decision.share(None, Some(&amount("10"))).is_err());
        assert!(decision.share(Some(&debit), Some(&amount("0"))).is_err());
        assert!(decision.share(Some(&debit), None).is_err());
        assert_eq!(decision, Decision::default());
        assert_eq!(decision.rest().percent, "100");
    }

    #[test]
    fn the_amount_of_the_first_decision_holds() {
        let (mut decision, _) = play("100", &["-25"]);
        let share = decision.share(Some(&amount("-25")), Some(&amount("50"))).expect("a share");
        assert_eq!(share.percent, "25", "and not 50, after the purchase was changed");
    }

    #[test]
    fn debits_count_for_their_own_award_only() {
        let (mut decision, _) = play("100", &["-25"]);
        decision.whole = Some(decision.rest());
        decision.begin(Moment { commit_ms: 7, lsn: Some(77) });
        assert_eq!(decision.rest().percent, "100");
        assert_eq!(decision.debit("0").expect("known").percent, "25", "and stays known");
        assert!(decision.whole.is_none());
        // One that nobody has handled yet takes nothing of an award that was never credited.
        let (mut decision, _) = play("100", &["-25"]);
        (decision.whole, decision.asleep) = (Some(decision.rest()), true);
        decision.begin(Moment { commit_ms: 7, lsn: Some(77) });
        assert!(decision.is_earlier("0") && decision.debit("0").expect("known").is_nothing());
        assert_eq!(
            named("award", "purchase", "p", decision.again.as_deref()),
            "award:purchase:p:again:77"
        );
        let read = Decision::read(&decision.written()).expect("what was written");
        assert_eq!(read, decision);
    }
}
