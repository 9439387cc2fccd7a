//! Where the problems of a text are collected.

use std::sync::Arc;

use super::diagnostic::{Diagnostic, Problem, Severity};
use super::path::FieldPath;
use super::source::{Source, Span};

/// Problems of one text that are kept; of the rest only the number, so that a large broken file cannot fill the memory.
pub(super) const MAX_KEPT: usize = 10_000;

/// Collects problems.
#[derive(Debug)]
pub(super) struct Sink<'s> {
    source: &'s Arc<Source>,
    kept: Vec<Diagnostic>,
    hidden: usize,
    errors: usize,
}

impl<'s> Sink<'s> {
    pub(super) fn new(source: &'s Arc<Source>) -> Self {
        Self { source, kept: Vec::new(), hidden: 0, errors: 0 }
    }

    pub(super) fn source(&self) -> &'s Arc<Source> {
        self.source
    }

    /// Number of errors so far.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Takes a problem in, at `span`; `related` is the place of what it relates to.
    pub(super) fn report(&mut self, problem: Problem, span: &Span, related: Option<Span>) {
        self.errors += usize::from(problem.severity == Severity::Error);
        if self.kept.len() < MAX_KEPT {
            self.kept.push(Diagnostic::new(self.source, problem, span, related));
        } else {
            self.hidden += 1;
        }
    }

    /// All that was kept, in the order of the text, and last how many were not.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.kept.sort_by_key(Diagnostic::offset);
        if self.hidden > 0 {
            let message = format!("{} more problems are not shown", self.hidden);
            let problem = match self.errors {
                0 => Problem::warning(FieldPath::root(), message),
                _ => Problem::error(FieldPath::root(), message),
            };
            let end = self.source.text().len();
            let problem = problem.help("put right those that are, then look again");
            self.kept.push(Diagnostic::new(self.source, problem, &(end..end), None));
        }
        self.kept
    }
}
