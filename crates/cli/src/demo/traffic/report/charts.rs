//! The plots of a report, as SVG.

use std::fmt::Write as _;

use super::{Report, Variant, capital, escape};
use crate::demo::traffic::camera::{End, Sent};
use crate::demo::traffic::function::Role;
use crate::demo::traffic::scene::{Kind, Truth};
use crate::demo::traffic::track::Finding;

/// Times are drawn on a logarithmic axis from 0.1 ms to 10 s.
const DECADES: [(f64, &str); 6] =
    [(0.1, "0.1 ms"), (1.0, "1 ms"), (10.0, "10 ms"), (100.0, "100 ms"), (1e3, "1 s"), (1e4, "10 s")];

/// Where a plot lies in its picture.
#[derive(Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    /// The height of a duration in microseconds.
    fn y(&self, us: u64) -> f64 {
        self.top + self.height * (1.0 - share(us))
    }

    fn x(&self, part: f64) -> f64 {
        self.left + self.width * part.clamp(0.0, 1.0)
    }
}

/// A duration's place between the axis's ends, 0 to 1.
fn share(us: u64) -> f64 {
    ((us.max(1) as f64 / 1e3 / DECADES[0].0).log10() / 5.0).clamp(0.0, 1.0)
}

fn full_rate(variant: &Variant) -> impl Iterator<Item = &Sent> {
    variant.run.sent.iter().filter(|sent| sent.role == Role::Detect)
}

/// Start times of one variant's pictures against the promises.
pub(super) fn starts(variant: &Variant, report: &Report<'_>) -> String {
    let frame = Frame { left: 46.0, top: 8.0, width: 286.0, height: 200.0 };
    let mut svg = String::from("<svg viewBox=\"0 0 340 236\" role=\"img\">");
    svg += &start_plot(&frame, variant, report);
    svg += "</svg>";
    svg
}

fn start_plot(frame: &Frame, variant: &Variant, report: &Report<'_>) -> String {
    let mut svg = String::new();
    let (right, bottom) = (frame.left + frame.width, frame.top + frame.height);
    for (ms, label) in DECADES {
        let y = frame.top + frame.height * (1.0 - (ms / DECADES[0].0).log10() / 5.0);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            frame.left,
            frame.left - 6.0,
            y + 4.0
        );
    }
    let seconds = variant.run.pictures as f64 / f64::from(variant.run.fps.max(1));
    for sent in &variant.run.sent {
        svg += &dot(frame, sent, seconds, report);
    }
    svg += &promise(frame, report.watch_within_us, "watcher");
    svg += &promise(frame, report.reserved.start_within_us, "promised: detector");
    let count = full_rate(variant).count();
    let _ =
        write!(svg, "<text x=\"{0}\" y=\"{1}\">{count} full-rate pictures in {seconds:.0} s</text>", frame.left, bottom + 18.0);
    if count == 0 {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">no picture reached the detector</text>",
            frame.x(0.5),
            frame.top + frame.height * 0.75
        );
    }
    svg
}

fn dot(frame: &Frame, sent: &Sent, seconds: f64, report: &Report<'_>) -> String {
    let within = match sent.role {
        Role::Detect => report.reserved.start_within_us,
        Role::Watch => report.watch_within_us,
    };
    let started = sent.start_us().or_else(|| (sent.end == End::Answered).then(|| sent.latency_us()));
    let late = started.is_none_or(|start| within < start);
    let x = frame.x(sent.due_us as f64 / 1e6 / seconds.max(f64::MIN_POSITIVE));
    let y = started.map_or(frame.top + 3.0, |start| frame.y(start));
    match (sent.role, late) {
        (Role::Detect, true) => format!("<circle class=\"dot late\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>"),
        (Role::Detect, false) => format!("<circle class=\"dot v1\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>"),
        (Role::Watch, true) => format!("<circle class=\"ring late\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\"/>"),
        (Role::Watch, false) => format!("<circle class=\"ring v0\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\"/>"),
    }
}

