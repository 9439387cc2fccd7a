//! `validate`: every problem of every file.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::args::{Validate, ValidateFormat};
use super::{BAD_SPEC, output};
use crate::spec::{self, Diagnostic, Loaded, ReadError, Style, summary};

/// The name that stands for standard input.
const STDIN: &str = "-";

/// What was found, for programs.
#[derive(Serialize)]
struct Findings<'a> {
    valid: bool,
    /// `NAMESPACE/NAME` of each router, with or without errors.
    routers: Vec<String>,
    diagnostics: &'a [Diagnostic],
    /// Files that could not be read at all.
    unreadable: &'a [String],
}

/// Checks the files and prints what is wrong with them; fails when anything is.
pub(super) fn run(args: &Validate) -> anyhow::Result<ExitCode> {
    let mut diagnostics = Vec::new();
    let mut unreadable = Vec::new();
    let mut routers = Vec::new();
    for file in &args.files {
        match load(file) {
            Ok(mut loaded) => {
                routers.extend(loaded.routers.iter().map(|router| format!("{}/{}", router.namespace, router.name)));
                diagnostics.append(&mut loaded.diagnostics);
            }
            Err(error) => unreadable.push(format!("{:#}", anyhow::Error::new(error))),
        }
    }
    let valid = unreadable.is_empty() && !diagnostics.iter().any(Diagnostic::is_error);
    match args.output {
        ValidateFormat::Json => {
            let findings = Findings { valid, routers, diagnostics: &diagnostics, unreadable: &unreadable };
            output::value(&findings, output::Format::Json)?;
        }
        ValidateFormat::Text | ValidateFormat::Short => {
            output::text(&report(args, &diagnostics, &unreadable, routers.len()))?;
        }
    }
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::from(BAD_SPEC) })
}

fn load(file: &Path) -> Result<Loaded, ReadError> {
    if file == Path::new(STDIN) {
        return spec::load_reader(Path::new("<stdin>"), std::io::stdin().lock());
    }
    spec::load(file)
}

fn report(args: &Validate, diagnostics: &[Diagnostic], unreadable: &[String], routers: usize) -> String {
    let style = super::style(std::io::stdout().is_terminal());
    let mut text = String::new();
    for diagnostic in diagnostics {
        text.push_str(&show(diagnostic, args.output, style));
    }
    for error in unreadable {
        text.push_str(&format!("error: {error}\n"));
    }
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let unread = match unreadable.len() {
        0 => String::new(),
        count => format!(", {} not readable", plural(count, "file")),
    };
    let (files, routers) = (plural(args.files.len(), "file"), plural(routers, "router"));
    text.push_str(&format!("{files}, {routers}: {}{unread}\n", summary(diagnostics)));
    text
}

fn show(diagnostic: &Diagnostic, format: ValidateFormat, style: Style) -> String {
    match format {
        ValidateFormat::Text => diagnostic.render(style) + "\n",
        ValidateFormat::Short | ValidateFormat::Json => format!("{diagnostic}\n"),
    }
}
