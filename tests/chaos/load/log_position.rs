//! Where a change lies in the database's log, and how a connector writes it.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Change, Item, ORDERS, REDEMPTIONS, Row, TOPICS};

/// The place in the database's log.
pub(super) struct LogPosition {
    pub(super) last_commit: u64,
    pub(super) transaction: u64,
}

impl LogPosition {
    pub(super) fn write(&mut self, change: Change, committed: Timestamp) -> Item {
        let Change { table, id, before, after, mut effects, raw, copy } = change;
        let partitions = TOPICS.iter().find(|(topic, _)| *topic == table).map_or(1, |(_, n)| *n);
        let command = table == ORDERS || table == REDEMPTIONS;
        let key = if command { id } else { json!({ "id": id }).to_string() };
        let committed = Timestamp::from_millisecond(committed.as_millisecond()).expect("a time");
        for effect in &mut effects {
            // The award's time depends on the commit's, which is known only now.
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
