//! What is wrong with a specification, where, and what to do about it.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceSpan};
use serde::Serialize;

use super::path::FieldPath;
use super::source::{Source, Span};

/// Columns that a rendered report may take.
const WIDTH: usize = 100;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Can be applied, but does not do what it seems to say.
    Warning,
    /// Cannot be applied.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// A problem with a field, before its place in a text is known (an object from an API server has no text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The field, from the object's root.
    pub field: FieldPath,
    /// What is wrong, with the offending value.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Another field that has to do with it, and how.
    pub related: Option<(FieldPath, &'static str)>,
}

impl Problem {
    pub(super) fn error(field: FieldPath, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, field, message: message.into(), help: None, related: None }
    }

    pub(super) fn warning(field: FieldPath, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(field, message) }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn related(mut self, field: FieldPath, what: &'static str) -> Self {
        self.related = Some((field, what));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        write_fault(f, &self.field, &self.message, self.help.as_deref())
    }
}

/// A problem with its place in the text.
///
/// Displays as one line: `file:line:column: error: field: message; what to do`.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// File, as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Path of the field from the document's root; empty for a fault of the text itself.
    pub field: String,
    /// What is wrong, with the offending value.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Another place that has to do with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub related: Option<Related>,
    #[serde(skip)]
    span: Span,
    #[serde(skip)]
    source: Arc<Source>,
}

/// A second place that explains a diagnostic.
#[derive(Clone, Debug, Serialize)]
pub struct Related {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is there.
    pub message: &'static str,
    #[serde(skip)]
    span: Span,
}

/// Whether a rendered report uses terminal colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    Plain,
    /// ANSI colours.
    Color,
}

impl Diagnostic {
    /// Places `problem` at `span`, and what it relates to at the given other span.
    pub(super) fn new(source: &Arc<Source>, problem: Problem, span: &Span, related: Option<Span>) -> Self {
        let span = source.first_line(span);
        let (line, column) = source.position(span.start);
        let related = problem.related.zip(related).map(|((_, message), span)| {
            let span = source.first_line(&span);
            let (line, column) = source.position(span.start);
            Related { line, column, message, span }
        });
        Self {
            severity: problem.severity,
            file: source.name().to_owned(),
            line,
            column,
            field: problem.field.to_string(),
            message: problem.message,
            help: problem.help,
            related,
            span,
            source: Arc::clone(source),
        }
    }

    /// Whether this keeps the specification from being applied.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The offending text, on one line.
    pub fn offending(&self) -> &str {
        self.source.text().get(self.span.clone()).unwrap_or_default()
    }

    /// The report with the offending text underlined, over several lines.
    pub fn render(&self, style: Style) -> String {
        let theme = match style {
            Style::Plain => GraphicalTheme::unicode_nocolor(),
            Style::Color => GraphicalTheme::unicode(),
        };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(WIDTH).with_links(false);
        let mut out = String::new();
        match handler.render_report(&mut out, &Report(self)) {
            Ok(()) => out,
            // Only a Display that fails gets here, and ours does not; the one-line form has everything but the picture.
            Err(fmt::Error) => format!("{self}\n"),
        }
    }

    /// Start of the offending text, to sort by.
    pub(super) fn offset(&self) -> usize {
        self.span.start
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}: ", self.file, self.line, self.column, self.severity)?;
        write_fault(f, &self.field, &self.message, self.help.as_deref())
    }
}

/// `field: message; help`, without the parts that are empty.
fn write_fault(f: &mut fmt::Formatter<'_>, field: &dyn fmt::Display, message: &str, help: Option<&str>) -> fmt::Result {
    let mut name = String::new();
    write!(name, "{field}")?;
    if !name.is_empty() {
        write!(f, "{name}: ")?;
    }
    f.write_str(message)?;
    help.map_or(Ok(()), |help| write!(f, "; {help}"))
}

/// How many errors and warnings there are, in words.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    let warnings = diagnostics.len() - errors;
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}", count(errors, "error"), count(warnings, "warning"))
}

/// A diagnostic as miette sees it.
#[derive(Debug)]
struct Report<'a>(&'a Diagnostic);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_fault(f, &self.0.field, &self.0.message, None)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(self.0.source.as_ref())
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let here = |span: &Span| SourceSpan::new(span.start.into(), span.len());
        let primary = LabeledSpan::new_primary_with_span(Some("here".to_owned()), here(&self.0.span));
        let related = self.0.related.as_ref();
        let related = related.map(|it| LabeledSpan::new_with_span(Some(it.message.to_owned()), here(&it.span)));
        Some(Box::new(std::iter::once(primary).chain(related)))
    }
}
