//! Which changes an action takes.

use serde::{Deserialize, Deserializer};
use wildmatch::WildMatch;

use super::item::{Field, Item};
use crate::consumers::kessel::row::Operation;

/// Which changes an action takes. Each part that is given must match; of several patterns in a part,
/// one. In a pattern `*` stands for any text and `?` for one character.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    #[serde(deserialize_with = "patterns")]
    namespace: Vec<WildMatch>,
    #[serde(deserialize_with = "patterns")]
    relation: Vec<WildMatch>,
    #[serde(deserialize_with = "operations")]
    operation: Vec<Operation>,
    #[serde(deserialize_with = "patterns")]
    subject: Vec<WildMatch>,
}

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a text or a list of texts")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WildMatch>, D::Error> {
    let texts = Texts::deserialize(deserializer)?.into_vec();
    Ok(texts.iter().map(|text| WildMatch::new(text)).collect())
}

fn operations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Operation>, D::Error> {
    let texts = Texts::deserialize(deserializer)?.into_vec();
    let operation = |text: &String| {
        let known = Operation::ALL.into_iter();
        let words = || Operation::ALL.map(Operation::as_str).join(", ");
        known.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            serde::de::Error::custom(format!("operation {text:?} is none of {}", words()))
        })
    };
    texts.iter().map(operation).collect()
}

impl Filter {
    /// Whether an action with this filter takes a change.
    #[must_use]
    pub fn takes(&self, item: &Item) -> bool {
        let Item::Row(change) = item;
        let any = |patterns: &[WildMatch], text: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
        };
        (self.operation.is_empty() || self.operation.contains(&change.operation))
            && any(&self.namespace, &change.relationship.namespace)
            && any(&self.relation, &change.relationship.relation)
            && (self.subject.is_empty() || any(&self.subject, &item.field(Field::Subject)))
    }

    /// Whether it names this operation.
    #[must_use]
    pub fn names(&self, operation: Operation) -> bool {
        self.operation.contains(&operation)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::consumers::kessel::actions::item::testing::created;

    fn takes(filter: Value) -> bool {
        serde_json::from_value::<Filter>(filter).expect("a filter").takes(&created())
    }

    #[test]
    fn every_part_must_match_and_of_a_part_one_pattern() {
        for (filter, taken) in [
            (json!({}), true),
            (json!({"namespace": "document"}), true),
            (json!({"namespace": ["folder", "doc*"]}), true),
            (json!({"namespace": "folder"}), false),
            (json!({"namespace": "document", "relation": "owner"}), false),
            (json!({"subject": "group:*"}), true),
            (json!({"subject": "group:eng#member"}), true),
            (json!({"subject": "group:eng"}), false),
            (json!({"operation": ["create", "DELETE"]}), true),
            (json!({"operation": "EXPIRE"}), false),
        ] {
            assert_eq!(takes(filter.clone()), taken, "{filter}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_there_is() {
        for (filter, said) in [
            (json!({"operation": "REMOVE"}), "none of CREATE, READ, UPDATE, DELETE, EXPIRE"),
            (json!({"type": "document"}), "unknown field `type`"),
            (json!({"namespace": 1}), "a text or a list of texts"),
        ] {
            let wrong = serde_json::from_value::<Filter>(filter).expect_err(said).to_string();
            assert!(wrong.contains(said), "{wrong}");
        }
    }
}
