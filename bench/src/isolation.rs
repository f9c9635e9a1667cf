//! Isolation: two guaranteed functions at their full rate while others flood the same port.
//!
//! The contrasts run in the same way with the same load: the same functions without a guarantee on the same node, and every
//! tenant as a plain process behind a small server of its own, between which the operating system shares fairly.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use journal::record::{Invocation, Record};
use model::{Cause, Rate};
use serde::Serialize;
use serde_json::json;

use crate::arrivals::{self, Pattern};
use crate::clock;
use crate::load::{self, Call, Class, Load, Seen, Send, Stream};
use crate::result::{Depth, Found, Spread, millis, percent, ratio};
use crate::site::{self, Node, Plain, Programs};

/// A function that is promised something.
struct Subject {
    name: &'static str,
    per_second: u64,
    burn_us: u64,
    run: &'static str,
    deadline: Duration,
}

const SUBJECTS: [Subject; 2] = [
    Subject { name: "f40", per_second: 40, burn_us: 5_000, run: "7ms", deadline: Duration::from_millis(60) },
    Subject { name: "f200", per_second: 200, burn_us: 500, run: "1200us", deadline: Duration::from_millis(40) },
];
/// How many may come at once; one less is sent at once, so that a delay on the way makes none of them excess.
const BURST: u32 = 3;
const NEIGHBOUR_BURN_US: u64 = 5_000;
/// Connections of an open flood, over all neighbours.
const FLOOD_CONNECTIONS: usize = 1_024;
/// Of every cell, before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Connections of a subject, and of its excess.
const SUBJECT_CONNECTIONS: u16 = 64;

/// Who else is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Crowd {
    Nobody,
    /// Neighbours that send in sum so many times what the machine can do.
    Open {
        neighbours: usize,
        times: u64,
    },
    /// Neighbours that keep so many connections busy in sum.
    Closed {
        neighbours: usize,
        connections: u16,
    },
    /// The subjects themselves send so many times their rate.
    Excess {
        times: u64,
    },
}

impl Crowd {
    const fn neighbours(self) -> usize {
        match self {
            Self::Nobody | Self::Excess { .. } => 0,
            Self::Open { neighbours, .. } | Self::Closed { neighbours, .. } => neighbours,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Nobody => "alone".to_owned(),
            Self::Open { neighbours, times } => format!("{neighbours} neighbours, {times}x capacity"),
            Self::Closed { neighbours, connections } => format!("{neighbours} neighbours, {connections} connections"),
            Self::Excess { times } => format!("own excess, {times}x rate"),
        }
    }

    /// The first is the one that others are compared with.
    fn short() -> Vec<Self> {
        vec![
            Self::Nobody,
            Self::Open { neighbours: 1, times: 5 },
            Self::Open { neighbours: 8, times: 2 },
            Self::Open { neighbours: 32, times: 5 },
            Self::Closed { neighbours: 8, connections: 64 },
            Self::Excess { times: 5 },
        ]
    }

    fn full() -> Vec<Self> {
        let mut all = vec![Self::Nobody];
        for neighbours in [1, 8, 32] {
            all.extend([1, 2, 5].map(|times| Self::Open { neighbours, times }));
            all.push(Self::Closed { neighbours, connections: 64 });
        }
        all.push(Self::Excess { times: 5 });
        all
    }
}

/// How the subjects run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    Guaranteed,
    BestEffort,
    Plain,
}

impl Way {
    const ALL: [Self; 3] = [Self::Guaranteed, Self::BestEffort, Self::Plain];

    const fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed",
            Self::BestEffort => "no guarantee",
            Self::Plain => "plain processes",
        }
    }

    /// Its subjects' names on the node; plain processes have none.
    fn subject(self, subject: &Subject) -> String {
        match self {
            Self::Guaranteed | Self::Plain => subject.name.to_owned(),
            Self::BestEffort => format!("{}-free", subject.name),
        }
    }
}

