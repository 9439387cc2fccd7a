//! Values that differ from run to run: the same placeholder stands for the same value within a scenario.

use std::collections::BTreeMap;

use serde_json::Value;

/// What placeholders stand for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings(BTreeMap<String, String>);

/// A part of a text of the record.
enum Part<'t> {
    Text(&'t str),
    Placeholder(&'t str),
}

const KINDS: [&str; 8] = ["uid", "rv", "continue", "name", "etag", "time", "address", "any"];

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut searched = 0;
    while let Some(at) = rest.get(searched..).and_then(|tail| tail.find('<')).map(|at| at + searched) {
        let placeholder = rest[at..].find('>').map(|end| &rest[at..=at + end]).filter(|found| {
            let kind = found.trim_matches(['<', '>']).split(':').next().unwrap_or_default();
            KINDS.contains(&kind)
        });
        match placeholder {
            Some(found) => {
                parts.push(Part::Text(&rest[..at]));
                parts.push(Part::Placeholder(found));
                rest = &rest[at + found.len()..];
                searched = 0;
            }
            None => searched = at + 1,
        }
    }
    parts.push(Part::Text(rest));
    parts
}

/// Whether a value can stand for a placeholder.
fn fits(placeholder: &str, value: &str) -> bool {
    let kind = placeholder.trim_matches(['<', '>']).split(':').next().unwrap_or_default();
    match kind {
        "uid" => value.len() == 36 && value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'),
        "rv" => !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()),
        "continue" => {
            !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        }
        "name" => value.len() == 5 && value.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "time" => value.len() == 20 && value.ends_with('Z') && value.as_bytes()[10] == b'T',
        _ => !value.is_empty(),
    }
}

/// Whether the value is the same wherever the placeholder is.
fn is_bound(placeholder: &str) -> bool {
    placeholder.contains(':')
}

impl Bindings {
    /// A text of a request, with values for placeholders.
    pub(crate) fn fill(&self, text: &str) -> String {
        let filled = parts(text).into_iter().map(|part| match part {
            Part::Text(text) => text.to_owned(),
            Part::Placeholder(name) => self.0.get(name).cloned().unwrap_or_else(|| name.to_owned()),
        });
        filled.collect()
    }

    /// Compares a text of the record with a real one, and learns from it.
    pub(crate) fn matches(&mut self, recorded: &str, real: &str) -> bool {
        let mut learnt = self.clone();
        let fits = learnt.walk(&parts(recorded), real);
        if fits {
            *self = learnt;
        }
        fits
    }

    fn walk(&mut self, parts: &[Part<'_>], real: &str) -> bool {
        match parts {
            [] => real.is_empty(),
            [Part::Text(text), rest @ ..] => real.strip_prefix(text).is_some_and(|tail| self.walk(rest, tail)),
            [Part::Placeholder(name), rest @ ..] => {
                if let Some(value) = self.0.get(*name).cloned() {
                    return real.strip_prefix(value.as_str()).is_some_and(|tail| self.walk(rest, tail));
                }
                // The longest value first: a number goes on to its end.
                let ends = (1..=real.len()).rev().filter(|end| real.is_char_boundary(*end));
                for end in ends {
                    let value = &real[..end];
                    if !fits(name, value) {
                        continue;
                    }
                    let mut learnt = self.clone();
                    if is_bound(name) {
                        learnt.0.insert((*name).to_owned(), value.to_owned());
                    }
                    if learnt.walk(rest, &real[end..]) {
                        *self = learnt;
                        return true;
                    }
                }
                false
            }
        }
    }

    /// Compares values; the path of the first difference.
    pub(crate) fn differ(&mut self, recorded: &Value, real: &Value, path: &str) -> Option<String> {
        match (recorded, real) {
            (Value::String(recorded), Value::String(real)) => {
                (!self.matches(recorded, real)).then(|| format!("{path}: {recorded:?} is {real:?}"))
            }
            (Value::Array(recorded), Value::Array(real)) => {
                if recorded.len() != real.len() {
                    return Some(format!("{path}: {} items are {}", recorded.len(), real.len()));
                }
                let mut items = recorded.iter().zip(real).enumerate();
                items.find_map(|(index, (recorded, real))| self.differ(recorded, real, &format!("{path}[{index}]")))
            }
            (Value::Object(recorded), Value::Object(real)) => {
                if let Some(extra) = real.keys().find(|key| !recorded.contains_key(*key)) {
                    return Some(format!("{path}.{extra}: not in the record: {}", real[extra]));
                }
                recorded.iter().find_map(|(key, value)| match real.get(key) {
                    None => Some(format!("{path}.{key}: missing, should be {value}")),
                    Some(real) => self.differ(value, real, &format!("{path}.{key}")),
                })
            }
            _ => (recorded != real).then(|| format!("{path}: {recorded} is {real}")),
        }
    }

    /// Versions whose numbers do not rise with them.
    pub(crate) fn unordered(&self) -> Option<String> {
        let mut versions: Vec<(u64, u64)> = self
            .0
            .iter()
            .filter_map(|(name, value)| {
                let number = name.strip_prefix("<rv:")?.strip_suffix('>')?.parse().ok()?;
                Some((number, value.parse().ok()?))
            })
            .collect();
        versions.sort_unstable();
        let fallen = versions.windows(2).find(|pair| pair[0].1 >= pair[1].1)?;
        Some(format!("<rv:{}> is {}, and <rv:{}> is {}", fallen[0].0, fallen[0].1, fallen[1].0, fallen[1].1))
    }
}
