//! The writer.

use serde_json::Value;

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Layout {
    /// One line, ended by a newline.
    Line,
    /// Indented by two, with nothing at the end.
    Indented,
}

/// The order of a `Status`, which people read.
const STATUS_ORDER: [&str; 8] = ["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];

/// Writes a value as Go does: `<`, `>` and `&` escaped.
pub(in crate::api) fn encode(value: &Value, layout: Layout) -> Vec<u8> {
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
pub(in crate::api) fn compact(value: &Value) -> String {
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
pub(in crate::api) fn write_string(text: &str, out: &mut Vec<u8>) {
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
