//! What the demo shows: lines while it runs, then tables and the verdict. At most 100 columns.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::demo::expectation::{Differences, Event};
use crate::demo::watch::Tally;
use crate::demo::{Progress, Report};
use crate::engine::{Origin, Outcome};

/// Lines of one kind before they are only counted.
const EVENTS: usize = 12;
const OTHERS: usize = 3;
/// Differences that are named.
const FINDINGS: usize = 20;
const WIDTH: usize = 100;

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";
const BOLD: &str = "1";
const DIM: &str = "2";

pub(super) struct Screen<W> {
    out: W,
    colours: bool,
    started: Instant,
    /// Lines shown, by kind.
    shown: HashMap<String, usize>,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, colours: bool) -> Self {
        Self { out, colours, started: Instant::now(), shown: HashMap::new() }
    }

    /// Shows what happens.
    pub(super) fn tell(&mut self, progress: &Progress) {
        match progress {
            Progress::Over => {}
            Progress::Note(text) => {
                self.wrapped("", text, BOLD);
            }
            Progress::Event(event) => {
                self.capped(EVENTS, &event.name, GREEN, "sent", &about(event));
            }
            Progress::Waits { consumer, origin, reason } => {
                self.capped(OTHERS, reason, YELLOW, "waits", &place(consumer, origin));
            }
            Progress::Outcome { consumer, origin, outcome } => match outcome {
                Outcome::Sent => {}
                Outcome::Skipped(reason) => {
                    self.capped(OTHERS, reason, DIM, "skipped", &place(consumer, origin));
                }
                Outcome::Duplicate => {
                    self.capped(EVENTS, "duplicate", DIM, "known", &place(consumer, origin));
                }
                Outcome::Replayed => {
                    self.capped(EVENTS, "replay", DIM, "known", &place(consumer, origin))
                }
                Outcome::DeadLettered(kind) => {
                    self.capped(EVENTS, kind, RED, "set aside", &place(consumer, origin));
                }
            },
        }
    }

    /// A line of a kind that may come in thousands.
    fn capped(&mut self, most: usize, kind: &str, colour: &str, what: &str, about: &str) {
        let shown = self.shown.entry(format!("{what} {kind}")).or_default();
        *shown += 1;
        let more = match (*shown).cmp(&most) {
            std::cmp::Ordering::Less => "",
            std::cmp::Ordering::Equal => "  ...",
            std::cmp::Ordering::Greater => return,
        };
        let seconds = self.started.elapsed().as_secs_f64();
        self.line(colour, &format!("{seconds:6.2} s  {what:<9}  {kind:<20}  {about}{more}"));
    }

    fn line(&mut self, colour: &str, text: &str) {
        let text: String = text.chars().take(WIDTH).collect();
        // A screen that has gone is no reason to end.
        drop(match self.colours {
            true => writeln!(self.out, "\x1b[{colour}m{text}\x1b[0m"),
            false => writeln!(self.out, "{text}"),
        });
    }

    /// A text of any length, broken between words.
    fn wrapped(&mut self, indent: &str, text: &str, colour: &str) {
        let mut line = indent.to_owned();
        for word in text.split_whitespace() {
            if line.len() > indent.len() {
                if line.chars().count() + 1 + word.chars().count() > WIDTH {
                    self.line(colour, &line);
                    line = indent.to_owned();
                } else {
                    line.push(' ');
                }
            }
            line.push_str(word);
        }
        self.line(colour, &line);
    }

    fn plain(&mut self, text: &str) {
        self.line("0", text);
    }

    /// The tables and the verdict.
    pub(super) fn conclude(&mut self, report: &Report) {
        self.plain("");
        self.line(
            BOLD,
            "consumer      records    sent  skipped  duplicates  replays  dead letters  events/s     p50     p99",
        );
        for (name, tally, events) in &report.consumers {
            self.plain(&row(name, tally, *events, report.elapsed));
        }
        for (name, tally, _) in &report.consumers {
            self.reasons(name, "skipped", tally.skipped.iter().map(|(k, n)| ((*k).to_owned(), *n)));
            self.reasons(name, "waited", tally.waits.iter().map(|(k, n)| (k.clone(), *n)));
        }
        self.line(DIM, "p50, p99: from the record's delivery to the acceptance of its last event, waits included");
        if report.met_fault > 0 {
            self.line(YELLOW, &format!("requests that met the fault: {}", report.met_fault));
        }
        if !report.dead_letters.is_empty() {
            self.plain("");
            self.line(BOLD, &format!("dead letter topic, {} records:", report.dead_letters.len()));
            let mut reason = "";
            for letter in report.dead_letters.iter().take(EVENTS) {
                if letter.message != reason {
                    reason = &letter.message;
                    self.wrapped("    ", reason, DIM);
                }
                self.line(RED, &format!("  {:<18}  {}", letter.kind, letter.origin));
            }
            if report.dead_letters.len() > EVENTS {
                self.plain(&format!("  and {} more", report.dead_letters.len() - EVENTS));
            }
        }
        self.plain("");
        match &report.differences {
            None => self.line(YELLOW, "interrupted: what arrived was not judged"),
            Some(differences) => self.verdict(differences, report.fed),
        }
    }

    fn reasons(&mut self, consumer: &str, what: &str, counts: impl Iterator<Item = (String, u64)>) {
        let counts: Vec<String> =
            counts.map(|(reason, count)| format!("{reason} {count}")).collect();
        let mut line = format!("  {consumer} {what}: ");
        for (at, count) in counts.iter().enumerate() {
            let comma = if at + 1 < counts.len() { ", " } else { "" };
            if line.len() + count.len() + comma.len() > WIDTH {
                self.line(DIM, &line);
                line = "    ".to_owned();
            }
            line.push_str(count);
            line.push_str(comma);
        }
        if !counts.is_empty() {
            self.line(DIM, &line);
        }
    }

    fn verdict(&mut self, differences: &Differences, fed: usize) {
        if differences.is_right() {
            let right = differences.right;
            self.wrapped(
                "",
                &format!("RIGHT: {fed} records, and all {right} outcomes that they call for"),
                GREEN,
            );
            if differences.repeated > 0 {
                let again = differences.repeated;
                let text = format!("{again} came again, each with the same id and content");
                self.wrapped("  ", &text, GREEN);
            }
            return;
        }
        self.line(RED, "WRONG:");
        for (what, lines) in [
            ("missing", &differences.missing),
            ("too many", &differences.extra),
            ("different", &differences.different),
        ] {
            for line in lines.iter().take(FINDINGS) {
                self.line(RED, &format!("  {what:<9} {line}"));
            }
            if lines.len() > FINDINGS {
                self.line(RED, &format!("  {what:<9} and {} more", lines.len() - FINDINGS));
            }
        }
    }
}

