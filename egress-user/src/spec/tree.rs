//! YAML text as a tree in which every node knows its place.
//!
//! JSON is YAML, so this reads both. Nothing here knows what the fields mean. Bounded on purpose, so that no text can
//! exhaust the stack or the memory: depth by [`MAX_DEPTH`], and what aliases may add up to by [`MAX_NODES`].

use std::rc::Rc;

use super::scalar::Kind;
use super::source::Span;

/// Levels of nesting, whether written out or reached through aliases.
pub(super) const MAX_DEPTH: usize = 64;
/// Nodes of a document with every alias written out.
pub(super) const MAX_NODES: usize = 4_000_000;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    /// The bytes of the value; of an alias' target, where that is defined.
    pub(super) span: Span,
    pub(super) value: Value,
    /// Levels below this one, plus one.
    pub(super) depth: usize,
    /// Nodes in this one, aliases written out, itself included.
    pub(super) weight: usize,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar { text: String, kind: Kind },
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) value: Rc<Node>,
}

impl Node {
    pub(super) fn new(span: Span, value: Value) -> Self {
        let (depth, weight) = match &value {
            Value::Scalar { .. } => (0, 0),
            Value::List(items) => measure(items.iter()),
            Value::Map(entries) => measure(entries.iter().map(|entry| &entry.value)),
        };
        Self { span, value, depth: depth + 1, weight: weight.saturating_add(1) }
    }

    /// The entry `key` of a mapping.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            Value::List(_) | Value::Scalar { .. } => None,
        }
    }

    /// The text of the scalar that is the entry `key` of a mapping.
    pub(super) fn text_of(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.value.value {
            Value::Scalar { text, kind } if *kind != Kind::Null => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar { kind: Kind::Null, .. })
    }

    /// What to underline when the whole node is meant and it has no key: a scalar's text, a mapping's first key.
    pub(super) fn head(&self) -> Span {
        match &self.value {
            Value::Map(entries) => entries.first().map_or_else(|| self.span.clone(), |first| first.key_span.clone()),
            Value::List(items) => items.first().map_or_else(|| self.span.clone(), |first| first.head()),
            Value::Scalar { .. } => self.span.clone(),
        }
    }

    /// The value in a few words, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar { kind: Kind::Null, .. } => Kind::Null.describe().to_owned(),
            Value::Scalar { text, kind } => format!("{} {}", kind.describe(), shorten(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

impl Entry {
    /// What to underline when this field's value is meant: the value if it fits on a line, else the key.
    pub(super) fn mark(&self) -> Span {
        match &self.value.value {
            Value::Scalar { kind: Kind::Null, .. } | Value::List(_) | Value::Map(_) => self.key_span.clone(),
            Value::Scalar { .. } => self.value.span.clone(),
        }
    }
}

/// Deepest and summed size of some children.
fn measure<'a>(children: impl Iterator<Item = &'a Rc<Node>>) -> (usize, usize) {
    children.fold((0, 0), |(depth, weight), child| (depth.max(child.depth), weight.saturating_add(child.weight)))
}

/// A value quoted for a message, cut where it would flood it.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}
