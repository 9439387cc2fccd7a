//! YAML as kube-apiserver reads it (YAML 1.1 in JSON's types) and writes it (sorted, folded at 80 columns).

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Levels of nesting that are read.
const MAX_DEPTH: usize = 100;
/// Values of a document with every alias written out.
const MAX_VALUES: usize = 100_000;

/// A document that was read.
#[derive(Debug)]
pub(super) struct Decoded {
    /// The value; of a key that is given twice, the last.
    pub(super) value: Value,
    /// What is said of each key that is given twice: `line 3: key "x" already set in map`.
    pub(super) duplicates: Vec<String>,
}

/// Reads the first document of a text; no document is null.
///
/// # Errors
/// What is wrong, in the words of Go's parser where they are known.
pub(super) fn decode(text: &[u8]) -> Result<Decoded, String> {
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
fn plain(text: &str) -> Value {
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
        Some(float) => super::json::decode(float.to_string().as_bytes()).map_or(Value::Null, |read| read.value),
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

/// Writes a value as Go's YAML library does.
pub(super) fn encode(value: &Value) -> String {
    let mut writer = Writer { out: String::new(), column: 0 };
    writer.node(value, 0, false);
    if !writer.out.ends_with('\n') {
        writer.out.push('\n');
    }
    writer.out
}

/// Columns after which text is folded at the next blank.
const WIDTH: usize = 80;

struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn line(&mut self, indent: usize) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', indent));
        self.column = indent;
    }

    /// A value; `inline` after `key:` or `-`, where a mapping may begin on the same line only in a list.
    fn node(&mut self, value: &Value, indent: usize, inline: bool) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (index, (key, value)) in fields.iter().enumerate() {
                    if index > 0 || inline {
                        self.line(indent);
                    }
                    self.field(key, value, indent);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 || inline {
                        self.line(indent);
                    }
                    self.item(item, indent);
                }
            }
            Value::Object(_) => self.put("{}"),
            Value::Array(_) => self.put("[]"),
            Value::Null => self.put("null"),
            Value::Bool(value) => self.put(if *value { "true" } else { "false" }),
            Value::Number(number) => self.put(&number.to_string()),
            Value::String(text) => self.scalar(text, indent + 2, true),
        }
    }

    fn field(&mut self, key: &str, value: &Value, indent: usize) {
        self.scalar(key, indent, false);
        self.put(":");
        match value {
            Value::Object(fields) if !fields.is_empty() => self.node(value, indent + 2, true),
            // A list is not indented under its key.
            Value::Array(items) if !items.is_empty() => self.node(value, indent, true),
            _ => {
                self.put(" ");
                self.node(value, indent, false);
            }
        }
    }

    fn item(&mut self, item: &Value, indent: usize) {
        self.put("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => {
                for (index, (key, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        self.line(indent + 2);
                    }
                    self.field(key, value, indent + 2);
                }
            }
            _ => self.node(item, indent, false),
        }
    }

    fn scalar(&mut self, text: &str, indent: usize, fold: bool) {
        if text.contains('\n') && fold && is_printable(text) {
            self.literal(text, indent);
        } else if !is_printable(text) || text.contains('\n') || needs_double_quotes(text) {
            self.double_quoted(text, indent, fold);
        } else if is_plain(text) {
            self.folded(text, indent, fold, |text, c| text.push(c));
        } else {
            self.put("'");
            self.folded(text, indent, fold, |text, c| {
                text.push(c);
                if c == '\'' {
                    text.push(c);
                }
            });
            self.put("'");
        }
    }

    fn folded(&mut self, text: &str, indent: usize, fold: bool, write: fn(&mut String, char)) {
        let characters: Vec<char> = text.chars().collect();
        for (index, character) in characters.iter().copied().enumerate() {
            let blank = |index: usize| characters.get(index) == Some(&' ');
            let alone = character == ' ' && !blank(index + 1) && (index == 0 || !blank(index - 1));
            if fold && alone && self.column > WIDTH && index > 0 && index + 1 < characters.len() {
                self.line(indent);
            } else {
                let before = self.out.len();
                write(&mut self.out, character);
                self.column += self.out.get(before..).unwrap_or_default().chars().count();
            }
        }
    }

    fn double_quoted(&mut self, text: &str, indent: usize, fold: bool) {
        self.put("\"");
        let characters: Vec<char> = text.chars().collect();
        for (index, character) in characters.iter().copied().enumerate() {
            if character == ' ' && fold && self.column > WIDTH && index > 0 && index + 1 < characters.len() {
                self.line(indent);
                if characters.get(index + 1) == Some(&' ') {
                    self.put("\\");
                }
                continue;
            }
            let escaped = match character {
                '\0' => "\\0".to_owned(),
                '\u{7}' => "\\a".to_owned(),
                '\u{8}' => "\\b".to_owned(),
                '\t' => "\\t".to_owned(),
                '\n' => "\\n".to_owned(),
                '\u{b}' => "\\v".to_owned(),
                '\u{c}' => "\\f".to_owned(),
                '\r' => "\\r".to_owned(),
                '\u{1b}' => "\\e".to_owned(),
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\u{85}' => "\\N".to_owned(),
                '\u{a0}' => "\\_".to_owned(),
                '\u{2028}' => "\\L".to_owned(),
                '\u{2029}' => "\\P".to_owned(),
                other if is_printable(other.encode_utf8(&mut [0; 4])) => other.to_string(),
                other if (other as u32) < 0x100 => format!("\\x{:02X}", other as u32),
                other if (other as u32) < 0x1_0000 => format!("\\u{:04X}", other as u32),
                other => format!("\\U{:08X}", other as u32),
            };
            self.put(&escaped);
        }
        self.put("\"");
    }

    fn literal(&mut self, text: &str, indent: usize) {
        let body = text.strip_suffix('\n');
        let chomp = match body {
            None => "|-",
            Some(body) if body.ends_with('\n') || body.is_empty() => "|+",
            Some(_) => "|",
        };
        self.put(chomp);
        for line in body.unwrap_or(text).split('\n') {
            if line.is_empty() {
                self.out.push('\n');
                self.column = 0;
            } else {
                self.line(indent);
                self.put(line);
            }
        }
    }
}

