//! Footprint: memory of the daemon, idle and with a thousand functions, and of idle instances.
//!
//! Proportional set size: pages shared by several processes count in equal parts, so that sums are true.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use crate::handlers::Language;
use crate::result::{Depth, Found, in_float};
use crate::site::{Node, Programs};

const EVENT: &str = "{\"burn_us\":0}";
/// What the daemon is meant to stay below, idle.
const AIM_MIB: f64 = 30.0;

/// Memory of some processes, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
struct Memory {
    rss: u64,
    pss: u64,
}

impl Memory {
    fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).with_context(|| format!("{path} without {name}"))
        };
        Ok(Self { rss: field("Rss:")?, pss: field("Pss:")? })
    }
}

/// Measures one node as it fills.
pub(crate) fn run(programs: &Programs, depth: Depth) -> Result<Found> {
    let functions = match depth {
        Depth::Tiny => 20,
        Depth::Short | Depth::Full => 1_000,
    };
    let node = Node::start(programs)?;
    let mut measured = vec![("daemon, idle".to_owned(), Memory::of(node.pid())?)];
    let launchers = descendants(node.pid())?;
    for (number, launcher) in launchers.iter().enumerate() {
        measured.push((format!("launcher {}", number + 1), Memory::of(*launcher)?));
    }
    for language in Language::ALL {
        let name = format!("{}-idle", language.runtime());
        let before = descendants(node.pid())?;
        node.deploy(&language.toml(&name), &language.package(programs)?)?;
        node.invoke(&name, EVENT)?;
        node.settle()?;
        let mut sum = Memory::default();
        for process in descendants(node.pid())?.into_iter().filter(|process| !before.contains(process)) {
            let memory = Memory::of(process)?;
            sum = Memory { rss: sum.rss + memory.rss, pss: sum.pss + memory.pss };
        }
        measured.push((format!("idle instance, {}", language.runtime()), sum));
    }
    let zip = Language::Python.package(programs)?;
    for number in 0..functions {
        node.deploy(&Language::Python.toml(&format!("function{number}")), &zip)?;
    }
    measured.push((format!("daemon, {functions} functions more"), Memory::of(node.pid())?));
    let base = measured[0].1;
    let mib = |kib: u64| format!("{:.1}", in_float(kib) / 1024.0);
    let row = |(name, memory): &(String, Memory)| {
        vec![name.clone(), mib(memory.rss), mib(memory.pss), format!("{:.2}x", in_float(memory.pss) / in_float(base.pss))]
    };
    let aim = if in_float(base.rss) / 1024.0 <= AIM_MIB { "kept" } else { "missed" };
    Ok(Found {
        name: "footprint",
        about: "Resident memory; ratios of the proportional share against the idle daemon's. An instance is all its processes."
            .to_owned(),
        headings: vec!["what", "RSS MiB", "PSS MiB", "vs idle daemon"],
        rows: measured.iter().map(row).collect(),
        notes: vec![format!("The aim of {AIM_MIB} MiB for the idle daemon is {aim}.")],
        data: json!(measured.iter().map(|(name, memory)| json!({ "what": name, "kib": memory })).collect::<Vec<_>>()),
    })
}

/// All processes that a process started, directly or not.
pub(crate) fn descendants(root: u32) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes may end while they are listed.
        let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|pid| pid.trim().parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(process);
    }
    let (mut found, mut open) = (Vec::new(), vec![root]);
    while let Some(process) = open.pop() {
        let more = children.remove(&process).unwrap_or_default();
        found.extend(&more);
        open.extend(more);
    }
    Ok(found)
}
