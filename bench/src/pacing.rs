//! Pacing: bursts against the line of conforming starts, and what is on time in an overload.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use journal::record::{Invocation, Record};
use model::Rate;
use serde_json::json;

use crate::arrivals;
use crate::load::{self, Class, Load, Send, Stream};
use crate::result::{Depth, Found, Spread, in_float};
use crate::site::{self, Node, Programs};

const BURST: usize = 50;
const RATES: [u64; 4] = [5, 10, 20, 50];
/// Of the overload: slack until the latest start, and invocations per second that come.
const SLACK: Duration = Duration::from_millis(200);
const OFFERED: u64 = 60;
const PACED: [u64; 3] = [30, 45, 54];
/// The bound on the run time of what comes; the work itself is next to nothing.
const RUN: Duration = Duration::from_millis(5);
const EVENT: &str = "{\"burn_us\":100}";

/// Runs the bursts beside each other, then the overloads.
pub(crate) fn run(programs: &Programs, depth: Depth) -> Result<Found> {
    let (burst, window) = match depth {
        Depth::Tiny => (10, Duration::from_secs(2)),
        Depth::Short => (BURST, Duration::from_secs(12)),
        Depth::Full => (BURST, Duration::from_secs(60)),
    };
    let node = Node::start(programs)?;
    let zip = site::burner_package(programs)?;
    for rate in RATES {
        node.deploy(&toml(&format!("burst{rate}"), rate, "60s"), &zip)?;
    }
    let at_once = |rate: &u64| {
        let send = Send::Open { instants_ns: vec![0; burst], connections: u16::try_from(burst).unwrap_or(u16::MAX) };
        node.stream(&format!("burst{rate}"), EVENT, send)
    };
    drive(RATES.iter().map(at_once).collect(), Duration::from_secs(11))?;
    for rate in RATES {
        node.delete(&format!("burst{rate}"))?;
    }
    for rate in PACED {
        let name = format!("overload{rate}");
        node.deploy(&toml(&name, rate, &format!("{}ms", (SLACK + RUN).as_millis())), &zip)?;
        let instants_ns = arrivals::even(Rate::per_second(OFFERED)?, window);
        drive(vec![node.stream(&name, EVENT, Send::Open { instants_ns, connections: 256 })], window)?;
        node.delete(&name)?;
    }
    let ready = node.ready.clone();
    let mut by_function: BTreeMap<String, Vec<Invocation>> = BTreeMap::new();
    let audited = node.audit(|record| {
        if let Record::Invocation(invocation) = record {
            by_function.entry(invocation.function.to_string()).or_default().push(invocation.clone());
        }
    })?;
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for rate in RATES {
        let records = by_function.get(&format!("burst{rate}")).context("a burst left no records")?;
        let (row, line) = against_the_line(rate, records);
        rows.push(row);
        data.push(line);
    }
    for rate in PACED {
        let records = by_function.get(&format!("overload{rate}")).context("an overload left no records")?;
        let (row, shares) = overload(rate, window, records);
        rows.push(row);
        data.push(shares);
    }
    Ok(Found {
        name: "pacing",
        about: format!(
            "Bursts of {burst} at once: starts against the line (i-1)/rate, delays in ms as p50 / p99 / max. Overload: {OFFERED}/s \
             for {} s into a smaller rate with a slack of {} ms; shares on time of takt, which drops what is late, of the formula \
             rate (W+s) / (F W), and of a plain queue in order of arrival that drops nothing (computed on virtual time).",
            window.as_secs(),
            SLACK.as_millis()
        ),
        headings: vec!["case", "calls", "behind the line", "on time", "formula", "plain FIFO", "vs FIFO"],
        rows,
        notes: vec![format!("T was {} us; the audit says {:?}.", ready["tolerance_us"], audited.verdict())],
        data: json!({ "ready": ready, "cases": data, "report": audited.report }),
    })
}

