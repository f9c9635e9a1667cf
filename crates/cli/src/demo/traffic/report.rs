//! The report of a demonstration: one HTML file that needs nothing else.

mod charts;

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use node::audit::Verdict;
use serde::Serialize;
use serde_json::{Value, json};

use super::camera::{Clip, Run};
use super::function::Role;
use super::gate::Detected;
use super::score::{Detections, Reserved, Score, Spread};
use super::show::Crowd;
use super::track::Finding;
use super::watch::Found;
use crate::demo::neighbour::Counts;
use crate::output;

/// Most event pictures shown per variant.
const MOST_PICTURES: usize = 4;

/// One way the demonstration was run.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// For people: "alone", "beside a flood, with the guarantee".
    pub(crate) name: String,
    pub(crate) run: Run,
    pub(crate) score: Score,
    /// What the node's evidence proves; `None`: it ran without a guarantee.
    pub(crate) proven: Option<Proven>,
    pub(crate) resources: Resources,
    /// What became of the neighbours' flood.
    pub(crate) neighbour: Option<Counts>,
}

impl Variant {
    /// Value per instance-second against machines reserved for the peak, for what stood ready in this run by the node's own
    /// count; `None` when nothing happened or nothing stood ready.
    fn value_as_reserved(&self) -> Option<f64> {
        let ready_s = self.resources.reserved_s;
        let happened = self.score.value_by_the_model.is_some();
        (happened && 0.0 < ready_s).then(|| self.score.quality * self.score.peak_instance_s / ready_s)
    }
}

/// What the records prove of the camera's guaranteed functions, watcher and detector together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Proven {
    pub(crate) arrivals: u64,
    pub(crate) conforming: u64,
    /// Violations by cause: steal, overrun, function, host-call, bug, unknown.
    pub(crate) by_cause: [u64; 6],
}

impl Proven {
    pub(crate) fn violations(&self) -> u64 {
        self.by_cause.iter().sum()
    }
}

impl std::ops::Sub for Proven {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        // Records only ever become more.
        let mut by_cause = self.by_cause;
        for (count, before) in by_cause.iter_mut().zip(before.by_cause) {
            *count -= before;
        }
        Self { arrivals: self.arrivals - before.arrivals, conforming: self.conforming - before.conforming, by_cause }
    }
}

/// Instance-seconds of the detector as the node counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Resources {
    /// Instances stood ready, busy or not.
    pub(crate) reserved_s: f64,
    /// They ran invocations.
    pub(crate) used_s: f64,
}

impl std::ops::Sub for Resources {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        // A redeployed function counts anew.
        let since = |now: f64, before: f64| if before <= now { now - before } else { now };
        Self { reserved_s: since(self.reserved_s, before.reserved_s), used_s: since(self.used_s, before.used_s) }
    }
}

/// What the audit said of the evidence as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    pub(crate) verdict: Verdict,
    pub(crate) records: u64,
}

/// What the report tells.
#[derive(Clone, Debug)]
pub(crate) struct Report<'a> {
    pub(crate) clip: &'a Clip,
    pub(crate) variants: &'a [Variant],
    pub(crate) reserved: Reserved,
    /// The watcher's promised start delay in microseconds.
    pub(crate) watch_within_us: u64,
    /// The guarantee as stated; one line, for people.
    pub(crate) guarantee: String,
    pub(crate) crowd: Crowd,
    /// What the machine gave: level, tolerance, the camera's class.
    pub(crate) conditions: String,
    pub(crate) evidence: Evidence,
}

