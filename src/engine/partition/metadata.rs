//! What travels with a committed offset: the replay index and the completed offsets above the
//! committable offset.
//!
//! Pure. One version character, then base64 of variable-length integers: the offset that it was
//! made for and the log that this is an offset of, the replay index, and the offset map. Tools that
//! move a group to another cluster commit an offset of their own beside the metadata of the old
//! one; what was completed above the old offset says nothing about the records there, so metadata
//! is worth nothing beside another offset.
//!
//! The broker refuses metadata above 4,096 bytes and librdkafka then silently never commits that
//! partition again, so the size is bounded here: the replay index comes first, the offset map gets
//! what is left and loses its far end first, which costs repeats and loses nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use crate::cdc::Position;
use crate::engine::partition::offsets::OffsetMap;
use crate::engine::partition::replay_index::{Entry, ReplayIndex, Source};
use crate::kafka::TopicId;

/// The most that a broker takes with its default `offset.metadata.max.bytes`.
pub const MAX_BYTES: usize = 4096;

const VERSION: char = '2';
/// Metadata that does not name its offset. Its replay index is taken, since positions in the
/// database's log are true wherever the group stands; its offset map is not, since nobody can tell
/// which records it means.
const WITHOUT_OFFSET: char = '1';
const MAX_RAW: usize = (MAX_BYTES - VERSION.len_utf8()) / 4 * 3;
/// How much of a replay index is kept, by how much of it fits: entries a source, and ties an entry
/// (a COPY can put a thousand rows at one position). What is left out is handled again when it
/// comes again.
const FRONTIER_SIZES: [(usize, usize); 5] =
    [(usize::MAX, 256), (usize::MAX, 16), (3, 16), (1, 16), (1, 0)];

/// What a commit holds besides its offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The log that the offset is of.
    pub log: Log,
    /// The changes that the committable offset has passed.
    pub replay_index: ReplayIndex,
    /// What is completed above the committable offset.
    pub completed: OffsetMap,
}

/// What distinguishes one log from another of the same name, and one that was cut back from what
/// it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Log {
    /// The topic that the name stood for.
    pub topic: Option<TopicId>,
    /// The timestamp of the newest record that the committable offset has passed, in milliseconds
    /// since 1970.
    pub newest_ms: Option<i64>,
}

/// Why metadata cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// There is none, or another client wrote it.
    #[error("it was not written by this daemon")]
    Foreign,
    /// It was made for a commit of this offset.
    #[error("it was made for offset {0}")]
    OfOffset(i64),
}

/// Encodes what a restart needs, at most [`MAX_BYTES`] ASCII characters.
#[must_use]
pub fn encode(
    committable: i64,
    log: Log,
    replay_index: &ReplayIndex,
    completed: &OffsetMap,
) -> String {
    let mut raw = Vec::with_capacity(128);
    put(&mut raw, committable.max(0).unsigned_abs());
    put_log(&mut raw, log);
    let start = raw.len();
    for (entries, ties) in FRONTIER_SIZES {
        raw.truncate(start);
        put_frontier(&mut raw, replay_index, entries, ties);
        if raw.len() <= MAX_RAW {
            break;
        }
    }
    if raw.len() > MAX_RAW {
        // More tables in one topic than fit: without a replay index, claims and ids stand alone.
        raw.truncate(start);
        put_frontier(&mut raw, &ReplayIndex::default(), 0, 0);
    }
    put_map(&mut raw, committable, completed);
    let mut text = String::with_capacity(1 + raw.len().div_ceil(3) * 4);
    text.push(VERSION);
    BASE64.encode_string(&raw, &mut text);
    text
}

/// Reads what [`encode`] wrote for a commit of `committable`.
///
/// # Errors
/// [`Untold`], when nothing is known then, which is safe: it costs repeats.
pub fn decode(committable: i64, text: &str) -> Result<Kept, Untold> {
    let (named, text) = match text.strip_prefix(VERSION) {
        Some(text) => (true, text),
        None => (false, text.strip_prefix(WITHOUT_OFFSET).ok_or(Untold::Foreign)?),
    };
    let raw = BASE64.decode(text).map_err(|_| Untold::Foreign)?;
    let mut input = raw.as_slice();
    if !named {
        let replay_index = take_frontier(&mut input).ok_or(Untold::Foreign)?;
        return Ok(Kept { replay_index, ..Kept::default() });
    }
    let of = take(&mut input).and_then(|of| i64::try_from(of).ok()).ok_or(Untold::Foreign)?;
    if of != committable {
        return Err(Untold::OfOffset(of));
    }
    take_kept(&mut input, committable).ok_or(Untold::Foreign)
}

fn take_kept(input: &mut &[u8], committable: i64) -> Option<Kept> {
    Some(Kept {
        log: take_log(input)?,
        replay_index: take_frontier(input)?,
        completed: take_map(input, committable)?,
    })
}

fn put_log(raw: &mut Vec<u8>, log: Log) {
    put_option(raw, log.newest_ms.map(|ms| ms.max(0).unsigned_abs()));
    put(raw, u64::from(log.topic.is_some()));
    if let Some(topic) = log.topic {
        raw.extend_from_slice(&topic.cluster.to_le_bytes());
        raw.extend_from_slice(&topic.id.0.to_le_bytes());
        raw.extend_from_slice(&topic.id.1.to_le_bytes());
    }
}

