//! Builds the [tree](super::tree) of each document from the parser's events.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::diagnostic::Problem;
use super::path::FieldPath;
use super::scalar::{self, Kind};
use super::sink::Sink;
use super::source::{Source, Span};
use super::tree::{Entry, MAX_DEPTH, MAX_NODES, Node, Value};

/// What a text holds.
#[derive(Debug)]
pub(super) struct Parsed<'s> {
    /// The documents that could be read to their end, in order; empty ones are left out.
    pub(super) documents: Vec<Document>,
    /// What is wrong with the text itself.
    pub(super) sink: Sink<'s>,
}

/// One document.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Rc<Node>,
    /// Whether the text had no error up to here that concerns this document.
    pub(super) sound: bool,
}

/// Reads every document, going on after a broken one.
pub(super) fn parse(source: &Arc<Source>) -> Parsed<'_> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut parser = Parser::new_from_str_with_options(source.text(), options);
    let mut builder = Builder::new(source);
    loop {
        match parser.next_event() {
            None | Some(Ok((Event::StreamEnd, _))) => break,
            Some(Ok((event, span))) => builder.take(event, &bytes(source, &span)),
            Some(Err(error)) => {
                builder.broken(&error);
                // Is there another document after the broken one?
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
        }
    }
    builder.parsed
}

fn offset(source: &Source, marker: &Marker) -> usize {
    marker.byte_offset().unwrap_or(source.text().len())
}

fn bytes(source: &Source, span: &granit_parser::Span) -> Span {
    let start = offset(source, &span.start);
    start..offset(source, &span.end).max(start)
}

/// A collection that is not closed yet.
struct Open {
    anchor: usize,
    start: usize,
    items: Items,
}

enum Items {
    List(Vec<Rc<Node>>),
    Map {
        entries: Vec<Entry>,
        /// Place of each name among the entries.
        index: HashMap<String, usize>,
        /// The entries of [`MERGE`] keys.
        merges: Vec<Entry>,
        key: Slot,
    },
}

/// What a mapping waits for.
enum Slot {
    Key,
    Value {
        key: String,
        span: Span,
        plain: bool,
    },
    /// The value of a key that was refused: to be dropped.
    Refused,
}

/// Why a node has no place.
enum Refusal {
    /// A collection as the name of a field.
    Name,
    /// A field that is there already.
    Duplicate { key: String, span: Span, first: Span },
}

impl Items {
    fn place(&mut self, node: &Rc<Node>, plain: bool) -> Option<Refusal> {
        let (entries, index, merges, slot) = match self {
            Self::List(items) => {
                items.push(Rc::clone(node));
                return None;
            }
            Self::Map { entries, index, merges, key } => (entries, index, merges, key),
        };
        match std::mem::replace(slot, Slot::Key) {
            Slot::Refused => None,
            Slot::Key => match &node.value {
                Value::Scalar { text, .. } => {
                    *slot = Slot::Value { key: text.clone(), span: node.span.clone(), plain };
                    None
                }
                Value::List(_) | Value::Map(_) => {
                    *slot = Slot::Refused;
                    Some(Refusal::Name)
                }
            },
            Slot::Value { key, span, plain } => {
                // In quotes, it is a name like any other.
                if plain && key == MERGE {
                    merges.push(Entry { key, key_span: span, value: Rc::clone(node) });
                    return None;
                }
                if let Some(first) = index.get(&key).and_then(|first| entries.get(*first)) {
                    return Some(Refusal::Duplicate { first: first.key_span.clone(), key, span });
                }
                index.insert(key.clone(), entries.len());
                entries.push(Entry { key, key_span: span, value: Rc::clone(node) });
                None
            }
        }
    }
}

struct Builder<'s> {
    source: &'s Arc<Source>,
    stack: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    sound: bool,
    /// Fields that merge keys brought in so far, in this document.
    merged: usize,
    parsed: Parsed<'s>,
}

