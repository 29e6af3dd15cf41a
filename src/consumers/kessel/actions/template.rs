//! Texts with fields of a change in them: `authz:{namespace}:{object_id}`.

use serde::{Deserialize, Deserializer};

use super::item::{Field, Item};

/// A text with fields in braces. A brace that is meant as such is written twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Field(Field),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Which field is not known, or which brace has no counterpart.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            let after = &rest[at + 1..];
            if let Some(after) = after.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let (name, after) = match (brace, after.split_once('}')) {
                ("{", Some(split)) => split,
                _ => return Err(format!("{text:?} has a {brace} alone (write {brace}{brace})")),
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Field(Field::named(name).ok_or_else(|| unknown(name))?));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self(parts))
    }

    /// Whether it has this field.
    #[must_use]
    pub fn has(&self, field: Field) -> bool {
        self.0.contains(&Part::Field(field))
    }

    /// The text for a change.
    #[must_use]
    pub fn fill(&self, item: &Item) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Field(field) => text.push_str(&item.field(*field)),
            }
        }
        text
    }
}

fn unknown(name: &str) -> String {
    let known = Field::ALL.map(|(known, _)| known);
    let near = known.iter().min_by_key(|known| strsim::osa_distance(name, known));
    let near = near.filter(|known| strsim::osa_distance(name, known) <= 3);
    match near {
        Some(near) => format!("{{{name}}} is not known; did you mean {{{near}}}?"),
        None => format!("{{{name}}} is not known; there are {}", known.join(", ")),
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumers::kessel::actions::item::testing::created;

    #[test]
    fn fields_stand_in_braces_and_double_braces_are_braces() {
        let fill = |text| Template::parse(text).expect(text).fill(&created());
        assert_eq!(fill("authz:{namespace}:{object_id}"), "authz:document:budget");
        assert_eq!(
            fill("{resource}#{relation}@{subject}"),
            "document:budget#viewer@group:eng#member"
        );
        assert_eq!(fill("{{{operation}}}"), "{CREATE}");
        assert_eq!(fill("plain"), "plain");
        assert_eq!(fill("[{expiration}]"), "[]", "what it does not have is nothing");
    }

    #[test]
    fn a_field_that_is_not_known_is_named_with_what_may_be_meant() {
        for (text, said) in [
            ("{namespce}", "did you mean {namespace}?"),
            ("{colour}", "there are namespace, object_id"),
            ("{namespace", "has a { alone"),
            ("namespace}", "has a } alone"),
        ] {
            let wrong = Template::parse(text).expect_err(text);
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
    }
}