/// Writes the report.
#[must_use]
pub(crate) fn html(report: &Report<'_>) -> String {
    let mut page = String::with_capacity(256 * 1_024);
    let source = escape(&capital(&report.clip.source));
    page += &format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>Takt: traffic</title>\
         <style>{STYLE}</style></head><body><main><header><h1>A road camera on Takt</h1>\
         <p>{source}: {} pictures at {} per second. A watcher looks twice a second; while something happens, every \
         picture goes to a detector, each with a deadline. The same observation, {} ways.</p>\
         <dl><dt>Guarantee</dt><dd>{}</dd><dt>Neighbours</dt><dd>{}</dd><dt>Machine</dt><dd>{}</dd>\
         <dt>Evidence</dt><dd>{}</dd></dl></header>",
        report.clip.pictures.len(),
        report.clip.fps,
        report.variants.len(),
        escape(&report.guarantee),
        escape(&report.crowd.in_words()),
        escape(&report.conditions),
        escape(&report.evidence.in_words()),
    );
    page += &summary(report);
    page += "<section><h2>When the functions started on each picture</h2><p>One dot per full-rate picture: time from when \
             it was due until the detector had it in hand. Rings are the watcher's looks. The dashed lines are the promises; \
             what came later is red, and lies on the upper edge if no answer came at all.</p><div class=\"row\">";
    for variant in report.variants {
        page += &figure(&variant.name, &charts::starts(variant, report));
    }
    page += "</div></section><section><h2>How long an answer took</h2><p>Share of the full-rate pictures answered within \
             a time, counted from when each was due. The dashed line is the deadline.</p>";
    page += &charts::latencies(report.variants);
    page += "</section><section><h2>What happened, and what was seen</h2>";
    page += &charts::timeline(report.variants, report.clip.truth.as_ref());
    page += "</section>";
    page += &sightings(report);
    page += &resources(report);
    page += "</main></body></html>";
    page
}

/// The start times of all variants as a picture of its own (SVG with fixed colours), for a page that shows the result.
#[must_use]
pub(crate) fn picture(report: &Report<'_>) -> String {
    charts::poster(report)
}

fn figure(caption: &str, svg: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>{svg}</figure>", escape(caption))
}

/// The result for a terminal.
#[must_use]
pub(crate) fn text(report: &Report<'_>) -> String {
    let rows: Vec<Vec<String>> =
        rows(report).into_iter().map(|(name, values)| std::iter::once(name.to_owned()).chain(values).collect()).collect();
    let names = report.variants.iter().map(|variant| variant.name.as_str());
    let headings: Vec<&str> = std::iter::once("").chain(names).collect();
    let facts = [
        ("guarantee", report.guarantee.clone()),
        ("neighbours", report.crowd.in_words()),
        ("machine", report.conditions.clone()),
        ("evidence", report.evidence.in_words()),
    ];
    let facts: String = facts.iter().map(|(name, fact)| format!("{name}: {fact}\n")).collect();
    format!("{}\n{facts}{VALUE_NOTE}\n", output::table(&headings, &rows))
}

/// The fields of `takt demo traffic --json`.
pub(crate) fn document(report: &Report<'_>, granted: &Value, path: &Path) -> anyhow::Result<Value> {
    let mut variants = Vec::new();
    for variant in report.variants {
        let detected = variant.run.summary.detected.iter().map(|it| (it.finding, it.first, it.last));
        variants.push(json!({
            "name": variant.name,
            "score": serde_json::to_value(&variant.score)?,
            "detected": detected.map(|it| json!(it)).collect::<Vec<_>>(),
            "open": variant.run.summary.open,
            "proven": serde_json::to_value(variant.proven)?,
            "value_as_reserved": variant.value_as_reserved(),
            "resources": serde_json::to_value(variant.resources)?,
            "neighbours": serde_json::to_value(variant.neighbour)?,
        }));
    }
    Ok(json!({
        "clip": { "source": report.clip.source, "pictures": report.clip.pictures.len(), "fps": report.clip.fps },
        "guarantee": granted,
        "machine": report.conditions,
        "neighbours": serde_json::to_value(&report.crowd)?,
        "variants": variants,
        "evidence": { "verdict": report.evidence.verdict, "records": report.evidence.records },
        "report": path.display().to_string(),
    }))
}

impl Evidence {
    fn in_words(self) -> String {
        let verdict = match self.verdict {
            Verdict::Kept => "every promise was kept, and the records prove it",
            Verdict::Missed => "some promises were missed; the records prove how many and why",
            Verdict::Unproven => "records are missing, and what they would show is not known",
            Verdict::Contradicted => "the records contradict themselves",
        };
        format!("{} records, audited after the node had stopped: {verdict}", self.records)
    }
}

