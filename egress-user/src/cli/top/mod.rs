//! `top`: the router at work, on a terminal.
//!
//! A look at the tables every so often ([`model`] makes rates of two of them), shown by [`view`]. What is not a terminal gets
//! one picture as text.

mod model;
mod view;

use std::io::{IsTerminal as _, stdout};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

pub(super) use self::model::Look;
use self::model::{Looks, Picture};
use super::{args, output};

/// Size of the picture where no terminal says one.
const SIZE: (u16, u16) = (120, 40);

/// Shows the router until the user has seen enough.
pub(super) fn run(args: &args::Top) -> anyhow::Result<()> {
    let interval = Duration::from_millis(args.interval.into());
    let mut looks = Looks::at(|| super::commands::look(&args.target));
    if args.once || !stdout().is_terminal() {
        looks.again()?;
        std::thread::sleep(interval);
        let picture = looks.again()?;
        return Ok(output::text(&as_text(&picture))?);
    }
    let mut terminal = ratatui::try_init().context("take the terminal over")?;
    let shown = show(&mut terminal, &mut looks, interval);
    ratatui::restore();
    shown
}

fn show<F>(terminal: &mut ratatui::DefaultTerminal, looks: &mut Looks<F>, interval: Duration) -> anyhow::Result<()>
where
    F: FnMut() -> anyhow::Result<model::Look>,
{
    let mut picture = looks.again()?;
    let mut paused = false;
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| view::draw(frame, &picture, paused)).context("draw")?;
        let left = next.saturating_duration_since(Instant::now());
        if event::poll(left).context("wait for a key")?
            && let Event::Key(key) = event::read().context("read a key")?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Char('p' | ' ') => paused = !paused,
                _ => {}
            }
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if !paused {
                picture = looks.again()?;
            }
        }
    }
}

/// The same picture, on a screen that is only memory.
fn as_text(picture: &Picture) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(SIZE.0, SIZE.1));
    let Ok(_drawn) = terminal.draw(|frame| view::draw(frame, picture, false));
    let screen = terminal.backend().buffer();
    let width = usize::from(SIZE.0);
    let symbols: Vec<&str> = screen.content().iter().map(ratatui::buffer::Cell::symbol).collect();
    let mut text = String::new();
    for line in symbols.chunks(width) {
        text.push_str(line.concat().trim_end());
        text.push('\n');
    }
    text
}