fn toml(name: &str, rate: u64, deadline: &str) -> String {
    let run = RUN.as_millis();
    format!(
        "name = \"{name}\"\nruntime = \"provided\"\nmemory = \"64MB\"\n[guarantee]\nrate = \"{rate}/s\"\nmax_run_time = \"{run}ms\"\n\
         deadline = \"{deadline}\"\nstart_within = \"50ms\"\noverflow = \"queue\"\nqueue_limit = 1000\n"
    )
}

fn drive(streams: Vec<Stream>, length: Duration) -> Result<()> {
    load::run(vec![Load::new(Class::RealTime, length, streams)]).map(drop)
}

fn against_the_line(rate: u64, records: &[Invocation]) -> (Vec<String>, serde_json::Value) {
    let mut starts: Vec<u64> = records.iter().filter_map(|it| Some(it.started?.as_nanos())).collect();
    starts.sort_unstable();
    // The line begins at the first conforming start.
    let begin = records.iter().filter_map(|it| it.conforming).min().map_or(0, |first| first.as_nanos());
    let since: Vec<u64> = starts.iter().map(|start| start.saturating_sub(begin)).collect();
    let line = |index: usize| u64::try_from(index).unwrap_or(u64::MAX).saturating_mul(1_000_000_000) / rate;
    let behind = Spread::of(since.iter().enumerate().map(|(index, at)| at.saturating_sub(line(index))));
    let ahead = since.iter().enumerate().filter(|(index, at)| **at < line(*index)).count();
    let blank = || "-".to_owned();
    let row = vec![
        format!("burst at {rate}/s"),
        starts.len().to_string(),
        format!("{}{}", behind.cell(), if ahead == 0 { String::new() } else { format!(", {ahead} ahead") }),
        blank(),
        blank(),
        blank(),
        blank(),
    ];
    (row, json!({ "case": "burst", "rate": rate, "starts_ns": since, "behind": behind, "ahead": ahead }))
}

fn overload(rate: u64, window: Duration, records: &[Invocation]) -> (Vec<String>, serde_json::Value) {
    let in_time = |it: &&Invocation| it.started.is_some() && it.deadline.is_some_and(|deadline| it.ended <= deadline);
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { in_float(part as u64) / in_float(whole as u64) };
    let on_time = share(records.iter().filter(in_time).count(), records.len());
    let (w, s) = (window.as_secs_f64(), SLACK.as_secs_f64());
    let formula = (in_float(rate) * (w + s) / (in_float(OFFERED) * w)).min(1.0);
    let fifo = in_order_of_arrival(rate, window);
    let text = |share: f64| format!("{:.1} %", 100.0 * share);
    let row = vec![
        format!("{OFFERED}/s into {rate}/s"),
        records.len().to_string(),
        "-".to_owned(),
        text(on_time),
        text(formula),
        text(fifo),
        format!("{:.1}x", on_time / fifo),
    ];
    (row, json!({ "case": "overload", "rate": rate, "on_time": on_time, "formula": formula, "fifo": fifo }))
}

/// The share that starts within the slack when every one is kept and they start in order, one per period.
fn in_order_of_arrival(rate: u64, window: Duration) -> f64 {
    let slack = u64::try_from(SLACK.as_nanos()).unwrap_or(u64::MAX);
    let arrivals = arrivals::even(Rate::per_second(OFFERED).expect("invariant: above zero"), window);
    let (mut next, mut on_time) = (0, 0);
    for at in &arrivals {
        let start = next.max(*at);
        next = start + 1_000_000_000 / rate;
        on_time += u64::from(start <= at + slack);
    }
    in_float(on_time) / in_float(u64::try_from(arrivals.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_drops_nothing_collapses() {
        // s r / ((F - r) W), as derived, and a little for what is on time in the very beginning.
        let share = in_order_of_arrival(30, Duration::from_secs(12));
        assert!((share - 0.2 * 30.0 / (30.0 * 12.0)).abs() < 0.002, "{share}");
    }
}
