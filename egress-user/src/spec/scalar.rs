//! Which type a YAML scalar has: the core schema of YAML 1.2, section 10.3.2.

use granit_parser::{ScalarStyle, Tag};

/// Type of a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    /// Decimal, octal (`0o`) or hexadecimal (`0x`), of any size.
    Integer,
    Float,
    Text,
}

impl Kind {
    /// With its article, for messages.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool => "the boolean",
            Self::Integer => "the number",
            Self::Float => "the fraction",
            Self::Text => "the text",
        }
    }
}

/// The type of a scalar, or the tag that is not understood.
pub(super) fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Kind, String> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain { plain(text) } else { Kind::Text });
    };
    match tag.core_suffix() {
        Some("str") => Ok(Kind::Text),
        // A tag that contradicts its text leaves the text's own type, so that the field's reader can show it.
        Some("int" | "float" | "bool" | "null") => Ok(plain(text)),
        _ if tag.handle().is_empty() && tag.suffix() == "!" => Ok(Kind::Text),
        _ => Err(tag.original()),
    }
}

fn plain(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Kind::Bool,
        ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | ".nan" | ".NaN" | ".NAN" => Kind::Float,
        _ if is_integer(text) => Kind::Integer,
        _ if is_float(text) => Kind::Float,
        _ => Kind::Text,
    }
}

fn is_integer(text: &str) -> bool {
    let all = |digits: &str, of: fn(&char) -> bool| !digits.is_empty() && digits.chars().all(|c| of(&c));
    match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => all(digits, char::is_ascii_hexdigit),
        (_, Some(digits)) => all(digits, |c| ('0'..='7').contains(c)),
        _ => all(text.strip_prefix(['-', '+']).unwrap_or(text), char::is_ascii_digit),
    }
}

fn is_float(text: &str) -> bool {
    let numeric = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'));
    numeric && text.contains(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_schema() {
        let cases = [
            (Kind::Null, &["", "~", "null", "NULL"][..]),
            (Kind::Bool, &["true", "FALSE"]),
            (Kind::Integer, &["0", "80", "-1", "+7", "0080", "0x50", "0o17", "99999999999999999999999"]),
            (Kind::Float, &["80.0", "1e3", ".5", "-1.", ".inf", ".NaN"]),
            (Kind::Text, &["10.0.0.1", "yes", "on", "0x", "0o8", "1_000", "e", ".", "-", "fd00::1", "inf", "nan", "+"]),
        ];
        for (kind, texts) in cases {
            for text in texts {
                assert_eq!(resolve(text, ScalarStyle::Plain, None), Ok(kind), "{text:?}");
            }
        }
        assert_eq!(resolve("80", ScalarStyle::DoubleQuoted, None), Ok(Kind::Text));
    }
}
