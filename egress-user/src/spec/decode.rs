//! Typed reading of a tree, which collects every problem instead of stopping at the first.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::diagnostic::{Problem, Severity};
use super::path::At;
use super::scalar::Kind;
use super::sink::Sink;
use super::source::Span;
use super::tree::{Entry, Node, Value, shorten};

/// Stands for a value that could not be read; the reason is among the diagnostics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reported;

/// A value, or the promise that its absence was reported.
pub(super) type Read<T> = Result<T, Reported>;

/// A node in its place.
#[derive(Clone)]
pub(super) struct Item<'a> {
    pub(super) node: &'a Node,
    /// What to underline.
    pub(super) mark: Span,
    pub(super) at: At<'a>,
}

/// A mapping in its place.
pub(super) struct Fields<'a> {
    entries: &'a [Entry],
    mark: Span,
    at: At<'a>,
}

impl Fields<'_> {
    /// The entry `name`, unless it is absent or null: the API drops null fields before it looks at them.
    fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == name && !entry.value.is_null())
    }
}

/// Reads a tree.
pub(super) struct Decoder<'s> {
    sink: Sink<'s>,
    /// Whether errors count as warnings: in parts that are not the user's to write.
    pub(super) lenient: bool,
}

impl<'s> Decoder<'s> {
    pub(super) fn new(sink: Sink<'s>) -> Self {
        Self { sink, lenient: false }
    }

    pub(super) fn report(&mut self, problem: Problem, span: &Span, related: Option<Span>) {
        let severity = if self.lenient { Severity::Warning } else { problem.severity };
        self.sink.report(Problem { severity, ..problem }, span, related);
    }

    /// Number of errors so far.
    pub(super) fn errors(&self) -> usize {
        self.sink.errors()
    }