fn promise(frame: &Frame, within_us: u64, whose: &str) -> String {
    let (y, right) = (frame.y(within_us), frame.left + frame.width);
    format!(
        "<line class=\"promise\" x1=\"{}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/><text class=\"promise-text\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{whose} {} ms</text>",
        frame.left,
        y - 5.0,
        within_us as f64 / 1e3,
    )
}

/// Cumulative share of the answers over time, all variants in one plot.
pub(super) fn latencies(variants: &[Variant]) -> String {
    let frame = Frame { left: 46.0, top: 8.0, width: 760.0, height: 220.0 };
    let bottom = frame.top + frame.height;
    let mut svg = String::from("<figure><svg viewBox=\"0 0 1040 262\" role=\"img\">");
    for (ms, label) in DECADES {
        let x = frame.x((ms / DECADES[0].0).log10() / 5.0);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            frame.top,
            bottom + 18.0
        );
    }
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let y = bottom - frame.height * part;
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            frame.left,
            frame.left + frame.width,
            frame.left - 6.0,
            y + 4.0,
            part * 100.0
        );
    }
    for (number, variant) in variants.iter().enumerate() {
        let class = format!("v{}", number % 3);
        let _ = write!(svg, "<path class=\"curve {class}\" d=\"{}\"/>", steps(&frame, variant));
        let y = 28.0 + 22.0 * number as f64;
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"824\" y=\"{}\" width=\"10\" height=\"10\" rx=\"2\"/><text x=\"840\" y=\"{y}\">{}</text>",
            y - 9.0,
            escape(&shortened(&variant.name, 36))
        );
    }
    if let Some(sent) = variants.iter().flat_map(full_rate).next() {
        let x = frame.x(share(sent.deadline_us));
        let _ = write!(svg, "<line class=\"promise\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>", frame.top);
    }
    svg += "</svg></figure>";
    svg
}

fn steps(frame: &Frame, variant: &Variant) -> String {
    let mut latencies: Vec<u64> = full_rate(variant).filter(|sent| sent.end == End::Answered).map(Sent::latency_us).collect();
    latencies.sort_unstable();
    let all = full_rate(variant).count().max(1) as f64;
    let bottom = frame.top + frame.height;
    let mut path = format!("M{:.1} {bottom:.1}", frame.left);
    for (position, latency) in latencies.iter().enumerate() {
        let y = bottom - frame.height * (position + 1) as f64 / all;
        let _ = write!(path, "H{:.1}V{y:.1}", frame.x(share(*latency)));
    }
    let _ = write!(path, "H{:.1}", frame.left + frame.width);
    path
}

/// Events as they were, and per variant when the full rate was on and what was detected.
pub(super) fn timeline(variants: &[Variant], truth: Option<&Truth>) -> String {
    let pictures = variants.iter().map(|variant| variant.run.pictures).max().unwrap_or(1).max(1) as f64;
    let fps = f64::from(variants.first().map_or(1, |variant| variant.run.fps.max(1)));
    let frame = Frame { left: 230.0, top: 6.0, width: 800.0, height: 34.0 * (variants.len() + 1) as f64 };
    let bottom = frame.top + frame.height;
    let at = |index: u64| frame.x(index as f64 / pictures);
    let mut svg = format!("<figure><svg viewBox=\"0 0 1040 {}\" role=\"img\">", bottom + 26.0);
    let seconds = pictures / fps;
    let step = if 60.0 < seconds { 10.0 } else { 5.0 };
    for tick in 0..=120_u32 {
        let second = f64::from(tick) * step;
        if seconds < second {
            break;
        }
        let x = frame.x(second / seconds);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
            frame.top,
            bottom + 18.0
        );
    }
    let label = |svg: &mut String, row: f64, text: &str| {
        let _ = write!(svg, "<text x=\"0\" y=\"{:.1}\">{}</text>", row + 20.0, escape(text));
    };
    label(&mut svg, frame.top, if truth.is_some() { "as it was" } else { "as it was: unknown" });
    for event in truth.iter().flat_map(|truth| &truth.events) {
        svg += &bar("truth", (at(event.begin), at(event.end)), frame.top, kind_name(event.kind));
    }
    for (number, variant) in variants.iter().enumerate() {
        let row = frame.top + 34.0 * (number + 1) as f64;
        label(&mut svg, row, &shortened(&variant.name, 38));
        for (from, to) in &variant.run.summary.open {
            svg += &bar(&format!("open v{}", number % 3), (at(*from), at(*to)), row, "");
        }
        for detected in &variant.run.summary.detected {
            let name = finding_name(detected.finding);
            svg += &bar(&format!("bar v{}", number % 3), (at(detected.first), at(detected.last + 1)), row, "");
            let after = variant.run.summary.open.iter().find(|(_, to)| detected.last < *to).map_or(detected.last, |(_, to)| *to);
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{name}</text>", at(after) + 6.0, row + 20.0);
        }
    }
    svg += "</svg></figure><p class=\"note\">Pale: every picture went to the detector. Full: it reported something.</p>";
    svg
}

