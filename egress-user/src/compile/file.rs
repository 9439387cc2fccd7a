//! The agent's way in: one router of one file.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Desired, RouterName, compile};
use crate::spec::{self, Diagnostic, KIND, ReadError, Style, summary};

/// Why there is no desired state to be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file has errors; displays every diagnostic, one a line.
    #[error("check {}: {}{}", file.display(), summary(diagnostics), Lines(diagnostics))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// All problems, at least one of them an error.
        diagnostics: Vec<Diagnostic>,
    },
    /// The file has no router at all, or none of the wanted name.
    #[error("find router {wanted} in {}: it has {}", file.display(), Names(found))]
    NotFound {
        /// The file.
        file: PathBuf,
        /// The name that was asked for.
        wanted: String,
        /// The routers that the file has.
        found: Vec<RouterName>,
    },
    /// Several routers of the file could be meant.
    #[error("choose a router of {}: it has {}; name one with --router NAMESPACE/NAME", file.display(), Names(found))]
    Ambiguous {
        /// The file.
        file: PathBuf,
        /// The routers that could be meant.
        found: Vec<RouterName>,
    },
}

impl SpecError {
    /// The whole report for a person: with the offending text underlined, where there is one.
    pub fn render(&self, style: Style) -> String {
        match self {
            Self::Invalid { file, diagnostics } => {
                let reports: String = diagnostics.iter().map(|diagnostic| diagnostic.render(style)).collect();
                format!("{reports}\ncheck {}: {}\n", file.display(), summary(diagnostics))
            }
            Self::Read(_) | Self::NotFound { .. } | Self::Ambiguous { .. } => {
                let mut text = self.to_string();
                let mut cause = std::error::Error::source(self);
                while let Some(error) = cause {
                    text.push_str(&format!(": {error}"));
                    cause = error.source();
                }
                text.push('\n');
                text
            }
        }
    }
}

/// The desired state of the only router in a file, or of the one that `router` names (`NAME` or `NAMESPACE/NAME`), and
/// the warnings about the file.
///
/// A file with an error anywhere is refused as a whole: half of an edit is never applied.
///
/// # Errors
/// [`SpecError`]; every variant is the user's to put right.
pub fn desired_from_file(path: &Path, router: Option<&str>) -> Result<(Desired, Vec<Diagnostic>), SpecError> {
    let loaded = spec::load(path)?;
    let file = path.to_owned();
    if loaded.has_errors() {
        return Err(SpecError::Invalid { file, diagnostics: loaded.diagnostics });
    }
    let all: Vec<Desired> = loaded.routers.iter().filter_map(|router| router.valid.as_ref()).map(compile).collect();
    let names = |routers: &[Desired]| routers.iter().map(|desired| desired.router.clone()).collect();
    let found = names(&all);
    let mut wanted: Vec<Desired> = match router {
        Some(name) => all.into_iter().filter(|desired| is_named(&desired.router, name)).collect(),
        None => all,
    };
    match (wanted.pop(), wanted.len()) {
        (Some(desired), 0) => Ok((desired, loaded.diagnostics)),
        (Some(last), _) => {
            wanted.push(last);
            Err(SpecError::Ambiguous { file, found: names(&wanted) })
        }
        (None, _) => Err(SpecError::NotFound { file, wanted: router.unwrap_or("of any name").to_owned(), found }),
    }
}

fn is_named(router: &RouterName, name: &str) -> bool {
    match name.split_once('/') {
        Some((namespace, name)) => router.namespace == namespace && router.name == name,
        None => router.name == name,
    }
}

/// Diagnostics, each on a line of its own.
struct Lines<'a>(&'a [Diagnostic]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|diagnostic| write!(f, "\n  {diagnostic}"))
    }
}

/// Names of routers, separated by commas.
struct Names<'a>(&'a [RouterName]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "no {KIND}");
        }
        let names: Vec<_> = self.0.iter().map(RouterName::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn router(namespace: &str, name: &str) -> String {
        format!(
            "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{redirect: {{fallbackIP: 203.0.113.1}}, addresses: [{{ip: 192.0.2.9/24}}]}}\n"
        )
    }

    #[test]
    fn the_only_router() {
        let file = file(&router("a", "x"));
        let (desired, warnings) = desired_from_file(file.path(), None).unwrap();
        assert_eq!(desired.router.to_string(), "a/x");
        assert!(warnings.is_empty());
    }

    #[test]
    fn one_of_several() {
        let file = file(&[router("a", "x"), router("b", "x"), router("b", "y")].join("---\n"));
        let pick = |name| desired_from_file(file.path(), name).map(|(desired, _)| desired.router.to_string());
        assert_eq!(pick(Some("b/x")).unwrap(), "b/x");
        assert_eq!(pick(Some("y")).unwrap(), "b/y");
        let error = pick(Some("x")).unwrap_err();
        assert!(matches!(&error, SpecError::Ambiguous { found, .. } if found.len() == 2), "{error}");
        let error = pick(None).unwrap_err().to_string();
        assert!(error.ends_with("it has a/x, b/x, b/y; name one with --router NAMESPACE/NAME"), "{error}");
        let error = pick(Some("z")).unwrap_err().to_string();
        assert!(error.starts_with("find router z in ") && error.ends_with("it has a/x, b/x, b/y"), "{error}");
    }

    #[test]
    fn errors_show_every_diagnostic() {
        let file = file(&router("a", "x").replace("203.0.113.1", "10.0.0.1/32").replace("192.0.2.9/24", "192.0.2.9"));
        let error = desired_from_file(file.path(), None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(": 2 errors, 0 warnings\n"), "{text}");
        assert!(text.contains(":4:31: error: spec.redirect.fallbackIP: "), "{text}");
        assert!(text.contains(":4:62: error: spec.addresses[0].ip: "), "{text}");
        assert!(error.render(Style::Plain).contains("drop the mask"));
    }

    #[test]
    fn a_missing_file() {
        let error = desired_from_file(Path::new("/nonexistent/spec.yaml"), None).unwrap_err();
        assert!(matches!(error, SpecError::Read(ReadError::Io { .. })));
        assert_eq!(error.to_string(), "read /nonexistent/spec.yaml");
        assert!(error.render(Style::Plain).starts_with("read /nonexistent/spec.yaml: No such file"));
    }

    #[test]
    fn an_error_in_one_router_refuses_the_file() {
        let file = file(&[router("a", "x"), router("b", "y").replace("192.0.2.9/24", "x")].join("---\n"));
        assert!(matches!(desired_from_file(file.path(), Some("x")), Err(SpecError::Invalid { .. })));
    }
}
