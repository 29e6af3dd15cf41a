//! Which changes call for an evaluation of a member's tier, and what its answer calls for
//! (behaviour section 4). Pure.

use std::fmt;

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::cdc::{Change, DecodeError, Op, Remark, Row};
use crate::config::Snapshot;
use crate::consumers::snapshot;
use crate::consumers::tenant::tenant;
use crate::consumers::words::{self, is};
use crate::engine::{Lane, Route, SNAPSHOT_SKIPPED};

/// Whose tier is evaluated: a customer of one merchant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Member {
    /// The customer.
    pub user_id: String,
    /// The merchant.
    pub merchant_id: String,
}

impl Member {
    /// The name of the claim that is held during an evaluation.
    #[must_use]
    pub fn claim(&self) -> String {
        format!("tier:{self}")
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.user_id, self.merchant_id)
    }
}

/// Whom to evaluate because of a change, if anybody.
///
/// An evaluation reads the database's present state, so one too many does no harm. An edit of a
/// purchase that stays completed is a trigger: its amount may have changed.
///
/// # Errors
/// When a column that a rule needs cannot be decoded.
pub fn route(
    change: &Change<'_>,
    policy: &Snapshot,
    now: Timestamp,
) -> Result<Route<Member>, DecodeError> {
    let triggers = match &*change.table {
        "purchase_ledger" => purchase_triggers,
        "wallet_ledger" => wallet_triggers,
        _ => return Ok(Route::Skip("other_table")),
    };
    let Some(row) = &change.after else { return Ok(Route::Skip("deleted")) };
    if !snapshot::admits(policy, change, now)? {
        return Ok(Route::Skip(SNAPSHOT_SKIPPED));
    }
    if !triggers(change, row)? {
        return Ok(Route::Skip("no_trigger"));
    }
    let Some((user_id, merchant_id)) = tenant(row, "user_id")? else {
        return Ok(Route::Skip("anonymous"));
    };
    let member = Member { user_id, merchant_id };
    // The changes of a member have the ids of rows as keys, and so lie in many partitions.
    let lane = Lane::across_partitions(&member);
    Ok(Route::Process { work: member, lane })
}

fn wallet_triggers(change: &Change<'_>, row: &Row<'_>) -> Result<bool, DecodeError> {
    if row.raw("transaction_type").is_none() {
        change.remark(Remark::NoTransactionType);
    }
    is(row, "transaction_type", &["earn"])
}

fn purchase_triggers(change: &Change<'_>, row: &Row<'_>) -> Result<bool, DecodeError> {
    row.needed("status")?;
    words::remark_purchase(change, row)?;
    if is(row, "status", &["completed", "refunded"])? || is(row, "record_type", &["debit"])? {
        return Ok(true);
    }
    if !is(row, "status", &["cancelled"])? || change.op == Op::Create {
        return Ok(false);
    }
    match &change.before {
        // Only a state that comes before completion proves that it was not completed.
        Some(before) => Ok(!is(before, "status", &["pending", "processing"])?),
        None => Ok(true),
    }
}

/// What `evaluate_user_tier_status` answers. Values that are passed on stay as they came.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    recommended_action: Option<String>,
    recommended_tier_id: Option<Box<RawValue>>,
    to_tier_ranking: Option<Box<RawValue>>,
    upgrade_timing: Option<String>,
    effective_at: Option<Box<RawValue>>,
}

/// An answer as PostgREST writes it for the function's kind: an object, the rows of a table, or
/// `null` or no row if there is nothing to say.
#[derive(Debug, Default)]
pub struct AnswerOrRows(pub Option<Answer>);

