//! What a comparison found: a table for people, kept with the machine and the command beside all numbers for programs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock;

/// No time of a comparison is longer: a quarter of an hour.
const MAX_TIME_NS: u64 = 900_000_000_000;
/// Where results are kept, from the root of the workspace.
const RESULTS: &str = "bench/results";

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Seconds, to see that the comparison works; nothing is kept.
    Tiny,
    /// Three minutes at most.
    Short,
    Full,
}

/// A comparison's findings.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: &'static str,
    /// What the table shows and against which baseline its ratios are.
    pub(crate) about: String,
    pub(crate) headings: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
    /// Sentences below the table.
    pub(crate) notes: Vec<String>,
    pub(crate) data: Value,
}

impl Found {
    /// Prints the table, and keeps it when `keep` is where.
    pub(crate) fn tell(&self, keep: Option<&Path>) -> Result<()> {
        println!("\n{}\n\n{}", self.about, cli::output::table(&self.headings, &self.rows));
        for note in &self.notes {
            println!("{note}");
        }
        match keep {
            Some(folder) => self.keep(folder),
            None => Ok(()),
        }
    }

    fn keep(&self, folder: &Path) -> Result<()> {
        let folder = folder.join(RESULTS);
        fs::create_dir_all(&folder)?;
        let (machine, date, command) = (Machine::read()?, date()?, command());
        let document = json!({
            "comparison": self.name,
            "command": command,
            "date": date,
            "machine": machine,
            "software": env!("CARGO_PKG_VERSION"),
            "data": self.data,
        });
        let path = folder.join(format!("{}.json", self.name));
        fs::write(&path, format!("{document:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
        let mut text = format!("# {}\n\n{}\n\n", self.name, self.about);
        text.push_str(&format!("`{command}`, {date}, {}.\n\n", machine.in_words()));
        let line = |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        text.push_str(&line(&mut self.headings.iter().copied()));
        text.push_str(&line(&mut self.headings.iter().map(|_| "---")));
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}\n"));
        }
        let path = folder.join(format!("{}.md", self.name));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What the numbers were measured on.
#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// Inside another machine, whose owner may take time away.
    virtual_machine: bool,
}

impl Machine {
    fn read() -> Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let field = |name: &str| {
            let line = processors.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
        let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
        let flags = field("flags").unwrap_or_default();
        Ok(Self {
            processor: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: kib >> 10,
            kernel: format!("Linux {}", kernel.trim()),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
        })
    }

    fn in_words(&self) -> String {
        let kind = if self.virtual_machine { ", virtual machine" } else { "" };
        format!("{} x {}, {} MiB, {}{kind}", self.cores, self.processor, self.memory_mib, self.kernel)
    }
}

fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo run --release --package takt-bench -- {}", arguments.join(" "))
}

fn date() -> Result<String> {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    Ok(time::OffsetDateTime::from_unix_timestamp(clock::unix_seconds())?.format(&format)?)
}

/// Percentiles of times, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Spread {
    /// Of times in nanoseconds, to three digits.
    pub(crate) fn of(times_ns: impl IntoIterator<Item = u64>) -> Self {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, MAX_TIME_NS, 3).expect("invariant: the bounds are valid");
        for time in times_ns {
            histogram.saturating_record(time);
        }
        let us = |ns: u64| ns / 1_000;
        Self {
            count: histogram.len(),
            p50_us: us(histogram.value_at_quantile(0.5)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            max_us: us(histogram.max()),
        }
    }

    /// p50, p99 and the largest, for a cell of a table.
    pub(crate) fn cell(&self) -> String {
        if self.count == 0 {
            return "none".to_owned();
        }
        [self.p50_us, self.p99_us, self.max_us].map(millis).join(" / ")
    }
}

/// Microseconds as milliseconds.
pub(crate) fn millis(us: u64) -> String {
    format!("{}.{:02}", us / 1_000, us % 1_000 / 10)
}

/// `a` over `b`, with the sign of a ratio; `-` where there is nothing to divide by.
pub(crate) fn ratio(a: u64, b: u64) -> String {
    if b == 0 { "-".to_owned() } else { format!("{:.2}x", in_float(a) / in_float(b)) }
}

/// A share in per cent.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.2} %", 100.0 * in_float(part) / in_float(whole)) }
}

#[expect(clippy::cast_precision_loss, reason = "counts and times of a run lie far below 2^53")]
pub(crate) fn in_float(number: u64) -> f64 {
    number as f64
}