fn row(name: &str, tally: &Tally, events: usize, elapsed: Duration) -> String {
    let mut latencies = tally.latencies.clone();
    latencies.sort_unstable();
    let quantile = |share: usize| -> String {
        let at = (latencies.len() * share).div_ceil(100).saturating_sub(1);
        latencies.get(at).map_or_else(|| "-".to_owned(), |latency| short(*latency))
    };
    let skipped: u64 = tally.skipped.values().sum();
    let dead: u64 = tally.dead_letters.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "for reading")]
    let rate = events as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
    format!(
        "{name:<12} {:>8} {:>7} {skipped:>8} {:>11} {:>8} {dead:>13} {rate:>9.1} {:>7} {:>7}",
        tally.records,
        tally.sent,
        tally.duplicates,
        tally.replayed,
        quantile(50),
        quantile(99),
    )
}

fn short(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn place(consumer: &str, origin: &Origin) -> String {
    let table = origin.topic.rsplit('.').next().unwrap_or_default();
    format!("{consumer}: {table} {}@{}", origin.partition, origin.offset)
}

/// What an event is about, in a few words.
fn about(event: &Event) -> String {
    let data = &event.data;
    let (Some(kind), Some(id)) = (data["source_type"].as_str(), data["source_id"].as_str()) else {
        let fields: &[&str] = match event.name.split('/').next() {
            Some("mission") => &["event_type", "trigger_id"],
            Some("tier") => &["user_id"],
            Some("marketplace") => &["platform", "shop_id", "order_sn", "order_status"],
            _ => &["event_id", "code"],
        };
        let words: Vec<&str> = fields.iter().filter_map(|field| data[*field].as_str()).collect();
        return words.join(" ");
    };
    let detail = match (data["currency_rows"].as_array(), &data["refund_percentage"]) {
        (Some(rows), _) => {
            let amount = |row: &Value| {
                format!("{} {}", row["amount"], row["currency_type"].as_str().unwrap_or_default())
            };
            rows.first().map(amount).unwrap_or_default()
        }
        (None, Value::Number(share)) => format!("{share} %"),
        (None, _) => String::new(),
    };
    format!("{kind} {id} {detail}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(differences: Option<Differences>) -> Report {
        let tally = Tally {
            records: 4,
            sent: 2,
            skipped: ["anonymous", "does_not_count"].map(|reason| (reason, 1_000_000)).into(),
            latencies: vec![Duration::from_millis(7), Duration::from_secs(3)],
            ..Tally::default()
        };
        Report {
            fed: 4,
            elapsed: Duration::from_secs(2),
            consumers: vec![("currency", tally, 3)],
            met_fault: 1,
            dead_letters: Vec::new(),
            differences,
        }
    }

    fn shown(show: impl FnOnce(&mut Screen<Vec<u8>>)) -> String {
        let mut screen = Screen::new(Vec::new(), false);
        show(&mut screen);
        String::from_utf8(screen.out).expect("UTF-8")
    }

    #[test]
    fn a_right_result_is_told_with_counts_and_latencies() {
        let differences = Differences { right: 3, repeated: 1, ..Differences::default() };
        let text = shown(|screen| screen.conclude(&report(Some(differences))));
        assert!(text.contains("RIGHT: 4 records, and all 3 outcomes"), "{text}");
        assert!(text.contains("1 came again"), "{text}");
        assert!(text.contains("1.5    7 ms   3.0 s") && text.contains("2000000"), "{text}");
    }

    #[test]
    fn a_wrong_result_names_what_is_wrong_and_an_interrupted_one_is_not_judged() {
        let differences = Differences {
            missing: vec!["currency/award:purchase:1".to_owned()],
            extra: vec!["x".to_owned(); FINDINGS + 5],
            ..Differences::default()
        };
        let text = shown(|screen| screen.conclude(&report(Some(differences))));
        assert!(text.contains("WRONG") && text.contains("missing   currency/award:purchase:1"));
        assert!(text.contains("and 5 more") && !text.contains("RIGHT"), "{text}");
        let text = shown(|screen| screen.conclude(&report(None)));
        assert!(text.contains("interrupted") && !text.contains("RIGHT"), "{text}");
    }

    #[test]
    fn lines_of_a_kind_are_capped_and_every_line_fits() {
        let id = "0452ef05-f542-441d-911b-8aaa62f28d1a";
        let data =
            json!({"source_type": "purchase", "source_id": id, "refund_percentage": 33.333407});
        let event = Event { name: "currency/cancelled".to_owned(), id: None, data };
        let text = shown(|screen| {
            for _ in 0..100 {
                screen.tell(&Progress::Event(event.clone()));
            }
            screen.tell(&Progress::Note("word ".repeat(200)));
        });
        assert_eq!(text.matches(id).count(), EVENTS);
        assert!(text.contains("33.333407 %"), "{text}");
        assert_eq!(text.matches("word").count(), 200);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
