//! Text as Go's messages quote it.

use std::fmt::Write as _;

/// A character as it stands inside Go's `%q`.
pub(super) fn go_escaped(character: char) -> String {
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
pub(in crate::api) fn go_quoted(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '"' => "\\\"".to_owned(),
        other => go_escaped(other),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// Bytes as Go's `%q` prints them: what is not UTF-8 byte by byte.
pub(in crate::api) fn go_quoted_bytes(bytes: &[u8]) -> String {
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
