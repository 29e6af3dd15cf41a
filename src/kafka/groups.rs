//! What the brokers tell of a group: partitions that no member has, and members with another
//! assignor.
//!
//! With the classic protocol and static membership such partitions can stay without an owner. A
//! member that is killed while it gives partitions up gets the rest back when it returns, and the
//! group never shares out the others.

use std::collections::HashSet;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;

use super::GroupConsumer;
use super::client::ASSIGNOR;

/// How long the brokers may take for one answer.
const GROUPS_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where a member waits to join.
const TIMEOUT_TO_JOIN: Duration = Duration::from_secs(3);

/// How many partitions of `topics` have no owner in `group`; `None` while it rebalances. Blocks.
///
/// # Errors
/// While any broker is away: the client asks all of them for their groups.
pub(crate) fn unowned_partitions(
    client: &GroupConsumer,
    group: &str,
    topics: &[String],
) -> KafkaResult<Option<usize>> {
    let groups = client.fetch_group_list(Some(group), GROUPS_TIMEOUT)?;
    let Some(found) = groups.groups().iter().find(|g| g.name() == group && g.state() == "Stable")
    else {
        return Ok(None);
    };
    let assignments = found.members().iter().filter_map(|member| member.assignment());
    let owned: HashSet<(&str, i32)> =
        assignments.flat_map(|bytes| decode(bytes).unwrap_or_default()).collect();
    let mut unowned_partitions = 0;
    for topic in topics {
        let metadata = client.fetch_metadata(Some(topic), GROUPS_TIMEOUT)?;
        let partitions = metadata.topics().iter().flat_map(|found| found.partitions());
        unowned_partitions +=
            partitions.filter(|p| !owned.contains(&(topic.as_str(), p.id()))).count();
    }
    Ok(Some(unowned_partitions))
}

/// Whether nobody in `group` uses another assignor of the classic protocol than ours; `None` while
/// it rebalances. A member of the new protocol is let in beside such members, and would share the
/// partitions with them. Blocks.
///
/// # Errors
/// As [`unowned_partitions`].
pub(crate) fn uses_our_assignor(client: &GroupConsumer, group: &str) -> KafkaResult<Option<bool>> {
    let groups = client.fetch_group_list(Some(group), TIMEOUT_TO_JOIN)?;
    let Some(found) = groups.groups().iter().find(|found| found.name() == group) else {
        return Ok(Some(true));
    };
    Ok(match found.state() {
        "Empty" | "Dead" => Some(true),
        "Stable" => Some(found.protocol() == ASSIGNOR),
        _ => None,
    })
}

/// Reads an assignment as the consumer protocol of Kafka writes it: a version, and by topic the
/// numbers of its partitions. What follows is the assignor's own.
fn decode(assignment: &[u8]) -> Option<Vec<(&str, i32)>> {
    let mut rest = assignment;
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(taken)
    };
    take(size_of::<i16>())?;
    let mut decoded = Vec::new();
    let topics = i32::from_be_bytes(take(4)?.try_into().ok()?);
    for _ in 0..topics {
        let length = i16::from_be_bytes(take(2)?.try_into().ok()?);
        let topic = str::from_utf8(take(length.try_into().ok()?)?).ok()?;
        let partitions = i32::from_be_bytes(take(4)?.try_into().ok()?);
        for _ in 0..partitions {
            decoded.push((topic, i32::from_be_bytes(take(4)?.try_into().ok()?)));
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_names_its_partitions_and_a_broken_one_none() {
        let bytes = b"\0\x01\0\0\0\x02\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x07\0\x02bc\0\0\0\x01\0\0\0\x01\0\0\0\0";
        assert_eq!(decode(bytes), Some(vec![("a", 0), ("a", 7), ("bc", 1)]));
        let whole = bytes.len() - 4;
        assert!((0..whole).all(|length| decode(&bytes[..length]).is_none()));
        assert_eq!(decode(b"\0\0\0\0\0\0"), Some(Vec::new()));
    }
}
