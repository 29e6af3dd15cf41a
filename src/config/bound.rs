//! Bounds on parallel work.

use std::str::FromStr;

/// How much parallel work is allowed: fixed where both ends are equal, adaptive between them
/// otherwise (behaviour section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bound {
    /// At least this much, however unwell the other side is.
    pub min: usize,
    /// At most this much, however well the other side is.
    pub max: usize,
}

impl Bound {
    const MOST: usize = 10_000;
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        match (min.trim().parse(), max.trim().parse()) {
            (Ok(min), Ok(max)) if 1 <= min && min <= max && max <= Self::MOST => {
                Ok(Self { min, max })
            }
            _ => Err(format!("is not a bound between 1 and {} (5 or 5..64)", Self::MOST)),
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}..{}", self.min, self.max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_number_or_a_range_that_does_not_shrink() {
        assert_eq!("5".parse(), Ok(Bound { min: 5, max: 5 }));
        assert_eq!("5..64".parse(), Ok(Bound { min: 5, max: 64 }));
        for wrong in ["", "0", "0..5", "64..5", "a", "5..", "..5", "1..1000000", "-1"] {
            assert!(wrong.parse::<Bound>().is_err(), "{wrong}");
        }
    }
}
