//! Where a group begins with topics in which it has committed nothing (behaviour section 1).

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;

/// What an entry should look like.
const FORM: &str = "topic=earliest, topic=latest or topic=2026-11-29T00:00:00Z, comma separated";

/// Where a topic begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// With all that it holds.
    Earliest,
    /// With what comes from now on.
    Latest,
    /// With the first record whose timestamp in Kafka is this or later.
    At(Timestamp),
}

impl Beginning {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            word if word.eq_ignore_ascii_case("earliest") => Self::Earliest,
            word if word.eq_ignore_ascii_case("latest") => Self::Latest,
            time => Self::At(time.parse().ok()?),
        })
    }
}

impl FromStr for Beginning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is none of earliest, latest and a time (2026-11-29T00:00:00Z)".to_owned();
        Self::of(text).ok_or_else(wrong)
    }
}

/// Where a group begins with topics in which it has committed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OffsetReset {
    /// At their beginning: all that they still hold is processed.
    #[default]
    Earliest,
    /// At their end: only what comes from now on.
    Latest,
}

impl From<OffsetReset> for Beginning {
    fn from(reset: OffsetReset) -> Self {
        match reset {
            OffsetReset::Earliest => Self::Earliest,
            OffsetReset::Latest => Self::Latest,
        }
    }
}

/// Topics and where they begin, written `crm.public.referral_ledger=latest,...`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartAt(BTreeMap<String, Beginning>);

impl StartAt {
    /// Where a topic begins, if it is named.
    #[must_use]
    pub fn of(&self, topic: &str) -> Option<Beginning> {
        self.0.get(topic).copied()
    }

    /// The problem with a topic that is named but not read; `known` are all that are read.
    pub(super) fn unknown(&self, known: &[String]) -> Option<String> {
        let named = self.0.keys().find(|named| !known.contains(*named))?;
        let near = |known: &&String| {
            let tail = known.rsplit('.').next().unwrap_or_default();
            strsim::osa_distance(named, known).min(strsim::osa_distance(named, tail))
        };
        // The name is not repeated either: what was pasted here by mistake may be secret.
        let likely = known.iter().min_by_key(near).filter(|known| near(known) <= 3);
        let likely = likely.map_or(String::new(), |likely| format!("; did you mean {likely}?"));
        Some(format!(
            "names a topic that no enabled consumer reads: must be {FORM}, of {}{likely}",
            known.join(", ")
        ))
    }
}

impl FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut topics = BTreeMap::new();
        let entries = text.split(',').map(str::trim).enumerate();
        for (index, entry) in entries.filter(|(_, entry)| !entry.is_empty()) {
            // The entry is not repeated: what was pasted here by mistake may be secret.
            let number = index + 1;
            let wrong = || format!("has an entry (number {number}) that is not {FORM}");
            let (topic, place) = entry.split_once('=').ok_or_else(wrong)?;
            let beginning = Beginning::of(place.trim()).ok_or_else(wrong)?;
            if matches!(beginning, Beginning::At(time) if time > Timestamp::now()) {
                return Err(format!(
                    "has an entry (number {number}) whose time lies ahead: latest begins with \
                     what comes"
                ));
            }
            let topic = topic.trim();
            if topic.is_empty() {
                return Err(wrong());
            }
            if topics.insert(topic.to_owned(), beginning).is_some() {
                return Err(format!("names a topic twice (entry number {number})"));
            }
        }
        Ok(Self(topics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_begin_as_they_are_told() {
        let told: StartAt =
            " a.b = Latest,c=earliest, d=2026-01-02T03:04:05+01:00, ".parse().expect("a list");
        assert_eq!(told.of("a.b"), Some(Beginning::Latest));
        assert_eq!(told.of("c"), Some(Beginning::Earliest));
        let time = "2026-01-02T02:04:05Z".parse().expect("a time");
        assert_eq!(told.of("d"), Some(Beginning::At(time)));
        assert_eq!(told.of("b"), None);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_number_with_what_it_should_be() {
        for wrong in ["c=earliest,a", "c=latest,a=now", "c=latest,=latest", "c=latest,d=2026-01-02"]
        {
            let told = wrong.parse::<StartAt>().expect_err(wrong);
            assert!(told.contains("number 2") && told.contains("topic=latest"), "{told}");
        }
        let twice = "a=latest,b=latest,a=latest".parse::<StartAt>().expect_err("twice");
        assert!(twice.contains("twice") && twice.contains("number 3"), "{twice}");
        let ahead = "a=9000-01-01T00:00:00Z".parse::<StartAt>().expect_err("ahead");
        assert!(ahead.contains("lies ahead"), "{ahead}");
    }

    #[test]
    fn a_topic_that_nobody_reads_is_told_with_the_likely_one() {
        let known = ["crm.public.referral_ledger".to_owned(), "reward_redemptions".to_owned()];
        let unknown = |text: &str| text.parse::<StartAt>().expect("a list").unknown(&known);
        assert_eq!(unknown("reward_redemptions=latest"), None);
        for wrong in ["crm.public.refferal_ledger=latest", "referral_ledger=latest"] {
            let told = unknown(wrong).expect("unknown");
            assert!(told.ends_with("did you mean crm.public.referral_ledger?"), "{told}");
        }
        let told = unknown("x=latest").expect("unknown");
        assert!(!told.contains("meant") && told.contains(&known[1]), "{told}");
    }
}
