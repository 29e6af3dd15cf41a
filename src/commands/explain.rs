//! `explain`: what a record decodes to, and what every consumer would do with it (behaviour section 11).
//!
//! Reads and prints; decides nothing, claims nothing, sends nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::cdc::{self, Change, DecodeError, Decoded, Nothing, Options, Record};
use crate::engine::admin::records::Records;
use crate::recording::{self, Recorded};

/// What to explain, and how to print it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JSONL file of records, also gzipped; `-` or nothing is standard input
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Read from this Kafka topic instead of a file
    #[arg(long, requires = "partition", requires = "offset", conflicts_with = "file")]
    pub topic: Option<String>,
    /// Partition to read
    #[arg(long, requires = "topic", value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,
    /// First offset to read
    #[arg(long, requires = "topic", value_parser = clap::value_parser!(i64).range(0..))]
    pub offset: Option<i64>,
    /// How many records to read; stops earlier at the partition's end
    #[arg(long, requires = "topic", default_value_t = 1)]
    pub count: usize,
    /// Print one JSON object a record
    #[arg(long)]
    pub json: bool,
}

/// What a record turned out to be, for the consumers to decide on.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub enum Subject<'a> {
    /// A change.
    Change(Change<'a>),
    /// A command: well-formed JSON on a topic of commands.
    Command(&'a RawValue),
    /// A record without a change.
    Nothing(Nothing),
    /// A record that cannot be decoded.
    Error(DecodeError),
}

/// What the consumers say: the name of each that takes the record's topic, with its
/// `{decision, reason, lane, claim, plan}`.
pub type Decide<'d> = dyn Fn(&Record<'_>, &Subject<'_>) -> Map<String, Value> + 'd;

/// What `explain` needs from the rest of the program.
pub struct Context<'c> {
    /// How to decode.
    pub options: Options,
    /// Topics that carry plain JSON commands, as they are named in this deployment.
    pub command_topics: &'c [String],
    /// The consumers' decisions.
    pub decide: &'c Decide<'c>,
    /// Connection to Kafka: brokers and security. Needed only with `--topic`.
    pub kafka: ClientConfig,
}

/// Explains every record to `out`.
///
/// # Errors
/// A line of the file is not a record, the file or Kafka cannot be read, or `out` cannot be written. A
/// record that cannot be decoded is explained, not an error.
pub fn run(args: &Args, context: &Context<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    match explain_all(args, context, out) {
        // A reader that closed the pipe (`| head`) has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn explain_all(args: &Args, context: &Context<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    if let (Some(topic), Some(partition), Some(offset)) = (&args.topic, args.partition, args.offset)
    {
        let mut records = Records::open(&context.kafka, topic, partition, offset)?;
        for _ in 0..args.count {
            let Some(record) = records.read_next()? else { break };
            explain(&record, args.json, context, out)?;
        }
        return Ok(out.flush()?);
    }
    let input: Box<dyn Read> = match &args.file {
        Some(path) if path.as_os_str() != "-" => {
            Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        }
        _ => Box::new(io::stdin().lock()),
    };
    for record in recording::read(input) {
        explain(&record?, args.json, context, out)?;
    }
    Ok(out.flush()?)
}

fn explain(
    record: &Recorded,
    json: bool,
    context: &Context<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    record.lend(|record| {
        let subject = subject(record, context);
        let consumers = (context.decide)(record, &subject);
        let key = match &subject {
            Subject::Change(change) => change.key.explained(),
            _ => cdc::decode_key(record, &context.options).explained(),
        };
        let report = Report::new(record, &subject, key, &consumers);
        if json {
            serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            report.print(&subject, out)?;
        }
        Ok(())
    })
}

fn subject<'a>(record: &Record<'a>, context: &Context<'_>) -> Subject<'a> {
    if context.command_topics.iter().any(|topic| topic == record.topic) {
        return match cdc::command(record) {
            Ok(Some(command)) => Subject::Command(command),
            Ok(None) => Subject::Nothing(Nothing::Tombstone),
            Err(error) => Subject::Error(error),
        };
    }
    match cdc::decode(record, &context.options) {
        Ok(Decoded::Change(change)) => Subject::Change(change),
        Ok(Decoded::Nothing(nothing)) => Subject::Nothing(nothing),
        Err(error) => Subject::Error(error),
    }
}

/// One record as `--json` prints it; the order of the fields is behaviour section 11's.
#[derive(Serialize)]
struct Report<'r> {
    topic: &'r str,
    partition: i32,
    offset: i64,
    kind: &'static str,
    reason: Option<String>,
    table: Option<&'r str>,
    op: Option<&'static str>,
    snapshot: bool,
    key: Box<RawValue>,
    before: Option<Box<RawValue>>,
    after: Option<Box<RawValue>>,
    unavailable: Vec<&'r str>,
    position: Option<cdc::Position>,
    consumers: &'r Map<String, Value>,
}

