//! The commands that touch the system.

use super::args::Command;
use super::values::LogLevel;

/// Runs a command.
///
/// # Errors
/// A `SpecError` when the specification is at fault; anything else is the system's.
pub(super) fn dispatch(command: Command, _log_level: LogLevel) -> anyhow::Result<()> {
    anyhow::bail!("{command}: not built yet")
}