/// What one subject saw in one cell.
#[derive(Clone, Debug, Serialize)]
struct Row {
    way: Way,
    crowd: Crowd,
    function: &'static str,
    calls: u64,
    /// From the intended send time to the handler's entry.
    start_delay: Spread,
    /// The same of each half: Poisson arrivals, then bursts.
    start_delay_poisson: Spread,
    start_delay_bursts: Spread,
    /// From the intended send time to the last byte.
    end_to_end: Spread,
    on_time: u64,
    /// Calls without a result, by what was answered.
    failed: BTreeMap<String, u64>,
    /// Not taken as conforming although they were sent so; the generator was late or the way to the node was.
    nonconforming: u64,
    send_lag: Spread,
    /// The same, as the node's records tell it, of everything that took a slot (its excess included).
    recorded: Recorded,
    crowd_offered: u64,
    crowd_sent: u64,
    crowd_succeeded: u64,
    crowd_refused: u64,
    /// The least and the most that one neighbour got, all of them asking alike.
    crowd_least: u64,
    crowd_most: u64,
    /// Share of the processors' time in which they idled, in thousandths.
    idle_thousandths: u64,
}

/// What the records say of one subject in one cell.
#[derive(Clone, Debug, Default, Serialize)]
struct Recorded {
    conforming: u64,
    /// From the conforming start.
    start_delay: Spread,
    violations: u64,
    causes: BTreeMap<String, u64>,
}

/// When a cell ran, on the monotonic clock.
struct Span {
    from: u64,
    until: u64,
}

struct Bench<'a> {
    node: &'a Node,
    programs: &'a Programs,
    length: Duration,
    capacity_per_s: u64,
}

/// Runs every crowd in every way.
pub(crate) fn run(programs: &Programs, depth: Depth) -> Result<Found> {
    // What is promised is shown for longer than what it is compared with.
    let (crowds, promised, contrast) = match depth {
        Depth::Tiny => (vec![Crowd::Nobody, Crowd::Open { neighbours: 2, times: 2 }], 2, 2),
        Depth::Short => (Crowd::short(), 6, 6),
        Depth::Full => (Crowd::full(), 60, 20),
    };
    let node = Node::start(programs)?;
    deploy(&node, programs, crowds.iter().map(|crowd| crowd.neighbours()).max().unwrap_or(0))?;
    let cores = u64::try_from(std::thread::available_parallelism()?.get())?;
    let capacity_per_s = cores * 1_000_000 / NEIGHBOUR_BURN_US;
    let bench = |seconds| Bench { node: &node, programs, length: Duration::from_secs(seconds), capacity_per_s };
    let mut rows: Vec<(Row, Span)> = Vec::new();
    for crowd in &crowds {
        for way in Way::ALL {
            eprintln!("{}, {}", crowd.name(), way.name());
            let seconds = match way {
                Way::Guaranteed => promised,
                Way::BestEffort | Way::Plain => contrast,
            };
            rows.extend(bench(seconds).cell(way, *crowd)?);
        }
    }
    let ready = node.ready.clone();
    let mut invocations = Vec::new();
    let audited = node.audit(|record| {
        if let Record::Invocation(invocation) = record {
            invocations.push(invocation.clone());
        }
    })?;
    let rows: Vec<Row> = rows
        .into_iter()
        .map(|(row, span)| match row.way {
            Way::Guaranteed => Row { recorded: recorded(&invocations, row.function, &span), ..row },
            Way::BestEffort | Way::Plain => row,
        })
        .collect();
    Ok(found(&rows, &ready, &audited))
}

fn deploy(node: &Node, programs: &Programs, neighbours: usize) -> Result<()> {
    let zip = site::burner_package(programs)?;
    let base = "runtime = \"provided\"\nmemory = \"64MB\"\n";
    for subject in &SUBJECTS {
        let Subject { per_second, run, .. } = subject;
        let deadline = subject.deadline.as_millis();
        let terms = format!(
            "[guarantee]\nrate = \"{per_second}/s\"\nburst = {BURST}\nmax_run_time = \"{run}\"\ndeadline = \"{deadline}ms\"\n"
        );
        node.deploy(&format!("name = \"{}\"\n{base}{terms}", Way::Guaranteed.subject(subject)), &zip)?;
        // As a plain process of its own it has a share of its own.
        node.deploy(&format!("name = \"{0}\"\ntenant = \"{0}\"\n{base}", Way::BestEffort.subject(subject)), &zip)?;
    }
    for number in 0..neighbours {
        node.deploy(&format!("name = \"{0}\"\ntenant = \"{0}\"\n{base}", neighbour(number)), &zip)?;
    }
    Ok(())
}

fn neighbour(number: usize) -> String {
    format!("neighbour{number}")
}

fn event(burn_us: u64) -> String {
    format!("{{\"burn_us\":{burn_us}}}")
}

