//! What a permission is computed from.

use std::fmt;

use super::proto::{
    Child, ChildType, ComputedUserset, FunctionedTupleToUserset, RewriteOperation, SetOperation,
    Tupleset, UsersetRewrite,
};

/// An expression, or a part of one. The order of operands is kept: SpiceDB's own diff counts it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expression {
    /// `nil`: nobody.
    Nil,
    /// `self`: the resource as its own subject.
    Itself,
    /// The subjects of the relation itself, in relations that are computed besides (before 2022).
    This,
    /// A relation or permission of the same object.
    Member(Box<str>),
    /// `parent->view`: a member of the objects that are subjects of a relation.
    Arrow {
        /// The relation whose subjects are walked to.
        tupleset: Box<str>,
        /// Of how many of them.
        of: Of,
        /// Their relation or permission.
        member: Box<str>,
    },
    /// `a + b`.
    Union(Box<[Expression]>),
    /// `a & b`.
    Intersection(Box<[Expression]>),
    /// `a - b`.
    Exclusion(Box<[Expression]>),
    /// What a newer SpiceDB has added. It may depend on anything.
    Unknown,
}

/// Of how many of the objects that an arrow leads to its member counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Of {
    /// `parent->view`: any.
    Arrow,
    /// `parent.any(view)`: any.
    Any,
    /// `parent.all(view)`: all.
    All,
}

impl Expression {
    pub(super) fn read(rewrite: &UsersetRewrite) -> Self {
        let operands = |operation: &SetOperation| operation.child.iter().map(Self::child).collect();
        match &rewrite.rewrite_operation {
            Some(RewriteOperation::Union(operation)) => Self::Union(operands(operation)),
            Some(RewriteOperation::Intersection(operation)) => {
                Self::Intersection(operands(operation))
            }
            Some(RewriteOperation::Exclusion(operation)) => Self::Exclusion(operands(operation)),
            None => Self::Unknown,
        }
    }

    fn child(child: &Child) -> Self {
        match &child.child_type {
            Some(ChildType::Nil(_)) => Self::Nil,
            Some(ChildType::Itself(_)) => Self::Itself,
            Some(ChildType::This(_)) => Self::This,
            Some(ChildType::ComputedUserset(userset)) => {
                Self::Member(userset.relation.as_str().into())
            }
            Some(ChildType::TupleToUserset(arrow)) => {
                Self::arrow(arrow.tupleset.as_ref(), Of::Arrow, arrow.computed_userset.as_ref())
            }
            Some(ChildType::FunctionedTupleToUserset(arrow)) => {
                let of = match arrow.function {
                    FunctionedTupleToUserset::ANY => Of::Any,
                    FunctionedTupleToUserset::ALL => Of::All,
                    _ => return Self::Unknown,
                };
                Self::arrow(arrow.tupleset.as_ref(), of, arrow.computed_userset.as_ref())
            }
            Some(ChildType::UsersetRewrite(rewrite)) => Self::read(rewrite),
            None => Self::Unknown,
        }
    }

    fn arrow(tupleset: Option<&Tupleset>, of: Of, member: Option<&ComputedUserset>) -> Self {
        let (Some(tupleset), Some(member)) = (tupleset, member) else { return Self::Unknown };
        Self::Arrow {
            tupleset: tupleset.relation.as_str().into(),
            of,
            member: member.relation.as_str().into(),
        }
    }
}

/// As in a schema's text. A part of several operands has parentheses.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Itself => f.write_str("self"),
            Self::This => f.write_str("_this"),
            Self::Unknown => f.write_str("?"),
            Self::Member(member) => f.write_str(member),
            Self::Arrow { tupleset, of: Of::Arrow, member } => write!(f, "{tupleset}->{member}"),
            Self::Arrow { tupleset, of: Of::Any, member } => write!(f, "{tupleset}.any({member})"),
            Self::Arrow { tupleset, of: Of::All, member } => write!(f, "{tupleset}.all({member})"),
            Self::Union(operands) => joined(f, operands, " + "),
            Self::Intersection(operands) => joined(f, operands, " & "),
            Self::Exclusion(operands) => joined(f, operands, " - "),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, operands: &[Expression], by: &str) -> fmt::Result {
    for (at, operand) in operands.iter().enumerate() {
        if at > 0 {
            f.write_str(by)?;
        }
        let several = match operand {
            Expression::Union(parts)
            | Expression::Intersection(parts)
            | Expression::Exclusion(parts) => parts.len() > 1,
            _ => false,
        };
        if several {
            write!(f, "({operand})")?;
        } else {
            write!(f, "{operand}")?;
        }
    }
    Ok(())
}
