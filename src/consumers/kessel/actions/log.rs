//! The action `log`: a line or a block for each change, for people, on standard output. The daemon's own
//! log is another thing, with a level of its own.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Deserialize;

use super::{Action, Applied, Group, Item, Kind, Repeats, options};
use crate::consumers::kessel::row::{Operation, RowChange};
use crate::outage::Breaker;

/// What it declares.
pub static KIND: Kind = Kind {
    name: "log",
    group: Group::Consumers,
    repeats: Repeats::Claimed,
    keeps_state: false,
    reads: true,
    expires: true,
    schemas: true,
    needs: &[],
    check: |given| options::<Options>(given).map(drop),
    build: |configured, _| {
        let Options { format } = options(&configured.options).unwrap_or_default();
        Ok(Arc::new(Console::new(format)))
    },
};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Options {
    format: Format,
}

/// How a change is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// On one line, in columns.
    #[default]
    Line,
    /// A block of lines, each with its name.
    Block,
}

/// Widths that columns are padded to. Longer values push the rest to the right.
const RESOURCE: usize = 28;
const RELATION: usize = 12;
const SUBJECT: usize = 28;

/// Standard output.
struct Console {
    coloured: bool,
    format: Format,
}

impl Console {
    /// Coloured on a terminal, unless `NO_COLOR` is set.
    fn new(format: Format) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { coloured: io::stdout().is_terminal() && !unwanted, format }
    }

    fn text(&self, item: &Item) -> String {
        let Item::Row(change) = item;
        let line = Line { change };
        match (self.format, self.coloured) {
            (Format::Block, _) => block(change),
            (Format::Line, true) => line.coloured(),
            (Format::Line, false) => line.to_string(),
        }
    }
}

impl Action for Console {
    fn apply(&self, items: &[&Item]) -> BoxFuture<'static, Vec<Applied>> {
        let count = items.len();
        let mut text = String::new();
        for item in items {
            text.push_str(&self.text(item));
            text.push('\n');
        }
        Box::pin(async move {
            // Whoever reads it may be slow, or gone.
            let write = move || io::stdout().lock().write_all(text.as_bytes());
            tokio::task::spawn_blocking(write).await.ok();
            (0..count).map(|_| Ok(())).collect()
        })
    }

    fn breaker(&self) -> Option<&Arc<Breaker>> {
        None
    }
}

/// A change as a block of lines.
fn block(change: &RowChange) -> String {
    let RowChange { operation, relationship, caveat, expires, committed, at, .. } = change;
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn fmt::Display| {
        writeln!(text, "  {name:<10}  {value}").ok();
    };
    line("resource", &relationship.resource());
    line("relation", &relationship.relation);
    line("subject", &relationship.subject());
    if let Some(caveat) = caveat {
        line("caveat", &caveat.name);
    }
    if let Some(expires) = expires {
        line("expires", &format_args!("{expires:.0}"));
    }
    line("record", &format_args!("{}/{}", at.0, at.1));
    line("committed", &format_args!("{committed:.3}"));
    format!("{}\n{text}", operation.as_str())
}

/// A change as one line.
pub struct Line<'a> {
    /// The change.
    pub change: &'a RowChange,
}

impl Line<'_> {
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
        let Self { change } = self;
        let RowChange { operation, relationship, caveat, expires, committed, at, .. } = change;
        let (resource, subject) = (relationship.resource(), relationship.subject());
        write!(
            f,
            "{:<6}  {resource:<RESOURCE$}  {:<RELATION$}  {subject:<SUBJECT$}",
            operation.as_str(),
            relationship.relation,
        )?;
        if let Some(caveat) = caveat {
            write!(f, "  caveat {}", caveat.name)?;
        }
        if let Some(expires) = expires {
            write!(f, "  expires {expires:.0}")?;
        }
        match *at {
            RowChange::NO_RECORD => write!(f, "  -  {committed:.3}"),
            (partition, offset) => write!(f, "  {partition}/{offset}  {committed:.3}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::consumers::kessel::row::{Caveat, Relationship};

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
            deleted_xid: None,
            caveat: Some(Caveat { name: "office_hours".into(), context: None }),
            expires: Some(time("2026-12-01T00:00:00.5Z")),
            committed: time("2026-11-29T01:22:07.549355Z"),
            place: None,
            at: (3, 42),
        };
        assert_eq!(
            Line { change: &change }.to_string(),
            "CREATE  document:budget               viewer        group:eng#member              \
             caveat office_hours  expires 2026-12-01T00:00:00Z  3/42  2026-11-29T01:22:07.549Z"
        );
        let deleted =
            RowChange { operation: Operation::Delete, caveat: None, expires: None, ..change };
        let line = Line { change: &deleted }.to_string();
        assert!(line.starts_with("DELETE  document:budget ") && line.ends_with("549Z"), "{line}");
        let coloured = Line { change: &deleted }.coloured();
        assert_eq!(coloured, line.replacen("DELETE", "\x1b[31mDELETE\x1b[0m", 1));
        assert!(!line.contains("caveat") && !line.contains("expires"), "{line}");
    }
}
