//! What goes wrong in a run, drawn from the seed. Each hand does one thing after the other, at
//! given points of the load.

use std::fmt;
use std::time::Duration;

use crm_event_processors::fakes::Fault;
use fastrand::Rng;

/// Brokers of the cluster.
pub(crate) const BROKERS: u8 = 3;

/// Records a second that are written on average.
pub(crate) const RATE: f64 = 120.0;

/// The seeds that every run of the tests plays, and the minutes of each. Together they cover
/// everything that can be drawn, and each way to form a group.
pub(crate) const SEEDS: [u64; 3] = [67_387, 20_134, 64_359];
pub(crate) const MINUTES: f64 = 0.25;

/// How many records are written in this many minutes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
pub(crate) fn records(minutes: f64) -> usize {
    (minutes * 60.0 * RATE) as usize
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// A member is killed, and started again after a while.
    Kill { down: Duration },
    /// A member is asked to stop, and started again after a while.
    Stop { down: Duration },
    /// A member stands still for a while.
    Freeze { time: Duration },
    /// A further member joins.
    Join,
    /// A broker is killed, and started again after a while.
    KillBroker { broker: u8, down: Duration },
    /// A broker hands its partitions over, stops, and comes back.
    StopBroker { broker: u8, down: Duration },
    /// Redis forgets everything.
    EmptyRedis,
    /// Redis is away for a while and comes back empty.
    RedisAway { time: Duration },
    /// Redis does not answer for a while and forgets nothing.
    FreezeRedis { time: Duration },
    /// Requests to Inngest fail for a while.
    Inngest { fault: Fault, time: Duration },
    /// Requests to Supabase fail for a while.
    Supabase { fault: Fault, time: Duration },
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { down } => write!(f, "killed, started again after {down:?}"),
            Self::Stop { down } => write!(f, "asked to stop, started again after {down:?}"),
            Self::Freeze { time } => write!(f, "frozen for {time:?}"),
            Self::Join => write!(f, "joins"),
            Self::KillBroker { broker, down } => {
                write!(f, "broker {broker} killed, started again after {down:?}")
            }
            Self::StopBroker { broker, down } => {
                write!(f, "broker {broker} stopped, started again after {down:?}")
            }
            Self::EmptyRedis => write!(f, "forgets everything"),
            Self::RedisAway { time } => write!(f, "away for {time:?}, then empty"),
            Self::FreezeRedis { time } => write!(f, "frozen for {time:?}"),
            Self::Inngest { fault, time } | Self::Supabase { fault, time } => {
                write!(f, "{} for {time:?}", in_words(fault))
            }
        }
    }
}

fn in_words(fault: &Fault) -> String {
    match fault {
        Fault::Reset => "resets connections".to_owned(),
        Fault::HandledThenReset => "handles requests, then resets the connection".to_owned(),
        Fault::Truncated => "handles requests and answers by half".to_owned(),
        Fault::Hang => "hangs".to_owned(),
        Fault::OddSuccess => "answers 200 and takes nothing".to_owned(),
        Fault::Status { status, retry_after: Some(seconds), .. } => {
            format!("answers {status} with Retry-After {seconds}")
        }
        Fault::Status { status, .. } => format!("answers {status}"),
    }
}

/// When each act comes, counted in records, and the act.
pub(crate) type Steps = Vec<(usize, Act)>;

/// Everything that goes wrong in a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Plan {
    /// Whether the groups use the KIP-848 protocol.
    pub(crate) new_protocol: bool,
    /// Whether members keep their place in the group through a restart.
    pub(crate) static_members: bool,
    /// What happens to each member. One whose first act is [`Act::Join`] does not run before it.
    pub(crate) members: Vec<Steps>,
    pub(crate) brokers: Steps,
    pub(crate) redis: Steps,
    pub(crate) inngest: Steps,
    pub(crate) supabase: Steps,
    /// When the connector sends again everything that it has sent by then.
    pub(crate) replays: Vec<usize>,
}

impl Plan {
    /// Draws a plan for this many records at `rate` a second.
    pub(crate) fn new(seed: u64, records: usize, rate: f64) -> Self {
        // A different stream of random numbers than the load's.
        let mut draw = Draw { rng: Rng::with_seed(!seed), records, rate };
        let number = draw.rng.usize(2..=4);
        let members = (0..number).map(|number| draw.member(number)).collect();
        let brokers = draw.steps(6.0..14.0, Draw::broker);
        let redis = draw.steps(5.0..14.0, Draw::redis);
        let inngest = draw.steps(3.0..9.0, Draw::inngest);
        let supabase = draw.steps(4.0..10.0, Draw::supabase);
        let mut replays = Vec::new();
        let mut at = draw.after(4.0..16.0);
        while at < records {
            replays.push(at);
            at += draw.after(25.0..50.0);
        }
        Self {
            new_protocol: seed.is_multiple_of(2),
            static_members: seed.is_multiple_of(3),
            members,
            brokers,
            redis,
            inngest,
            supabase,
            replays,
        }
    }

