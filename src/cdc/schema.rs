//! Column types: from the record's own schema (`schemas.enable=true`), else from the catalogue.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::catalogue::{Kind, Table};
use super::decimal::Form;
use super::options::{DecimalMode, Options, Scales};
use super::text::Text;
use super::time::Unit;

/// What is known about the columns of one row.
#[derive(Debug, Clone, Default)]
pub(super) struct Types<'a> {
    name: Cow<'a, str>,
    table: Option<&'static Table>,
    schema: Option<Arc<Schema<'a>>>,
    default_scale: u32,
    scales: Scales,
    decimal_mode: DecimalMode,
}

impl<'a> Types<'a> {
    pub(super) fn new(name: Cow<'a, str>, options: &Options) -> Self {
        let Options { default_scale, decimal_mode, .. } = *options;
        let (table, scales) = (Table::named(&name), options.scales.clone());
        Self { table, name, schema: None, default_scale, scales, decimal_mode }
    }

    /// The same types, with the schema that came with a record.
    pub(super) fn with(&self, schema: Option<Arc<Schema<'a>>>) -> Self {
        Self { schema, ..self.clone() }
    }

    pub(super) fn decimal_mode(&self) -> DecimalMode {
        self.decimal_mode
    }

    pub(super) fn table_name(&self) -> &str {
        &self.name
    }

    pub(super) fn primary_key(&self) -> &'static [&'static str] {
        self.table.map_or(&[], |table| table.primary_key)
    }

    /// The schema's type wins. The catalogue fills in where the schema says less: a numeric written
    /// as text is only a string there.
    pub(super) fn kind(&self, column: &str) -> Option<Kind> {
        let listed = self.table.and_then(|table| table.kind(column));
        match self.schema.as_ref().and_then(|schema| schema.kind(column)) {
            None => listed,
            Some(Told::Kind(kind)) => Some(kind),
            Some(Told::String) => match listed {
                Some(Kind::Decimal(_)) => Some(Kind::Decimal(Form::Text)),
                listed => listed.or(Some(Kind::Text)),
            },
            Some(Told::Integer) => listed.or(Some(Kind::Integer)),
            Some(Told::Bytes) => match listed {
                Some(Kind::Xid8) => listed,
                _ => Some(Kind::Bytes),
            },
            Some(Told::Other) => listed.or(Some(Kind::Other)),
        }
    }

    /// The schema wins, then the scale configured for the column. A configured scale makes the
    /// column a `numeric(p,s)`, whatever the catalogue says.
    pub(super) fn decimal_form(&self, column: &str) -> Form {
        let configured = || self.scales.of(&self.name, column);
        match self.kind(column) {
            Some(Kind::Decimal(form @ (Form::Base64(_) | Form::Text))) => form,
            Some(Kind::Decimal(Form::Unconstrained)) if self.schema_names(column) => {
                Form::Unconstrained
            }
            Some(Kind::Decimal(Form::Configured)) | None => {
                Form::Scale(configured().unwrap_or(self.default_scale))
            }
            Some(Kind::Decimal(form)) => configured().map_or(form, Form::Scale),
            Some(_) => Form::Text,
        }
    }

    fn schema_names(&self, column: &str) -> bool {
        self.schema.as_ref().and_then(|schema| schema.kind(column)).is_some()
    }

    pub(super) fn time_unit(&self, column: &str) -> Option<Unit> {
        match self.kind(column) {
            Some(Kind::Timestamp(unit)) => unit,
            _ => None,
        }
    }
}

/// A Connect schema. Parsed when a column's type first matters: most records are skipped before.
#[derive(Debug)]
pub(super) struct Schema<'a> {
    raw: &'a RawValue,
    /// The field of the envelope that holds the row; none where the schema is the row's own.
    within: Option<&'static str>,
    columns: OnceLock<Vec<(String, Told)>>,
}

/// What a schema says about a column.
#[derive(Debug, Clone, Copy)]
enum Told {
    Kind(Kind),
    String,
    Integer,
    Bytes,
    Other,
}

#[derive(Deserialize)]
struct Node<'a> {
    #[serde(borrow, rename = "type")]
    form: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    field: Option<Text<'a>>,
    #[serde(borrow)]
    fields: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<Parameters<'a>>,
}

#[derive(Deserialize)]
struct Parameters<'a> {
    #[serde(borrow)]
    scale: Option<Text<'a>>,
}

impl<'a> Schema<'a> {
    /// `within` is `before` or `after` of an envelope.
    pub(super) fn new(raw: &'a RawValue, within: Option<&'static str>) -> Arc<Self> {
        Arc::new(Self { raw, within, columns: OnceLock::new() })
    }

    fn kind(&self, column: &str) -> Option<Told> {
        self.columns
            .get_or_init(|| self.parse())
            .iter()
            .find(|(name, _)| name == column)
            .map(|(_, told)| *told)
    }

    /// A malformed schema says nothing, so the catalogue decides.
    fn parse(&self) -> Vec<(String, Told)> {
        let fields = |raw: &'a RawValue| -> Vec<Node<'a>> {
            serde_json::from_str::<Node<'a>>(raw.get())
                .ok()
                .and_then(|node| node.fields)
                .and_then(|fields| serde_json::from_str(fields.get()).ok())
                .unwrap_or_default()
        };
        let columns = match self.within {
            None => fields(self.raw),
            Some(row) => fields(self.raw)
                .into_iter()
                .find(|node| node.field.as_ref().is_some_and(|field| field.0 == row))
                .and_then(|node| node.fields)
                .and_then(|fields| serde_json::from_str(fields.get()).ok())
                .unwrap_or_default(),
        };
        columns
            .into_iter()
            .filter_map(|node| {
                let told = node.told();
                node.field.map(|field| (field.0.into_owned(), told))
            })
            .collect()
    }
}

impl Node<'_> {
    fn told(&self) -> Told {
        let name = self.name.as_ref().map_or("", |name| name.0.as_ref());
        let kind = match name {
            "org.apache.kafka.connect.data.Decimal" => {
                let scale = self.parameters.as_ref().and_then(|p| p.scale.as_ref()?.0.parse().ok());
                Kind::Decimal(scale.map_or(Form::Configured, Form::Base64))
            }
            "io.debezium.data.VariableScaleDecimal" => Kind::Decimal(Form::Unconstrained),
            "io.debezium.data.Uuid" => Kind::Uuid,
            "io.debezium.data.Json" => Kind::Json,
            "io.debezium.data.Enum" => Kind::Text,
            "io.debezium.time.ZonedTimestamp" | "io.debezium.time.IsoTimestamp" => {
                Kind::Timestamp(None)
            }
            "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
                Kind::Timestamp(Some(Unit::Milliseconds))
            }
            "io.debezium.time.MicroTimestamp" => Kind::Timestamp(Some(Unit::Microseconds)),
            "io.debezium.time.NanoTimestamp" => Kind::Timestamp(Some(Unit::Nanoseconds)),
            "io.debezium.time.Date"
            | "io.debezium.time.IsoDate"
            | "org.apache.kafka.connect.data.Date" => Kind::Date,
            "" => {
                return match self.form.as_ref().map_or("", |form| form.0.as_ref()) {
                    "string" => Told::String,
                    "int8" | "int16" | "int32" | "int64" => Told::Integer,
                    "boolean" => Told::Kind(Kind::Bool),
                    "bytes" => Told::Bytes,
                    _ => Told::Other,
                };
            }
            _ => return Told::Other,
        };
        Told::Kind(kind)
    }
}