impl<'de> Deserialize<'de> for AnswerOrRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectOrRows;
        impl<'de> Visitor<'de> for ObjectOrRows {
            type Value = AnswerOrRows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, or rows of which the first counts")
            }

            fn visit_unit<E: de::Error>(self) -> Result<AnswerOrRows, E> {
                Ok(AnswerOrRows(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AnswerOrRows, A::Error> {
                Answer::deserialize(MapAccessDeserializer::new(map))
                    .map(|it| AnswerOrRows(Some(it)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<AnswerOrRows, A::Error> {
                let first = rows.next_element()?;
                while rows.next_element::<IgnoredAny>()?.is_some() {}
                Ok(AnswerOrRows(first))
            }
        }
        deserializer.deserialize_any(ObjectOrRows)
    }
}

/// What an answer calls for.
#[derive(Debug)]
pub enum Recommendation {
    /// Cancel a sleeping upgrade, then have this one run at its time.
    Schedule(Upgrade),
    /// Cancel a sleeping upgrade, then apply this tier at once.
    Apply {
        /// Id of the tier.
        to_tier_id: Box<RawValue>,
    },
    /// Cancel a sleeping upgrade: downgrades are applied by batch jobs elsewhere.
    Cancel,
    /// Nothing, for this reason: a stable label.
    Nothing(&'static str),
    /// An upgrade that does not say to which tier.
    NoTier,
    /// An upgrade for later that does not say when. Never one at once (behaviour section 4).
    NoTime,
}

/// The data of `tier/upgrade`, without the member.
#[derive(Debug, Serialize)]
pub struct Upgrade {
    to_tier_id: Box<RawValue>,
    to_tier_ranking: Option<Box<RawValue>>,
    effective_at: Box<RawValue>,
}

impl Answer {
    /// What it calls for.
    #[must_use]
    pub fn recommendation(self) -> Recommendation {
        match self.recommended_action.as_deref() {
            Some("upgrade") => {}
            Some("maintain" | "downgrade") => return Recommendation::Cancel,
            Some("assign_entry") => return Recommendation::Nothing("assign_entry"),
            _ => return Recommendation::Nothing("other_tier_action"),
        }
        let Some(to_tier_id) = self.recommended_tier_id else { return Recommendation::NoTier };
        let timing = self.upgrade_timing.map(|timing| timing.trim().to_lowercase());
        let timing = timing.filter(|timing| !timing.is_empty());
        let effective_at = self.effective_at.filter(|at| at.get() != "\"\"");
        match (timing.as_deref(), effective_at) {
            (Some(_), Some(effective_at)) => Recommendation::Schedule(Upgrade {
                to_tier_id,
                to_tier_ranking: self.to_tier_ranking,
                effective_at,
            }),
            (None | Some("immediate"), _) => Recommendation::Apply { to_tier_id },
            (Some(_), None) => Recommendation::NoTime,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::cdc::{self, Decoded, Record};
    use crate::config::SnapshotPolicy;

    #[test]
    fn an_answer_is_an_object_or_the_first_of_rows_or_nothing() {
        let object = r#"{"recommended_action": "upgrade", "recommended_tier_id": "t-1"}"#;
        for text in [object.to_owned(), format!("[{object}]"), format!("[{object}, {object}]")] {
            let AnswerOrRows(answer) = serde_json::from_str(&text).expect("an answer");
            let recommendation = answer.expect("it says something").recommendation();
            assert!(matches!(recommendation, Recommendation::Apply { .. }), "{text}");
        }
        for text in ["null", "[]"] {
            let AnswerOrRows(answer) = serde_json::from_str(text).expect("an answer");
            assert!(answer.is_none(), "{text}");
        }
        assert!(serde_json::from_str::<AnswerOrRows>("\"upgrade\"").is_err());
    }

    fn decide(topic: &str, value: &Value) -> Result<Member, &'static str> {
        let bytes = value.to_string().into_bytes();
        let record = Record {
            topic,
            partition: 0,
            offset: 0,
            timestamp_ms: Some(0),
            key: None,
            value: Some(&bytes),
            headers: &[],
        };
        let decoded = cdc::decode(&record, &cdc::Options::default()).expect("decoded");
        let Decoded::Change(change) = decoded else { panic!("no change: {value}") };
        let policy =
            Snapshot { policy: SnapshotPolicy::Skip, max_age: Duration::from_secs(20 * 60 * 60) };
        match route(&change, &policy, Timestamp::UNIX_EPOCH).expect("routed") {
            Route::Process { work, .. } => Ok(work),
            Route::Skip(reason) => Err(reason),
        }
    }

    fn purchase(op: &str, before: Option<&str>, after: &str, record_type: &str) -> Value {
        let row = |status: &str| {
            json!({"id": "p", "user_id": "u", "merchant_id": "m", "status": status,
                "record_type": record_type})
        };
        json!({"op": op, "before": before.map(row), "after": row(after), "ts_ms": 0,
            "source": {"table": "purchase_ledger", "ts_ms": 0}})
    }

    fn of_purchase(op: &str, before: Option<&str>, after: &str) -> Result<Member, &'static str> {
        decide("crm.public.purchase_ledger", &purchase(op, before, after, "credit"))
    }

    #[test]
    fn a_purchase_triggers_while_it_counts_and_when_it_stops_counting() {
        let member = Member { user_id: "u".into(), merchant_id: "m".into() };
        for (op, before, after) in [
            ("c", None, "completed"),
            ("u", None, "completed"),
            ("u", Some("pending"), "completed"),
            ("u", Some("completed"), "completed"),
            ("c", None, "refunded"),
            ("u", Some("completed"), "refunded"),
            ("u", Some("completed"), "cancelled"),
            ("u", Some("refunded"), "cancelled"),
            ("u", None, "cancelled"),
        ] {
            let decision = of_purchase(op, before, after);
            assert_eq!(decision, Ok(member.clone()), "{op} {before:?} -> {after}");
        }
    }

    #[test]
    fn a_purchase_that_never_counted_triggers_nothing() {
        for (op, before, after) in [
            ("c", None, "pending"),
            ("c", None, "cancelled"),
            ("u", None, "processing"),
            ("u", Some("pending"), "cancelled"),
            ("u", Some("processing"), "cancelled"),
        ] {
            let decision = of_purchase(op, before, after);
            assert_eq!(decision, Err("no_trigger"), "{op} {before:?} -> {after}");
        }
        assert_eq!(of_purchase("r", None, "completed"), Err(SNAPSHOT_SKIPPED));
    }

    #[test]
    fn a_debit_triggers_in_any_state_and_a_guest_in_none() {
        for status in ["pending", "completed", "cancelled"] {
            let value = purchase("c", None, status, "debit");
            assert!(decide("crm.public.purchase_ledger", &value).is_ok(), "{status}");
        }
        let mut guest = purchase("c", None, "completed", "credit");
        guest["after"]["user_id"] = Value::Null;
        assert_eq!(decide("crm.public.purchase_ledger", &guest), Err("anonymous"));
    }

    #[test]
    fn only_earn_rows_of_the_wallet_trigger() {
        for (kind, triggers) in [("earn", true), ("burn", false)] {
            let row = json!({"id": "w", "user_id": "u", "merchant_id": "m",
                "transaction_type": kind, "component": "reversal"});
            let value = json!({"op": "c", "before": null, "after": row, "ts_ms": 0,
                "source": {"table": "wallet_ledger", "ts_ms": 0}});
            assert_eq!(decide("crm.public.wallet_ledger", &value).is_ok(), triggers, "{kind}");
        }
    }

    fn recommendation(answer: Value) -> Recommendation {
        serde_json::from_value::<Answer>(answer).expect("an answer").recommendation()
    }

    #[test]
    fn an_upgrade_is_scheduled_only_with_a_timing_and_a_time() {
        let answer = |timing: Value, at: Value| {
            json!({"recommended_action": "upgrade", "recommended_tier_id": "gold",
                "to_tier_ranking": 3, "upgrade_timing": timing, "upgrade_timing_value": 1,
                "effective_at": at})
        };
        let at = json!("2027-01-01T00:00:00+00:00");
        let Recommendation::Schedule(upgrade) = recommendation(answer("days".into(), at.clone()))
        else {
            panic!("it has both");
        };
        let data = serde_json::to_value(upgrade).expect("json");
        assert_eq!(
            data,
            json!({"to_tier_id": "gold", "to_tier_ranking": 3, "effective_at": at.clone()})
        );
        for (timing, at) in [
            (Value::Null, at.clone()),
            ("".into(), at),
            ("immediate".into(), Value::Null),
            (" Immediate ".into(), "".into()),
        ] {
            let Recommendation::Apply { to_tier_id } = recommendation(answer(timing, at)) else {
                panic!("one is missing");
            };
            assert_eq!(to_tier_id.get(), "\"gold\"");
        }
    }

    #[test]
    fn an_upgrade_with_a_timing_and_no_time_is_never_one_at_once() {
        for (timing, at) in [("days", json!({})), ("end_of_month", json!({"effective_at": ""}))] {
            let mut answer = json!({"recommended_action": "upgrade", "recommended_tier_id": "gold",
                "upgrade_timing": timing});
            answer.as_object_mut().expect("an object").extend(at.as_object().expect("one").clone());
            assert!(matches!(recommendation(answer), Recommendation::NoTime), "{timing}");
        }
    }

    #[test]
    fn other_answers_cancel_or_call_for_nothing() {
        for action in ["maintain", "downgrade"] {
            assert!(matches!(
                recommendation(json!({"recommended_action": action})),
                Recommendation::Cancel
            ));
        }
        assert!(matches!(
            recommendation(
                json!({"recommended_action": "assign_entry", "recommended_tier_id": "t"})
            ),
            Recommendation::Nothing("assign_entry")
        ));
        for answer in [json!({}), json!({"recommended_action": "promote"})] {
            assert!(matches!(recommendation(answer), Recommendation::Nothing("other_tier_action")));
        }
        assert!(matches!(
            recommendation(json!({"recommended_action": "upgrade"})),
            Recommendation::NoTier
        ));
    }
}
