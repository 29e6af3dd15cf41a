//! A record's bytes, kept while it is worked on: one allocation for key, value and headers.

use rdkafka::message::Message;

use super::raw::RawHeader;

/// Key, value and headers of a record, as they came.
#[derive(Debug, Clone)]
pub(crate) struct SavedRecord {
    bytes: Box<[u8]>,
    key: Option<usize>,
    value: Option<usize>,
    timestamp_ms: Option<i64>,
}

/// Length written for a null header value.
const NULL: u32 = u32::MAX;

impl SavedRecord {
    /// Copies a record, whose headers are these.
    pub(crate) fn copy(message: &impl Message, headers: &[RawHeader<'_>]) -> Self {
        let key = message.key().unwrap_or_default();
        let value = message.payload().unwrap_or_default();
        let mut bytes = Vec::with_capacity(size(message, headers));
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        for (name, value) in headers {
            put(&mut bytes, Some(name));
            put(&mut bytes, *value);
        }
        Self {
            bytes: bytes.into_boxed_slice(),
            key: message.key().map(<[u8]>::len),
            value: message.payload().map(<[u8]>::len),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.key.map(|len| &self.bytes[..len])
    }

    pub(crate) fn value(&self) -> Option<&[u8]> {
        let start = self.key.unwrap_or(0);
        self.value.map(|len| &self.bytes[start..start + len])
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        let start = self.key.unwrap_or(0) + self.value.unwrap_or(0);
        let mut rest = &self.bytes[start..];
        std::iter::from_fn(move || {
            let name = take(&mut rest)??;
            Some((name, take(&mut rest)?))
        })
    }
}

/// Bytes that a record takes when it is saved with these headers.
pub(crate) fn size(message: &impl Message, headers: &[RawHeader<'_>]) -> usize {
    let headers: usize =
        headers.iter().map(|(name, value)| 8 + name.len() + value.map_or(0, <[u8]>::len)).sum();
    message.key().map_or(0, <[u8]>::len) + message.payload().map_or(0, <[u8]>::len) + headers
}

fn put(bytes: &mut Vec<u8>, part: Option<&[u8]>) {
    let len = part.map_or(NULL, |part| u32::try_from(part.len()).unwrap_or(NULL));
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(part.unwrap_or_default());
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len);
    let (part, tail) = if len == NULL {
        (None, tail)
    } else {
        let (part, tail) = tail.split_at_checked(usize::try_from(len).ok()?)?;
        (Some(part), tail)
    };
    *rest = tail;
    Some(part)
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;
    use crate::kafka::raw;

    #[test]
    fn a_saved_record_is_the_record() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "__debezium.newkey", value: Some("{\"id\":1}") })
            .insert(Header::<&str> { key: "null", value: None })
            .insert(Header { key: "empty", value: Some("") });
        let message = OwnedMessage::new(
            Some(b"value".to_vec()),
            Some(b"key".to_vec()),
            "t".to_owned(),
            rdkafka::Timestamp::CreateTime(42),
            0,
            7,
            Some(headers),
        );
        let all = raw::headers(&message);
        let saved = SavedRecord::copy(&message, &all);
        assert_eq!(saved.key(), Some(&b"key"[..]));
        assert_eq!(saved.value(), Some(&b"value"[..]));
        assert_eq!(saved.timestamp_ms(), Some(42));
        let headers: Vec<_> = saved.headers().collect();
        assert_eq!(
            headers,
            [
                (&b"__debezium.newkey"[..], Some(&b"{\"id\":1}"[..])),
                (b"null", None),
                (b"empty", Some(&b""[..])),
            ]
        );
        assert_eq!(size(&message, &all), saved.bytes.len());
    }

    #[test]
    fn null_and_empty_stay_apart() {
        let message = OwnedMessage::new(
            None,
            Some(Vec::new()),
            "t".to_owned(),
            rdkafka::Timestamp::NotAvailable,
            0,
            7,
            None,
        );
        let saved = SavedRecord::copy(&message, &[]);
        assert_eq!((saved.key(), saved.value()), (Some(&b""[..]), None));
        assert_eq!(saved.headers().count(), 0);
    }
}
