//! JSON as kube-apiserver reads and writes it.
//!
//! The reader keeps what a plain JSON reader loses: keys that are given twice, the difference between 80 and 80.5, and
//! Go's words for what is wrong, which clients show to people. Invalid UTF-8 and lone surrogates become U+FFFD.

mod go;
mod read;
mod write;

pub(super) use go::{go_quoted, go_quoted_bytes};
pub(super) use read::decode;
use serde_json::Value;
pub(super) use write::{Layout, compact, encode};

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
