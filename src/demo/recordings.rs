//! What the demo feeds: changes that a real Debezium wrote, shipped inside the program.
//!
//! One round is the whole small set, with commands made beside it (`commands`): the lives of
//! purchases (`tests/fixtures/life`, REPLICA IDENTITY FULL) with a connector that was killed and
//! restarted (`J_restart_replay`) woven in. Round 0 is fed byte by byte as it was recorded. Further
//! rounds are the same lives under fresh ids, further on in the log. That gives more records than
//! were recorded, and the expected result is still known. (The recording of 50,000 records is not
//! shipped: it would make up most of the program.)

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::commands;
use super::expectation::{Expectation, Owner};
use crate::recording::{self, Recorded, RecordingError};

const LIFE: &[u8] = include_bytes!("../../tests/fixtures/life/full.jsonl.gz");
const PURCHASES: &[u8] = include_bytes!("../../tests/fixtures/life/purchases.jsonl.gz");
const LIFE_DEMANDS: &str = include_str!("../../tests/fixtures/life/expected.json");
const RESTART: &[u8] = include_bytes!("../../tests/fixtures/J_restart_replay.jsonl.gz");
const RESTART_DEMANDS: &str = include_str!("restart_replay.expected.json");

/// How far apart the rounds lie in the log: more than either recording is long.
const LOG_STEP: u64 = 1 << 20;
/// How far apart they lie in time, in milliseconds: likewise.
const TIME_STEP: u64 = 60_000;
/// Tells the numeric ids of rounds apart.
const ID_STEP: u64 = 1_000_000_000;

