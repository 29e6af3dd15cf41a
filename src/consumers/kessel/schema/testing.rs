//! What the tests share: recordings, and a reader of schema texts that knows nothing of SpiceDB's
//! messages.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::GzDecoder;

use super::diff::{Difference, Kind};
use super::expression::{Expression, Of};
use super::model::{Caveat, Definition, Relation, Schema, Stored, Subject, Which};
use super::{SchemaRow, TABLES};
use crate::cdc::{self, Decoded};
use crate::consumers::kessel::row::Reading;
use crate::recording::{self, Recorded};

/// A row with the topic and partition that it came from.
type Located = ((String, i32), SchemaRow);

pub(super) const TRUSTING: Reading = Reading { hard_deletes: false, trust_snapshot: true };

pub(super) fn fixture(name: &str) -> String {
    let path = Path::new("tests/fixtures").join(name);
    let mut text = String::new();
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    text
}

/// The records of the four tables, in the order in which they were recorded.
pub(super) fn records(name: &str) -> Vec<Recorded> {
    let of_schemas = |record: &Recorded| {
        record.topic.rsplit('.').next().is_some_and(|table| TABLES.contains(&table))
    };
    recording::read(io::Cursor::new(fixture(name)))
        .map(|record| record.expect("a record"))
        .filter(of_schemas)
        .collect()
}

/// What a record says about a row, or why it says nothing.
pub(super) fn read(record: &Recorded, reading: Reading) -> Result<SchemaRow, &'static str> {
    record.lend(|record| {
        match cdc::decode(record, &cdc::Options::default()).expect("a sound record") {
            Decoded::Change(change) => super::read(&change, reading).expect("a sound row"),
            Decoded::Nothing(nothing) => Err(nothing.as_str()),
        }
    })
}

/// The rows of a recording in its order, each with its topic and partition. Read once for all tests.
pub(super) fn rows(name: &str) -> Arc<[Located]> {
    type Read = BTreeMap<String, Arc<[Located]>>;
    static READ: Mutex<Read> = Mutex::new(Read::new());
    let mut all = READ.lock().expect("no test that holds it fails");
    let of = |record: &Recorded| {
        let row = read(record, TRUSTING).ok()?;
        Some(((record.topic.clone(), record.partition), row))
    };
    let read = || records(name).iter().filter_map(of).collect();
    all.entry(name.into()).or_insert_with(read).clone()
}

/// Rows of each partition of each topic, in order.
pub(super) fn partitions(name: &str) -> Vec<Vec<SchemaRow>> {
    let mut all: BTreeMap<&(String, i32), Vec<SchemaRow>> = BTreeMap::new();
    let rows = rows(name);
    for (partition, row) in rows.iter() {
        all.entry(partition).or_default().push(row.clone());
    }
    all.into_values().collect()
}

/// The stored schema that SQL showed at the end, and its text.
pub(super) fn live_schema(name: &str) -> Stored {
    #[derive(serde::Deserialize)]
    struct Line {
        name: String,
        chunk_data: Option<String>,
    }
    let lines = fixture(name);
    let lines = lines.lines().map(|line| serde_json::from_str::<Line>(line).expect("a row"));
    let chunks = lines.filter(|line| line.name == "unified_schema");
    let bytes: Vec<u8> = chunks
        .flat_map(|line| {
            let text = line.chunk_data.expect("a chunk").replace('\n', "");
            BASE64.decode(text).expect("base64")
        })
        .collect();
    Stored::decode(&bytes).expect("a stored schema")
}

/// Changes what the differences name, and nothing else, to what it is in `now`.
pub(super) fn change(schema: &mut Schema, now: &Schema, differences: &[Difference]) {
    for Difference { change, definition: name, member, detail } in differences {
        if change.is_of_caveat() {
            change_caveat(schema, now, name, *change, member.as_deref());
            continue;
        }
        let after = now.definitions.get(name);
        if matches!(change, Kind::NamespaceAdded | Kind::NamespaceRemoved) {
            schema.definitions.remove(name);
            schema.definitions.extend(after.map(|after| (name.clone(), after.clone())));
            continue;
        }
        let (after, member) = (after.expect("it is there"), member.as_ref().expect("a member"));
        let definition = schema.definitions.get_mut(name).map(Arc::make_mut).expect("it was there");
        match change {
            Kind::RelationAllowedTypeAdded | Kind::RelationAllowedTypeRemoved => {
                let relation = definition.relations.get_mut(member).expect("it was there");
                let subjects = relation.subjects.get_or_insert_default();
                subjects.retain(|subject| Some(&*subject.to_string()) != detail.as_deref());
                let allowed = after.relations[member].subjects.iter().flatten();
                let mut allowed = allowed.filter(|of| Some(&*of.to_string()) == detail.as_deref());
                subjects.extend(allowed.next().cloned());
            }
            _ => {
                let is_relation = matches!(change, Kind::AddedRelation | Kind::RemovedRelation);
                if is_relation {
                    definition.relations.remove(member);
                    let is = after.relations.get(member);
                    definition.relations.extend(is.map(|is| (member.clone(), is.clone())));
                } else {
                    definition.permissions.remove(member);
                    let is = after.permissions.get(member);
                    definition.permissions.extend(is.map(|is| (member.clone(), is.clone())));
                }
            }
        }
    }
}