/// The result, one row per figure and one value per variant.
fn rows(report: &Report<'_>) -> Vec<(&'static str, Vec<String>)> {
    let mut rows: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut row = |name, value: &dyn Fn(&Variant) -> String| rows.push((name, report.variants.iter().map(value).collect()));
    row("Full-rate pictures sent", &|it| it.score.full_rate.to_string());
    row("Of these on time", &|it| {
        let score = &it.score;
        if score.full_rate == 0 { dash() } else { format!("{} ({})", score.on_time, percent(score.on_time, score.full_rate)) }
    });
    row("Watcher's looks on time", &|it| {
        let looks = || it.run.sent.iter().filter(|sent| sent.role == Role::Watch);
        format!("{} of {}", looks().filter(|sent| sent.is_on_time()).count(), looks().count())
    });
    row("Violations, by the evidence", &|it| {
        it.proven.map_or_else(|| "no guarantee".to_owned(), |proven| format!("{} of {}", proven.violations(), proven.conforming))
    });
    row("Start after due, p50 / p99 / worst", &|it| spread(it.score.start));
    row("Answer after due, p50 / p99 / worst", &|it| spread(it.score.latency));
    row("Events found", &|it| match &it.score.detections {
        Some(detections) => events(detections),
        None => format!("{} (truth unknown)", it.run.summary.detected.len()),
    });
    row("Seen after the event began", &|it| {
        it.score.detections.as_ref().map_or_else(dash, |d| found_or_dash(d, format!("{:.2} s", d.begin_delay_s)))
    });
    row("Right boxes, over whole events", &|it| {
        it.score.detections.as_ref().map_or_else(dash, |d| format!("{:.0} %", d.box_recall_whole * 100.0))
    });
    row("Instance-seconds ready / used", &|it| format!("{:.0} / {:.1}", it.resources.reserved_s, it.resources.used_s));
    row("Neighbours: answered / turned away", &|it| {
        it.neighbour.map_or_else(dash, |counts| format!("{} / {}", counts.answered, counts.refused + counts.broken))
    });
    row("Value per instance-second against the peak, by the model", &|it| times(it.score.value_by_the_model));
    row("The same, as reserved in this run", &|it| times(it.value_as_reserved()));
    rows
}

fn summary(report: &Report<'_>) -> String {
    let mut table = String::from("<section><h2>In short</h2><div class=\"scroll\"><table><thead><tr><th></th>");
    for variant in report.variants {
        let _ = write!(table, "<th>{}</th>", escape(&variant.name));
    }
    table += "</tr></thead><tbody>";
    for (name, values) in rows(report) {
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", escape(value))).collect();
        let _ = write!(table, "<tr><th>{name}</th>{cells}</tr>");
    }
    table += "</tbody></table></div></section>";
    table
}

fn events(detections: &Detections) -> String {
    let false_ones = if detections.false_events == 0 { String::new() } else { format!(", {} false", detections.false_events) };
    format!("{} of {}{false_ones}", detections.found, detections.events)
}

fn found_or_dash(detections: &Detections, text: String) -> String {
    if detections.found == 0 { dash() } else { text }
}

