//! Bytes that the Kafka binding takes for text. It panics where a header's name is not UTF-8, which
//! no broker checks, or where a commit's metadata is not, which not every broker checks. Here both
//! are read, and headers written, as the bytes that they are.

use std::ffi::CStr;
use std::{ptr, slice};

use rdkafka::TopicPartitionList;
use rdkafka::message::{BorrowedHeaders, Headers, Message, OwnedHeaders};
use rdkafka_sys::{
    RDKafkaRespErr, rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_topic_partition_t,
};
use smallvec::SmallVec;

use crate::cdc::Header;

/// Name and value of a header.
pub(crate) type RawHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// Headers of the binding, whoever owns them.
pub(crate) trait Native: Headers {
    /// The same as librdkafka knows them.
    fn native(&self) -> &BorrowedHeaders;
}

impl Native for BorrowedHeaders {
    fn native(&self) -> &BorrowedHeaders {
        self
    }
}

impl Native for OwnedHeaders {
    fn native(&self) -> &BorrowedHeaders {
        self.as_borrowed()
    }
}

/// The headers of a record, in order. (A name ends where it holds a zero byte: librdkafka hands
/// names over as C does.)
pub(crate) fn headers<M: Message<Headers: Native>>(message: &M) -> SmallVec<[RawHeader<'_>; 4]> {
    let headers = message.headers().map(Native::native);
    let count = headers.map_or(0, Headers::count);
    (0..count).filter_map(|index| nth(headers?, index)).collect()
}

/// The same for decoding. Headers whose names are not UTF-8 are left out: nothing that the daemon
/// reads is called so.
pub(crate) fn text_headers<'a>(headers: &[RawHeader<'a>]) -> SmallVec<[Header<'a>; 4]> {
    headers
        .iter()
        .filter_map(|(name, value)| {
            Some(Header { name: str::from_utf8(name).ok()?, value: *value })
        })
        .collect()
}

#[expect(unsafe_code, reason = "the binding's own way panics at a name that is not UTF-8")]
fn nth(headers: &BorrowedHeaders, index: usize) -> Option<RawHeader<'_>> {
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the binding makes this reference of librdkafka's pointer by a cast, and casts it back
    // in the same way. What is handed out lives as long as the headers, and is set, with a name that
    // ends with a zero byte and a value of `size` bytes or none, where there is no error.
    unsafe {
        let list = ptr::from_ref(headers).cast();
        let error = rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast(), size));
        Some((CStr::from_ptr(name).to_bytes(), value))
    }
}

/// Headers to be sent, with these names and values.
pub(super) fn owned_headers<'a>(headers: impl Iterator<Item = RawHeader<'a>>) -> OwnedHeaders {
    let owned = OwnedHeaders::new();
    for (name, value) in headers {
        add(&owned, name, value);
    }
    owned
}

#[expect(unsafe_code, reason = "the binding takes names as text alone")]
fn add(headers: &OwnedHeaders, name: &[u8], value: Option<&[u8]>) {
    let (data, size) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
    let sizes = isize::try_from(name.len()).ok().zip(isize::try_from(size).ok());
    let Some((name_size, size)) = sizes else { return };
    // SAFETY: the pointer is librdkafka's own, as above, of headers that this process has made and
    // nobody reads yet. Name and value are copied, and such a call never fails.
    unsafe {
        let list = ptr::from_ref(headers.as_borrowed()).cast_mut().cast();
        rd_kafka_header_add(list, name.as_ptr().cast(), name_size, data.cast(), size);
    }
}

/// What came with the committed offsets of a list, in its order; nothing where it is no text, as it
/// is not where another client has committed.
#[expect(unsafe_code, reason = "the binding's own way panics at metadata that are not UTF-8")]
pub(crate) fn metadata(list: &TopicPartitionList) -> Vec<String> {
    let text = |element: &rd_kafka_topic_partition_t| {
        if element.metadata.is_null() {
            return String::new();
        }
        // SAFETY: librdkafka keeps as many bytes there as it says, for as long as the list lives.
        let bytes =
            unsafe { slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size) };
        str::from_utf8(bytes).unwrap_or_default().to_owned()
    };
    // SAFETY: the list is alive, and has as many elements as it says.
    let elements = unsafe {
        let list = &*list.ptr();
        let count = usize::try_from(list.cnt).unwrap_or(0);
        if count == 0 { &[] } else { slice::from_raw_parts(list.elems, count) }
    };
    elements.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedMessage;

    use super::*;

    #[test]
    fn a_header_whose_name_is_no_text_goes_through_byte_for_byte() {
        let all: [RawHeader<'_>; 4] = [
            (b"caf\xe9", Some(b"\xff\x00")),
            (b"null", None),
            (b"empty", Some(b"")),
            (b"", Some(b"without a name")),
        ];
        let message = OwnedMessage::new(
            None,
            None,
            "t".to_owned(),
            rdkafka::Timestamp::NotAvailable,
            0,
            7,
            Some(owned_headers(all.into_iter())),
        );
        assert_eq!(headers(&message).as_slice(), all);
    }

    #[test]
    fn metadata_that_are_no_text_are_none() {
        let mut list = TopicPartitionList::new();
        list.add_partition("t", 0).set_metadata("some");
        list.add_partition("t", 1);
        // The binding sets text alone, so one byte is spoilt here.
        #[expect(unsafe_code, reason = "the binding sets text alone")]
        {
            list.add_partition("t", 2).set_metadata("x");
            // SAFETY: the third element has one byte of metadata, which nobody else looks at.
            unsafe { *(*(*list.ptr()).elems.add(2)).metadata.cast::<u8>() = 0xe9 };
        }
        assert_eq!(metadata(&list), ["some", "", ""]);
    }
}
