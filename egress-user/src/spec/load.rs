//! From a file to routers and diagnostics.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::check::{self, ValidRouter};
use super::decode::{Decoder, Item};
use super::diagnostic::{Diagnostic, Problem};
use super::document;
use super::draft::Draft;
use super::parse::{self, Document};
use super::path::{At, FieldPath, Step};
use super::source::{Source, Span};
use super::tree::{Node, Value};

/// Largest file that is read: room for every port of every protocol, many times over.
pub const MAX_BYTES: u64 = 64 << 20;

/// A file that could not be read as text.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not text.
    #[error("read {}: not UTF-8 text, from line {line} on; save it as UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first byte that is not text, from 1.
        line: usize,
    },
    /// The file is larger than [`MAX_BYTES`].
    #[error("read {}: more than {} MiB; split the file", path.display(), MAX_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Everything that a text says about routers.
#[derive(Debug)]
pub struct Loaded {
    /// The text.
    pub source: Arc<Source>,
    /// The routers, in order; also those with errors, as far as they have a name.
    pub routers: Vec<LoadedRouter>,
    /// All problems, in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// Whether any problem is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// One router of a text.
#[derive(Debug)]
pub struct LoadedRouter {
    /// `metadata.namespace`, `default` when absent.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Line of its name, from 1.
    pub line: usize,
    /// The router, when there is no error in it.
    pub valid: Option<ValidRouter>,
}

/// Reads a file of YAML or JSON: one or several documents, or a list.
///
/// # Errors
/// When there is no text to be had from the file. Everything that is wrong with the text is in
/// [`Loaded::diagnostics`].
pub fn load(path: &Path) -> Result<Loaded, ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    load_reader(path, file)
}

/// As [`load`](load()), from an open file or standard input; `path` is what diagnostics call it.
///
/// # Errors
/// As [`load`](load()).
pub fn load_reader(path: &Path, reader: impl Read) -> Result<Loaded, ReadError> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    let size = read.map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    if u64::try_from(size).is_ok_and(|size| size > MAX_BYTES) {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
        ReadError::NotUtf8 { path: path.to_owned(), line }
    })?;
    Ok(load_str(&path.display().to_string(), &text))
}

/// As [`load`](load()), from a text; `name` is what diagnostics call it.
pub fn load_str(name: &str, text: &str) -> Loaded {
    let source = Arc::new(Source::new(name, text));
    let parsed = parse::parse(&source);
    let empty = parsed.documents.is_empty() && parsed.sink.is_empty();
    let mut loader = Loader { decoder: Decoder::new(parsed.sink), routers: Vec::new(), seen: HashMap::new() };
    if empty {
        let problem = Problem::error(FieldPath::root(), format!("there is no {} here", super::KIND));
        let help = format!("write one: apiVersion: {}, kind: {}, ...", super::API_VERSION, super::KIND);
        loader.decoder.report(problem.help(help), &(0..0), None);
    }
    for document in &parsed.documents {
        loader.document(document);
    }
    let diagnostics = loader.decoder.finish().finish();
    Loaded { source: Arc::clone(&source), routers: loader.routers, diagnostics }
}

struct Loader<'s> {
    decoder: Decoder<'s>,
    routers: Vec<LoadedRouter>,
    /// Where each name was given first.
    seen: HashMap<(String, String), Span>,
}

impl Loader<'_> {
    fn document(&mut self, document: &Document) {
        let root: &Node = &document.root;
        let item = Item { node: root, mark: root.head(), at: At::Root };
        let Self { decoder, routers, seen } = self;
        document::document(decoder, &item, &mut |decoder, item, draft| {
            let draft = Draft { sound: draft.sound && document.sound, ..draft };
            routers.extend(router(decoder, item, draft, seen));
        });
    }
}

/// Checks one router and reports what it finds.
fn router(
    decoder: &mut Decoder<'_>,
    item: &Item<'_>,
    draft: Draft,
    seen: &mut HashMap<(String, String), Span>,
) -> Option<LoadedRouter> {
    let checked = check::check(&draft);
    for problem in &checked.problems {
        let span = locate(item, &problem.field);
        let related = problem.related.as_ref().map(|(field, _)| locate(item, field));
        let problem = Problem { field: item.at.path().join(&problem.field), ..problem.clone() };
        decoder.report(problem, &span, related);
    }
    let name = draft.name.clone().ok()?;
    let namespace = draft.metadata.namespace.clone().unwrap_or_else(|| super::DEFAULT_NAMESPACE.to_owned());
    let field = FieldPath::root().field("metadata").field("name");
    let span = locate(item, &field);
    let line = decoder.line(&span);
    let mut valid = checked.finish(draft);
    if let Some(first) = seen.get(&(namespace.clone(), name.clone())) {
        let field = item.at.path().join(&field);
        let problem = Problem::error(field.clone(), format!("a second router named {namespace}/{name}"));
        let problem = problem.help("give it another name or namespace").related(field, "first here");
        decoder.report(problem, &span, Some(first.clone()));
        valid = None;
    } else {
        seen.insert((namespace.clone(), name.clone()), span);
    }
    Some(LoadedRouter { namespace, name, line, valid })
}

/// What to underline for a field of an object; when it is absent, the nearest thing that holds it.
fn locate(item: &Item<'_>, path: &FieldPath) -> Span {
    let mut node = item.node;
    let mut mark = item.mark.clone();
    for step in path.steps() {
        let next = match (step, &node.value) {
            (Step::Field(name), Value::Map(entries)) => {
                entries.iter().find(|entry| entry.key == **name).map(|entry| (&entry.value, entry.mark()))
            }
            (Step::Index(index), Value::List(items)) => items.get(*index).map(|item| (item, item.head())),
            (_, _) => None,
        };
        let Some((inner, inner_mark)) = next else { break };
        node = Rc::as_ref(inner);
        mark = inner_mark;
    }
    mark
}
