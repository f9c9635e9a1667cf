//! Overhead: what takt adds to a warm call against the same handler behind a bare HTTP server of its language, and how many
//! calls both carry in a closed loop.

use std::time::Duration;

use anyhow::Result;
use model::Rate;
use serde_json::json;

use crate::arrivals;
use crate::handlers::{Bare, Language};
use crate::load::{self, Class, Load, Send, Stream};
use crate::result::{Depth, Found, Spread, in_float, ratio};
use crate::site::{Node, Programs};

/// Calls of every stream, per second; evenly shifted against each other.
const CALLS_PER_SECOND: u64 = 50;
const EVENT: &str = "{\"burn_us\":0}";
/// Connections of the closed loop.
const CONNECTIONS: u16 = 16;
/// Turns that both sides of the closed loop take.
const TURNS: usize = 3;

struct Side {
    language: Language,
    name: &'static str,
    stream: Stream,
}

/// Compares single warm calls, then throughput.
pub(crate) fn run(programs: &Programs, depth: Depth) -> Result<Found> {
    let (length, turn) = match depth {
        Depth::Tiny => (Duration::from_secs(2), Duration::from_millis(500)),
        Depth::Short => (Duration::from_secs(20), Duration::from_secs(3)),
        Depth::Full => (Duration::from_secs(120), Duration::from_secs(20)),
    };
    let node = Node::start(programs)?;
    for language in Language::ALL {
        let zip = language.package(programs)?;
        let runtime = language.runtime();
        let terms = format!(
            "[guarantee]\nrate = \"{CALLS_PER_SECOND}/s\"\nburst = 3\nmax_run_time = \"3ms\"\ncpu = 0.5\ndeadline = \"100ms\"\n"
        );
        node.deploy(&format!("{}{terms}", language.toml(&format!("{runtime}-promised"))), &zip)?;
        node.deploy(&language.toml(&format!("{runtime}-free")), &zip)?;
        node.invoke(&format!("{runtime}-free"), EVENT)?;
    }
    let (mut rows, mut calls) = latencies(&node, programs, length)?;
    let (more, throughput) = throughputs(&node, programs, turn)?;
    rows.extend(more);
    calls.extend(throughput);
    Ok(Found {
        name: "overhead",
        about: "A trivial handler called through takt and behind a bare HTTP server of the same language. Single warm calls \
                (p50 / p99 / max in ms, all sides interleaved in one run, `added` and ratio against the bare server), then \
                calls per second in a closed loop on all cores (the same, in turns)."
            .to_owned(),
        headings: vec!["language", "side", "calls", "latency, or calls/s", "added p50 us", "added p99 us", "vs bare"],
        rows,
        notes: vec![format!("Single calls: {CALLS_PER_SECOND}/s per side. Closed loop: {CONNECTIONS} connections.")],
        data: json!({ "ready": node.ready, "rows": calls }),
    })
}

type Rows = (Vec<Vec<String>>, Vec<serde_json::Value>);

fn latencies(node: &Node, programs: &Programs, length: Duration) -> Result<Rows> {
    let bare = Language::ALL.map(|language| language.bare(programs, 1)).into_iter().collect::<Result<Vec<Bare>>>()?;
    let rate = Rate::per_second(CALLS_PER_SECOND)?;
    let sides = 3 * Language::ALL.len();
    let send = |index: usize| {
        let shift = u64::try_from(rate.interval().as_nanos()).unwrap_or(0) * index as u64 / sides as u64;
        let instants_ns = arrivals::even(rate, length).into_iter().map(|at| at + shift).collect();
        Send::Open { instants_ns, connections: 4 }
    };
    let mut all = Vec::new();
    for (index, (language, bare)) in Language::ALL.into_iter().zip(&bare).enumerate() {
        let runtime = language.runtime();
        let promised = node.stream(&format!("{runtime}-promised"), EVENT, send(index));
        let free = node.stream(&format!("{runtime}-free"), EVENT, send(index + 3));
        all.push(Side { language, name: "bare server", stream: bare.plain.stream(EVENT, send(index + 6)) });
        all.push(Side { language, name: "guaranteed", stream: promised });
        all.push(Side { language, name: "best effort", stream: free });
    }
    let streams = all.iter().map(|side| side.stream.clone()).collect();
    let seen = load::run(vec![Load::new(Class::RealTime, length, streams)])?.into_iter().next().unwrap_or_default();
    let (mut rows, mut data, mut base) = (Vec::new(), Vec::new(), Spread::default());
    for (side, seen) in all.iter().zip(&seen) {
        // The first call of a side pays for its connection.
        let latency = Spread::of(seen.calls.iter().skip(1).filter(|it| it.start_delay.is_some()).map(|it| it.latency));
        if side.name == "bare server" {
            base = latency;
        }
        let added = |with: u64, without: u64| format!("{:+.0}", in_float(with) - in_float(without));
        rows.push(vec![
            side.language.runtime().to_owned(),
            side.name.to_owned(),
            latency.count.to_string(),
            latency.cell(),
            added(latency.p50_us, base.p50_us),
            added(latency.p99_us, base.p99_us),
            ratio(latency.p50_us, base.p50_us),
        ]);
        data.push(json!({ "language": side.language.runtime(), "side": side.name, "latency": latency, "offered": seen.offered }));
    }
    Ok((rows, data))
}

fn throughputs(node: &Node, programs: &Programs, turn: Duration) -> Result<Rows> {
    let cores = std::thread::available_parallelism()?.get();
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for language in [Language::Python, Language::Nodejs] {
        let bare = language.bare(programs, cores)?;
        let closed = Send::Closed { connections: CONNECTIONS };
        let sides = [
            ("bare server", bare.plain.stream(EVENT, closed.clone())),
            ("best effort", node.stream(&format!("{}-free", language.runtime()), EVENT, closed)),
        ];
        let mut done = [0, 0];
        for number in 0..=TURNS {
            for (sum, (_, stream)) in done.iter_mut().zip(&sides) {
                let load = Load::new(Class::Ordinary, turn, vec![stream.clone()]);
                let succeeded: u64 = load::run(vec![load])?.iter().flatten().map(|seen| seen.succeeded).sum();
                // The first turn starts instances and compiles what runs often.
                *sum += if number == 0 { 0 } else { succeeded };
            }
            node.settle()?;
        }
        let ms = u64::try_from(turn.as_millis())? * u64::try_from(TURNS)?;
        let base = done[0];
        for ((name, _), done) in sides.iter().zip(done) {
            let per_second = 1_000 * done / ms;
            let language = language.runtime();
            let blank = || "-".to_owned();
            rows.push(vec![
                language.to_owned(),
                format!("{name}, closed loop"),
                done.to_string(),
                format!("{per_second}/s"),
                blank(),
                blank(),
                ratio(done, base),
            ]);
            data.push(
                json!({ "language": language, "side": name, "closed_loop_calls": done, "closed_loop_per_second": per_second }),
            );
        }
    }
    Ok((rows, data))
}
