//! How things are printed: tables for people, JSON for programs, colour only on a terminal.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// For whom standard output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Human,
    Json,
}

/// Prints an error: a sentence with its causes, and with `--json` also `{"error": {"message", "causes"}}`.
pub fn error(format: Format, error: &anyhow::Error) {
    match format {
        Format::Human => {
            let (red, plain) = if colour_on_stderr() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            eprintln!("{red}error:{plain} {error:#}");
        }
        Format::Json => {
            let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
            println!("{}", serde_json::json!({ "error": { "message": error.to_string(), "causes": causes } }));
        }
    }
}

/// A line on the terminal that says what is being waited for; shown once that takes longer than a second.
///
/// Silent with `--json` and where standard error is no terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A wait of unknown length.
    #[must_use]
    pub fn start(format: Format, message: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(format));
        bar.set_message(message);
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    /// `length` things to be done, with a bar.
    #[must_use]
    pub fn counting(format: Format, length: u64, message: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(length), target(format));
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(message);
        Self { bar }
    }

    /// One more thing is done.
    pub fn advance(&self) {
        self.bar.inc(1);
    }

    /// So many things are done.
    pub fn reach(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// The next thing is waited for.
    pub fn step(&self, message: &'static str) {
        self.bar.set_message(message);
    }

    /// The wait is over; the line goes away.
    pub fn end(self) {
        self.bar.finish_and_clear();
    }
}

/// The first look at a spinner comes after this.
const TICK: Duration = Duration::from_secs(1);
const DRAWS_PER_SECOND: u8 = 8;

fn target(format: Format) -> ProgressDrawTarget {
    match format {
        Format::Human => ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND),
        Format::Json => ProgressDrawTarget::hidden(),
    }
}

/// Prints a JSON document.
pub fn json(value: &serde_json::Value) {
    println!("{value:#}");
}

/// Whether colours may be written to standard error (the convention of <https://no-color.org> is kept).
#[must_use]
pub fn colour_on_stderr() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Rows under their headings, columns as wide as they need to be.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(column, heading)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([heading.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| heading.to_uppercase()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing into a string does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Named values, one a line, the values in one column.
#[must_use]
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in facts {
        // Writing into a string does not fail.
        let _ = writeln!(text, "  {name:<width$}  {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["detect".to_owned(), "30/s".to_owned()], vec!["a".to_owned(), "5/min".to_owned()]];
        assert_eq!(table(&["name", "rate"], &rows), "NAME    RATE\ndetect  30/s\na       5/min\n");
    }
}