    /// How many members there are at most, and how they form their groups.
    pub(crate) fn membership(&self) -> String {
        let protocol = if self.new_protocol { "KIP-848" } else { "classic" };
        let place = if self.static_members { " static" } else { "" };
        format!("{} {protocol}{place}", self.members.len())
    }

    /// What each hand does, by its name.
    pub(crate) fn hands(&self) -> Vec<(String, &Steps)> {
        let members = self.members.iter().enumerate();
        let mut hands: Vec<(String, &Steps)> =
            members.map(|(number, steps)| (format!("member {}", number + 1), steps)).collect();
        for (name, steps) in [
            ("kafka", &self.brokers),
            ("redis", &self.redis),
            ("inngest", &self.inngest),
            ("supabase", &self.supabase),
        ] {
            hands.push((name.to_owned(), steps));
        }
        hands
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<(usize, String)> = Vec::new();
        for (name, steps) in self.hands() {
            lines.extend(steps.iter().map(|(at, act)| (*at, format!("{name}: {act}"))));
        }
        let replays = self.replays.iter();
        lines.extend(replays.map(|at| (*at, "connector: everything again".to_owned())));
        lines.sort();
        writeln!(f, "  members at most: {}", self.membership())?;
        lines.iter().try_for_each(|(at, line)| writeln!(f, "  record {at:6}  {line}"))
    }
}

struct Draw {
    rng: Rng,
    records: usize,
    rate: f64,
}

impl Draw {
    /// A number of records that take between so many seconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small and positive"
    )]
    fn after(&mut self, seconds: std::ops::Range<f64>) -> usize {
        let seconds = seconds.start + self.rng.f64() * (seconds.end - seconds.start);
        (seconds * self.rate) as usize
    }

    fn time(&mut self, ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(ms))
    }

    fn steps(&mut self, gap: std::ops::Range<f64>, mut act: impl FnMut(&mut Self) -> Act) -> Steps {
        let mut steps = Steps::new();
        let mut at = self.after(1.0..gap.end);
        while at < self.records {
            steps.push((at, act(self)));
            at += self.after(gap.clone());
        }
        steps
    }

    fn member(&mut self, number: usize) -> Steps {
        let mut steps = self.steps(4.0..14.0, |draw| match draw.rng.u8(..10) {
            0..4 => Act::Kill { down: draw.time(0..3_000) },
            4..7 => Act::Stop { down: draw.time(0..2_000) },
            7..9 => Act::Freeze { time: draw.time(300..3_000) },
            // Longer than a session lasts: the others take over meanwhile.
            _ => Act::Freeze { time: draw.time(7_000..10_000) },
        });
        if number >= 2
            && let Some(first) = steps.first_mut()
        {
            first.1 = Act::Join;
        }
        steps
    }

    fn broker(&mut self) -> Act {
        let (broker, down) = (self.rng.u8(1..=BROKERS), self.time(0..4_000));
        if self.rng.bool() {
            Act::KillBroker { broker, down }
        } else {
            Act::StopBroker { broker, down }
        }
    }

    fn redis(&mut self) -> Act {
        match self.rng.u8(..3) {
            0 => Act::EmptyRedis,
            1 => Act::RedisAway { time: self.time(300..4_000) },
            _ => Act::FreezeRedis { time: self.time(300..4_000) },
        }
    }

    fn inngest(&mut self) -> Act {
        let fault = match self.rng.u8(..9) {
            0 => Fault::Reset,
            1 | 2 => Fault::HandledThenReset,
            3 => Fault::Truncated,
            4 => Fault::Hang,
            5 => Fault::OddSuccess,
            6 => Fault::too_many(1),
            7 => Fault::page(503),
            _ => Fault::status(self.status()),
        };
        Act::Inngest { fault, time: self.time(200..3_000) }
    }

    fn supabase(&mut self) -> Act {
        let fault = match self.rng.u8(..8) {
            0 => Fault::Reset,
            1 => Fault::HandledThenReset,
            2 => Fault::Truncated,
            3 => Fault::Hang,
            4 => Fault::too_many(1),
            5 => Fault::page(502),
            _ => Fault::status(self.status()),
        };
        Act::Supabase { fault, time: self.time(200..3_000) }
    }

    fn status(&mut self) -> u16 {
        [500, 503, 504, 401][self.rng.usize(..4)]
    }
}