fn change_caveat(
    schema: &mut Schema,
    now: &Schema,
    name: &str,
    change: Kind,
    member: Option<&str>,
) {
    let after = now.caveats.get(name);
    match (change, schema.caveats.get_mut(name).map(Arc::make_mut), after, member) {
        (Kind::ExpressionHasChanged, Some(caveat), Some(after), None) => {
            caveat.expression = after.expression.clone();
        }
        (_, Some(caveat), Some(after), Some(member)) => {
            caveat.parameters.remove(member);
            let is = after.parameters.get(member);
            caveat.parameters.extend(is.map(|is| (member.into(), is.clone())));
        }
        _ => {
            schema.caveats.remove(name);
            schema.caveats.extend(after.map(|after| (name.into(), after.clone())));
        }
    }
}

/// Reads the text of a schema; of caveats their names alone.
pub(super) fn schema(text: &str) -> Schema {
    let mut schema = Schema::default();
    let mut tokens = Tokens::of(text);
    while let Some(word) = tokens.next() {
        match word.as_str() {
            "use" => drop(tokens.next()),
            "caveat" => {
                schema.caveats.insert(tokens.word().into(), Caveat::default().into());
                while tokens.next().as_deref() != Some("}") {}
            }
            "definition" => {
                let name = tokens.word();
                schema.definitions.insert(name.into(), tokens.definition().into());
            }
            other => panic!("neither a definition nor a caveat: {other}"),
        }
    }
    schema
}

struct Tokens(std::iter::Peekable<std::vec::IntoIter<String>>);

impl Tokens {
    fn of(text: &str) -> Self {
        let mut text = text.to_owned();
        while let Some(begin) = text.find("/*") {
            let end = text[begin..].find("*/").expect("an end") + begin + 2;
            text.replace_range(begin..end, "");
        }
        let mut spaced = text.replace("->", " -> ");
        for symbol in ["{", "}", "(", ")", ":", "#", "|", "=", "+", "&", "."] {
            spaced = spaced.replace(symbol, &format!(" {symbol} "));
        }
        Self(spaced.split_whitespace().map(Into::into).collect::<Vec<_>>().into_iter().peekable())
    }

    fn next(&mut self) -> Option<String> {
        self.0.next()
    }

    fn word(&mut self) -> String {
        self.next().expect("a word")
    }

    /// Takes the next token if it is this one.
    fn took(&mut self, token: &str) -> bool {
        self.0.next_if(|next| next == token).is_some()
    }

    fn needs(&mut self, token: &str) {
        assert!(self.took(token), "{token} expected before {:?}", self.next());
    }

    fn definition(&mut self) -> Definition {
        let mut definition = Definition::default();
        self.needs("{");
        while !self.took("}") {
            let (kind, name) = (self.word(), self.word().into());
            if kind == "relation" {
                self.needs(":");
                let mut subjects = vec![self.subject()];
                while self.took("|") {
                    subjects.push(self.subject());
                }
                let subjects = Some(subjects.into_iter().collect());
                definition.relations.insert(name, Relation { subjects, computed: None });
            } else {
                self.needs("=");
                let expression = match self.operation() {
                    // As SpiceDB stores an operand that stands alone.
                    part @ (Expression::Union(_)
                    | Expression::Intersection(_)
                    | Expression::Exclusion(_)) => part,
                    operand => Expression::Union([operand].into()),
                };
                definition.permissions.insert(name, expression);
            }
        }
        definition
    }

    fn subject(&mut self) -> Subject {
        let namespace = self.word().into();
        let which = if self.took("#") {
            Which::Related(self.word().into())
        } else if self.took(":") {
            self.needs("*");
            Which::Everyone
        } else {
            Which::Object
        };
        let (mut caveat, mut expires) = (None, false);
        if self.took("with") {
            loop {
                match self.word().as_str() {
                    "expiration" => expires = true,
                    name => caveat = Some(name.into()),
                }
                if !self.took("and") {
                    break;
                }
            }
        }
        Subject { namespace, which, caveat, expires }
    }

    /// `+` binds most, then `&`, then `-`.
    fn operation(&mut self) -> Expression {
        let intersection = |tokens: &mut Self| {
            let union = |tokens: &mut Self| tokens.joined("+", Self::operand, Expression::Union);
            tokens.joined("&", union, Expression::Intersection)
        };
        self.joined("-", intersection, Expression::Exclusion)
    }

    fn joined(
        &mut self,
        by: &str,
        operand: impl Fn(&mut Self) -> Expression,
        join: impl Fn(Box<[Expression]>) -> Expression,
    ) -> Expression {
        let mut operands = vec![operand(self)];
        while self.took(by) {
            operands.push(operand(self));
        }
        if operands.len() > 1 { join(operands.into()) } else { operands.remove(0) }
    }

    fn operand(&mut self) -> Expression {
        if self.took("(") {
            let part = self.operation();
            self.needs(")");
            return part;
        }
        let name = self.word();
        if self.took("->") {
            let member = self.word().into();
            return Expression::Arrow { tupleset: name.into(), of: Of::Arrow, member };
        }
        if self.took(".") {
            let of = if self.word() == "all" { Of::All } else { Of::Any };
            self.needs("(");
            let member = self.word().into();
            self.needs(")");
            return Expression::Arrow { tupleset: name.into(), of, member };
        }
        match name.as_str() {
            "nil" => Expression::Nil,
            "self" => Expression::Itself,
            _ => Expression::Member(name.into()),
        }
    }
}