/// Why a recording cannot be fed.
#[derive(Debug, thiserror::Error)]
pub enum BundledError {
    /// A record.
    #[error("a shipped recording cannot be read: the program is damaged")]
    Recording(#[from] RecordingError),
    /// A row, a change or an expectation.
    #[error("a shipped recording holds broken JSON: the program is damaged")]
    Json(#[from] serde_json::Error),
    /// A compressed file.
    #[error("a shipped file cannot be unpacked: the program is damaged")]
    Packed(#[from] std::io::Error),
}

/// The shipped recordings, ready to be fed in rounds.
pub struct Bundled {
    records: Vec<Recorded>,
    purchases: String,
}

/// One round.
#[derive(Debug)]
pub struct Round {
    /// The records, in the order in which they are fed.
    pub records: Vec<Recorded>,
    /// The purchase table at the end of the round.
    pub purchases: Vec<Map<String, Value>>,
    /// Merchants that occur.
    pub merchants: BTreeSet<String>,
    /// What must have arrived when it is over.
    pub expectation: Expectation,
}

impl Bundled {
    /// Unpacks the recordings.
    ///
    /// # Errors
    /// Never, unless the program is damaged.
    pub fn unpack() -> Result<Self, BundledError> {
        let life: Vec<Recorded> = recording::read(LIFE).collect::<Result<_, _>>()?;
        let restart: Vec<Recorded> = recording::read(RESTART).collect::<Result<_, _>>()?;
        let mut purchases = String::new();
        MultiGzDecoder::new(PURCHASES).read_to_string(&mut purchases)?;
        Ok(Self { records: weave(life, restart), purchases })
    }

    /// The records as they were recorded.
    #[must_use]
    pub fn records(&self) -> &[Recorded] {
        &self.records
    }

    /// Records of one round.
    #[must_use]
    pub fn round_size(&self) -> usize {
        self.records.len() + made(0, &mut Expectation::default()).len()
    }

    /// Round number `round`, from 0.
    ///
    /// # Errors
    /// Never, unless the program is damaged.
    pub fn round(&self, round: u32) -> Result<Round, BundledError> {
        let records: Vec<Recorded> =
            self.records.iter().map(|record| again(record, round)).collect::<Result<_, _>>()?;
        let rows = self.purchases.lines().map(|line| serde_json::from_str(&fresh(line, round)));
        let mut expectation: Expectation = serde_json::from_str(&fresh(LIFE_DEMANDS, round))?;
        expectation.add(serde_json::from_str(&fresh(RESTART_DEMANDS, round))?);
        for code in &mut expectation.code_redeemed {
            code.code_id += u64::from(round) * ID_STEP;
        }
        let triggers: BTreeSet<&String> = expectation.mission.iter().map(|(_, row)| row).collect();
        let owned = records.iter().filter_map(tenant);
        expectation.tenants = owned.filter(|(row, _)| triggers.contains(row)).collect();
        let merchants = records.iter().filter_map(merchant).collect();
        let commands = made(round, &mut expectation);
        let records = weave(records, commands);
        Ok(Round { records, purchases: rows.collect::<Result<_, _>>()?, merchants, expectation })
    }
}

/// The commands of a round, and what they call for.
fn made(round: u32, expectation: &mut Expectation) -> Vec<Recorded> {
    weave(commands::orders(round, expectation), commands::redemptions(round, expectation))
}

/// Spreads the records of `few` evenly among `many`; both keep their order.
fn weave(many: Vec<Recorded>, few: Vec<Recorded>) -> Vec<Recorded> {
    let (all, rare) = (many.len().max(1), few.len());
    let mut woven = Vec::with_capacity(all + rare);
    let mut few = few.into_iter();
    for (index, record) in many.into_iter().enumerate() {
        woven.push(record);
        let due = (index + 1) * rare / all - index * rare / all;
        woven.extend(few.by_ref().take(due));
    }
    woven.extend(few);
    woven
}

/// The row that a change leaves behind.
fn row(record: &Recorded) -> Option<Value> {
    let mut value: Value = serde_json::from_slice(record.value.as_deref()?).ok()?;
    value.get_mut("after").map(Value::take)
}

/// The merchant that a change is about.
fn merchant(record: &Recorded) -> Option<String> {
    let row = row(record)?;
    let id = row.get("merchant_id")?.as_str()?;
    (!id.is_empty()).then(|| id.to_owned())
}

/// The id of a row, and its owner.
fn tenant(record: &Recorded) -> Option<(String, Owner)> {
    let row = row(record)?;
    let text = |column: &str| row.get(column)?.as_str().map(str::to_owned);
    let user_id = text("user_id").or_else(|| text("inviter_user_id"))?;
    Some((text("id")?, Owner { user_id, merchant_id: text("merchant_id")? }))
}

/// A record as it would be in round `round`; in round 0 as it was.
fn again(record: &Recorded, round: u32) -> Result<Recorded, serde_json::Error> {
    let mut record = record.clone();
    if round == 0 {
        return Ok(record);
    }
    if let Some(key) = &mut record.key {
        let mut row: Value = serde_json::from_str(&fresh(&String::from_utf8_lossy(key), round))?;
        renumber(&mut row, round);
        *key = serde_json::to_vec(&row)?;
    }
    if let Some(value) = &mut record.value {
        let text = String::from_utf8_lossy(value);
        let mut change: Value = serde_json::from_str(&fresh(&text, round))?;
        for row in ["before", "after"] {
            renumber(&mut change[row], round);
        }
        move_on(&mut change["source"], round);
        *value = serde_json::to_vec(&change)?;
    }
    Ok(record)
}

/// Replaces every UUID of a text by its counterpart of this round, always the same one.
fn fresh(text: &str, round: u32) -> Cow<'_, str> {
    const LENGTH: usize = 36;
    if round == 0 {
        return text.into();
    }
    // Odd, so that no two rounds below 2^32 share a mask.
    let mask = round.wrapping_mul(0x9e37_79b1);
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('-') {
        let uuid = at.checked_sub(8).and_then(|start| rest.get(start..start + LENGTH));
        let head = uuid.filter(|uuid| is_uuid(uuid)).and_then(|uuid| uuid.get(..8));
        match head.map(|head| u32::from_str_radix(head, 16)) {
            Some(Ok(head)) => {
                out.push_str(&rest[..at - 8]);
                out.push_str(&format!("{:08x}", head ^ mask));
                out.push_str(&rest[at..at - 8 + LENGTH]);
                rest = &rest[at - 8 + LENGTH..];
            }
            _ => {
                out.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out.into()
}

fn is_uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Gives a row with a numeric id another one.
fn renumber(row: &mut Value, round: u32) {
    if let Some(id) = row.get("id").and_then(Value::as_u64) {
        row["id"] = (id + u64::from(round) * ID_STEP).into();
    }
}

/// Moves a change on in the log and in time: at its old place it would be a replay.
fn move_on(source: &mut Value, round: u32) {
    let round = u64::from(round);
    let steps = [
        ("lsn", LOG_STEP),
        ("txId", LOG_STEP),
        ("ts_ms", TIME_STEP),
        ("ts_us", TIME_STEP * 1_000),
        ("ts_ns", TIME_STEP * 1_000_000),
    ];
    for (field, step) in steps {
        if let Some(number) = source.get(field).and_then(Value::as_u64) {
            source[field] = (number + round * step).into();
        }
    }
    let Some(sequence) = source.get("sequence").and_then(Value::as_str) else { return };
    let Ok(positions) = serde_json::from_str::<Vec<Option<String>>>(sequence) else { return };
    let moved: Vec<Option<String>> = positions
        .into_iter()
        .map(|position| position?.parse::<u64>().ok().map(|p| (p + round * LOG_STEP).to_string()))
        .collect();
    source["sequence"] = Value::from(moved).to_string().into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::expectation::triggers;

    #[test]
    fn the_first_round_is_what_was_recorded() {
        let shipped = Bundled::unpack().expect("recordings");
        let round = shipped.round(0).expect("a round");
        let recorded = |record: &&Recorded| record.topic.starts_with("crm.");
        let recorded: Vec<&Recorded> = round.records.iter().filter(recorded).collect();
        assert_eq!(recorded, shipped.records.iter().collect::<Vec<_>>());
        assert_eq!(recorded.len(), 319 + 33);
        assert_eq!(round.records.len(), shipped.round_size());
        assert!(!round.expectation.award.is_empty());
    }

    #[test]
    fn in_every_round_the_members_to_evaluate_are_those_whose_changes_call_for_it() {
        let shipped = Bundled::unpack().expect("recordings");
        for round in [0, 3] {
            let round = shipped.round(round).expect("a round");
            let members: BTreeSet<String> =
                triggers(&round.records).into_iter().flatten().collect();
            assert_eq!(members, round.expectation.tier_members);
        }
    }

    #[test]
    fn in_every_round_each_mission_trigger_has_an_owner() {
        let shipped = Bundled::unpack().expect("recordings");
        for round in [0, 3] {
            let expectation = shipped.round(round).expect("a round").expectation;
            let rows: BTreeSet<&String> = expectation.mission.iter().map(|(_, row)| row).collect();
            assert_eq!(rows, expectation.tenants.keys().collect());
        }
    }

    #[test]
    fn further_rounds_share_no_row_and_no_position_with_those_before() {
        let shipped = Bundled::unpack().expect("recordings");
        let rounds = [0, 1, 2].map(|round| shipped.round(round).expect("a round"));
        let keys = |round: &Round| -> BTreeSet<(String, Vec<u8>)> {
            let keyed = round.records.iter();
            keyed.filter_map(|r| Some((r.topic.clone(), r.key.clone()?))).collect()
        };
        let positions = |round: &Round| -> Vec<u64> {
            let values = round.records.iter().filter_map(|record| record.value.as_deref());
            let sources = values.map(|value| {
                let change: Value = serde_json::from_slice(value).expect("a change");
                (change["source"]["name"] == "crm").then(|| change["source"]["lsn"].as_u64())
            });
            sources.flatten().map(|lsn| lsn.expect("a position")).collect()
        };
        for pair in rounds.windows(2) {
            assert_eq!(keys(&pair[0]).len(), keys(&pair[1]).len());
            assert!(keys(&pair[0]).is_disjoint(&keys(&pair[1])));
            assert!(pair[0].expectation.award.is_disjoint(&pair[1].expectation.award));
            assert!(positions(&pair[0]).iter().max() < positions(&pair[1]).iter().min());
        }
    }

    #[test]
    fn only_uuids_are_replaced_and_each_by_the_same() {
        let uuid = "0452ef05-f542-441d-911b-8aaa62f28d1a";
        let text = format!("2026-11-23 {uuid} a-b {uuid}- -");
        let out = fresh(&text, 7);
        let other = out.split(' ').nth(1).expect("a word");
        assert_ne!(other, uuid);
        assert_eq!(out, text.replace(uuid, other));
    }
}
