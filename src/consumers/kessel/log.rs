//! The action `log`: a line for each change, for people, on standard output. The daemon's own log is
//! another thing, with a level of its own.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use super::row::{Operation, RowChange};
use crate::engine::Origin;

/// Widths that columns are padded to. Longer values push the rest to the right.
const RESOURCE: usize = 28;
const RELATION: usize = 12;
const SUBJECT: usize = 28;

/// Standard output.
pub struct Console {
    coloured: bool,
}

impl Console {
    /// Coloured on a terminal, unless `NO_COLOR` is set.
    #[must_use]
    pub fn new() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { coloured: io::stdout().is_terminal() && !unwanted }
    }

    /// Writes a line, whole. Nobody may be reading it any more.
    pub fn write(&self, line: &Line<'_>) {
        let text = if self.coloured { line.coloured() } else { line.to_string() };
        writeln!(io::stdout().lock(), "{text}").ok();
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// A change as one line.
pub struct Line<'a> {
    change: &'a RowChange,
    origin: &'a Origin,
}

impl<'a> Line<'a> {
    /// The line of a change that came from `origin`.
    #[must_use]
    pub fn new(change: &'a RowChange, origin: &'a Origin) -> Self {
        Self { change, origin }
    }

    /// The same for a terminal: the operation in a colour of its own.
    fn coloured(&self) -> String {
        let colour = match self.change.operation {
            Operation::Create | Operation::Update => "32",
            Operation::Delete => "31",
            Operation::Expire => "33",
            Operation::Read => "2",
        };
        let line = self.to_string();
        let (operation, rest) = line.split_at(self.change.operation.as_str().len());
        format!("\x1b[{colour}m{operation}\x1b[0m{rest}")
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { change, origin } = self;
        let RowChange { operation, relationship, caveat, expires, committed, .. } = change;
        let (resource, subject) = (relationship.resource(), relationship.subject());
        write!(
            f,
            "{:<6}  {resource:<RESOURCE$}  {:<RELATION$}  {subject:<SUBJECT$}",
            operation.as_str(),
            relationship.relation,
        )?;
        if let Some(caveat) = caveat {
            write!(f, "  caveat {caveat}")?;
        }
        if let Some(expires) = expires {
            write!(f, "  expires {expires:.0}")?;
        }
        write!(f, "  {}/{}  {committed:.3}", origin.partition, origin.offset)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::consumers::kessel::row::Relationship;

    #[test]
    fn a_line_names_all_that_the_change_tells_and_nothing_else() {
        let relationship = Relationship {
            namespace: "document".into(),
            object_id: "budget".into(),
            relation: "viewer".into(),
            subject_namespace: "group".into(),
            subject_id: "eng".into(),
            subject_relation: Some("member".into()),
        };
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let change = RowChange {
            operation: Operation::Create,
            relationship,
            created_xid: Some(826),
            caveat: Some("office_hours".into()),
            expires: Some(time("2026-12-01T00:00:00.5Z")),
            committed: time("2026-11-29T01:22:07.549355Z"),
            place: None,
        };
        let origin = Origin { topic: "t".into(), partition: 3, offset: 42 };
        assert_eq!(
            Line::new(&change, &origin).to_string(),
            "CREATE  document:budget               viewer        group:eng#member              \
             caveat office_hours  expires 2026-12-01T00:00:00Z  3/42  2026-11-29T01:22:07.549Z"
        );
        let deleted =
            RowChange { operation: Operation::Delete, caveat: None, expires: None, ..change };
        let line = Line::new(&deleted, &origin).to_string();
        assert!(line.starts_with("DELETE  document:budget ") && line.ends_with("549Z"), "{line}");
        let coloured = Line::new(&deleted, &origin).coloured();
        assert_eq!(coloured, line.replacen("DELETE", "\x1b[31mDELETE\x1b[0m", 1));
        assert!(!line.contains("caveat") && !line.contains("expires"), "{line}");
    }
}