fn dash() -> String {
    "–".to_owned()
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(dash, |ratio| format!("{ratio:.1}x"))
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { dash() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

fn spread(spread: Spread) -> String {
    if spread.count == 0 {
        return dash();
    }
    let ms = |us: u64| if us < 100_000 { format!("{:.1}", us as f64 / 1e3) } else { format!("{:.0}", us as f64 / 1e3) };
    format!("{} / {} / {} ms", ms(spread.p50_us), ms(spread.p99_us), ms(spread.max_us))
}

/// Pictures of the events as the detector saw them, of the first variant that saw any.
fn sightings(report: &Report<'_>) -> String {
    let Some(variant) = report.variants.iter().find(|variant| !variant.run.summary.detected.is_empty()) else {
        return "<section><h2>Sightings</h2><p>Nothing was detected in any variant.</p></section>".to_owned();
    };
    let mut section = format!("<section><h2>Sightings</h2><p>As seen {}.</p><div class=\"row pictures\">", escape(&variant.name));
    for detected in variant.run.summary.detected.iter().take(MOST_PICTURES) {
        let Some((index, found)) = telling(detected) else { continue };
        let at = usize::try_from(*index).unwrap_or(usize::MAX);
        let Some(jpeg) = report.clip.pictures.get(at) else { continue };
        let second = *index as f64 / f64::from(report.clip.fps.max(1));
        let caption = format!("{}, {:.1} s, {:.0} km/h", charts::finding_name(detected.finding), second, found.km_per_h);
        section += &figure(&capital(&caption), &sighting(jpeg, found));
    }
    section += "</div><p class=\"note\">Speeds rest on the camera's stated height, horizon and focal length.</p></section>";
    section
}

/// The sighting to show: a stopped vehicle when it is slowest, anything else in the middle.
fn telling(detected: &Detected) -> Option<&(u64, Found)> {
    match detected.finding {
        Finding::StoppedVehicle => detected.sightings.iter().min_by(|a, b| a.1.km_per_h.total_cmp(&b.1.km_per_h)),
        Finding::SlowVehicle | Finding::Person => detected.sightings.get(detected.sightings.len() / 2),
    }
}

fn sighting(jpeg: &[u8], found: &Found) -> String {
    let (width, height) = super::picture::Grey::decode(jpeg).map_or((320, 240), |grey| (grey.width, grey.height));
    let rect = found.rect;
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\"><image width=\"{width}\" height=\"{height}\" \
         href=\"data:image/jpeg;base64,{}\"/><rect class=\"halo\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"/>\
         <rect class=\"box\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"/></svg>",
        STANDARD.encode(jpeg),
        x = rect.x - 2.0,
        y = rect.y - 2.0,
        w = rect.w + 4.0,
        h = rect.h + 4.0,
    )
}

fn resources(report: &Report<'_>) -> String {
    let mut rows = String::new();
    for variant in report.variants {
        let (score, resources) = (&variant.score, &variant.resources);
        let _ = write!(
            rows,
            "<tr><th>{}</th><td>{:.1}</td><td>{:.1}</td><td>{:.1}</td><td>{:.2}</td><td>{:.3}</td><td>{}</td><td>{}</td></tr>",
            escape(&variant.name),
            score.peak_instance_s,
            score.burst_instance_s,
            resources.reserved_s,
            resources.used_s,
            score.duty,
            times(score.value_by_the_model),
            times(variant.value_as_reserved()),
        );
    }
    format!(
        "<section><h2>What it costs</h2><p>Instance-seconds of the detector. Machines reserved for the peak are there all the \
         time (K instances); a reservation for bursts is needed while something happens. What stood ready and what ran \
         invocations is the node's own count. With a share Q of the pictures on time and the full rate needed for a share d of \
         the time, the value per instance-second is, by the model, Q/d times that of machines reserved for the peak: the model \
         reserves capacity during bursts only. In this run the reservation stood all the time, as a node's does that cannot \
         know when the next burst comes; the last column counts what really stood ready.</p>\
         <div class=\"scroll\"><table><thead><tr><th></th><th>Peak, always</th><th>Bursts</th><th>Ready</th><th>Used</th><th>d</th>\
         <th>Q/d, by the model</th><th>As reserved in this run</th></tr></thead><tbody>{rows}</tbody></table></div><p class=\"note\">{VALUE_NOTE}</p></section>"
    )
}

const VALUE_NOTE: &str = "d and Q are measured in this run. Real-time Serverless (WoSC'19) published \u{201c}nearly 16x\u{201d} for its own \
    traffic monitoring, by the model; the two figures rest on different parameters and are not the same measurement.";

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root{--ink:#1c2126;--soft:#5d6871;--line:#d9dee2;--ground:#fbfbf9;--card:#fff;--a:#1f6fb2;--b:#1d8a5f;--c:#c2502a;--promise:#8a5a00}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9eb;--soft:#9aa5ad;--line:#333c43;--ground:#14181b;--card:#1b2024;--a:#6db3ee;--b:#5cc79a;--c:#f08a62;--promise:#e0b24c}}\
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}\
main{max-width:1080px;margin:0 auto;padding:48px 24px 96px}h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:0 0 12px}\
h2{font-size:20px;margin:48px 0 6px;letter-spacing:-.01em}p{max-width:72ch;margin:0 0 14px;color:var(--soft)}header p{font-size:17px}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0}dt{color:var(--soft)}dd{margin:0}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td{white-space:nowrap}th,td{text-align:right;padding:9px 12px;border-bottom:1px solid var(--line);vertical-align:top}\
thead th{font-weight:600;border-bottom:2px solid var(--line)}tbody th{font-weight:400;color:var(--soft)}th:first-child{text-align:left;padding-left:0}\
.scroll{overflow-x:auto}.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:18px}\
.pictures{grid-template-columns:repeat(auto-fill,minmax(320px,1fr))}figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px}figcaption{font-weight:600;font-size:14px;margin-bottom:6px}\
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}svg text{fill:var(--soft)}.axis{stroke:var(--line);stroke-width:1}\
.promise{stroke:var(--promise);stroke-width:1.4;stroke-dasharray:5 4}.promise-text{fill:var(--promise)!important;stroke:var(--card);stroke-width:3px;paint-order:stroke}\
.v0{fill:var(--a);stroke:var(--a)}.v1{fill:var(--b);stroke:var(--b)}.v2{fill:var(--c);stroke:var(--c)}.late{fill:var(--c)}\
.ring{fill:none;stroke-width:1.2;stroke-opacity:.8}.late.ring{stroke:var(--c)}.ring{fill:none!important}.curve{fill:none!important;stroke-width:2}.dot{stroke:none;fill-opacity:.7}.truth{fill:var(--soft);fill-opacity:.45}.bar{stroke:none;fill-opacity:.85}.open{stroke:none;fill-opacity:.25}\
.box{fill:none;stroke:#ffd23f;stroke-width:1.6}.halo{fill:none;stroke:#000;stroke-opacity:.55;stroke-width:3}.note{font-size:14px;margin-top:12px}";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::demo::traffic::camera;
    use crate::demo::traffic::score;

    const RESERVED: Reserved = Reserved { instances: 3, start_within_us: 20_000 };

    #[tokio::test(start_paused = true)]
    async fn the_report_is_whole_and_needs_nothing_else() {
        let clip = camera::tests::clip(15);
        let mut variants = Vec::new();
        let mut reference = None;
        for (name, takes) in [("alone", 9), ("beside a flood, with the guarantee", 14), ("beside <a> flood, without", 240)] {
            let run = camera::tests::run(Duration::from_millis(takes), &clip).await;
            let undisturbed = reference.get_or_insert_with(|| run.clone());
            let score = score::score(&run, undisturbed, clip.truth.as_ref(), RESERVED);
            let (proven, resources) = (Some(Proven::default()), Resources { reserved_s: 48.0, used_s: 2.5 });
            variants.push(Variant { name: name.to_owned(), run, score, proven, resources, neighbour: None });
        }
        let (score, reserved) = (&variants[0].score, variants[0].value_as_reserved().unwrap());
        assert!((reserved - score.quality * score.peak_instance_s / 48.0).abs() < 1e-9, "{reserved}");
        let (guarantee, crowd) = ("25/s, each within 100 ms".to_owned(), Crowd::new(Some(40), 0.1));
        let evidence = Evidence { verdict: Verdict::Kept, records: 1_234 };
        let conditions = "guarantees are hard".to_owned();
        let report = Report {
            clip: &clip,
            variants: &variants,
            reserved: RESERVED,
            watch_within_us: 485_000,
            guarantee,
            crowd,
            conditions,
            evidence,
        };
        let page = html(&report);
        for wanted in [
            "25/s, each within 100 ms",
            "beside &lt;a&gt; flood",
            "data:image/jpeg;base64,",
            "nearly 16x",
            "1 of 1",
            "as reserved in this run</th>",
        ] {
            assert!(page.contains(wanted), "{wanted}");
        }
        for unwanted in ["http://", "https://", "<script", "<a>", "NaN", "inf"] {
            assert!(!page.contains(unwanted), "{unwanted}");
        }
        assert!(picture(&report).starts_with("<svg xmlns="));
        if let Some(folder) = std::env::var_os("TAKT_TEST_KEEP_REPORT") {
            let folder = Path::new(&folder);
            std::fs::write(folder.join("report.html"), page).unwrap();
            std::fs::write(folder.join("picture.svg"), picture(&report)).unwrap();
        }
    }
}
