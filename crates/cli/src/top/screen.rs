//! The terminal: draws frames until the user leaves.

use std::time::Duration;

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use super::draw::draw;
use super::frame::Frame;

/// Shows what `look` gives, anew after every `interval`, until `q`, escape or control-C.
///
/// The terminal is put back as it was, also where `look` errors.
pub fn show(title: &str, interval: Duration, mut look: impl FnMut() -> Result<Frame>) -> Result<()> {
    let mut frame = look()?;
    let mut terminal = ratatui::try_init().context("`takt top` draws on a terminal; into a pipe it prints one look")?;
    let shown = loop {
        let drawn = terminal.draw(|screen| draw(&frame, title, screen.area(), screen.buffer_mut()));
        if let Err(error) = drawn {
            break Err(error).context("cannot draw");
        }
        match left_within(interval) {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(error).context("cannot read the keyboard"),
        }
        match look() {
            Ok(next) => frame = next,
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    shown
}

/// Waits for a key that leaves, for `interval` at most.
fn left_within(interval: Duration) -> std::io::Result<bool> {
    if !event::poll(interval)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Ok(matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || (control && key.code == KeyCode::Char('c')))
}
