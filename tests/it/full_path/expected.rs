//! What the rules demand of a stretch of the run, written after behaviour.md, and comparing it with
//! what came.

use std::collections::BTreeMap;

use crm_event_processors::fakes::Log;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::sample::{BOOKS, BRING_A_FRIEND, FIVE_BOWLS, NOODLES, TELL_US_MORE, due_at_books};

/// Events by id, or by name and source where they have none.
#[derive(Default)]
pub(super) struct Expected {
    events: BTreeMap<String, Value>,
}

/// A share of another purchase: its id, and per cent.
pub(super) type Part<'a> = (&'a str, u32);

impl Expected {
    fn add(&mut self, key: String, data: Value) {
        let before = self.events.insert(key, data);
        assert!(before.is_none(), "each event is demanded once: {before:?}");
    }

    /// An award. At Noodles it is due at once, at Books later.
    pub(super) fn award(&mut self, kind: &str, id: &str, user: &str, merchant: &str, rows: &Value) {
        self.add(
            format!("currency/award:{kind}:{id}"),
            json!({"source_type": kind, "source_id": id, "user_id": user,
                "merchant_id": merchant, "currency_rows": rows, "is_delayed": merchant == BOOKS}),
        );
    }

    /// A cancel, with user and merchant where they are known.
    pub(super) fn cancelled(&mut self, kind: &str, id: &str, owner: Option<(&str, &str)>) {
        let mut data = json!({"source_type": kind, "source_id": id});
        if let Some((user, merchant)) = owner {
            data["user_id"] = user.into();
            data["merchant_id"] = merchant.into();
        }
        self.add(format!("currency/cancelled:{kind}:{id}"), data);
    }

    /// A reverse of a purchase, or of the share of another that a debit row takes back.
    pub(super) fn reverse(&mut self, id: &str, user: &str, merchant: &str, part: Option<Part<'_>>) {
        let mut data = json!({"source_type": "purchase", "source_id": id, "user_id": user,
            "merchant_id": merchant});
        if let Some((original, percentage)) = part {
            data["original_source_id"] = original.into();
            data["refund_percentage"] = percentage.into();
        }
        self.add(format!("currency/reverse:purchase:{id}"), data);
    }

    /// An evaluation of the one mission of Noodles that `event_type` may advance. Only the row's
    /// fields in `row` are compared.
    pub(super) fn mission(&mut self, event_type: &str, id: &str, user: &str, row: Value) {
        let mission = match event_type {
            "purchase" | "points_earned" => FIVE_BOWLS,
            "form_submission" => TELL_US_MORE,
            "referral_signup" | "referral_purchase" => BRING_A_FRIEND,
            other => panic!("no mission of Noodles counts {other}"),
        };
        self.add(
            format!("mission/evaluate:{mission}:{event_type}:{id}"),
            json!({"user_id": user, "merchant_id": NOODLES, "mission_id": mission,
                "event_type": event_type, "trigger_id": id, "event_data": row}),
        );
    }

    /// Any other event, with an id.
    pub(super) fn event(&mut self, id: &str, data: Value) {
        self.add(id.to_owned(), data);
    }

    /// Checks that exactly these events were found, each once, apart from those of tiers. `since`
    /// is when the stretch began.
    pub(super) fn compare(&self, stretch: &str, found: Vec<Event>, since: Timestamp) {
        let mut seen = BTreeMap::new();
        for event in found.into_iter().filter(|event| !event.name.starts_with("tier/")) {
            let key = event.key();
            let again = seen.insert(key.clone(), event.data);
            assert!(again.is_none(), "{stretch}: {key} came twice");
        }
        let missing: Vec<_> = self.events.keys().filter(|key| !seen.contains_key(*key)).collect();
        let extra: Vec<_> = seen.keys().filter(|key| !self.events.contains_key(*key)).collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "{stretch}: missing {missing:#?}, extra {extra:#?}"
        );
        for (key, demanded) in &self.events {
            let mut data = seen[key].clone();
            if key.starts_with("currency/award:") {
                let at = data.as_object_mut().and_then(|data| data.remove("award_datetime"));
                let at = at.as_ref().and_then(Value::as_str).expect("a time");
                let at: Timestamp = at.parse().expect("RFC 3339");
                // Its change was committed within the stretch. The connector's times are in whole
                // milliseconds.
                let began = since - SignedDuration::from_millis(1);
                let due = if demanded["merchant_id"] == BOOKS { due_at_books } else { |at| at };
                let between = due(began)..=due(Timestamp::now());
                assert!(between.contains(&at), "{stretch}: {key} at {at}, not in {between:?}");
            }
            if let Some(row) = demanded.get("event_data").and_then(Value::as_object) {
                let all = data["event_data"].as_object().expect("a row");
                let of_row = |column| all.get(column).cloned().unwrap_or("not there".into());
                let compared: Map<_, _> = row.keys().map(|c| (c.clone(), of_row(c))).collect();
                data["event_data"] = compared.into();
            }
            assert_eq!(&data, demanded, "{stretch}: {key}");
        }
    }
}

/// An event as it came.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) data: Value,
}

impl Event {
    /// The log's events from `first` on.
    pub(super) fn from(log: &Log, first: usize) -> Vec<Self> {
        let event = |event: &crm_event_processors::fakes::Stored| Self {
            name: event.name.to_string(),
            id: event.id.as_deref().map(str::to_owned),
            data: serde_json::from_str(event.data.as_deref().expect("data is kept")).expect("json"),
        };
        log.events[first..].iter().map(event).collect()
    }

    fn key(&self) -> String {
        let text = |field: &str| self.data[field].as_str().unwrap_or("?").to_owned();
        let by_source = || format!("{}:{}:{}", self.name, text("source_type"), text("source_id"));
        self.id.clone().unwrap_or_else(by_source)
    }
}
