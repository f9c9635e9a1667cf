//! `takt audit`: what the records of a node prove.

use anyhow::{Context, Result};
use node::audit::{Audited, Finding, Report, Verdict};
use serde_json::{Value, json};

use crate::args::AuditArgs;
use crate::exit::Exit;
use crate::home;
use crate::output::{self, Format, Progress};

/// Contradictions that are printed; `--json` has the first 1,000.
const SHOWN: usize = 20;
const CAUSES: [&str; 6] = ["steal", "overrun", "function", "host-call", "bug", "unknown"];

/// Audits and prints. Exits with 0 only when every promise was kept and the records prove it.
pub fn run(args: &AuditArgs, format: Format) -> Result<Exit> {
    let path = home::data_dir(args.path.clone()).context("nothing to audit: name a file or folder, or set HOME")?;
    let progress = Progress::start(format, "auditing");
    let audited = node::audit::audit(&path, |_record| {})?;
    progress.end();
    match format {
        Format::Json => output::json(&document(&audited)?),
        Format::Human => print!("{}", text(&audited)),
    }
    Ok(if audited.verdict() == Verdict::Kept { Exit::Ok } else { Exit::Error })
}

/// The fields of `takt audit --json`; `report` is described in docs/reference/audit.md.
fn document(audited: &Audited) -> Result<Value> {
    Ok(json!({
        "verdict": audited.verdict(),
        "segments": audited.segments,
        "records": audited.records,
        "first_record": audited.first,
        "last_hash": audited.last_hash.to_string(),
        "torn_bytes": audited.torn_bytes,
        "broken": audited.broken.as_ref().map(ToString::to_string),
        "violations": audited.report.violations(),
        "report": serde_json::to_value(&audited.report).context("cannot write the report")?,
    }))
}

fn text(audited: &Audited) -> String {
    let report = &audited.report;
    let mut text = format!("{}\n", in_words(audited.verdict()));
    text.push_str(&output::facts(&facts(audited)));
    if let Some(broken) = &audited.broken {
        text.push_str(&format!("The chain is broken at {broken}; nothing behind that is proven.\n"));
    }
    if !report.guarantees.is_empty() {
        let rows: Vec<Vec<String>> = report.guarantees.iter().map(row).collect();
        let headings =
            ["function", "generation", "arrivals", "conforming", "excess", "expired", "refused", "violated", "late", "missing"];
        text.push_str(&output::table(&headings, &rows));
    }
    for contradiction in report.contradictions.iter().take(SHOWN) {
        let function = contradiction.function.as_ref().map_or("the node", |function| function.as_str());
        let record = contradiction.sequence.map_or_else(String::new, |sequence| format!(", invocation {sequence}"));
        text.push_str(&format!("{function}, generation {}{record}: {}\n", contradiction.generation, contradiction.problem));
    }
    let more = report.contradictions_total.saturating_sub(SHOWN.try_into().unwrap_or(u64::MAX));
    if 0 < more {
        text.push_str(&format!("and {more} contradictions more\n"));
    }
    text
}

const fn in_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "Kept: every promise was kept, and the records prove it.",
        Verdict::Missed => "Missed: some promises were missed; the records prove how many and why.",
        Verdict::Unproven => "Unproven: records are missing, and what they would show is not known.",
        Verdict::Contradicted => "Contradicted: the records contradict themselves, or are not the ones that were written.",
    }
}

fn facts(audited: &Audited) -> Vec<(&'static str, String)> {
    let report = &audited.report;
    let first = audited.first.map_or_else(|| "none".to_owned(), |first| format!("from number {first}"));
    let mut facts = vec![
        ("records", format!("{} in {} segments, {first}", audited.records, audited.segments)),
        ("last hash", audited.last_hash.to_string()),
        ("starts", format!("{}, {} without an orderly stop before", report.boots, report.unclean_stops)),
    ];
    if report.running_at_end {
        facts.push(("end", "the node was running when the last record was written".to_owned()));
    }
    let counted = [
        ("torn", audited.torn_bytes, "bytes at the end, cut off by a crash or still being written"),
        ("lost", report.lost_records, "records the node knows it dropped"),
        ("unwritten", report.unwritten, "arrivals that counters tell of and records do not"),
        ("unchecked", report.unchecked_claims, "claims of excess or steal that could not be checked"),
        ("open", report.open_claims, "claims of excess that later records will settle"),
    ];
    facts.extend(
        counted.into_iter().filter(|(_, count, _)| *count != 0).map(|(name, count, what)| (name, format!("{count} {what}"))),
    );
    let causes = causes(report);
    if !causes.is_empty() {
        facts.push(("causes", causes));
    }
    facts
}

/// Violations by cause, over all functions.
fn causes(report: &Report) -> String {
    let mut sums = [0_u64; CAUSES.len()];
    for finding in &report.guarantees {
        for (sum, count) in sums.iter_mut().zip(finding.counters.by_cause) {
            *sum += count;
        }
    }
    let named = CAUSES.iter().zip(sums).filter(|(_, sum)| *sum != 0);
    let parts: Vec<String> = named.map(|(cause, sum)| format!("{sum} {cause}")).collect();
    parts.join(", ")
}

fn row(finding: &Finding) -> Vec<String> {
    let counters = &finding.counters;
    let mut row = vec![finding.function.to_string()];
    row.extend(
        [
            finding.generation,
            counters.arrivals,
            counters.conforming,
            counters.excess,
            counters.expired,
            counters.refused,
            counters.start_violations,
            counters.deadline_misses,
            finding.missing_records,
        ]
        .map(|number| number.to_string()),
    );
    row
}

#[cfg(test)]
mod tests {
    use node::audit::Report;

    use super::*;

    fn audited(report: Report) -> Audited {
        Audited { report, segments: 1, records: 3, first: Some(1), last_hash: journal_hash(), torn_bytes: 0, broken: None }
    }

    fn journal_hash() -> node::audit::Hash {
        node::audit::Hash([7; 32])
    }

    #[test]
    fn a_clean_history_says_so_first() {
        let text = text(&audited(Report { boots: 1, ..Report::default() }));
        assert!(text.starts_with("Kept: every promise was kept"), "{text}");
        assert!(text.contains("3 in 1 segments, from number 1"), "{text}");
        assert!(!text.contains("lost"), "{text}");
    }

    #[test]
    fn gaps_are_named_with_their_size() {
        let report = Report { boots: 2, unclean_stops: 1, lost_records: 12, ..Report::default() };
        let text = text(&audited(report));
        assert!(text.starts_with("Unproven:"), "{text}");
        assert!(text.contains("12 records the node knows it dropped"), "{text}");
        assert!(text.contains("2, 1 without an orderly stop before"), "{text}");
    }
}
