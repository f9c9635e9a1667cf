//! One frame as a picture of characters.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget};

use super::frame::{Core, Frame, Function, Standing};

const GAUGE_WIDTH: u64 = 20;
const HEADINGS: [&str; 8] =
    ["NAME", "CLASS", "RATE / PROMISED", "START P99 / BOUND", "VIOLATED", "LATE", "BUSY/WARM/K", "WAITING"];
const WIDTHS: [Constraint; 8] = [
    Constraint::Min(16),
    Constraint::Length(11),
    Constraint::Length(17),
    Constraint::Length(19),
    Constraint::Length(8),
    Constraint::Length(6),
    Constraint::Length(11),
    Constraint::Length(7),
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
    let area = Rect::new(0, 0, width, u16::try_from(lines).unwrap_or(u16::MAX));
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
    let tolerance = frame.tolerance_us.map_or_else(|| "-".to_owned(), duration);
    let mut lines = vec![Line::from(format!("takt {}  {title}  level {}  T {tolerance}", frame.version, frame.level))];
    for (index, core) in frame.cores.iter().enumerate() {
        lines.push(Line::from(format!("core {index:<2} {}", gauge(*core))));
    }
    let memory = match (frame.memory_used_mib, frame.memory_limit_mib) {
        (Some(used), Some(limit)) => format!("memory {used} of {limit} MB promised   "),
        (_, _) => String::new(),
    };
    let best_effort = match (frame.best_effort_waiting, frame.best_effort_running) {
        (Some(waiting), Some(running)) => format!("best effort: {waiting} waiting, {running} running"),
        (_, _) => String::new(),
    };
    if !memory.is_empty() || !best_effort.is_empty() {
        lines.push(Line::from(format!("{memory}{best_effort}")));
    }
    lines
}

fn gauge(core: Core) -> String {
    let full = core.limit_nanocores.max(1);
    let filled = (core.used_nanocores.min(full) * GAUGE_WIDTH).div_ceil(full);
    let bar: String = (0..GAUGE_WIDTH).map(|at| if at < filled { '█' } else { '░' }).collect();
    let percent = |nanocores: u64| nanocores / 10_000_000;
    format!("{bar} {:>3} % of {} % promised", percent(core.used_nanocores), percent(core.limit_nanocores))
}

fn row(function: &Function) -> Row<'_> {
    let (class, colour) = match function.standing {
        Standing::Guaranteed => ("guaranteed", Color::Green),
        Standing::BestEffort => ("best-effort", Color::Reset),
        Standing::Suspended => ("suspended", Color::Red),
    };
    let rate = function.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
    let delay = function.start_delay_p99_us.map_or_else(|| "-".to_owned(), duration);
    let bound = function.start_bound_us.map_or_else(|| "-".to_owned(), duration);
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let bad = |count: u64| {
        let style = if count == 0 { Style::new() } else { Style::new().fg(Color::Red).add_modifier(Modifier::BOLD) };
        Cell::from(Span::styled(count.to_string(), style))
    };
    Row::new([
        Cell::from(function.name.as_str()),
        Cell::from(Span::styled(class, Style::new().fg(colour))),
        Cell::from(format!("{rate} / {}", function.promised_rate.as_deref().unwrap_or("-"))),
        Cell::from(format!("{delay} / {bound}")),
        bad(function.violations),
        bad(function.deadline_misses),
        Cell::from(format!("{}/{}/{}", number(function.busy), number(function.warm), number(function.instances))),
        Cell::from(number(function.waiting)),
    ])
}

fn duration(us: u64) -> String {
    crate::load::duration(us)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn functions(arrivals: u64) -> serde_json::Value {
        json!({ "functions": [{
            "name": "detect", "standing": "guaranteed", "guarantee": { "rate": "30/s", "start_within": "80ms", "instances": 4 },
            "counters": { "arrivals": arrivals, "start_violations": 1, "deadline_misses": 0, "start_delay_p99_us": 900 },
            "instances": { "busy": 1, "idle": 3 }, "waiting": 0,
        }] })
    }

    #[test]
    fn a_frame_shows_the_rate_now_beside_the_promise() {
        let node = json!({ "version": "0.1.0", "level": "hard", "tolerance": "400us",
            "remaining": { "cores": [{ "used_nanocores": 425_000_000, "limit_nanocores": 850_000_000 }] } });
        let first = Frame::read(&node, &functions(100), None);
        assert!(first.functions[0].rate.is_none());
        let second = Frame::read(&node, &functions(160), Some((&first, Duration::from_secs(2))));
        let text = text(&second, "http://node", 110);
        assert_eq!(
            text,
            "takt 0.1.0  http://node  level hard  T 400us\n\
             core 0  ██████████░░░░░░░░░░  42 % of 85 % promised\n\
             \n\
             NAME                     CLASS       RATE / PROMISED   START P99 / BOUND   VIOLATED LATE   BUSY/WARM/K WAITING\n\
             detect                   guaranteed  30.0/s / 30/s     900us / 80.00ms     1        0      1/3/4       0\n"
        );
    }

    #[test]
    fn a_node_that_states_little_still_makes_a_frame() {
        let frame = Frame::read(&json!({}), &json!({ "functions": [{ "name": "a" }] }), None);
        assert!(text(&frame, "x", 100).contains("best-effort"));
    }
}
