//! The log on standard error, whose level can be changed while the program runs.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use super::values::LogLevel;

/// The level, and the way to another one.
pub(super) struct Log {
    started_with: LevelFilter,
    level: Handle<LevelFilter, Registry>,
}

impl Log {
    /// Starts it: lines for a person at a terminal, JSON for whatever else reads standard error.
    pub(super) fn start(level: LogLevel) -> Self {
        let started_with = LevelFilter::from_level(level.into());
        let (filter, handle) = reload::Layer::new(started_with);
        let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
        let lines =
            if std::io::stderr().is_terminal() { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Self { started_with, level: handle }
    }

    /// SIGUSR1 makes the log say more, a level a time; SIGUSR2 as much as at the start. For as long as the runtime lives.
    pub(super) async fn follow_signals(self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};

        let mut more = signal(SignalKind::user_defined1())?;
        let mut as_before = signal(SignalKind::user_defined2())?;
        loop {
            let level = tokio::select! {
                _ = more.recv() => next(self.level.with_current(|level| *level).unwrap_or(self.started_with)),
                _ = as_before.recv() => self.started_with,
            };
            if self.level.reload(level).is_ok() {
                tracing::info!(%level, "log level");
            }
        }
    }
}

fn next(level: LevelFilter) -> LevelFilter {
    match level {
        LevelFilter::OFF | LevelFilter::ERROR => LevelFilter::WARN,
        LevelFilter::WARN => LevelFilter::INFO,
        LevelFilter::INFO => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}