fn take_log(input: &mut &[u8]) -> Option<Log> {
    let newest_ms = match take_option(input)? {
        Some(ms) => Some(i64::try_from(ms).ok()?),
        None => None,
    };
    if take(input)? == 0 {
        return Some(Log { topic: None, newest_ms });
    }
    let cluster = take_u32(input)?;
    let mut half = || {
        let (bytes, rest) = input.split_first_chunk::<8>()?;
        *input = rest;
        Some(i64::from_le_bytes(*bytes))
    };
    let id = (half()?, half()?);
    Some(Log { topic: Some(TopicId { cluster, id }), newest_ms })
}

/// The newest `entries` of each source, with so many `ties` each.
fn put_frontier(raw: &mut Vec<u8>, replay_index: &ReplayIndex, entries: usize, ties: usize) {
    put(raw, replay_index.sources.len() as u64);
    for (source, kept) in &replay_index.sources {
        raw.extend_from_slice(&source.to_le_bytes());
        let logs = &kept.logs[kept.logs.len().saturating_sub(entries)..];
        put(raw, logs.len() as u64 * 2 + u64::from(kept.unsequenced.is_some()));
        for entry in logs.iter().chain(&kept.unsequenced) {
            put_option(raw, entry.position.first);
            put(raw, entry.position.lsn);
            put_option(raw, entry.position.tx_id);
            put(raw, entry.position.commit_us.max(0).unsigned_abs());
            let ties = &entry.ties[..entry.ties.len().min(ties)];
            put(raw, ties.len() as u64);
            for tie in ties {
                raw.extend_from_slice(&tie.to_le_bytes());
            }
        }
    }
}

fn take_frontier(input: &mut &[u8]) -> Option<ReplayIndex> {
    let mut replay_index = ReplayIndex::default();
    for _ in 0..take(input)? {
        let hash = take_u32(input)?;
        let shape = take(input)?;
        let mut source = Source::default();
        for _ in 0..shape / 2 {
            source.logs.push(take_entry(input)?);
        }
        if shape % 2 == 1 {
            source.unsequenced = Some(take_entry(input)?);
        }
        replay_index.sources.push((hash, source));
    }
    Some(replay_index)
}

fn take_entry(input: &mut &[u8]) -> Option<Entry> {
    let position = Position {
        first: take_option(input)?,
        lsn: take(input)?,
        tx_id: take_option(input)?,
        commit_us: i64::try_from(take(input)?).ok()?,
    };
    let count = take(input)?;
    let ties = (0..count).map(|_| take_u32(input)).collect::<Option<Vec<u32>>>()?;
    Some(Entry { position, ties })
}

/// Bitmap or run lengths, whichever is smaller; the far end is cut where neither fits.
fn put_map(raw: &mut Vec<u8>, committable: i64, completed: &OffsetMap) {
    const RUNS: u8 = 0;
    let room = MAX_RAW.saturating_sub(raw.len() + 1);
    let mut runs = Vec::new();
    let mut at = committable;
    for (start, end) in completed.runs() {
        let kept = runs.len();
        put(&mut runs, (start - at).max(0).unsigned_abs());
        put(&mut runs, (end - start).max(0).unsigned_abs());
        if runs.len() > room {
            runs.truncate(kept);
            break;
        }
        at = *end;
    }
    let covered_by_runs = at - committable;
    let bits = completed.runs().last().map_or(0, |(_, end)| end - committable);
    let bitmap_len = usize::try_from(bits).unwrap_or(0).div_ceil(8).min(room);
    let covered_by_bitmap = (bitmap_len as i64 * 8).min(bits);
    if (covered_by_runs, bitmap_len) >= (covered_by_bitmap, runs.len()) {
        raw.push(RUNS);
        raw.extend_from_slice(&runs);
        return;
    }
    raw.push(1);
    let start = raw.len();
    raw.resize(start + bitmap_len, 0);
    for offset in completed.runs().iter().flat_map(|(start, end)| *start..*end) {
        let bit = usize::try_from(offset - committable).unwrap_or(usize::MAX);
        match raw.get_mut(start.saturating_add(bit / 8)) {
            Some(byte) => *byte |= 1 << (bit % 8),
            None => break,
        }
    }
}

fn take_map(input: &mut &[u8], committable: i64) -> Option<OffsetMap> {
    let (kind, rest) = input.split_first()?;
    *input = rest;
    if *kind == 1 {
        let set = (0_i64..).zip(rest.iter()).flat_map(|(at, byte)| {
            (0..8)
                .filter(move |bit| byte >> bit & 1 == 1)
                .map(move |bit| committable + at * 8 + bit)
        });
        return Some(OffsetMap::from_ascending(set));
    }
    let mut runs = Vec::new();
    let mut at = committable;
    while !input.is_empty() {
        let start = at.checked_add_unsigned(take(input)?)?;
        at = start.checked_add_unsigned(take(input)?)?;
        runs.push((start, at));
    }
    Some(OffsetMap::from_runs(runs))
}

fn put_option(raw: &mut Vec<u8>, value: Option<u64>) {
    match value {
        Some(value) => {
            raw.push(1);
            put(raw, value);
        }
        None => raw.push(0),
    }
}

fn take_option(input: &mut &[u8]) -> Option<Option<u64>> {
    let (tag, rest) = input.split_first()?;
    *input = rest;
    if *tag == 0 { Some(None) } else { take(input).map(Some) }
}

fn put(raw: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        raw.push(value as u8 | 0x80);
        value >>= 7;
    }
    raw.push(value as u8);
}

fn take(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_u32(input: &mut &[u8]) -> Option<u32> {
    let (bytes, rest) = input.split_first_chunk::<4>()?;
    *input = rest;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
