//! Settings of decoding: what the records do not say.

use std::str::FromStr;
use std::sync::Arc;

/// The scale of a `numeric(p,s)` column if nothing else names one (behaviour section 2).
const DEFAULT_SCALE: u32 = 2;
/// Largest scale that can be configured.
const MAX_SCALE: u32 = 38;

/// The settings of decoding. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Scale of a `numeric(p,s)` column in base64 if neither a schema nor `scales` names one.
    pub default_scale: u32,
    /// Scales of single columns.
    pub scales: Scales,
    /// How the connector writes decimals.
    pub decimal_mode: DecimalMode,
    /// What a null value means.
    pub tombstones: Tombstones,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_scale: DEFAULT_SCALE,
            scales: Scales::default(),
            decimal_mode: DecimalMode::Auto,
            tombstones: Tombstones::Ignore,
        }
    }
}

/// How the connector writes decimals: `decimal.handling.mode`. It decides only about text that
/// could be a decimal or base64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DecimalMode {
    /// Judged by the other numerics of each row.
    #[default]
    Auto,
    /// Base64 of the unscaled value.
    Precise,
    /// Decimal text.
    String,
    /// JSON numbers.
    Double,
}

impl FromStr for DecimalMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "precise" => Ok(Self::Precise),
            "string" => Ok(Self::String),
            "double" => Ok(Self::Double),
            _ => Err("must be auto, precise, string or double".to_owned()),
        }
    }
}

/// What a null value on a change topic means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tombstones {
    /// Nothing: the delete came before it.
    #[default]
    Ignore,
    /// The delete of the record's key.
    Delete,
}

impl FromStr for Tombstones {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ignore" => Ok(Self::Ignore),
            "delete" => Ok(Self::Delete),
            _ => Err("must be ignore or delete".to_owned()),
        }
    }
}

/// Scales of `numeric(p,s)` columns, written `purchase_ledger.final_amount=4,...`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scales(Option<Arc<[Scale]>>);

#[derive(Debug, PartialEq, Eq)]
struct Scale {
    table: Box<str>,
    column: Box<str>,
    digits: u32,
}

impl Scales {
    /// The scale of a column, if the list names it.
    #[must_use]
    pub fn of(&self, table: &str, column: &str) -> Option<u32> {
        let named = |scale: &&Scale| *scale.table == *table && *scale.column == *column;
        self.0.as_ref()?.iter().find(named).map(|scale| scale.digits)
    }
}

impl FromStr for Scales {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut scales: Vec<Scale> = Vec::new();
        let parts = text.split(',').map(str::trim).enumerate().filter(|(_, part)| !part.is_empty());
        for (index, part) in parts {
            // The entry is not repeated: what was pasted here by mistake may be secret.
            let wrong =
                || format!("has an entry (number {}) that is not table.column=scale", index + 1);
            let (name, digits) = part.split_once('=').ok_or_else(wrong)?;
            let (table, column) = name.trim().split_once('.').ok_or_else(wrong)?;
            if table.is_empty() || column.is_empty() || column.contains('.') {
                return Err(wrong());
            }
            let digits =
                digits.trim().parse().ok().filter(|digits| *digits <= MAX_SCALE).ok_or_else(
                    || {
                        format!(
                            "has an entry (number {}) whose scale is not 0 to {MAX_SCALE}",
                            index + 1
                        )
                    },
                )?;
            if scales.iter().any(|scale| *scale.table == *table && *scale.column == *column) {
                return Err(format!("names a column twice (entry number {})", index + 1));
            }
            scales.push(Scale { table: table.into(), column: column.into(), digits });
        }
        Ok(Self((!scales.is_empty()).then(|| scales.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_told_by_column() {
        let scales: Scales =
            " purchase_ledger.final_amount = 4,codes.face_value=0, ".parse().expect("a list");
        assert_eq!(scales.of("purchase_ledger", "final_amount"), Some(4));
        assert_eq!(scales.of("codes", "face_value"), Some(0));
        assert_eq!(scales.of("codes", "final_amount"), None);
        assert_eq!("".parse(), Ok(Scales::default()));
        for wrong in [
            "final_amount=4",
            "a.b",
            "a.b=x",
            "a.b=39",
            "a.b=-1",
            "public.a.b=2",
            ".b=2",
            "a.=2",
            "a.b=2,a.b=3",
        ] {
            assert!(wrong.parse::<Scales>().is_err(), "{wrong}");
        }
    }
}
