//! Which topic a name stands for: one that was recreated has another id, whatever its log
//! holds. librdkafka notices and goes on at the old position; the binding does not ask at all.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, ptr, slice};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as rdsys;

/// What distinguishes one topic from another of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicId {
    /// A hash of its cluster's id: a mirror gives its topics ids of their own.
    pub(crate) cluster: u32,
    /// Its id, the more significant half first.
    pub(crate) id: (i64, i64),
}

impl TopicId {
    /// Whether this topic was made in the place of `earlier`. Ids of different clusters tell nothing.
    #[must_use]
    pub fn replaces(self, earlier: Self) -> bool {
        self.cluster == earlier.cluster && self.id != earlier.id
    }
}

/// A client, and the hash of its cluster's id as soon as that is known.
type Asking = (BaseConsumer, Option<u32>);

/// Events that may wait in the client's queue.
const EVENTS: usize = 1_000;

/// The client that asks. All consumers of the process share it, and it is in no group. A consumer's
/// own client would take the answer for news about leaders.
#[derive(Default)]
pub(super) struct TopicIds(Mutex<Option<Asking>>);

impl TopicIds {
    /// The ids of these topics. Those that are missing or have no id are left out. Blocks.
    ///
    /// # Errors
    /// When no broker answers within `timeout`.
    pub(super) fn ask(
        &self,
        config: &ClientConfig,
        topics: &[String],
        timeout: Duration,
    ) -> KafkaResult<HashMap<String, TopicId>> {
        let mut client = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, cluster) = match &mut *client {
            Some(asking) => asking,
            none => none.insert((config.create()?, None)),
        };
        // Its reports of lost connections would pile up.
        for _ in 0..EVENTS {
            if client.poll(Duration::ZERO).is_none() {
                break;
            }
        }
        let cluster = match cluster {
            Some(cluster) => *cluster,
            none => {
                let id = client.client().fetch_cluster_id(timeout);
                let id = id.ok_or(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut))?;
                *none.insert(crc32fast::hash(id.as_bytes()))
            }
        };
        let ids = ask(client, topics, timeout)?;
        Ok(ids.into_iter().map(|(topic, id)| (topic, TopicId { cluster, id })).collect())
    }
}

impl fmt::Debug for TopicIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TopicIds")
    }
}

#[expect(unsafe_code, reason = "the binding has no call for it")]
fn ask(
    client: &BaseConsumer,
    topics: &[String],
    timeout: Duration,
) -> KafkaResult<HashMap<String, (i64, i64)>> {
    let names: Vec<CString> =
        topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let handle = client.client().native_ptr();
    // SAFETY: the client outlives this call, the names outlive the collection, and what librdkafka
    // makes here is given back below. It allows an answer to arrive after its queue is gone. What
    // is read of the answer is copied before that is given back.
    unsafe {
        let collection =
            rdsys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let operation = rdsys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = rdsys::rd_kafka_AdminOptions_new(handle, operation);
        let (text, none) = (ptr::null_mut(), 0);
        rdsys::rd_kafka_AdminOptions_set_request_timeout(options, milliseconds, text, none);
        let queue = rdsys::rd_kafka_queue_new(handle);
        rdsys::rd_kafka_DescribeTopics(handle, collection, options, queue);
        let event = rdsys::rd_kafka_queue_poll(queue, milliseconds);
        let ids = read(event);
        if !event.is_null() {
            rdsys::rd_kafka_event_destroy(event);
        }
        rdsys::rd_kafka_queue_destroy(queue);
        rdsys::rd_kafka_AdminOptions_destroy(options);
        rdsys::rd_kafka_TopicCollection_destroy(collection);
        ids
    }
}

/// Reads an answer, or its absence.
///
/// # Safety
/// `event` is null, or an event that nobody has given back.
#[expect(unsafe_code, reason = "the binding has no call for it")]
unsafe fn read(event: *mut rdsys::rd_kafka_event_t) -> KafkaResult<HashMap<String, (i64, i64)>> {
    if event.is_null() {
        return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
    }
    // SAFETY: what belongs to an event lives as long as it does, and there are as many descriptions
    // as are said.
    unsafe {
        let error = rdsys::rd_kafka_event_error(event);
        if error != rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::AdminOp(error.into()));
        }
        let result = rdsys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::Fail));
        }
        let mut count = 0;
        let found = rdsys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        let found = if count == 0 { &[] } else { slice::from_raw_parts(found, count) };
        let id_of = |topic: *const rdsys::rd_kafka_TopicDescription_t| {
            let name = CStr::from_ptr(rdsys::rd_kafka_TopicDescription_name(topic));
            let id = rdsys::rd_kafka_TopicDescription_topic_id(topic);
            let error = rdsys::rd_kafka_TopicDescription_error(topic);
            let wrong = !error.is_null()
                && rdsys::rd_kafka_error_code(error)
                    != rdsys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
            if wrong || id.is_null() {
                return None;
            }
            let id = (
                rdsys::rd_kafka_Uuid_most_significant_bits(id),
                rdsys::rd_kafka_Uuid_least_significant_bits(id),
            );
            // Brokers before 2.8 have none.
            (id != (0, 0)).then(|| (name.to_string_lossy().into_owned(), id))
        };
        Ok(found.iter().filter_map(|topic| id_of(*topic)).collect())
    }
}
