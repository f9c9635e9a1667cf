//! Cold starts and their parts, and how many instances must be kept ready.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::Rate;
use serde_json::{Value, json};

use crate::clock;
use crate::first;
use crate::handlers::Language;
use crate::lost;
use crate::result::{Depth, Found, Spread, millis, ratio};
use crate::site::{Node, Programs};

const EVENT: &str = "{\"burn_us\":0}";
/// Of the reserve: a guarantee to be kept while every start takes an instance that is replaced a cold start later.
const RATE: u64 = 50;
const BURST: u64 = 5;
/// Starts of the reserve's story.
const STARTS: u64 = 10_000;
/// First answers and changes that are waited for, at most.
const FIRSTS: usize = 10;

/// Starts every runtime many times, and counts waits with W and W - 1.
pub(crate) fn run(programs: &Programs, depth: Depth) -> Result<Found> {
    let times = match depth {
        Depth::Tiny => 3,
        Depth::Short => 30,
        Depth::Full => 100,
    };
    let node = Node::start(programs)?;
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    let mut slowest = Duration::ZERO;
    for language in Language::ALL {
        let colds = colds(&node, programs, language, times)?;
        let spread = |part: fn(&Cold) -> u64| Spread::of(colds.iter().map(part));
        let (whole, init, warm, bare) = (spread(|it| it.whole), spread(|it| it.init), spread(|it| it.warm), spread(|it| it.bare));
        slowest = slowest.max(Duration::from_micros(whole.max_us));
        rows.push(vec![
            language.runtime().to_owned(),
            times.to_string(),
            whole.cell(),
            millis(init.p50_us),
            millis(warm.p50_us),
            millis(whole.p50_us.saturating_sub(init.p50_us + warm.p50_us)),
            bare.cell(),
            ratio(whole.p50_us, bare.p50_us),
        ]);
        data.push(
            json!({ "runtime": language.runtime(), "cold": whole, "init": init, "warm": warm, "bare": bare, "each_ns": colds }),
        );
    }
    let (note, reserve) = reserve(slowest)?;
    let (mut notes, first) = first::run(programs, times.min(FIRSTS))?;
    // Needs root to kill instances, and deaths that are noticed in time; the rest is worth having without it.
    let (lost, successors) = lost::run(programs, times.min(FIRSTS)).unwrap_or_else(|error| {
        (format!("From the death of an instance to the next answer: not measured, {error:#}."), Value::Null)
    });
    notes.extend([lost, note]);
    Ok(Found {
        name: "start",
        about: "First calls of functions just deployed, all protections on, in ms (p50 / p99 / max; parts as medians): the instance's start \
                as the node reports it, the handler's call as a warm one takes it, and the rest (the way there). Against the same \
                program started bare until it has answered over HTTP."
            .to_owned(),
        headings: vec!["runtime", "starts", "cold call", "start", "warm call", "rest", "bare process", "vs bare"],
        rows,
        notes,
        data: json!({ "ready": node.ready, "starts": data, "first": first, "successors": successors, "reserve": reserve }),
    })
}

/// One cold call; nanoseconds.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Cold {
    whole: u64,
    init: u64,
    warm: u64,
    bare: u64,
}

fn colds(node: &Node, programs: &Programs, language: Language, times: usize) -> Result<Vec<Cold>> {
    let name = format!("{}-cold", language.runtime());
    let zip = language.package(programs)?;
    let mut colds = Vec::with_capacity(times);
    for _ in 0..times {
        node.deploy(&language.toml(&name), &zip)?;
        let (begin, cold) = (clock::monotonic_ns(), node.invoke(&name, EVENT)?);
        let (between, _) = (clock::monotonic_ns(), node.invoke(&name, EVENT)?);
        let end = clock::monotonic_ns();
        let init = init(&cold)?;
        colds.push(Cold { whole: between - begin, init, warm: end - between, bare: bare(programs, language)? });
        // A new version of a function that is in use would be started before it is called.
        node.delete(&name)?;
    }
    Ok(colds)
}

/// The instance's start as the answer's log tells it.
fn init(answer: &cli::client::Answer) -> Result<u64> {
    let log = answer.headers.get("x-amz-log-result").context("an answer without its log")?;
    let log = String::from_utf8(STANDARD.decode(log)?)?;
    let text = log.split("Init Duration: ").nth(1).with_context(|| format!("a call that was not cold: {log}"))?;
    let ms: f64 = text.split(' ').next().unwrap_or_default().parse().context("a start without its time")?;
    Ok(u64::try_from(Duration::from_secs_f64(ms / 1_000.0).as_nanos())?)
}

/// From the start of a bare server to its first answer.
fn bare(programs: &Programs, language: Language) -> Result<u64> {
    let begin = clock::monotonic_ns();
    let bare = language.bare(programs, 1)?;
    bare.plain.call(EVENT)?;
    Ok(clock::monotonic_ns() - begin)
}

/// What the theory says of the reserve, on virtual time: every start takes a ready instance, replaced `cold` later.
fn reserve(cold: Duration) -> Result<(String, Value)> {
    let rate = Rate::per_second(RATE)?;
    let w = rate.ceil_in(cold) + BURST - 1;
    let waits = |ready: u64| waits(rate, ready, cold);
    let (with, without) = (waits(w), waits(w - 1));
    let note = format!(
        "Kept ready at {RATE}/s with bursts of {BURST} and a cold start of {} ms, on virtual time: W = {w} gives {with} waits in \
         {STARTS} starts, W - 1 gives {without}.",
        cold.as_millis()
    );
    Ok((note, json!({ "rate": RATE, "burst": BURST, "w": w, "starts": STARTS, "waits_w": with, "waits_w_minus_1": without })))
}

/// Starts that find no ready instance, of the densest arrivals that conform: a burst, then one per period, then a pause in
/// which everything is replaced, and again.
fn waits(rate: Rate, ready: u64, cold: Duration) -> u64 {
    let cold = u64::try_from(cold.as_nanos()).unwrap_or(u64::MAX);
    let period = u64::try_from(rate.interval().as_nanos()).unwrap_or(u64::MAX);
    let (mut waits, mut now) = (0, 0);
    // When instances become ready, in ascending order.
    let mut pool: std::collections::VecDeque<u64> = (0..ready).map(|_| 0).collect();
    for index in 0..STARTS {
        // Longer than what a cold start covers.
        let place = index % (2 * (ready + BURST));
        now += match place {
            0 => cold + BURST * period,
            _ if place < BURST => 0,
            _ => period,
        };
        let free = pool.pop_front().unwrap_or(u64::MAX);
        waits += u64::from(now < free);
        pool.push_back(now.max(free).saturating_add(cold));
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_enough_and_one_less_is_not() {
        for ms in [1, 20, 95, 100, 300] {
            let (_, said) = reserve(Duration::from_millis(ms)).unwrap();
            assert_eq!(said["waits_w"], 0, "{ms}");
            assert_ne!(said["waits_w_minus_1"], 0, "{ms}");
        }
    }
}
