//! JSON as kube-apiserver reads and writes it.
//!
//! The reader keeps what a plain JSON reader loses: keys that are given twice, the difference between 80 and 80.5, and
//! Go's words for what is wrong, which clients show to people. Invalid UTF-8 and lone surrogates become U+FFFD.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// Levels of nesting that are read. Kubernetes reads 10,000; nothing here has a use for more than a few.
const MAX_DEPTH: usize = 400;

/// A text that was read.
#[derive(Debug)]
pub(super) struct Decoded {
    /// The value; of a key that is given twice, the last.
    pub(super) value: Value,
    /// Paths of the fields that are given twice.
    pub(super) duplicates: Vec<String>,
    /// A number that no 64-bit float holds.
    pub(super) too_large: Option<String>,
}

/// Reads a whole text.
///
/// # Errors
/// Go's message.
pub(super) fn decode(text: &[u8]) -> Result<Decoded, String> {
    let mut reader = Reader { text, at: 0, path: Vec::new(), duplicates: Vec::new(), too_large: None };
    reader.space();
    let value = reader.value(0)?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.unexpected("after top-level value"));
    }
    Ok(Decoded { value, duplicates: reader.duplicates, too_large: reader.too_large })
}

/// One step of the way to a value.
enum Step {
    Field(String),
    Index(usize),
}

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
    path: Vec<Step>,
    duplicates: Vec<String>,
    too_large: Option<String>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn unexpected(&self, place: &str) -> String {
        match first_character(self.rest()) {
            None => "unexpected end of JSON input".to_owned(),
            Some(shown) => format!("invalid character '{shown}' {place}"),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err("exceeded max depth".to_owned());
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, String> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                let place = format!("in literal {word} (expecting '{}')", char::from(expected));
                return Err(self.unexpected(&place));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        let mut fields = Map::new();
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(fields));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("looking for beginning of object key string"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.unexpected("after object key"));
            }
            self.at += 1;
            self.space();
            self.path.push(Step::Field(key.clone()));
            if fields.contains_key(&key) {
                let path = self.shown_path();
                if !self.duplicates.contains(&path) {
                    self.duplicates.push(path);
                }
            }
            let value = self.value(depth + 1)?;
            self.path.pop();
            fields.insert(key, value);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(fields));
                }
                _ => return Err(self.unexpected("after object key:value pair")),
            }
            self.space();
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            self.path.push(Step::Index(items.len()));
            let value = self.value(depth + 1)?;
            self.path.pop();
            items.push(value);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.unexpected("after array element")),
            }
            self.space();
        }
    }

    fn shown_path(&self) -> String {
        let mut shown = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) if shown.is_empty() => shown.push_str(name),
                Step::Field(name) => shown.extend([".", name]),
                Step::Index(index) => {
                    let _infallible = write!(shown, "[{index}]");
                }
            }
        }
        shown
    }

    fn digits(&mut self, place: &str) -> Result<(), String> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.unexpected(place));
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        let text = str::from_utf8(text).unwrap_or_default();
        let number = number(text);
        if number.is_none() && self.too_large.is_none() {
            self.too_large = Some(text.to_owned());
        }
        Ok(number.map_or(Value::Null, Value::Number))
    }

    fn string(&mut self) -> Result<String, String> {
        let mut text = Vec::new();
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err(self.unexpected("")),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(String::from_utf8(text).unwrap_or_else(|invalid| replaced(invalid.as_bytes())));
                }
                Some(b'\\') => {
                    self.at += 1;
                    let character = self.escape()?;
                    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(0..=0x1f) => return Err(self.unexpected("in string literal")),
                Some(byte) => {
                    text.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let character = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return Err(self.unexpected("in string escape code")),
        };
        self.at += 1;
        Ok(character)
    }

    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hexadecimal()?;
        if (0xd800..0xdc00).contains(&first) && self.rest().starts_with(b"\\u") {
            let before = self.at;
            self.at += 2;
            let second = self.hexadecimal()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = before;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hexadecimal(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let digit = digit.ok_or_else(|| self.unexpected("in \\u hexadecimal character escape"))?;
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

/// A number as Go's unstructured reader keeps it: an integer where one is written, and where a fraction is whole.
fn number(text: &str) -> Option<Number> {
    if !text.contains(['.', 'e', 'E'])
        && let Ok(integer) = text.parse::<i64>()
    {
        return Some(integer.into());
    }
    let float: f64 = text.parse().ok()?;
    if float.fract() == 0.0 && float.abs() < 9e15 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and small enough to be exact")]
        let integer = float as i64;
        return Some(integer.into());
    }
    Number::from_f64(float)
}

/// Text with U+FFFD for every byte that is not UTF-8, as Go does it (one for each byte).
fn replaced(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// The first character, as Go's `quoteChar` shows it.
fn first_character(bytes: &[u8]) -> Option<String> {
    let chunk = bytes.get(..bytes.len().min(4))?.utf8_chunks().next()?;
    Some(match (chunk.valid().chars().next(), chunk.invalid().first()) {
        (Some('\''), _) => "\\'".to_owned(),
        (Some('"'), _) => "\"".to_owned(),
        (Some(character), _) => go_escaped(character),
        (None, Some(byte)) => format!("\\x{byte:02x}"),
        (None, None) => return None,
    })
}

/// A character as it stands inside Go's `%q`.
fn go_escaped(character: char) -> String {
    match character {
        '\u{7}' => "\\a".to_owned(),
        '\u{8}' => "\\b".to_owned(),
        '\u{c}' => "\\f".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        '\u{b}' => "\\v".to_owned(),
        '\\' => "\\\\".to_owned(),
        character if (character as u32) < 0x20 || character == '\u{7f}' => format!("\\x{:02x}", character as u32),
        '\u{80}'..='\u{a0}' | '\u{ad}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{200b}'..='\u{200f}' => {
            format!("\\u{:04x}", character as u32)
        }
        character => character.to_string(),
    }
}

/// Text as Go's `%q` prints it.
pub(super) fn go_quoted(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '"' => "\\\"".to_owned(),
        other => go_escaped(other),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// Bytes as Go's `%q` prints them: what is not UTF-8 byte by byte.
pub(super) fn go_quoted_bytes(bytes: &[u8]) -> String {
    let mut shown = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        shown.push_str(go_quoted(chunk.valid()).trim_start_matches('"').strip_suffix('"').unwrap_or_default());
        for byte in chunk.invalid() {
            let _infallible = write!(shown, "\\x{byte:02x}");
        }
    }
    shown.push('"');
    shown
}

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One line, ended by a newline.
    Line,
    /// Indented by two, with nothing at the end.
    Indented,
}

/// The order of a `Status`, which people read.
const STATUS_ORDER: [&str; 8] = ["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];

/// Writes a value as Go does: `<`, `>` and `&` escaped.
pub(super) fn encode(value: &Value, layout: Layout) -> Vec<u8> {
    let mut out = Vec::new();
    let indent = (layout == Layout::Indented).then_some(0);
    match value {
        Value::Object(fields) if fields.get("kind").is_some_and(|kind| kind == "Status") => {
            let mut fields: Vec<(Option<&String>, &Value)> =
                fields.iter().map(|(key, value)| (Some(key), value)).collect();
            let place = |key: Option<&String>| STATUS_ORDER.iter().position(|name| key.is_some_and(|key| key == name));
            fields.sort_by_key(|(key, _)| place(*key).unwrap_or(STATUS_ORDER.len()));
            write_collection(b'{', b'}', fields.into_iter(), indent, &mut out);
        }
        other => write_value(other, indent, &mut out),
    }
    if layout == Layout::Line {
        out.push(b'\n');
    }
    out
}

/// A value on one line, with nothing at the end.
pub(super) fn compact(value: &Value) -> String {
    let mut out = Vec::new();
    write_value(value, None, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

fn write_value(value: &Value, indent: Option<usize>, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            let items = items.iter().map(|item| (None, item));
            write_collection(b'[', b']', items, indent, out);
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (Some(key), value));
            write_collection(b'{', b'}', fields, indent, out);
        }
    }
}

fn write_collection<'v>(
    open: u8,
    close: u8,
    items: impl Iterator<Item = (Option<&'v String>, &'v Value)>,
    indent: Option<usize>,
    out: &mut Vec<u8>,
) {
    let deeper = indent.map(|indent| indent + 2);
    let mut empty = true;
    out.push(open);
    for (key, value) in items {
        if !empty {
            out.push(b',');
        }
        empty = false;
        new_line(deeper, out);
        if let Some(key) = key {
            write_string(key, out);
            out.extend_from_slice(if deeper.is_some() { b": " } else { b":" });
        }
        write_value(value, deeper, out);
    }
    if !empty {
        new_line(indent, out);
    }
    out.push(close);
}