fn is_printable(text: &str) -> bool {
    text.chars().all(|c| {
        matches!(c, '\n' | ' '..='~' | '\u{a1}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{1_0000}'..)
            && !matches!(c, '\u{2028}' | '\u{2029}')
    })
}

/// Text that a reader would take for something else than text.
fn needs_double_quotes(text: &str) -> bool {
    let time = |text: &str| {
        text.len() >= 10
            && text.get(..4).is_some_and(|year| year.bytes().all(|byte| byte.is_ascii_digit()))
            && text.as_bytes().get(4) == Some(&b'-')
            && text.bytes().all(|byte| byte.is_ascii_digit() || b"-:.TtZz+ ".contains(&byte))
    };
    let sexagesimal =
        |text: &str| text.contains(':') && text.bytes().all(|byte| byte.is_ascii_digit() || b":.+-_".contains(&byte));
    !matches!(plain(text), Value::String(_)) || time(text) || sexagesimal(text) || matches!(text, ".inf" | ".nan")
}

/// Whether text can stand without quotes.
fn is_plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else { return false };
    let mut characters = text.chars().skip(1);
    let bare_indicator = matches!(first, '-' | '?' | ':') && characters.next().is_none_or(|next| next == ' ');
    !bare_indicator
        && !matches!(
            first,
            ',' | '[' | ']' | '{' | '}' | '#' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`'
        )
        && !text.starts_with("---")
        && !text.starts_with("...")
        && !text.starts_with(' ')
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && text != "<<"
        && text != "="
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_the_first_document() {
        let read = decode(b"a: &x [1, yes, '1']\nb: *x\na: 2\n---\nc: 1\n").unwrap();
        assert_eq!(read.value, json!({"a": 2, "b": [1, true, "1"]}));
        assert_eq!(read.duplicates, ["line 3: key \"a\" already set in map"]);
        assert_eq!(decode(b"").unwrap().value, Value::Null);
        assert_eq!(decode(b"{\"a\": {\"b\": null}}").unwrap().value, json!({"a": {"b": null}}));
        let bomb = (0..40).fold("a0: &a0 [x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
            format!("{text}a{}: &a{} [*a{n},*a{n},*a{n},*a{n}]\n", n + 1, n + 1)
        });
        assert!(decode(bomb.as_bytes()).is_err());
    }

    #[test]
    fn writes_sorted_and_folded() {
        let value = json!({
            "b": {"list": [{"x": 1, "y": []}, "text"], ".": {}},
            "a": "2026-01-02T03:04:05Z", "n": "80", "t": "yes", "m": "it's: so", "l": "one\ntwo\n",
            "long": format!("{} end of it", "word ".repeat(18).trim()),
        });
        let expected = "a: \"2026-01-02T03:04:05Z\"\nb:\n  .: {}\n  list:\n  - x: 1\n    \"y\": []\n  - text\n\
            l: |\n  one\n  two\nlong: word word word word word word word word word word word word word word word word\n  \
            word word end of it\nm: 'it''s: so'\n\"n\": \"80\"\nt: \"yes\"\n";
        assert_eq!(encode(&value), expected);
        assert_eq!(decode(expected.as_bytes()).unwrap().value, value);
    }
}
