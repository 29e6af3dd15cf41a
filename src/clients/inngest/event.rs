//! Events as they go on the wire: serialized once, checked before they could spoil a batch.

use std::io::Write as _;
use std::ops::Range;

use jiff::Timestamp;
use serde::Serialize;
use smallvec::SmallVec;

/// The longest name that Inngest takes, in characters.
const MAX_NAME_CHARS: usize = 256;
/// Inngest refuses names with this prefix, in upper or lower case.
const RESERVED_PREFIX: &str = "inngest/";

/// An event that Inngest would refuse whatever the circumstances.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// No name.
    #[error("the event name is empty")]
    NoName,
    /// More than 256 characters.
    #[error("the event name has more than 256 characters: {0:.40}...")]
    LongName(String),
    /// A name of Inngest's own.
    #[error("the event name starts with inngest/, which is reserved: {0}")]
    ReservedName(String),
    /// The data is something else than an object.
    #[error("the data of event {0} is not a json object")]
    NoObject(String),
    /// The data cannot be written as JSON.
    #[error("the data of event {0} cannot be written as json")]
    NoJson(String),
}

/// The events of one send, in order, as JSON in one buffer.
///
/// Integers beyond 2^53 in the data are rounded by Inngest: the caller writes them as strings
/// (behaviour section 5). `ts` is left out unless it is asked for, since a future one delays the run.
#[derive(Debug, Default, Clone)]
pub struct Events {
    /// The events, separated by commas, as they stand in the request.
    pub(super) json: Vec<u8>,
    /// Where each event ends in `json`.
    pub(super) ends: SmallVec<[u32; 4]>,
}

impl Events {
    /// A send of one event.
    ///
    /// # Errors
    /// When Inngest would refuse it, see [`Events::push`].
    pub fn one(
        name: &str,
        id: Option<&str>,
        data: &(impl Serialize + ?Sized),
    ) -> Result<Self, InvalidEvent> {
        Self::one_at(name, id, None, data)
    }

    /// A send of one event. Its run starts at `ts` if that is in the future.
    ///
    /// # Errors
    /// As [`Events::one`].
    pub fn one_at(
        name: &str,
        id: Option<&str>,
        ts: Option<Timestamp>,
        data: &(impl Serialize + ?Sized),
    ) -> Result<Self, InvalidEvent> {
        // Most events fit into this: one allocation instead of one for each doubling.
        let mut events = Self { json: Vec::with_capacity(384), ends: SmallVec::new() };
        events.push_at(name, id, ts, data)?;
        Ok(events)
    }

    /// Appends an event. `id` is Inngest's idempotency key, unique across event names; empty counts
    /// as none.
    ///
    /// # Errors
    /// When Inngest would refuse it: a name that is empty, longer than 256 characters or reserved,
    /// or data that is not an object. The events before it stay.
    pub fn push(
        &mut self,
        name: &str,
        id: Option<&str>,
        data: &(impl Serialize + ?Sized),
    ) -> Result<(), InvalidEvent> {
        self.push_at(name, id, None, data)
    }

    fn push_at(
        &mut self,
        name: &str,
        id: Option<&str>,
        ts: Option<Timestamp>,
        data: &(impl Serialize + ?Sized),
    ) -> Result<(), InvalidEvent> {
        check_name(name)?;
        let before = self.json.len();
        let written = self.write(name, id, ts, data);
        let fault = match written {
            Ok(data_start) if self.json.get(data_start) == Some(&b'{') => {
                let end = u32::try_from(self.json.len());
                if let Ok(end) = end {
                    self.ends.push(end);
                    return Ok(());
                }
                InvalidEvent::NoJson(name.to_owned())
            }
            Ok(_) => InvalidEvent::NoObject(name.to_owned()),
            Err(_) => InvalidEvent::NoJson(name.to_owned()),
        };
        self.json.truncate(before);
        Err(fault)
    }