impl<'s> Builder<'s> {
    fn new(source: &'s Arc<Source>) -> Self {
        Self {
            source,
            stack: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            sound: true,
            merged: 0,
            parsed: Parsed { documents: Vec::new(), sink: Sink::new(source) },
        }
    }

    fn take(&mut self, event: Event<'_>, span: &Span) {
        match event {
            Event::DocumentStart(..) => self.reset(),
            Event::DocumentEnd => self.finish(),
            Event::Scalar(text, style, anchor, tag) => {
                self.scalar(text.into_owned(), style, tag.as_deref(), anchor, span);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", span);
                self.open(anchor, span.start, Items::List(Vec::new()));
            }
            Event::MappingStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", span);
                let items =
                    Items::Map { entries: Vec::new(), index: HashMap::new(), merges: Vec::new(), key: Slot::Key };
                self.open(anchor, span.start, items);
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(id) => self.alias(id, span),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.stack.clear();
        self.anchors.clear();
        self.root = None;
        self.sound = true;
        self.merged = 0;
    }

    fn finish(&mut self) {
        let Some(root) = self.root.take().filter(|root| !root.is_null()) else { return };
        self.parsed.documents.push(Document { root, sound: self.sound });
    }

    fn broken(&mut self, error: &ScanError) {
        let start = offset(self.source, error.marker());
        let problem = match error.kind() {
            ErrorKind::RecursionLimitExceeded => self.too_deep(),
            _ => Problem::error(FieldPath::root(), format!("this is not YAML: {}", error.info())),
        };
        self.report(problem, &(start..start));
        self.reset();
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, tag: Option<&Tag>, anchor: usize, span: &Span) {
        let kind = match scalar::resolve(&text, style, tag) {
            Ok(kind) => kind,
            Err(tag) => {
                self.unknown_tag(&tag, span);
                Kind::Text
            }
        };
        let node = Rc::new(Node::new(span.clone(), Value::Scalar { text, kind }));
        self.deliver(anchor, node, style == ScalarStyle::Plain);
    }

    fn collection_tag(&mut self, tag: Option<&Tag>, expected: &str, span: &Span) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema_tag(expected)) {
            self.unknown_tag(&tag.original(), span);
        }
    }

    fn unknown_tag(&mut self, tag: &str, span: &Span) {
        let problem = Problem::error(self.path(), format!("the tag {tag} has no meaning here")).help("remove it");
        self.report(problem, span);
    }

    fn open(&mut self, anchor: usize, start: usize, items: Items) {
        self.stack.push(Open { anchor, start, items });
    }

    fn close(&mut self, span: &Span) {
        let Some(open) = self.stack.pop() else { return };
        let value = match open.items {
            Items::List(items) => Value::List(items),
            Items::Map { entries, merges, .. } => Value::Map(self.merge(entries, merges)),
        };
        // A block collection ends where the next thing begins; its last child says where its own text ends.
        let end = if span.is_empty() {
            match &value {
                Value::List(items) => items.last().map(|item| item.span.end),
                Value::Map(entries) => entries.last().map(|entry| entry.value.span.end.max(entry.key_span.end)),
                Value::Scalar { .. } => None,
            }
        } else {
            Some(span.end)
        };
        let end = end.unwrap_or(open.start).max(open.start);
        let node = Rc::new(Node::new(open.start..end, value));
        self.deliver(open.anchor, node, false);
    }

    fn alias(&mut self, id: usize, span: &Span) {
        match self.anchors.get(&id) {
            Some(node) => self.deliver(0, Rc::clone(node), false),
            None => {
                let problem = Problem::error(self.path(), "an alias within the value that it stands for");
                self.report(problem.help("write the value out"), span);
                let value = Value::Scalar { text: String::new(), kind: Kind::Null };
                self.deliver(0, Rc::new(Node::new(span.clone(), value)), false);
            }
        }
    }

    /// Puts a finished node where it belongs.
    fn deliver(&mut self, anchor: usize, node: Rc<Node>, plain: bool) {
        let node = self.within_limits(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        let refusal = match self.stack.last_mut() {
            None => {
                self.root = Some(node);
                return;
            }
            Some(open) => open.items.place(&node, plain),
        };
        match refusal {
            None => {}
            Some(Refusal::Name) => {
                let problem = Problem::error(self.path(), format!("{} as a field's name", node.describe()));
                self.report(problem.help("a name is plain text"), &node.span);
            }
            Some(Refusal::Duplicate { key, span, first }) => self.duplicate(key, &span, first),
        }
    }

    /// The node, or nothing in its place, with a report, when aliases make it too deep or too large.
    fn within_limits(&mut self, node: Rc<Node>) -> Rc<Node> {
        let problem = if node.depth > MAX_DEPTH {
            self.too_deep()
        } else if node.weight > MAX_NODES {
            let message = format!("more than {MAX_NODES} values, with every alias written out");
            Problem::error(self.path(), message).help("split the file")
        } else {
            return node;
        };
        self.report(problem, &node.span);
        Rc::new(Node::new(node.span.clone(), Value::Scalar { text: String::new(), kind: Kind::Null }))
    }

    fn too_deep(&self) -> Problem {
        let message = format!("nested more than {MAX_DEPTH} levels deep");
        Problem::error(self.path(), message).help(format!("an {} needs 6 levels", super::KIND))
    }

    fn duplicate(&mut self, key: String, span: &Span, first: Span) {
        let path = self.path().field(key.clone());
        let problem = Problem::error(path.clone(), format!("the field {key:?} is given twice"))
            .help("keep one of the two")
            .related(path, "first here");
        self.sound = false;
        self.parsed.sink.report(problem, span, Some(first));
    }

    /// Adds the fields that a merge key (`<<: *defaults`, YAML 1.1) brings in; a mapping's own fields win.
    fn merge(&mut self, mut own: Vec<Entry>, merges: Vec<Entry>) -> Vec<Entry> {
        if merges.is_empty() {
            return own;
        }
        let mut names: HashSet<String> = own.iter().map(|entry| entry.key.clone()).collect();
        for merge in merges {
            let parts = match &merge.value.value {
                Value::List(parts) => parts.as_slice(),
                Value::Map(_) | Value::Scalar { .. } => std::slice::from_ref(&merge.value),
            };
            for part in parts {
                match self.merge_fields(part) {
                    Ok(fields) => own.extend(fields.iter().filter(|field| names.insert(field.key.clone())).cloned()),
                    Err(problem) => self.report(problem, &merge.key_span),
                }
            }
        }
        own
    }

    /// The fields that a merge key brings in, or why it cannot.
    fn merge_fields<'n>(&mut self, part: &'n Node) -> Result<&'n [Entry], Problem> {
        let field = self.path().field(MERGE);
        let Value::Map(fields) = &part.value else {
            return Err(Problem::error(field, format!("a merge key (<<) takes a mapping, not {}", part.describe())));
        };
        // Merged fields are copies, and a merged mapping can be merged again: the text does not bound their number.
        self.merged = self.merged.saturating_add(fields.len());
        if self.merged > MAX_MERGED {
            let message = format!("merge keys bring in more than {MAX_MERGED} fields");
            return Err(Problem::error(field, message).help("write the fields out"));
        }
        Ok(fields)
    }

    /// Path of the value that comes next.
    fn path(&self) -> FieldPath {
        self.stack.iter().fold(FieldPath::root(), |path, open| match &open.items {
            Items::List(items) => path.index(items.len()),
            Items::Map { key: Slot::Value { key, .. }, .. } => path.field(key.clone()),
            Items::Map { .. } => path,
        })
    }

    fn report(&mut self, problem: Problem, span: &Span) {
        self.sound = false;
        self.parsed.sink.report(problem, span, None);
    }
}

/// Fields that the merge keys of one document may bring in.
const MAX_MERGED: usize = 100_000;
/// Name of the field that stands for another mapping's fields.
const MERGE: &str = "<<";