impl Bench<'_> {
    fn cell(&self, way: Way, crowd: Crowd) -> Result<Vec<(Row, Span)>> {
        let plain = match way {
            Way::Guaranteed | Way::BestEffort => Vec::new(),
            Way::Plain => {
                let servers = SUBJECTS.len() + crowd.neighbours();
                (0..servers).map(|_| Plain::burner(self.programs)).collect::<Result<Vec<_>>>()?
            }
        };
        let to_subject = |index: usize, send: Send| {
            let subject = &SUBJECTS[index];
            match way {
                Way::Plain => plain[index].stream(&event(subject.burn_us), send),
                Way::Guaranteed | Way::BestEffort => self.node.stream(&way.subject(subject), &event(subject.burn_us), send),
            }
        };
        let to_neighbour = |number: usize, send: Send| match way {
            Way::Plain => plain[SUBJECTS.len() + number].stream(&event(NEIGHBOUR_BURN_US), send),
            Way::Guaranteed | Way::BestEffort => self.node.stream(&neighbour(number), &event(NEIGHBOUR_BURN_US), send),
        };
        let promised = |length| -> Vec<Stream> {
            (0..SUBJECTS.len()).map(|index| to_subject(index, promised(&SUBJECTS[index], length))).collect()
        };
        // Nobody is measured while first instances start.
        load::run(vec![Load::new(Class::RealTime, WARM_UP, promised(WARM_UP))])?;
        let others: Vec<Stream> = match crowd {
            Crowd::Nobody => Vec::new(),
            Crowd::Excess { times } => (0..SUBJECTS.len()).map(|index| to_subject(index, self.excess(index, times))).collect(),
            Crowd::Open { neighbours, times } => {
                (0..neighbours).map(|number| to_neighbour(number, self.flood(number, neighbours, times))).collect()
            }
            Crowd::Closed { neighbours, connections } => {
                let each = connections / u16::try_from(neighbours)?.max(1);
                (0..neighbours).map(|number| to_neighbour(number, Send::Closed { connections: each.max(1) })).collect()
            }
        };
        let (from, busy_from) = (clock::monotonic_ns(), Processors::read()?);
        let mut loads = vec![Load::new(Class::RealTime, self.length, promised(self.length))];
        if !others.is_empty() {
            loads.push(Load::new(Class::Ordinary, self.length, others));
        }
        let mut seen = load::run(loads)?.into_iter();
        let (until, idle_thousandths) = (clock::monotonic_ns(), Processors::read()?.idle_thousandths_since(&busy_from));
        let (seen, others) = (seen.next().unwrap_or_default(), seen.next().unwrap_or_default());
        self.node.settle()?;
        let row = |(subject, seen): (&Subject, &Seen)| {
            let poisson = poisson(subject, self.length).len();
            let row = Row { idle_thousandths, ..row((way, crowd), (subject, poisson), seen, &others) };
            (row, Span { from, until })
        };
        Ok(SUBJECTS.iter().zip(&seen).map(row).collect())
    }

    fn excess(&self, index: usize, times: u64) -> Send {
        let rate = rate(SUBJECTS[index].per_second * (times - 1));
        Send::Flood { instants_ns: arrivals::even(rate, self.length), connections: SUBJECT_CONNECTIONS }
    }

    fn flood(&self, number: usize, neighbours: usize, times: u64) -> Send {
        let sum = Rate::per_second(self.capacity_per_s * times).expect("invariant: capacity is above zero");
        let all = arrivals::even(sum, self.length);
        let connections = u16::try_from(FLOOD_CONNECTIONS / neighbours.max(1)).unwrap_or(u16::MAX);
        Send::Flood { instants_ns: all.into_iter().skip(number).step_by(neighbours.max(1)).collect(), connections }
    }
}

/// A subject's arrivals within its promise: Poisson in the first half, bursts in the second.
fn promised(subject: &Subject, length: Duration) -> Send {
    let (rate, half) = (rate(subject.per_second), length / 2);
    let mut instants_ns = poisson(subject, length);
    // After a pause in which a whole burst comes together again.
    let pause = u64::try_from((half + rate.interval() * BURST).as_nanos()).unwrap_or(u64::MAX);
    instants_ns.extend(arrivals::within(rate, BURST - 1, half, Pattern::Bursts).iter().map(|at| pause + at));
    Send::Open { instants_ns, connections: SUBJECT_CONNECTIONS }
}

