//! The command line: arguments, the commands, and how results and errors are shown.
//!
//! Only [`output`] writes to standard output. Errors are printed once, here, and decide the exit code.

pub mod args;
mod commands;
mod completions;
#[cfg(test)]
mod deployed;
mod flows;
mod import;
mod live;
mod log;
mod man;
pub mod output;
mod rows;
pub mod serve;
mod top;
mod trace;
mod validate;
pub mod values;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, Command};
use crate::compile::SpecError;
use crate::spec::{ReadError, Style};

/// A specification is wrong.
const BAD_SPEC: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// The system refused, or is not as it has to be.
const SYSTEM: u8 = 3;

/// Parses the command line, does what it says and reports how that went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" without a fault. There is nowhere to report that printing them failed.
            let _unprinted = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Validate(args) => validate::run(&args),
        Command::ImportLegacy(args) => import::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Crd(args) => serve::crd(&args),
        Command::Completions(args) => completions::run(args.shell),
        command => commands::dispatch(command, cli.log_level).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| report(&error))
}

/// Prints an error and tells whose fault it was.
fn report(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<SpecError>() {
        Some(spec) => {
            eprint!("{}", spec.render(style(std::io::stderr().is_terminal())));
            let unread = matches!(spec, SpecError::Read(ReadError::Io { .. }));
            ExitCode::from(if unread { SYSTEM } else { BAD_SPEC })
        }
        None => {
            eprintln!("egress-router: {error:#}");
            ExitCode::from(SYSTEM)
        }
    }
}

/// Colours for a person at a terminal who has not declined them (<https://no-color.org>).
fn style(terminal: bool) -> Style {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if terminal && !declined { Style::Color } else { Style::Plain }
}
