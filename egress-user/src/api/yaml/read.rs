//! The reader.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Levels of nesting that are read.
const MAX_DEPTH: usize = 100;
/// Values of a document with every alias written out.
const MAX_VALUES: usize = 100_000;

/// A document that was read.
#[derive(Debug)]
pub(in crate::api) struct Decoded {
    /// The value; of a key that is given twice, the last.
    pub(in crate::api) value: Value,
    /// What is said of each key that is given twice: `line 3: key "x" already set in map`.
    pub(in crate::api) duplicates: Vec<String>,
}

/// Reads the first document of a text; no document is null.
///
/// # Errors
/// What is wrong, in the words of Go's parser where they are known.
pub(in crate::api) fn decode(text: &[u8]) -> Result<Decoded, String> {
    let text = str::from_utf8(text).map_err(|_invalid| "yaml: invalid leading UTF-8 octet".to_owned())?;
    if text.starts_with('\t') {
        return Err("yaml: found character that cannot start any token".to_owned());
    }
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder =
        Builder { stack: Vec::new(), anchors: HashMap::new(), root: None, values: 0, duplicates: Vec::new() };
    let mut parser = Parser::new_from_str_with_options(text, options);
    loop {
        match parser.next_event() {
            None | Some(Ok((Event::StreamEnd | Event::DocumentEnd, _))) => break,
            Some(Ok((event, span))) => builder.take(event, span.start.line())?,
            Some(Err(error)) => return Err(in_gos_words(error.marker().line(), &error.info())),
        }
    }
    Ok(Decoded { value: builder.root.unwrap_or(Value::Null), duplicates: builder.duplicates })
}

/// libyaml says less than this parser: two of its sentences stand for most errors. Lines count from 0 there.
fn in_gos_words(line: usize, info: &str) -> String {
    let what = if info.contains("tab") || info.contains("cannot start") {
        "found character that cannot start any token"
    } else if info.contains("unclosed")
        || info.contains("flow")
        || info.contains("end of stream")
        || info.contains("EOF")
    {
        "did not find expected node content"
    } else {
        info
    };
    if line <= 1 && what.starts_with("found") { format!("yaml: {what}") } else { format!("yaml: line {line}: {what}") }
}

struct Open {
    anchor: usize,
    line: usize,
    items: Items,
}

enum Items {
    List(Vec<Value>),
    Map { fields: Map<String, Value>, key: Option<String> },
}

struct Builder {
    stack: Vec<Open>,
    anchors: HashMap<usize, Value>,
    root: Option<Value>,
    values: usize,
    duplicates: Vec<String>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = if style == ScalarStyle::Plain { plain(&text) } else { Value::String(text.into_owned()) };
                self.deliver(anchor, value, line)
            }
            Event::SequenceStart(_, anchor, _) => self.open(anchor, line, Items::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => self.open(anchor, line, Items::Map { fields: Map::new(), key: None }),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.stack.pop() else { return Ok(()) };
                let value = match open.items {
                    Items::List(items) => Value::Array(items),
                    Items::Map { fields, .. } => Value::Object(fields),
                };
                self.deliver(open.anchor, value, open.line)
            }
            Event::Alias(id) => {
                let value = self.anchors.get(&id).cloned().ok_or("yaml: anchor value contains itself")?;
                self.values = self.values.saturating_add(weight(&value));
                self.deliver(0, value, line)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, anchor: usize, line: usize, items: Items) -> Result<(), String> {
        self.stack.push(Open { anchor, line, items });
        if self.stack.len() > MAX_DEPTH { Err("yaml: exceeded max depth".to_owned()) } else { Ok(()) }
    }

    fn deliver(&mut self, anchor: usize, value: Value, line: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err("yaml: document contains excessive aliasing".to_owned());
        }
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.stack.last_mut().map(|open| &mut open.items) {
            None => self.root = Some(value),
            Some(Items::List(items)) => items.push(value),
            Some(Items::Map { fields, key }) => match key.take() {
                None => *key = Some(key_text(value)?),
                Some(name) => {
                    if fields.insert(name.clone(), value).is_some() {
                        self.duplicates.push(format!("line {line}: key {name:?} already set in map"));
                    }
                }
            },
        }
        Ok(())
    }
}

fn weight(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(weight).sum::<usize>(),
        _ => 1,
    }
}

/// JSON has only text for keys.
fn key_text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Ok("null".to_owned()),
        Value::Array(_) | Value::Object(_) => Err("yaml: invalid map key".to_owned()),
    }
}

/// The value of a scalar without quotes, by YAML 1.1 as far as Go goes along.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        return Value::String(text.to_owned());
    }
    let digits = text.replace('_', "");
    if let Some(integer) = integer(&digits) {
        return integer.into();
    }
    let numeric = digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'));
    match digits.parse::<f64>().ok().filter(|_| numeric).and_then(serde_json::Number::from_f64) {
        Some(float) => crate::api::json::decode(float.to_string().as_bytes()).map_or(Value::Null, |read| read.value),
        None => Value::String(text.to_owned()),
    }
}

fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = match digits.get(..2) {
        Some("0x") => i64::from_str_radix(digits.get(2..)?, 16).ok()?,
        Some("0b") => i64::from_str_radix(digits.get(2..)?, 2).ok()?,
        Some("0o") => i64::from_str_radix(digits.get(2..)?, 8).ok()?,
        _ if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(digits.get(1..)?, 8).ok()?,
        _ if digits.starts_with(|first: char| first.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    Some(sign * magnitude)
}