    /// Writes the event and returns where its data begins.
    fn write(
        &mut self,
        name: &str,
        id: Option<&str>,
        ts: Option<Timestamp>,
        data: &(impl Serialize + ?Sized),
    ) -> serde_json::Result<usize> {
        let out = &mut self.json;
        let separator: &[u8] = if self.ends.is_empty() { b"{\"name\":" } else { b",{\"name\":" };
        out.extend_from_slice(separator);
        serde_json::to_writer(&mut *out, name)?;
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            out.extend_from_slice(b",\"id\":");
            serde_json::to_writer(&mut *out, id)?;
        }
        if let Some(ts) = ts {
            write!(out, ",\"ts\":{}", ts.as_millisecond()).map_err(serde_json::Error::io)?;
        }
        out.extend_from_slice(b",\"data\":");
        let data_start = out.len();
        serde_json::to_writer(&mut *out, data)?;
        out.write_all(b"}").map_err(serde_json::Error::io)?;
        Ok(data_start)
    }

    /// Reserves room for this many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { json: Vec::with_capacity(bytes), ends: SmallVec::new() }
    }

    /// Keeps only the first `count` events.
    pub fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.json.truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    /// The size of the largest event from number `first` on, in bytes.
    #[must_use]
    pub fn largest_from(&self, first: usize) -> usize {
        let size = |index: usize| self.ends[index] as usize - self.start(index);
        (first..self.len()).map(size).max().unwrap_or(0)
    }

    /// The bytes of the events from number `from` to before number `to`, and where each event ends
    /// within them.
    pub(super) fn share(&self, from: usize, to: usize) -> (Range<usize>, SmallVec<[u32; 4]>) {
        let start = self.start(from);
        let ends: SmallVec<[u32; 4]> = self.ends[from..to]
            .iter()
            .map(|end| end - u32::try_from(start).unwrap_or(u32::MAX))
            .collect();
        let length = ends.last().map_or(0, |end| *end as usize);
        (start..start + length, ends)
    }

    /// Gives back what was reserved and not used.
    pub fn shrink(&mut self) {
        self.json.shrink_to_fit();
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Their size on the wire in bytes, for a byte budget.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.json.len()
    }

    /// The size of the largest event in bytes.
    pub(super) fn largest(&self) -> usize {
        self.largest_from(0)
    }

    /// Their names, in order. Only for display: they are parsed from the JSON.
    pub(crate) fn names(&self) -> Vec<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: String,
        }
        let all =
            (0..self.len()).map(|index| &self.json[self.start(index)..self.ends[index] as usize]);
        all.filter_map(|event| serde_json::from_slice(event).ok())
            .map(|Named { name }| name)
            .collect()
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |previous| self.ends[previous] as usize + 1)
    }
}

fn check_name(name: &str) -> Result<(), InvalidEvent> {
    if name.is_empty() {
        return Err(InvalidEvent::NoName);
    }
    if name.chars().count() > MAX_NAME_CHARS {
        return Err(InvalidEvent::LongName(name.to_owned()));
    }
    let prefix = name.as_bytes().get(..RESERVED_PREFIX.len());
    if prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(RESERVED_PREFIX.as_bytes())) {
        return Err(InvalidEvent::ReservedName(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_written_once_as_they_go_on_the_wire() {
        let mut events = Events::default();
        events.push("a/b", Some("a\"b:1"), &json!({"x": 1})).expect("valid");
        events.push("c", None, &json!({})).expect("valid");
        events.push("c", Some(""), &json!({})).expect("valid");
        assert_eq!(
            std::str::from_utf8(&events.json).expect("text"),
            concat!(
                r#"{"name":"a/b","id":"a\"b:1","data":{"x":1}},"#,
                r#"{"name":"c","data":{}},{"name":"c","data":{}}"#
            )
        );
        assert_eq!(events.len(), 3);
        assert_eq!(events.largest(), 43);
        let later = Timestamp::from_millisecond(1_795_860_000_123).ok();
        let later = Events::one_at("r", Some("r:1"), later, &json!({})).expect("valid");
        assert_eq!(
            std::str::from_utf8(&later.json).expect("text"),
            r#"{"name":"r","id":"r:1","ts":1795860000123,"data":{}}"#
        );
    }

    #[test]
    fn what_inngest_would_refuse_is_refused_before_it_can_spoil_a_batch() {
        let mut events = Events::one("good", None, &json!({"x": 1})).expect("valid");
        let before = events.json.clone();
        let mut push = |name: &str, data| events.push(name, None, &data).expect_err("refused");
        assert_eq!(push("", json!({})), InvalidEvent::NoName);
        assert_eq!(push("Inngest/x", json!({})), InvalidEvent::ReservedName("Inngest/x".into()));
        assert!(matches!(push(&"é".repeat(257), json!({})), InvalidEvent::LongName(_)));
        for data in [json!([]), json!("x"), json!(null), json!(1)] {
            assert_eq!(push("n", data), InvalidEvent::NoObject("n".into()));
        }
        let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
        let error = events.push("n", None, &no_json).expect_err("keys must be strings");
        assert_eq!(error, InvalidEvent::NoJson("n".into()));
        assert_eq!(events.json, before, "what failed leaves nothing behind");
        events.push(&"é".repeat(256), None, &json!({})).expect("256 characters are allowed");
    }
}
