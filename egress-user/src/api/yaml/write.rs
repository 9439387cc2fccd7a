//! The writer.

use serde_json::Value;

use super::read::plain;

/// Writes a value as Go's YAML library does.
pub(in crate::api) fn encode(value: &Value) -> String {
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