    /// What was reported.
    pub(super) fn finish(self) -> Sink<'s> {
        self.sink
    }

    /// Line of a place, from 1.
    pub(super) fn line(&self, span: &Span) -> usize {
        self.sink.source().position(span.start).0
    }

    /// Reports an error at an item.
    pub(super) fn refuse<T>(&mut self, item: &Item<'_>, message: String, help: impl Into<String>) -> Read<T> {
        self.report(Problem::error(item.at.path(), message).help(help), &item.mark, None);
        Err(Reported)
    }

    /// The fields of a mapping. Those that are not `known` have no effect, so they are warned about.
    pub(super) fn fields<'a>(&mut self, item: &Item<'a>, known: &[&str]) -> Read<Fields<'a>> {
        let Value::Map(entries) = &item.node.value else {
            let list = known.join(", ");
            return self.refuse(item, format!("expected a mapping, found {}", item.node.describe()), {
                format!("its fields are {list}")
            });
        };
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let at = At::Field(&item.at, &entry.key);
            let help = match similar(&entry.key, known) {
                Some(name) => format!("it has no effect; did you mean {name}?"),
                None => format!("it has no effect; the fields here are {}", known.join(", ")),
            };
            let problem = Problem::warning(at.path(), format!("unknown field {}", shorten(&entry.key)));
            self.report(problem.help(help), &entry.key_span, None);
        }
        Ok(Fields { entries, mark: item.mark.clone(), at: item.at })
    }

    /// Reads the field `name` if it is there.
    pub(super) fn optional<T>(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
        read: impl FnOnce(&mut Self, &Item<'_>) -> Read<T>,
    ) -> Read<Option<T>> {
        let Some(entry) = fields.get(name) else { return Ok(None) };
        let item = Item { node: &entry.value, mark: entry.mark(), at: At::Field(&fields.at, name) };
        read(self, &item).map(Some)
    }

    /// Reads the field `name`, which must be there; `how` says what to write.
    pub(super) fn required<T>(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
        how: &str,
        read: impl FnOnce(&mut Self, &Item<'_>) -> Read<T>,
    ) -> Read<T> {
        match self.optional(fields, name, read)? {
            Some(value) => Ok(value),
            None => {
                let problem = Problem::error(At::Field(&fields.at, name).path(), format!("{name} is missing"));
                self.report(problem.help(how), &fields.mark, None);
                Err(Reported)
            }
        }
    }

    /// Reads each element of a list.
    pub(super) fn list<T>(&mut self, item: &Item<'_>, mut read: impl FnMut(&mut Self, &Item<'_>) -> T) -> Read<Vec<T>> {
        let Value::List(items) = &item.node.value else {
            let message = format!("expected a list, found {}", item.node.describe());
            return self.refuse(item, message, "start each element with a dash");
        };
        let element = |(index, node)| Item { node, mark: Node::head(node), at: At::Index(&item.at, index) };
        let nodes = items.iter().map(|node| &**node);
        Ok(nodes.enumerate().map(element).map(|element| read(self, &element)).collect())
    }

    /// Reads each field of a mapping of free names to texts.
    pub(super) fn texts(&mut self, item: &Item<'_>) -> Read<Vec<(String, String)>> {
        let Value::Map(entries) = &item.node.value else {
            let message = format!("expected a mapping, found {}", item.node.describe());
            return self.refuse(item, message, "write name: \"value\"");
        };
        let mut texts = Vec::with_capacity(entries.len());
        for entry in entries {
            let value = Item { node: &entry.value, mark: entry.mark(), at: At::Field(&item.at, &entry.key) };
            texts.push(self.text(&value).map(|text| (entry.key.clone(), text)));
        }
        texts.into_iter().collect()
    }

    /// Reads text.
    pub(super) fn text(&mut self, item: &Item<'_>) -> Read<String> {
        match &item.node.value {
            Value::Scalar { text, kind: Kind::Text } => Ok(text.clone()),
            Value::Scalar { text, .. } if !item.node.is_null() => {
                let message = format!("expected text, found {}", item.node.describe());
                self.refuse(item, message, format!("put it in quotes: {text:?}"))
            }
            _ => self.refuse(item, format!("expected text, found {}", item.node.describe()), "write text"),
        }
    }

    /// Reads the name of one of some values.
    pub(super) fn one_of<T: Copy>(&mut self, item: &Item<'_>, names: &[(&'static str, T)]) -> Read<T> {
        let text = match &item.node.value {
            Value::Scalar { text, kind: Kind::Text } => text,
            _ => "",
        };
        if let Some((_, value)) = names.iter().find(|(name, _)| *name == text) {
            return Ok(*value);
        }
        let known: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        let help = match (similar(text, &known), &item.node.value) {
            (Some(name), _) => format!("did you mean {name}? Case matters"),
            (None, Value::Scalar { text, kind }) if *kind != Kind::Text && known.contains(&text.as_str()) => {
                format!("put it in quotes: {text:?}")
            }
            (None, _) => format!("write {}", any_of(&known)),
        };
        let message = match &item.node.value {
            Value::Scalar { text, kind: Kind::Text } => {
                format!("{} is not {}", shorten(text), any_of(&known))
            }
            _ => format!("expected {}, found {}", any_of(&known), item.node.describe()),
        };
        self.refuse(item, message, help)
    }

    /// Reads a port, 1 to 65535.
    pub(super) fn port(&mut self, item: &Item<'_>) -> Read<NonZeroU16> {
        const RANGE: &str = "ports are whole numbers from 1 to 65535";
        let (text, kind) = match &item.node.value {
            Value::Scalar { text, kind } => (text.as_str(), *kind),
            Value::List(_) | Value::Map(_) => ("", Kind::Null),
        };
        if kind == Kind::Text && text.parse::<u16>().is_ok() {
            return self.refuse(item, format!("the port is the text {text:?}, not a number"), {
                format!("remove the quotes: {text}")
            });
        }
        if kind != Kind::Integer {
            return self.refuse(item, format!("expected a port, found {}", item.node.describe()), RANGE);
        }
        let digits = text.strip_prefix('+').unwrap_or(text);
        if digits.len() > 1 && digits.starts_with('0') && digits.chars().all(|c| c.is_ascii_digit()) {
            let plain = digits.trim_start_matches('0');
            let message = format!("the port {text} starts with a zero, which some readers of YAML take for octal");
            return self.refuse(item, message, format!("write {plain}"));
        }
        match integer(text).and_then(|number| u16::try_from(number).ok()).and_then(NonZeroU16::new) {
            Some(port) => Ok(port),
            None => self.refuse(item, format!("{text} is not a port"), RANGE),
        }
    }

    /// Reads a whole number.
    pub(super) fn number(&mut self, item: &Item<'_>) -> Read<i64> {
        let number = match &item.node.value {
            Value::Scalar { text, kind: Kind::Integer } => integer(text),
            _ => None,
        };
        match number {
            Some(number) => Ok(number),
            None => {
                let message = format!("expected a whole number, found {}", item.node.describe());
                self.refuse(item, message, "write digits only")
            }
        }
    }

    /// Reads the address of one host.
    pub(super) fn host(&mut self, item: &Item<'_>) -> Read<IpAddr> {
        let text = match &item.node.value {
            Value::Scalar { text, .. } if !item.node.is_null() => text,
            _ => {
                let message = format!("expected an IP address, found {}", item.node.describe());
                return self.refuse(item, message, "write an IPv4 or IPv6 address");
            }
        };
        match text.parse() {
            Ok(address) => Ok(address),
            Err(_) => {
                let (what, help) = not_a_host(text);
                self.refuse(item, format!("{} {what}", shorten(text)), help)
            }
        }
    }
}

