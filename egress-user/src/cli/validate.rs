//! `validate`: every problem of every file.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::args::{Validate, ValidateFormat};
use super::{BAD_SPEC, SYSTEM, output};
use crate::spec::{self, Diagnostic, Loaded, ReadError, summary};

/// The name that stands for standard input.
const STDIN: &str = "-";

/// What was found, for programs.
#[derive(Serialize)]
struct Findings<'a> {
    valid: bool,
    routers: &'a [String],
    diagnostics: &'a [Diagnostic],
    unreadable: &'a [String],
}

/// What the files hold.
#[derive(Default)]
struct Read {
    files: usize,
    /// `NAMESPACE/NAME` of each router, with or without errors.
    routers: Vec<String>,
    diagnostics: Vec<Diagnostic>,
    /// Why some files could not be read.
    unreadable: Vec<String>,
}

/// Checks the files and prints what is wrong with them; fails when anything is.
pub(super) fn run(args: &Validate) -> anyhow::Result<ExitCode> {
    let read = Read::new(&args.files);
    match args.output {
        ValidateFormat::Json => output::value(&read.findings(), output::Format::Json)?,
        ValidateFormat::Text => {
            let style = super::style(std::io::stdout().is_terminal());
            output::text(&read.report(|diagnostic| diagnostic.render(style) + "\n"))?;
        }
        ValidateFormat::Short => output::text(&read.report(|diagnostic| format!("{diagnostic}\n")))?,
    }
    Ok(read.exit_code())
}

impl Read {
    fn new(files: &[PathBuf]) -> Self {
        let mut read = Self { files: files.len(), ..Self::default() };
        for file in files {
            match load(file) {
                Ok(mut loaded) => {
                    let names = loaded.routers.iter().map(|router| format!("{}/{}", router.namespace, router.name));
                    read.routers.extend(names);
                    read.diagnostics.append(&mut loaded.diagnostics);
                }
                Err(error) => read.unreadable.push(format!("{:#}", anyhow::Error::new(error))),
            }
        }
        read
    }

    fn exit_code(&self) -> ExitCode {
        if !self.unreadable.is_empty() {
            return ExitCode::from(SYSTEM);
        }
        if self.diagnostics.iter().any(Diagnostic::is_error) {
            return ExitCode::from(BAD_SPEC);
        }
        ExitCode::SUCCESS
    }

    fn findings(&self) -> Findings<'_> {
        Findings {
            valid: self.exit_code() == ExitCode::SUCCESS,
            routers: &self.routers,
            diagnostics: &self.diagnostics,
            unreadable: &self.unreadable,
        }
    }

    /// Every problem as `show` has it, and a last line that sums up.
    fn report(&self, show: impl Fn(&Diagnostic) -> String) -> String {
        let mut text: String = self.diagnostics.iter().map(show).collect();
        for error in &self.unreadable {
            text.push_str(&format!("error: {error}\n"));
        }
        let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let unread = match self.unreadable.len() {
            0 => String::new(),
            count => format!(", {} not readable", plural(count, "file")),
        };
        let (files, routers) = (plural(self.files, "file"), plural(self.routers.len(), "router"));
        text + &format!("{files}, {routers}: {}{unread}\n", summary(&self.diagnostics))
    }
}

fn load(file: &Path) -> Result<Loaded, ReadError> {
    if file == Path::new(STDIN) {
        return spec::load_reader(Path::new("<stdin>"), std::io::stdin().lock());
    }
    spec::load(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata: {name: r}\n\
                         spec: {redirect: {fallbackIP: 10.0.0.2}, addresses: [{ip: 10.0.0.1/8}]}\n";

    fn read(texts: &[&str]) -> Read {
        let directory = tempfile::tempdir().unwrap();
        let file = |(index, text): (usize, &&str)| {
            let path = directory.path().join(index.to_string());
            std::fs::write(&path, text).unwrap();
            path
        };
        Read::new(&texts.iter().enumerate().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn sound_files() {
        let read = read(&[SOUND, SOUND]);
        assert_eq!(read.report(ToString::to_string), "2 files, 2 routers: 0 errors, 0 warnings\n");
        assert_eq!(read.exit_code(), ExitCode::SUCCESS);
        let json = serde_json::to_value(read.findings()).unwrap();
        let expected = serde_json::json!({
            "valid": true, "routers": ["default/r", "default/r"], "diagnostics": [], "unreadable": [],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn warnings_are_no_failure() {
        let read = read(&[&SOUND.replace("redirect:", "replicas: 2, redirect:")]);
        assert!(read.report(ToString::to_string).ends_with("1 file, 1 router: 0 errors, 1 warning\n"));
        assert_eq!(read.exit_code(), ExitCode::SUCCESS);
    }

    #[test]
    fn every_problem_of_every_file() {
        let read = read(&[&SOUND.replace("10.0.0.2", "10.0.0.2/32"), SOUND, &SOUND.replace("10.0.0.1/8", "10.0.0.1")]);
        let report = read.report(|diagnostic| format!("{diagnostic}\n"));
        assert_eq!(report.lines().count(), 3, "{report}");
        assert!(report.ends_with("3 files, 3 routers: 2 errors, 0 warnings\n"), "{report}");
        assert_eq!(read.exit_code(), ExitCode::from(BAD_SPEC));
        let json = serde_json::to_value(read.findings()).unwrap();
        assert_eq!(json["valid"], false);
        let first = &json["diagnostics"][0];
        assert_eq!((&first["line"], &first["column"]), (&4.into(), &31.into()));
        assert_eq!((&first["severity"], &first["field"]), (&"error".into(), &"spec.redirect.fallbackIP".into()));
        assert_eq!(first["help"], "drop the mask: 10.0.0.2");
    }

    #[test]
    fn a_missing_file_is_the_systems_fault() {
        let read = Read::new(&[PathBuf::from("/nonexistent/a.yaml")]);
        let report = read.report(ToString::to_string);
        assert!(report.starts_with("error: read /nonexistent/a.yaml: No such file or directory"), "{report}");
        assert!(report.ends_with("1 file, 0 routers: 0 errors, 0 warnings, 1 file not readable\n"), "{report}");
        assert_eq!(read.exit_code(), ExitCode::from(SYSTEM));
    }
}