fn new_line(indent: Option<usize>, out: &mut Vec<u8>) {
    if let Some(indent) = indent {
        out.push(b'\n');
        out.resize(out.len() + indent, b' ');
    }
}

/// Writes a string in quotes.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.extend_from_slice(format!("\\u{:04x}", character as u32).as_bytes());
            }
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

/// What kind of value it is, in JSON's words as Go's decoder uses them.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_gos() {
        let cases = [
            ("", "unexpected end of JSON input"),
            ("not", "invalid character 'o' in literal null (expecting 'u')"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{\"a\":0080}", "invalid character '0' after object key:value pair"),
            ("\u{feff}{}", "invalid character '\\ufeff' looking for beginning of value"),
            ("[1 2]", "invalid character '2' after array element"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
        ];
        for (text, message) in cases {
            assert_eq!(decode(text.as_bytes()).unwrap_err(), message, "{text}");
        }
        assert_eq!(decode(b"\x81").unwrap_err(), "invalid character '\\x81' looking for beginning of value");
        assert_eq!(decode("[".repeat(100_000).as_bytes()).unwrap_err(), "exceeded max depth");
    }

    #[test]
    fn keeps_what_others_lose() {
        let decoded = decode(br#"{"a":{"b":1,"b":2},"c":[{"d":0,"d":0}]}"#).unwrap();
        assert_eq!(decoded.duplicates, ["a.b", "c[0].d"]);
        assert_eq!(decode(b"9223372036854775807").unwrap().value.as_i64(), Some(i64::MAX));
        assert_eq!(decode(b"8.0e1").unwrap().value.as_i64(), Some(80));
        assert_eq!(decode(b"1e400").unwrap().too_large.as_deref(), Some("1e400"));
        assert_eq!(decode(b"\"\xff\xfe\\ud800\"").unwrap().value, "\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn writes_as_go() {
        let value = decode(br#"{"a":"<&>","b":[],"c":{"d":1.5}}"#).unwrap().value;
        assert_eq!(compact(&value), r#"{"a":"\u003c\u0026\u003e","b":[],"c":{"d":1.5}}"#);
        let indented = String::from_utf8(encode(&value, Layout::Indented)).unwrap();
        assert!(indented.ends_with("  \"c\": {\n    \"d\": 1.5\n  }\n}"), "{indented}");
    }
}