/// Names in a sentence: the one there is, or one of several.
fn any_of(names: &[&str]) -> String {
    match names {
        [name] => (*name).to_owned(),
        _ => format!("one of {}", names.join(", ")),
    }
}

fn integer(text: &str) -> Option<i64> {
    match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => i64::from_str_radix(digits, 16).ok(),
        (_, Some(digits)) => i64::from_str_radix(digits, 8).ok(),
        _ => text.parse().ok(),
    }
}

/// What is wrong with a text that should be the address of a host, and what to write.
pub(super) fn not_a_host(text: &str) -> (&'static str, String) {
    let is_host = |text: &str| text.parse::<IpAddr>().is_ok();
    if let Some((host, _)) = text.split_once('/').filter(|(host, _)| is_host(host)) {
        return ("has a mask, but one host is meant", format!("drop the mask: {host}"));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return ("has a port", format!("write {} and put the port in a field of its own", socket.ip()));
    }
    if let Some(host) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|it| is_host(it)) {
        return ("has brackets", format!("write {host}"));
    }
    if let Some((host, _)) = text.split_once('%').filter(|(host, _)| is_host(host)) {
        return ("has a zone", format!("write {host}"));
    }
    if is_host(text.trim()) {
        return ("has blanks around it", format!("write {}", text.trim()));
    }
    if text.split('.').count() == 4 && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        let help = "an IPv4 address is four numbers from 0 to 255, without leading zeros";
        return ("is not an IP address", help.to_owned());
    }
    if text.contains(char::is_alphabetic) && !text.contains(':') {
        return ("is not an IP address", "names are not resolved: write the host's IPv4 or IPv6 address".to_owned());
    }
    ("is not an IP address", "write an IPv4 or IPv6 address".to_owned())
}

/// The known name that a wrong one was probably meant to be: at most two typing errors away, case apart.
fn similar<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = name.to_lowercase();
    let distance = |candidate: &&&str| {
        let candidate = candidate.to_lowercase();
        // Letters in the wrong order are one error, not two.
        if sorted(&lower) == sorted(&candidate) { usize::from(lower != candidate) } else { edits(&lower, &candidate) }
    };
    let best = known.iter().min_by_key(distance)?;
    let limit = if name.chars().count() > 4 { 2 } else { 1 };
    (!name.is_empty() && distance(&best) <= limit).then_some(*best)
}

fn sorted(text: &str) -> Vec<char> {
    let mut letters: Vec<char> = text.chars().collect();
    letters.sort_unstable();
    letters
}

/// Levenshtein distance; a long text is far from everything.
fn edits(a: &str, b: &str) -> usize {
    const LONG: usize = 40;
    if a.len() > LONG {
        return a.len();
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let above = *cell;
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names() {
        let known = ["redirectRules", "fallbackIP", "ip"];
        assert_eq!(similar("fallbackIp", &known), Some("fallbackIP"));
        assert_eq!(similar("redirectRule", &known), Some("redirectRules"));
        assert_eq!(similar("pi", &known), Some("ip"), "letters swapped");
        assert_eq!(similar("xy", &known), None, "two errors in two letters");
        assert_eq!(similar("", &known), None);
        assert_eq!(similar("unrelated", &known), None);
    }

    #[test]
    fn edit_distance() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("same", "same", 0)]
        {
            assert_eq!(edits(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn numbers() {
        for (text, expected) in [("0x50", Some(80)), ("0o120", Some(80)), ("-1", Some(-1)), ("9e9", None)] {
            assert_eq!(integer(text), expected, "{text}");
        }
        assert_eq!(integer("99999999999999999999"), None);
    }
}