fn poisson(subject: &Subject, length: Duration) -> Vec<u64> {
    arrivals::within(rate(subject.per_second), BURST - 1, length / 2, Pattern::Poisson)
}

fn rate(per_second: u64) -> Rate {
    Rate::per_second(per_second).expect("invariant: the rates of the comparison are above zero")
}

/// What was seen of a subject, whose first calls came as a Poisson process.
fn row((way, crowd): (Way, Crowd), (subject, poisson): (&Subject, usize), seen: &Seen, others: &[Seen]) -> Row {
    let deadline = u64::try_from(subject.deadline.as_nanos()).unwrap_or(u64::MAX);
    let taken = |call: &&Call| way != Way::Guaranteed || call.conforming != Some(false);
    let kept = || seen.calls.iter().filter(taken);
    let delays = |calls: &[Call]| Spread::of(calls.iter().filter(taken).filter_map(|call| call.start_delay));
    let (first, second) = seen.calls.split_at(poisson.min(seen.calls.len()));
    let count = |calls: usize| u64::try_from(calls).unwrap_or(u64::MAX);
    let sum = |what: fn(&Seen) -> u64| others.iter().map(what).sum();
    let succeeded = || others.iter().map(|seen| seen.succeeded);
    let mut failed = BTreeMap::new();
    for failure in kept().filter_map(|call| call.failure.clone()) {
        *failed.entry(failure).or_default() += 1;
    }
    Row {
        way,
        crowd,
        function: subject.name,
        calls: count(kept().count()),
        start_delay: delays(&seen.calls),
        start_delay_poisson: delays(first),
        start_delay_bursts: delays(second),
        end_to_end: Spread::of(kept().map(|call| call.latency)),
        on_time: count(kept().filter(|call| call.start_delay.is_some() && call.latency <= deadline).count()),
        failed,
        nonconforming: count(seen.calls.len() - kept().count()),
        send_lag: Spread::of(seen.calls.iter().map(|call| call.lag)),
        recorded: Recorded::default(),
        crowd_offered: sum(|seen| seen.offered),
        crowd_sent: sum(|seen| seen.sent),
        crowd_succeeded: sum(|seen| seen.succeeded),
        crowd_refused: sum(|seen| seen.refused),
        crowd_least: succeeded().min().unwrap_or(0),
        crowd_most: succeeded().max().unwrap_or(0),
        idle_thousandths: 0,
    }
}

/// Time of all processors since the machine started, in ticks.
struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests used is in the first two.
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { idle: ticks.get(3..5).context("/proc/stat lacks idle times")?.iter().sum(), all: ticks.iter().sum() })
    }

    fn idle_thousandths_since(&self, before: &Self) -> u64 {
        (self.idle - before.idle) * 1_000 / (self.all - before.all).max(1)
    }
}

fn recorded(invocations: &[Invocation], function: &str, span: &Span) -> Recorded {
    let within = |it: &&Invocation| {
        let arrived = it.arrived.as_nanos();
        it.function.as_str() == function && it.slot.is_some() && span.from <= arrived && arrived <= span.until
    };
    let all: Vec<&Invocation> = invocations.iter().filter(within).collect();
    let delay = |it: &&Invocation| Some(it.started?.as_nanos().saturating_sub(it.conforming?.as_nanos()));
    let mut recorded = Recorded {
        conforming: u64::try_from(all.len()).unwrap_or(u64::MAX),
        start_delay: Spread::of(all.iter().filter_map(delay)),
        ..Recorded::default()
    };
    for cause in all.iter().filter_map(|it| it.violation) {
        recorded.violations += 1;
        *recorded.causes.entry(in_words(cause).to_owned()).or_default() += 1;
    }
    recorded
}

const fn in_words(cause: Cause) -> &'static str {
    match cause {
        Cause::Steal => "steal",
        Cause::Overrun => "overrun",
        Cause::Function => "function",
        Cause::HostCall => "host-call",
        Cause::Bug => "bug",
        Cause::Unknown => "unknown",
    }
}

/// The delays a row is judged by. Where a function's own excess takes slots too, only the records know which calls were
/// promised something.
const fn judged(row: &Row) -> &Spread {
    match (row.way, row.crowd) {
        (Way::Guaranteed, Crowd::Excess { .. }) => &row.recorded.start_delay,
        (Way::Guaranteed | Way::BestEffort | Way::Plain, _) => &row.start_delay,
    }
}

