//! One frame as a picture of characters.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget};

use super::frame::{Frame, Function};

const GAUGE_WIDTH: u64 = 20;
const NANOCORES: u64 = 1_000_000_000;
const HEADINGS: [&str; 8] =
    ["NAME", "STANDING", "RATE / PROMISED", "START WORST / PROMISED", "VIOLATED", "LATE", "EXCESS", "WARM/K"];
const WIDTHS: [Constraint; 8] = [
    Constraint::Min(16),
    Constraint::Length(11),
    Constraint::Length(17),
    Constraint::Length(22),
    Constraint::Length(8),
    Constraint::Length(6),
    Constraint::Length(8),
    Constraint::Length(9),
];

/// Draws a frame into an area.
pub fn draw(frame: &Frame, title: &str, area: Rect, buffer: &mut Buffer) {
    let head = head(frame, title);
    let height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let [top, rest] = Layout::vertical([Constraint::Length(height.saturating_add(1)), Constraint::Min(0)]).areas(area);
    Paragraph::new(head).render(top, buffer);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let rows = frame.functions.iter().map(row);
    Widget::render(Table::new(rows, WIDTHS).header(Row::new(HEADINGS).style(bold)), rest, buffer);
}

/// A frame as text, for pipes: no colours, no space at the ends of lines.
#[must_use]
pub fn text(frame: &Frame, title: &str, width: u16) -> String {
    let lines = head(frame, title).len() + frame.functions.len() + 2;
    // A buffer holds 65,535 cells at most; functions beyond that are in `takt list`.
    let lines = u16::try_from(lines).unwrap_or(u16::MAX).min(u16::MAX / width.max(1));
    let area = Rect::new(0, 0, width, lines);
    let mut buffer = Buffer::empty(area);
    draw(frame, title, area, &mut buffer);
    let mut text = String::new();
    for y in 0..area.height {
        let line: String = (0..area.width).filter_map(|x| buffer.cell((x, y))).map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn head<'a>(frame: &'a Frame, title: &'a str) -> Vec<Line<'a>> {
    let mut lines = vec![
        Line::from(format!("takt {}  {title}  {}, up {}", frame.software, frame.phase, frame.uptime)),
        Line::from(format!("level {}  T {} (largest seen {})", frame.level, frame.tolerance, frame.tolerance_seen)),
    ];
    for (index, left) in frame.cores_left.iter().enumerate() {
        let percent = left / (NANOCORES / 100);
        lines.push(Line::from(format!("core {index:<2} {} {percent:>3} % left for guarantees", gauge(*left))));
    }
    let queues: Vec<String> =
        frame.queues.iter().map(|queue| format!("{} {}/{}", queue.name, queue.length, queue.limit)).collect();
    let left = format!("left: {} MB, {} instances", frame.memory_left_mib, frame.instances_left);
    lines.push(Line::from(if queues.is_empty() { left } else { format!("{left}   waiting: {}", queues.join(", ")) }));
    if !frame.missing.is_empty() {
        lines.push(Line::from(format!("not given here: {}", frame.missing.join(", "))));
    }
    let red = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
    lines.extend(frame.problems.iter().map(|problem| Line::from(Span::styled(problem.as_str(), red))));
    lines
}

/// Filled where it is promised.
fn gauge(left: u64) -> String {
    let empty = left.min(NANOCORES) * GAUGE_WIDTH / NANOCORES;
    (0..GAUGE_WIDTH).map(|at| if at < GAUGE_WIDTH - empty { '█' } else { '░' }).collect()
}

fn row(function: &Function) -> Row<'_> {
    let colour = match function.standing.as_str() {
        "guaranteed" => Color::Green,
        "suspended" | "failed" => Color::Red,
        _ => Color::Reset,
    };
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let bad = |count: u64| {
        let style = if count == 0 { Style::new() } else { Style::new().fg(Color::Red).add_modifier(Modifier::BOLD) };
        Cell::from(Span::styled(count.to_string(), style))
    };
    let rate = function.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
    let pool = if function.instances == 0 { "-".to_owned() } else { format!("{}/{}", function.warm, function.instances) };
    Row::new([
        Cell::from(function.name.as_str()),
        Cell::from(Span::styled(function.standing.as_str(), Style::new().fg(colour))),
        Cell::from(format!("{rate} / {}", or_dash(&function.promised_rate))),
        Cell::from(format!("{} / {}", or_dash(&function.start_at_worst), or_dash(&function.start_within))),
        bad(function.start_violations),
        bad(function.deadline_misses),
        Cell::from(function.excess.to_string()),
        Cell::from(pool),
    ])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::frame::Metrics;
    use super::*;

    fn metrics(arrived: u64) -> Metrics {
        Metrics::read(&format!(
            "# HELP takt_invocations_total Invocations\n\
             takt_invocations_total{{function=\"detect\",generation=\"3\",kind=\"arrived\"}} {arrived}\n\
             takt_invocations_total{{function=\"detect\",generation=\"3\",kind=\"excess\"}} 7\n\
             takt_invocations_total{{function=\"detector\",generation=\"4\",kind=\"excess\"}} 100\n\
             takt_missed_total{{function=\"detect\",generation=\"2\",promise=\"start\"}} 1\n"
        ))
    }

    #[test]
    fn a_frame_shows_the_rate_now_beside_the_promise() {
        let node = json!({ "version": "0.1.0", "phase": "running", "level": "hard", "tolerance": "400us",
            "tolerance_seen": "120us", "uptime": "61500ms",
            "remaining": {
                "cores": [{ "used_nanocores": 425_000_000, "limit_nanocores": 850_000_000 }],
                "memory_bytes": 1_073_741_824, "instances": 90,
            },
            "queues": [{ "name": "control", "length": 0, "limit": 64 }],
            "protections": [{ "name": "Landlock", "missing": { "reason": "the kernel has none" } }, { "name": "TUN devices" }],
            "evidence": { "problem": "the disk is full" } });
        let functions = json!({ "functions": [{ "name": "detect", "standing": "guaranteed", "guarantee": {
            "terms": { "rate": "30/s" }, "start_bound": "11600us", "tolerance": "400us", "start_within": "80ms", "warm": 2, "instances": 4 } }] });
        let first = Frame::read(&node, &functions, &metrics(100), None);
        assert!(first.functions[0].rate.is_none());
        let second = Frame::read(&node, &functions, &metrics(160), Some((&first, Duration::from_secs(2))));
        assert_eq!(
            text(&second, "http://node", 110),
            "takt 0.1.0  http://node  running, up 61s\n\
             level hard  T 400us (largest seen 120us)\n\
             core 0  ████████████░░░░░░░░  42 % left for guarantees\n\
             left: 1024 MB, 90 instances   waiting: control 0/64\n\
             not given here: Landlock\n\
             the disk is full\n\
             \n\
             NAME                   STANDING    RATE / PROMISED   START WORST / PROMISED VIOLATED LATE   EXCESS   WARM/K\n\
             detect                 guaranteed  30.0/s / 30/s     12ms / 80ms            1        0      7        2/4\n"
        );
    }

    #[test]
    fn a_node_that_states_little_still_makes_a_frame() {
        let frame = Frame::read(&json!({}), &json!({ "functions": [{ "name": "a" }] }), &Metrics::default(), None);
        assert!(text(&frame, "x", 100).contains("\na "));
    }

    proptest! {
        #[test]
        fn whatever_a_node_answers_is_drawn(json in "[{}\\[\\]\":,0-9a-z]{0,60}", page in "[a-z{}\",= 0-9\n.]{0,80}", width in 1_u16..200) {
            let value = serde_json::from_str(&json).unwrap_or(serde_json::Value::Null);
            let frame = Frame::read(&value, &value, &Metrics::read(&page), None);
            let _ = text(&frame, "x", width);
        }
    }
}