fn bar(class: &str, (from, to): (f64, f64), row: f64, text: &str) -> String {
    let width = (to - from).max(1.5);
    format!(
        "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"22\" rx=\"3\"><title>{text}</title></rect>\
         <text x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
        row + 4.0,
        to + 6.0,
        row + 20.0
    )
}

/// The start plots of all variants side by side, with colours of their own.
pub(super) fn poster(report: &Report<'_>) -> String {
    let variants = report.variants;
    let width = 360.0 * variants.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} 290\" width=\"{width}\" height=\"290\"><style>\
         text{{font:11px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#5d6871}}.title{{font-size:14px;font-weight:600;fill:#1c2126}}\
         .axis{{stroke:#d9dee2}}.promise{{stroke:#8a5a00;stroke-width:1.4;stroke-dasharray:5 4}}.promise-text{{fill:#8a5a00;stroke:#fbfbf9;stroke-width:3px;paint-order:stroke}}\
         .dot{{fill-opacity:.7}}.dot.v1{{fill:#1d8a5f}}.dot.late{{fill:#c2502a}}.ring{{fill:none;stroke-width:1.2}}.ring.v0{{stroke:#1f6fb2}}.ring.late{{stroke:#c2502a}}</style><rect width=\"{width}\" height=\"290\" fill=\"#fbfbf9\"/>"
    );
    for (number, variant) in variants.iter().enumerate() {
        let left = 360.0 * number as f64;
        let frame = Frame { left: left + 58.0, top: 54.0, width: 286.0, height: 200.0 };
        let score = &variant.score;
        let looks: Vec<&Sent> = variant.run.sent.iter().filter(|sent| sent.role == Role::Watch).collect();
        let _ = write!(
            svg,
            "<text class=\"title\" x=\"{0}\" y=\"24\">{1}</text><text x=\"{0}\" y=\"41\">on time: {2} of {3} full-rate pictures, {4} of {5} looks</text>",
            frame.left,
            escape(&capital(&shortened(&variant.name, 40))),
            score.on_time,
            score.full_rate,
            looks.iter().filter(|sent| sent.is_on_time()).count(),
            looks.len()
        );
        svg += &start_plot(&frame, variant, report);
    }
    svg += "</svg>";
    svg
}

fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}

/// What the detector calls something, for people.
pub(super) fn finding_name(finding: Finding) -> &'static str {
    match finding {
        Finding::StoppedVehicle => "stopped vehicle",
        Finding::SlowVehicle => "slow vehicle",
        Finding::Person => "person",
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::StoppedVehicle => "a vehicle stops",
        Kind::SlowVehicle => "a vehicle crawls",
        Kind::Pedestrian => "somebody walks",
        Kind::Cyclist => "somebody cycles",
    }
}