/// p99 start delay of the same way and function with nobody else there.
fn alone(rows: &[Row], row: &Row) -> u64 {
    let first = rows.iter().find(|it| it.way == row.way && it.function == row.function);
    first.map_or(0, |it| it.start_delay.p99_us)
}

fn cells(rows: &[Row], row: &Row) -> Vec<String> {
    let same = |it: &&Row| it.way == Way::Guaranteed && it.function == row.function && it.crowd == row.crowd;
    let guaranteed = rows.iter().find(same).map_or(0, |it| judged(it).p99_us);
    let causes: Vec<String> = row.recorded.causes.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    let violations = match row.way {
        Way::Guaranteed if causes.is_empty() => "0".to_owned(),
        Way::Guaranteed => causes.join(", "),
        Way::BestEffort | Way::Plain => "-".to_owned(),
    };
    let judged = judged(row);
    let halves = [row.start_delay_poisson, row.start_delay_bursts].map(|half| millis(half.p99_us)).join(" / ");
    vec![
        row.crowd.name(),
        row.way.name().to_owned(),
        row.function.to_owned(),
        judged.count.to_string(),
        judged.cell(),
        ratio(judged.p99_us, alone(rows, row)),
        ratio(judged.p99_us, guaranteed),
        halves,
        row.end_to_end.cell(),
        percent(row.on_time, row.calls),
        violations,
        percent(row.crowd_sent, row.crowd_offered),
        row.crowd_succeeded.to_string(),
        if row.crowd.neighbours() < 2 { "-".to_owned() } else { format!("{} to {}", row.crowd_least, row.crowd_most) },
        percent(row.idle_thousandths, 1_000),
    ]
}

/// In how many cells of a way the p99 start delay is at most twice that alone, or T; and which are not.
fn near(rows: &[Row], way: Way, tolerance_us: u64) -> String {
    let of_way: Vec<&Row> = rows.iter().filter(|row| row.way == way).collect();
    let far = |row: &&&Row| tolerance_us.max(2 * alone(rows, row)) < judged(row).p99_us;
    let far: Vec<String> = of_way.iter().filter(far).map(|row| format!("{} beside {}", row.function, row.crowd.name())).collect();
    let beyond = if far.is_empty() { String::new() } else { format!("; not in: {}", far.join(", ")) };
    let (kept, all) = (of_way.len() - far.len(), of_way.len());
    format!("p99 start delay at most max(2x alone, T), {}: in {kept} of {all} cells{beyond}.", way.name())
}

fn found(rows: &[Row], ready: &serde_json::Value, audited: &node::audit::Audited) -> Found {
    let tolerance_us = ready["tolerance_us"].as_u64().unwrap_or(0);
    let promised = || rows.iter().filter(|row| row.way == Way::Guaranteed);
    let violations: u64 = promised().map(|row| row.recorded.violations).sum();
    let steal: u64 = promised().filter_map(|row| row.recorded.causes.get("steal")).sum();
    let mut notes = vec![format!("T was {tolerance_us} us, the level {}.", ready["level"])];
    notes.extend(Way::ALL.map(|way| near(rows, way, tolerance_us)));
    notes.push(format!(
        "Violations: {violations}, {steal} of them with evidence of steal; the audit says {:?}.",
        audited.verdict()
    ));
    Found {
        name: "isolation",
        about: "Guaranteed functions (40/s with 5 ms of CPU, 200/s with 0.5 ms) at their full rate beside a crowd. Times in ms \
                from the intended send time, as p50 / p99 / max; beside its own excess a guaranteed function's start delays are \
                those of the records, of all that took a slot. Ratios of the p99 start delay against the same way alone, and \
                against the guaranteed function in the same crowd. p99 by half: Poisson arrivals, then bursts. Of a crowd: the \
                share of its schedule that was handed to connections, how many invocations succeeded, and the least and the most \
                of one neighbour; its clients hang up after half a second. Idle: the share of both cores' time, the generators' \
                work being part of what is busy."
            .to_owned(),
        headings: vec![
            "crowd",
            "way",
            "function",
            "calls",
            "start delay",
            "vs alone",
            "vs guaranteed",
            "p99 by half",
            "end to end",
            "on time",
            "violations",
            "crowd sent",
            "crowd done",
            "by neighbour",
            "idle",
        ],
        rows: rows.iter().map(|row| cells(rows, row)).collect(),
        notes,
        data: json!({ "ready": ready, "verdict": audited.verdict(), "report": audited.report, "rows": rows }),
    }
}
