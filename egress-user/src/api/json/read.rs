//! The reader.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

use super::go::go_escaped;

/// Levels of nesting that are read. Kubernetes reads 10,000; nothing here has a use for more than a few.
const MAX_DEPTH: usize = 400;

/// A text that was read.
#[derive(Debug)]
pub(in crate::api) struct Decoded {
    /// The value; of a key that is given twice, the last.
    pub(in crate::api) value: Value,
    /// Paths of the fields that are given twice.
    pub(in crate::api) duplicates: Vec<String>,
    /// A number that no 64-bit float holds.
    pub(in crate::api) too_large: Option<String>,
}

/// Reads a whole text.
///
/// # Errors
/// Go's message.
pub(in crate::api) fn decode(text: &[u8]) -> Result<Decoded, String> {
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