impl<'r> Report<'r> {
    fn new(
        record: &Record<'r>,
        subject: &'r Subject<'_>,
        key: Box<RawValue>,
        consumers: &'r Map<String, Value>,
    ) -> Self {
        let (kind, reason) = match subject {
            Subject::Change(_) => ("change", None),
            Subject::Command(_) => ("command", None),
            Subject::Nothing(nothing) => ("none", Some(nothing.as_str().to_owned())),
            Subject::Error(error) => ("error", Some(error.to_string())),
        };
        let change = if let Subject::Change(change) = subject { Some(change) } else { None };
        let images = change.map(|change| [&change.before, &change.after]).into_iter().flatten();
        let mut unavailable: Vec<&str> = Vec::new();
        for column in images.flatten().flat_map(cdc::Row::unavailable) {
            if !unavailable.contains(&column) {
                unavailable.push(column);
            }
        }
        Self {
            topic: record.topic,
            partition: record.partition,
            offset: record.offset,
            kind,
            reason,
            table: change.map(|change| change.table.as_ref()),
            op: change.map(|change| change.op.as_str()),
            snapshot: change.is_some_and(|change| change.snapshot),
            key,
            before: change.and_then(|change| Some(change.before.as_ref()?.explained())),
            after: change.and_then(|change| Some(change.after.as_ref()?.explained())),
            unavailable,
            position: change.and_then(|change| change.position),
            consumers,
        }
    }

    /// The same for people.
    fn print(&self, subject: &Subject<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
        let place = format!("{} [{}] offset {}", self.topic, self.partition, self.offset);
        match subject {
            Subject::Nothing(nothing) => {
                let what = nothing.as_str().replace('_', " ");
                writeln!(out, "{place}: nothing to handle ({what})")?;
            }
            Subject::Error(error) => {
                writeln!(out, "{place}: cannot be decoded ({})\n  {error}", error.kind())?;
            }
            Subject::Command(command) => writeln!(out, "{place}: command\n  {}", command.get())?,
            Subject::Change(change) => {
                let what = match change.op {
                    cdc::Op::Create => "insert",
                    cdc::Op::Update => "update",
                    cdc::Op::Delete => "delete",
                    cdc::Op::Read => "snapshot read",
                };
                let half = if change.key_change { ", half of a key change" } else { "" };
                writeln!(
                    out,
                    "{place}: {what} in {}{half}, committed {}",
                    change.table, change.commit_time
                )?;
                self.print_rows(change, out)?;
            }
        }
        for (name, decision) in self.consumers {
            print_decision(name, decision, out)?;
        }
        Ok(writeln!(out)?)
    }

    fn print_rows(&self, change: &Change<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
        let members =
            |json: &RawValue| serde_json::from_str::<HashMap<String, Box<RawValue>>>(json.get());
        let before = self.before.as_deref().map(members).transpose()?;
        // Columns in the order of the table, not of the alphabet.
        let row = change.after.as_ref().or(change.before.as_ref()).unwrap_or(&change.key);
        let shown = self.after.as_deref().or(self.before.as_deref()).unwrap_or(&self.key);
        let shown = members(shown)?;
        let width = row.columns().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut nulls = Vec::new();
        for (name, _) in row.columns() {
            let Some(value) = shown.get(name) else { continue };
            let old = before
                .as_ref()
                .and_then(|before| before.get(name))
                .filter(|old| old.get() != value.get());
            match old {
                Some(old) => writeln!(out, "  {name:width$}  {old} -> {value}")?,
                None if value.get() == "null" => nulls.push(name),
                None => writeln!(out, "  {name:width$}  {value}")?,
            }
        }
        if !nulls.is_empty() {
            writeln!(out, "  null: {}", nulls.join(", "))?;
        }
        if !self.unavailable.is_empty() {
            writeln!(out, "  unavailable: {}", self.unavailable.join(", "))?;
        }
        if change.before_invented {
            writeln!(out, "  before: only the key is known (REPLICA IDENTITY DEFAULT)")?;
        } else if change.op == cdc::Op::Update && change.before.is_none() {
            writeln!(out, "  before: not in the record")?;
        }
        match self.position {
            Some(at) => {
                let number = |number: Option<u64>| number.map_or("?".to_owned(), |n| n.to_string());
                let (first, tx) = (number(at.first), number(at.tx_id));
                writeln!(out, "  position: lsn {} after commit {first}, transaction {tx}", at.lsn)?;
            }
            None => writeln!(out, "  position: none, so a replay of it cannot be recognised")?,
        }
        for remark in change.remarks.iter() {
            writeln!(out, "  note: {}", remark.advice())?;
        }
        Ok(())
    }
}

fn print_decision(name: &str, decision: &Value, out: &mut dyn Write) -> anyhow::Result<()> {
    let text = |field: &str| decision.get(field).and_then(Value::as_str);
    write!(out, "  => {name}: {}", text("decision").unwrap_or("?"))?;
    if let Some(reason) = text("reason") {
        write!(out, ", {reason}")?;
    }
    for field in ["lane", "claim"] {
        if let Some(value) = text(field) {
            write!(out, ", {field} {value}")?;
        }
    }
    writeln!(out)?;
    for step in decision.get("plan").and_then(Value::as_array).into_iter().flatten() {
        writeln!(out, "       {}", step.as_str().unwrap_or("?"))?;
    }
    Ok(())
}
